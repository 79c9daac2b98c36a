"""The command ``study bench``: its suites and the benchmarks beside them."""

from collections.abc import Sequence
from importlib import import_module

OTHERS = {
    "inference": (".inference.command", "inference"),
    "checkpoint": (".checkpoints", "checkpoint"),
    "scale": (".scale.command", "scale"),
    "sharded": (".sharded", "sharded"),
}
"""The module and the name of each command that is not a suite."""


def main(arguments: Sequence[str]) -> None:
    """Run ``study bench`` with ``arguments``."""
    if arguments and arguments[0] in OTHERS:
        module, name = OTHERS[arguments[0]]
        command = getattr(import_module(module, __package__), name)
        command.main(arguments[1:], f"study bench {arguments[0]}", standalone_mode=False)
        return
    from .training.command import suites

    suites.main(arguments, "study bench", standalone_mode=False)
