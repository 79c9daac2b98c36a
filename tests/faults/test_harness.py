"""The fault tests find the faults that they are for."""

import errno
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from .calls import Calls
from .compare import differences
from .evidence import evidence
from .kills import Trials
from .power import LEAST, NAMES_ONLY, Disk
from .processes import Starter

# Bugs that are put into the code.


@pytest.mark.parametrize(
    ("bug", "says"),
    [
        ("dropout forgotten", "differs"),
        pytest.param("claims shared", "writes after another one began", marks=pytest.mark.long),
        pytest.param("checkpoints forgotten", "steps lost", marks=pytest.mark.long),
    ],
)
def test_kills_find(place: Path, bug: str, says: str) -> None:
    trials = Trials(place / bug, seed=0, sweeps=["dropout"], seeded_bug=bug)
    for number in range(12):
        if any(says in line for line in trials.trial(number, "basic").wrong):
            return
    pytest.fail(f"12 trials don't find: {bug}")


@pytest.mark.long
@pytest.mark.parametrize("bug", ["nothing synced", "record first"])
def test_power_loss_finds(place: Path, calls: Calls, starter: Starter, bug: str) -> None:
    buggy = Calls(place / bug, starter, seeded_bug=bug)
    late = range(len(calls.points), 100, -25)  # a run with the bug makes fewer calls
    assert any(buggy.losing_power(at, NAMES_ONLY).wrong for at in late)


def test_failing_calls_find_a_traceback(place: Path, calls: Calls, starter: Starter) -> None:
    buggy = Calls(place / "plain errors", starter, seeded_bug="plain errors")
    kinds = {point.kind: point for point in calls.first_of_each_kind()}
    found = buggy.failing(kinds["mkdir results/s/cells/ID"], errno.ENOSPC, for_good=False)
    assert any("traceback" in line for line in found.wrong)


# The comparison of tables.


def study_with(folder: Path, values: list[float], **record: Any) -> Path:
    cell = folder / "cells" / "c"
    cell.mkdir(parents=True)
    (cell / "record.json").write_text(json.dumps({"status": "complete"} | record))
    frame = pd.DataFrame({"step": range(len(values)), "loss": values, "seconds": 1.0})
    frame.to_parquet(cell / "metrics.parquet")
    return folder


@pytest.mark.parametrize(
    ("values", "record", "says"),
    [
        ([1.0, np.nan], {}, None),
        ([1.0, 0.0], {}, "loss differs"),
        ([np.nextafter(1.0, 2.0), np.nan], {}, "loss differs"),
        ([1.0], {}, "1 rows instead of 2"),
        ([1.0, np.nan], {"status": "stuck"}, "status is stuck"),
    ],
)
def test_differences(tmp_path: Path, values: list[float], record: Any, says: str | None) -> None:
    wanted = study_with(tmp_path / "a", [1.0, np.nan])
    lines = differences(study_with(tmp_path / "b", values, **record), wanted)
    assert bool(lines) == bool(says)
    assert says is None or says in lines[0]


def test_a_sign_of_zero_and_a_missing_cell_are_differences(tmp_path: Path) -> None:
    wanted = study_with(tmp_path / "a", [0.0])
    assert differences(study_with(tmp_path / "b", [-0.0]), wanted)
    (tmp_path / "c" / "cells").mkdir(parents=True)
    assert differences(tmp_path / "c", wanted)


# The evidence of work.


def events(text: str) -> list[dict[str, Any]]:
    """``"1 begin 0, 1 row 0"``: process, event and step or status, all of one cell."""
    found = []
    for part in text.split(", "):
        pid, event, value = part.split(" ")
        key = "status" if event == "end" else "step"
        found.append({"pid": int(pid), "event": event, "cell": "c", key: value})
        if key == "step":
            found[-1]["step"] = int(value)
    return found


def rows(pid: int, first: int, last: int) -> str:
    return ", ".join(f"{pid} row {step}" for step in range(first, last + 1))


def test_evidence_of_lost_steps() -> None:
    killed = f"1 begin 0, {rows(1, 0, 2)}, 1 snapshot 3, {rows(1, 3, 4)}"
    found = evidence(events(f"{killed}, 2 begin 3, {rows(2, 3, 5)}, 2 end complete"))
    assert (found.lost, found.in_writing, found.twice) == ([2], [0], [])
    found = evidence(events(f"{killed}, 2 begin 0, {rows(2, 0, 5)}, 2 end complete"))
    assert (found.lost, found.in_writing) == ([3], [2]), "the snapshot of step 3 was being written"
    stopped = events(f"{killed}, 1 interrupt 0, 2 begin 5, 2 row 5")
    assert evidence(stopped).after_stop == [0]


@pytest.mark.parametrize(
    "text",
    [
        f"1 begin 0, {rows(1, 0, 2)}, 1 end complete, 2 begin 0, 2 row 0",
        f"1 begin 0, {rows(1, 0, 2)}, 2 begin 3, 1 row 3",
    ],
    ids=["after its end", "by two processes"],
)
def test_evidence_of_training_twice(text: str) -> None:
    assert evidence(events(text)).twice


# The model of a disk.


class Told:
    """Makes calls of ``os`` and tells a disk of them."""

    def __init__(self, root: Path) -> None:
        self.disk, self.root = Disk(root), root

    def call(self, name: str, *given: Any, of: Path | None = None) -> Any:
        self.disk.before(name, given)
        result = getattr(os, name)(*given)
        at = of or Path(given[1] if name in ("replace", "link") else given[0])
        self.disk.happened(name, at, given)
        return result

    def write(self, name: str, content: bytes, sync: bool) -> Path:
        path = self.root / name
        file = self.call("open", path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        self.call("write", file, content, of=path)
        if sync:
            self.call("fsync", file, of=path)
        os.close(file)
        return path

    def sync_folder(self) -> None:
        file = os.open(self.root, os.O_RDONLY)
        self.call("fsync", file, of=self.root)
        os.close(file)

    def after(self, seed: int) -> dict[str, bytes]:
        target = self.root.with_name(f"after-{seed}")
        self.disk.after_power_loss(target, seed)
        return {p.name: p.read_bytes() for p in target.rglob("*") if p.is_file()}


@pytest.fixture
def told(tmp_path: Path) -> Told:
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "old").write_bytes(b"old")
    return Told(tmp_path / "root")


def test_what_was_not_synced_is_lost(told: Told) -> None:
    told.write("new", b"new", sync=True)
    assert told.after(LEAST) == {"old": b"old"}, "its name is not on disk"
    told.sync_folder()
    told.write("later", b"later", sync=False)
    assert told.after(LEAST + 10)["new"] == b"new"


def test_a_rename_before_the_content_is_synced_leaves_an_empty_file(told: Told) -> None:
    draft = told.write("draft", b"new", sync=False)
    told.call("replace", draft, told.root / "old")
    told.sync_folder()
    assert told.after(NAMES_ONLY) == {"old": b""}


def test_a_synced_file_and_folder_are_kept(told: Told) -> None:
    draft = told.write("draft", b"new", sync=True)
    told.call("replace", draft, told.root / "old")
    told.sync_folder()
    assert told.after(LEAST) == {"old": b"new"}


def test_a_deleted_name_may_come_back(told: Told) -> None:
    told.call("unlink", told.root / "old")
    assert told.after(LEAST) == {"old": b"old"}
    assert told.after(NAMES_ONLY) == {}


def test_a_folder_that_a_library_has_made_is_seen_when_it_is_synced(told: Told) -> None:
    (told.root / "made").mkdir()
    (told.root / "made" / "inner").write_bytes(b"inner")
    told.sync_folder()
    assert told.after(LEAST) == {"old": b"old"}, "names inside are not on disk"
