"""The console script ``study``: one module per kind of command.

``study train`` is a Hydra application and gets its arguments unchanged; the others are ordinary
commands.
"""

from study.cli.entry import main
from study.cli.group import cli

__all__ = ["cli", "main"]
