"""One server of processes for all tests of this folder, and one undisturbed short sweep."""

from pathlib import Path

import pytest

from .calls import Calls
from .processes import Starter


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the sweeps of a session train."""
    return tmp_path_factory.mktemp("faults")


@pytest.fixture(scope="session")
def starter(place: Path) -> Starter:
    return Starter(place / "cache")


@pytest.fixture(scope="session")
def calls(place: Path, starter: Starter) -> Calls:
    """The short sweep, whose calls can fail."""
    return Calls(place, starter)
