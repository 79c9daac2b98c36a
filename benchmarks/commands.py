"""The command ``study bench``: its suites, and ``study bench inference``."""

from collections.abc import Sequence
from importlib.util import find_spec

from study.errors import StudyError

INFERENCE = "inference"


def main(arguments: Sequence[str]) -> None:
    """Run ``study bench`` with ``arguments``.

    Raises :class:`StudyError` if a suite is asked for and PEFT is not installed.
    """
    if arguments[:1] == (INFERENCE,):
        from .inference.command import inference

        inference.main(arguments[1:], f"study bench {INFERENCE}", standalone_mode=False)
        return
    if find_spec("peft") is None:
        raise StudyError(
            "study bench trains with PEFT too, and PEFT is not installed: "
            "pip install 'study[bench]'"
        )
    from .training.command import suites

    suites.main(arguments, "study bench", standalone_mode=False)
