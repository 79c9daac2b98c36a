"""The console script ``study``: one module per kind of command.

``study train`` is a Hydra application and gets its arguments unchanged; the others are ordinary
commands. ``study --help`` must be instant, so every command imports what it needs inside its
function.
"""

from study.cli import completion, dashboard, exchange, integrity, rates, tables, training, transfer
from study.cli.entry import main
from study.cli.group import cli

__all__ = [
    "cli",
    "completion",
    "dashboard",
    "exchange",
    "integrity",
    "main",
    "rates",
    "tables",
    "training",
    "transfer",
]
