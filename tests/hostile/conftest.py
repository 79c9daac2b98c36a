"""One runner for every hostile input: a command in a child process with limits, and its one line.

The child is a fork of the test process, so it has torch and transformers already and starts in
milliseconds. Its address space may grow by ``MEMORY`` bytes, and it is killed after the limit of
time. What it prints, its exit code and the files that it leaves are checked.
"""

import json
import math
import os
import resource
import shlex
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from hydra.core.global_hydra import GlobalHydra

from study.reading import all_memory

MEMORY = 500_000_000
"""Bytes that a command may take beyond the interpreter and its imports."""
VALUE, BOMB = 2.0, 5.0
"""Seconds after which a mistake in a value, or an input that grows, must have been answered. They
are of the processor, so that other processes don't count; of the clock, a command has four times as
many, since a command that waits takes none of the processor."""

ROWS = [{"context": f"Say {n}:", "target": f" {n}"} for n in range(20)]
SMALL = (
    "model=tiny data=file data.path=train.jsonl data.sequence_length=48 data.heldout=6 "
    "train.steps=1 train.batch_size=3 probes.steps=null device=cpu pack.memory_gb=1"
)
"""A cell that trains in a moment, on the file that every case finds in its folder."""


@dataclass(frozen=True)
class Ended:
    """How a command ended. ``wrote``: the files that were not there before."""

    code: int
    out: str
    err: str
    seconds: float
    wrote: tuple[str, ...]


Run = Callable[..., Ended]


@pytest.fixture(scope="session")
def _imported() -> None:
    """What commands import, so that a child doesn't have to."""
    import study.integrations.configs
    import study.integrations.peft
    import study.report
    import study.sweeps.app
    import study.sweeps.plan
    import study.sweeps.run
    import study.sweeps.status  # noqa: F401

    torch.set_num_threads(1)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory of a case, with a small ``train.jsonl``; its parent is empty else."""
    folder = tmp_path / "here"
    folder.mkdir()
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def run(_imported: None, here: Path, tmp_path: Path) -> Run:
    """``run("import-config x.yaml", files={"x.yaml": "..."})`` runs a command of ``study``.

    ``train`` gets the settings of a small cell first, unless ``small`` is false. A list of words is
    taken as it is.
    """

    def of(
        command: str | list[str],
        *,
        files: Mapping[str, str | bytes] | None = None,
        seconds: float = VALUE,
        small: bool = True,
    ) -> Ended:
        for name, content in (files or {}).items():
            path = here / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content.encode() if isinstance(content, str) else content)
        words = shlex.split(command) if isinstance(command, str) else list(command)
        if words[0] == "train" and small:
            words[1:1] = SMALL.split()
        return _in_a_child(words, tmp_path, seconds)

    return of


@pytest.fixture
def refused(run: Run) -> Callable[..., str]:
    """Run a command that must be refused: exit code 2, one line, no traceback, no file written.

    ``refused(command, says, files=...)``: ``says`` is a part of the line, which is returned.
    """

    def of(command: str | list[str], says: str, **limits: object) -> str:
        ended = run(command, **limits)
        lines = ended.err.strip().splitlines()
        assert "Traceback" not in ended.err, ended.err[-4000:]
        assert ended.code == 2, (ended.code, ended.err[-2000:], ended.out[-2000:])
        assert len(lines) == 1, ended.err[-2000:]
        assert says in lines[0], lines[0]
        assert len(lines[0]) < 2000, len(lines[0])
        assert ended.wrote == ()
        return lines[0]

    return of


def _in_a_child(words: list[str], place: Path, seconds: float) -> Ended:
    before = _files(place)
    out, err = place / ".out", place / ".err"
    start = time.monotonic()
    child = os.fork()
    if child == 0:
        _be_the_child(words, out, err, math.ceil(seconds))
    code = _wait(child, start + 4 * seconds)
    took = time.monotonic() - start
    texts = [path.read_text(errors="replace") for path in (out, err)]
    if code in (-signal.SIGKILL, -signal.SIGXCPU):
        pytest.fail(f"{shlex.join(words)[:300]} took over {seconds} s: {texts[1][-2000:]}")
    return Ended(code, *texts, took, tuple(sorted(_files(place) - before)))


def _be_the_child(words: list[str], out: Path, err: Path, seconds: int) -> None:
    """Run the command and leave the process; never returns."""
    code = 99
    try:
        for stream, path in ((1, out), (2, err)):
            os.dup2(os.open(path, os.O_CREAT | os.O_TRUNC | os.O_WRONLY), stream)
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        most = pages * resource.getpagesize() + MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
        all_memory.cache_clear()  # an earlier test of this process asked without the limit
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
        code = _call(words)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _call(words: list[str]) -> int:
    from study import cli

    GlobalHydra.instance().clear()
    sys.argv = ["study", *words]
    try:
        cli.main()
    except SystemExit as leaving:
        return leaving.code if isinstance(leaving.code, int) else int(bool(leaving.code))
    return 0


def _wait(child: int, until: float) -> int:
    """The exit code of a child. It is killed at ``until``, and the code is then -9."""
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > until:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return -signal.SIGKILL
        time.sleep(0.005)


def _files(place: Path) -> set[str]:
    return {
        path.relative_to(place).as_posix()
        for path in place.rglob("*")
        if path.name not in (".out", ".err")
    }
