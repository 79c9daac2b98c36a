"""What a disk may hold after the loss of power: a model of files and names that are not on it yet.

POSIX promises little, and the model no more:

- the content of a file is on disk after its ``fsync``. What was written later may be there, in
  part, as zeros, or not at all;
- a name in a folder (created, moved or deleted) is on disk after the folder's ``fsync``. Changes
  since then are kept up to some point of each folder's history, and lost after it. A rename is
  kept as a whole or lost as a whole.
"""

import os
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

REBOOT = 600.0
"""Seconds until a machine that has lost power is used again."""
LEAST, NAMES_ONLY = 0, 1
"""Two seeds that are not drawn: keep only what was synced, or all names but no content."""


@dataclass(eq=False)
class File:
    """``synced``: its content at the last ``fsync``."""

    synced: bytes = b""


@dataclass(eq=False)
class Folder:
    """``now``: the names that a process sees. ``synced``: those that are on disk."""

    now: dict[str, "Node"] = field(default_factory=dict)
    synced: dict[str, "Node"] = field(default_factory=dict)


Node = File | Folder


@dataclass(eq=False)
class Change:
    """A change of names that is not on disk yet. ``apply`` makes it in ``synced``."""

    folders: tuple[Folder, ...]
    apply: Callable[[], None]


class Disk:
    """The disk below ``root``. Tell it of each call, before and after."""

    def __init__(self, root: Path) -> None:
        self.root_path, self.root = root, Folder()
        self._changes: list[Change] = []
        self._observe(root, self.root)
        self._commit(self._changes)
        for path in root.rglob("*"):
            if path.is_file():
                self._file(path).synced = path.read_bytes()

    def before(self, call: str, given: tuple[Any, ...]) -> None:
        """A call of ``os`` follows. Files that libraries have made are taken in."""
        if call == "replace":
            source = Path(given[0])
            self._observe(source, self._known(source))

    def happened(self, call: str, path: Path, given: tuple[Any, ...]) -> None:
        """A call of ``os`` has succeeded."""
        if call == "replace":
            self._move(Path(given[0]), path)
        elif call == "open":
            self._file(path)
        elif call == "mkdir":
            self._folder(path)
        elif call in ("unlink", "rmdir"):
            self._remove(path)
        elif call == "fsync" and path.is_dir():
            folder = self._folder(path)
            self._observe(path, folder)
            self._commit([change for change in self._changes if folder in change.folders])
        elif call == "fsync" and path.is_file():
            self._file(path).synced = path.read_bytes()

    def after_power_loss(self, target: Path, seed: int) -> None:
        """Write one of the states in which the disk may be to the folder ``target``."""
        rng, began = random.Random(seed), time.time() - REBOOT
        contents = {node: path.read_bytes() for path, node in self._files(self.root_path)}
        lost: set[Folder] = set()
        for change in self._changes:
            kept = seed == NAMES_ONLY or (seed != LEAST and rng.random() < 0.7)
            if kept and not lost & set(change.folders):
                change.apply()
            else:
                lost |= set(change.folders)

        def write(folder: Folder, path: Path) -> None:
            path.mkdir()
            for name, node in folder.synced.items():
                if isinstance(node, Folder):
                    write(node, path / name)
                else:
                    now = contents.get(node, node.synced)
                    (path / name).write_bytes(_content(node.synced, now, seed, rng))
                    os.utime(path / name, (began, began))

        write(self.root, target)

    # The tree.

    def _parts(self, path: Path) -> tuple[str, ...]:
        return Path(os.path.abspath(path)).relative_to(self.root_path).parts

    def _known(self, path: Path) -> Node:
        """The node of ``path``. It is created if the model does not know it."""
        return self._folder(path) if path.is_dir() else self._file(path)

    def _folder(self, path: Path) -> Folder:
        node: Node = self.root
        for name in self._parts(path):
            assert isinstance(node, Folder)
            if name not in node.now:
                self._add(node, name, Folder())
            node = node.now[name]
        assert isinstance(node, Folder)
        return node

    def _file(self, path: Path) -> File:
        folder = self._folder(path.parent)
        if not isinstance(folder.now.get(path.name), File):
            self._add(folder, path.name, File())
        node = folder.now[path.name]
        assert isinstance(node, File)
        return node

    def _observe(self, path: Path, node: Node) -> None:
        """Take in what is below ``path`` and was made without a call that was told."""
        if isinstance(node, Folder) and path.is_dir():
            for inner in path.iterdir():
                self._observe(inner, self._known(inner))

    def _files(self, path: Path) -> Iterator[tuple[Path, File]]:
        for inner in path.rglob("*"):
            if inner.is_file():
                yield inner, self._file(inner)

    # The changes.

    def _add(self, folder: Folder, name: str, node: Node) -> None:
        folder.now[name] = node
        self._changes.append(Change((folder,), lambda: folder.synced.update({name: node})))

    def _remove(self, path: Path) -> None:
        folder = self._folder(path.parent)
        folder.now.pop(path.name, None)
        self._changes.append(Change((folder,), lambda: folder.synced.pop(path.name, None)))

    def _move(self, source: Path, target: Path) -> None:
        old, new = self._folder(source.parent), self._folder(target.parent)
        node = new.now[target.name] = old.now.pop(source.name)

        def apply() -> None:
            new.synced[target.name] = node
            old.synced.pop(source.name, None)

        self._changes.append(Change((old, new), apply))

    def _commit(self, changes: list[Change]) -> None:
        for change in list(changes):
            change.apply()
        done = set(map(id, changes))
        self._changes = [change for change in self._changes if id(change) not in done]


def _content(synced: bytes, now: bytes, seed: int, rng: random.Random) -> bytes:
    """What a file may hold that was ``synced`` and has changed since."""
    if seed in (LEAST, NAMES_ONLY) or now == synced:
        return synced
    if not now.startswith(synced):
        return rng.choice([synced, now, now[: rng.randrange(len(now) + 1)]])
    tail = now[len(synced) :]
    part = rng.randrange(len(tail) + 1)
    return synced + rng.choice([b"", tail, tail[:part], tail[:part] + bytes(len(tail) - part)])
