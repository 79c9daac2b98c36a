"""Fixtures for cells on disk that train nothing (:mod:`tests.store.small_cells`)."""

from collections.abc import Callable
from pathlib import Path

import pytest

from study.store import CellWriter
from tests.store.small_cells import RECORD, append, opened


@pytest.fixture
def folder(tmp_path) -> Path:
    """The folder of the cell ``abc`` of the study in ``tmp_path``."""
    return tmp_path / "cells" / "abc"


@pytest.fixture
def begin(tmp_path) -> Callable[..., CellWriter]:
    """``begin("id", steps=3, first=0)``: the writer of a cell of the study in ``tmp_path``."""

    def begun(cell_id="abc", steps=0, first=0):
        folder = tmp_path / "cells" / cell_id
        writer = opened(folder, "x: 1\n", RECORD | {"cell_id": cell_id}, first)
        return append(writer, range(first, steps))

    return begun
