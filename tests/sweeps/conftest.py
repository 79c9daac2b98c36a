"""Sweeps in processes of their own."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.forked import STUDY, Forked

Begin = Callable[..., Forked]


@pytest.fixture
def begin(tmp_path: Path) -> Iterator[Begin]:
    """``begin("train", ..., first=code)`` starts ``study`` in ``tmp_path``, after ``code``."""
    begun: list[Forked] = []

    def start(*arguments: str, first: str = "") -> Forked:
        begun.append(Forked(f"{first}\n{STUDY}", arguments, tmp_path, os.environ))
        return begun[-1]

    yield start
    for process in begun:
        process.kill()
