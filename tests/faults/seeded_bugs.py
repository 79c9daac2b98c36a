"""Bugs that are put into ``study`` on purpose, to see that the fault tests find them."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any


def _forget_dropout() -> None:
    """A checkpoint has no dropout streams."""
    from study.training import checkpoint

    original = checkpoint.Snapshot.checkpoint

    def without(snapshot: Any, cell_id: str) -> Any:
        found = original(snapshot, cell_id)
        tensors = {n: t for n, t in found.tensors.items() if not n.startswith(checkpoint.DROPOUT)}
        return replace(found, tensors=tensors)

    checkpoint.Snapshot.checkpoint = without  # type: ignore[method-assign]


def _share_claims() -> None:
    """Every process gets every claim."""
    from study.store import claims

    claims._flock = lambda file: True  # type: ignore[assignment]


def _sync_nothing() -> None:
    """Nothing is waited for until it is on disk."""
    from study.store import files, streams

    files.sync = lambda path: None  # type: ignore[assignment]
    streams.sync_file = lambda file, path: None  # type: ignore[assignment]


def _record_first() -> None:
    """A cell's tables are not on disk when its record says that it has ended."""
    from study.store import cell_tables

    def write_bytes(path: Any, content: bytes) -> None:
        path.write_bytes(content)

    cell_tables.write_bytes = write_bytes  # type: ignore[assignment]


def _plain_errors() -> None:
    """An error of the disk is not made a line."""
    from study.store import files

    @contextlib.contextmanager
    def storing(path: Any) -> Iterator[None]:
        yield

    files.storing = storing  # type: ignore[assignment]


def _forget_checkpoints() -> None:
    """A killed cell begins again."""
    from study.sweeps import run

    run.newest = lambda *_: None  # type: ignore[assignment]


BUGS: dict[str, Callable[[], None]] = {
    "dropout forgotten": _forget_dropout,
    "claims shared": _share_claims,
    "nothing synced": _sync_nothing,
    "record first": _record_first,
    "plain errors": _plain_errors,
    "checkpoints forgotten": _forget_checkpoints,
}
"""The bugs by name."""
