"""Other processes see a live sweep's agenda; the time left is weighted by cost."""

import json
import os
import signal
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from study.store import CellWriter, Lock
from study.sweeps import agenda as agenda_module
from study.sweeps.agenda import WAITING, Planned, agendas, posted, progress, records
from study.sweeps.progress import Display

CONFIG = {
    "adapter": {"rank": 8, "alpha": 16.0, "scaling": "rslora"},
    "optimizer": {"name": "adamw", "lr": 1e-4},
    "train": {"steps": 3},
    "data": {},
    "seed": 0,
}
ABOUT = {"study": "s", "model": "tiny", "data": "pydoc", "gamma": 1.0, "config": CONFIG}


def description(cell_id: str) -> dict:
    return {"cell_id": cell_id, **ABOUT}


def planned(*costs: float, packs: int = 1) -> list[Planned]:
    return [
        Planned(description(f"c{n}"), n * packs // len(costs) + 1, cost)
        for n, cost in enumerate(costs)
    ]


def begin(study_dir: Path, cell_id: str, steps: int, ago: float = 0.0) -> CellWriter:
    started = (datetime.now(UTC) - timedelta(seconds=ago)).isoformat(timespec="seconds")
    writer = CellWriter.open(
        study_dir / "cells" / cell_id, "", description(cell_id) | {"started": started}
    )
    for step in range(steps):
        writer.append(
            "metrics", pd.DataFrame([{"step": step, "tokens": 1, "loss": 1.0, "seconds": 0.1}])
        )
    return writer


def test_an_agenda_exists_while_its_sweep_lives(tmp_path: Path) -> None:
    cells = planned(1.0, 2.0, packs=2)
    with posted(tmp_path, cells):
        [agenda] = agendas(tmp_path)
        assert agenda.cells == cells
        assert agenda.packs == 2
        with posted(tmp_path, planned(5.0)):
            assert len(agendas(tmp_path)) == 2, "two sweeps of one study"
        assert [record["status"] for record in records(tmp_path, agenda)] == [WAITING] * 2
    assert agendas(tmp_path) == []
    assert not list(tmp_path.glob("sweeps/*")), "no file is left"


def test_sweeps_begin_as_others_end(tmp_path: Path) -> None:
    """A sweep must not remove the folder to which another one is about to write."""

    def post_often(number: int) -> None:
        for _ in range(100):
            with posted(tmp_path, planned(float(number))):
                pass

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(post_often, range(1, 5)))


def test_the_agenda_of_a_killed_sweep_is_ignored_and_deleted(tmp_path: Path) -> None:
    script = textwrap.dedent(f"""
        import os, signal
        from pathlib import Path
        from study.sweeps.agenda import Planned, posted
        with posted(Path({str(tmp_path)!r}), [Planned({{"cell_id": "x"}}, 1, 1.0)]):
            os.kill(os.getpid(), signal.SIGKILL)
    """)
    done = subprocess.run(
        [sys.executable, "-c", script],
        check=False,
        capture_output=True,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    [left] = (tmp_path / "sweeps").glob("*.json")
    assert json.loads(left.read_text())["cells"]
    assert agendas(tmp_path) == []
    with posted(tmp_path, planned(1.0)):
        assert not left.exists()
    assert not list(tmp_path.glob("sweeps/*"))


def test_the_time_left_is_weighted_by_cost_over_all_packs(tmp_path: Path) -> None:
    """Of a cost of 1 + 4 + 5, 3 are spent in 30 s. The first step, 0.25, does not count."""
    with posted(tmp_path, planned(1.0, 4.0, 5.0, packs=3)):
        [agenda] = agendas(tmp_path)
        agenda = type(agenda)(
            (datetime.now(UTC) - timedelta(seconds=60)).isoformat(timespec="seconds"), agenda.cells
        )
        begin(tmp_path, "c0", 4, ago=30).close("complete", steps_done=3)
        running = begin(tmp_path, "c1", 2, ago=10)
        now = progress(tmp_path, agenda)
        assert dict(now.states) == {"complete": 1, "running": 1, WAITING: 1}
        assert (now.cells, now.closed, now.packs, now.packs_done) == (3, 1, 3, 1)
        assert now.work == pytest.approx(0.3)
        assert now.seconds_left == pytest.approx(7 * 30 / 2.75, abs=5)
        running.close("failed", steps_done=1)
        now = progress(tmp_path, agenda)
        assert now.closed == 2
        assert now.seconds_left == pytest.approx(5 * 30 / 2.75, abs=5), (
            "a failed cell takes no more time"
        )


def test_a_process_that_follows_a_sweep_reads_each_cell_that_is_done_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise a sweep of thousands of cells spends most of its time on its own progress."""
    read: list[str] = []
    whole = agenda_module.read_cell
    monkeypatch.setattr(
        agenda_module, "read_cell", lambda folder: (read.append(folder.name), whole(folder))[1]
    )
    with posted(tmp_path, planned(1.0, 1.0, 1.0, 1.0)):
        [agenda] = agendas(tmp_path)
        done: dict[str, Any] = {}
        begin(tmp_path, "c0", 2).close("complete", steps_done=1)
        begin(tmp_path, "c1", 2).close("failed", steps_done=1)
        running = begin(tmp_path, "c2", 2)
        assert progress(tmp_path, agenda, done).states == progress(tmp_path, agenda).states
        read.clear()
        states = progress(tmp_path, agenda, done).states
        assert states == {"complete": 1, "failed": 1, "running": 1, WAITING: 1}
        assert read == ["c1", "c2"], "a failed cell may be trained again, and one has not begun"
        running.close("complete", steps_done=1)
        assert progress(tmp_path, agenda, done).states["complete"] == 2
        assert set(done) == {"c0", "c2"}


def test_a_cell_of_an_earlier_sweep_that_is_trained_again_is_waiting(tmp_path: Path) -> None:
    begin(tmp_path, "c0", 1, ago=100).close("failed", steps_done=0, error="x")
    with posted(tmp_path, planned(1.0)):
        [agenda] = agendas(tmp_path)
        assert records(tmp_path, agenda)[0]["status"] == WAITING
        assert progress(tmp_path, agenda).seconds_left is None


def test_the_display_counts_packs_and_cells_of_the_whole_sweep(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with posted(tmp_path, planned(1.0, 1.0, 2.0, packs=3)) as path:
        begin(tmp_path, "c0", 4, ago=0).close("complete", steps_done=3)
        with Display(tmp_path, {"c1": "rank 8"}, 3, path) as display:
            display.start(["c1"])
            begin(tmp_path, "c1", 4).close("complete", steps_done=3)
            display.finish({"c1": "complete"})
    line = capsys.readouterr().err.strip()
    assert line.startswith(
        f"[{tmp_path.name}] pack 2/3  cell 1/1 (2 of 3 done)  rank 8  complete in "
    )
    assert line.endswith("  measuring the time left"), "in less than a second"


def test_a_pack_without_a_sweep_counts_its_own_cells(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Display(tmp_path, {"c1": "rank 8", "c2": "rank 9"}, 3) as display:
        display.start(["c1"])
        display.finish({"c1": "diverged"})
    assert f"[{tmp_path.name}] cell 1/2  rank 8  diverged in " in capsys.readouterr().err


@pytest.mark.parametrize(
    "text",
    [
        "",
        '{"posted": "2026-',
        "[]",
        '{"posted": 3, "cells": []}',
        '{"posted": "2026-01-01T00:00:00+00:00", "cells": [{"record": {}, "pack": 1, "cost": 1}]}',
        '{"posted": "2026-01-01T00:00:00+00:00", "cells": [{"record": 1, "pack": "x"}]}',
        '{"posted": "2026-01-01", "cells": [{"record": {"cell_id": "a", "config": {"train": '
        '{"steps": 1}}}, "pack": 1, "cost": Infinity}]}',
        "\udcff",
    ],
)
def test_a_damaged_agenda_is_left_out(tmp_path: Path, text: str) -> None:
    with posted(tmp_path, planned(1.0)):
        path = tmp_path / "sweeps" / "20260101T000000-1.json"
        path.write_bytes(text.encode(errors="surrogateescape"))
        with Lock(path.with_suffix(".lock")):
            assert [len(agenda.cells) for agenda in agendas(tmp_path)] == [1]


def test_an_unreadable_record_leaves_its_cell_waiting(tmp_path: Path) -> None:
    with posted(tmp_path, planned(1.0, 1.0)):
        [agenda] = agendas(tmp_path)
        begin(tmp_path, "c0", 2).close("complete", steps_done=3)
        (tmp_path / "cells/c1").mkdir()
        (tmp_path / "cells/c1/record.json").write_text('{"status": "runn')
        now = progress(tmp_path, agenda)
        assert dict(now.states) == {"complete": 1, WAITING: 1}
        assert now.work == 0.5


def test_steps_from_before_the_sweep_are_neither_work_nor_time(tmp_path: Path) -> None:
    """A cell of 10 steps continued at step 4. After that one, two steps took 6 s: 9 s are left."""
    config = CONFIG | {"train": {"steps": 9}}
    about = description("c0") | {"config": config}
    with posted(tmp_path, [Planned(about, 1, 8.0, first_step=4)]):
        [agenda] = agendas(tmp_path)
        now = datetime.now(UTC)
        agenda = type(agenda)((now - timedelta(seconds=20)).isoformat(), agenda.cells)
        assert progress(tmp_path, agenda).seconds_left is None, "nothing was done in this sweep"
        about |= {
            "started": (now - timedelta(days=1)).isoformat(),
            "resumed": [{"step": 4, "at": (now - timedelta(seconds=10)).isoformat()}],
        }
        writer = CellWriter.open(tmp_path / "cells/c0", "", about)
        for step, seconds in enumerate([100.0, 200.0, 300.0, 400.0, 404.0, 407.0, 410.0]):
            row = {"step": step, "tokens": 1, "loss": 1.0, "seconds": seconds}
            writer.append("metrics", pd.DataFrame([row]))
        found = progress(tmp_path, agenda)
        assert found.work == pytest.approx(0.5)
        assert found.seconds_left == pytest.approx(9, abs=1)
        writer.interrupt()


def test_a_slow_step_counts_for_more_than_a_plain_one() -> None:
    """Half of the time is that of step 0, and the last step takes none."""
    cell = Planned(description("c0"), 1, 8.0, shares=[[0, 0.5], [2, 1.0], [3, 1.0]])
    assert [cell.share(step) for step in (-1, 0, 1, 2, 3)] == [0.0, 0.5, 0.75, 1.0, 1.0]
    plain = Planned(description("c0"), 1, 8.0)
    assert [plain.share(step) for step in (-1, 0, 1, 2, 3)] == [0.0, 0.25, 0.5, 0.75, 1.0]
