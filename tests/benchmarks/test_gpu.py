"""``make gpu``: steps have a time limit, and go on where an earlier call stopped."""

import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir

from benchmarks import gpu
from benchmarks.commands import suites
from benchmarks.gpu import gpu_steps, run_steps
from study.config.compose import CONF

WAITS = """
import signal, subprocess, sys, time
signal.signal(signal.SIGTERM, lambda *_: (print("a checkpoint", flush=True), sys.exit(143)))
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
print(child.pid, flush=True)
time.sleep(60)
"""


def is_alive(pid: int) -> bool:
    state = Path(f"/proc/{pid}/stat")
    return state.exists() and state.read_text().split()[2] != "Z"


def test_steps_go_on_where_an_earlier_call_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu, "STEP_MINUTES", 3 / 60)
    monkeypatch.setattr(gpu, "GRACE", 2.0)
    ran, fixed = tmp_path / "ran", tmp_path / "fixed"
    appends = f"open({str(ran)!r}, 'a').write('{{}} ')"
    steps = {
        "first": ["-c", appends.format("first")],
        "second": ["-c", WAITS],
        "third": ["-c", f"open({str(fixed)!r}); {appends.format('third')}"],
        "fourth": ["-c", appends.format("fourth")],
    }
    assert not run_steps(steps, tmp_path, minutes=1)
    said, log = capsys.readouterr(), (tmp_path / "logs/second.txt").read_text()
    assert "second was stopped" in said.err  # at its own limit
    assert "a checkpoint" in log
    assert not is_alive(int(log.split()[0])), "what it has started ends too"
    assert f"third failed: {tmp_path / 'logs/third.txt'}" in said.err
    assert "FileNotFoundError" in (tmp_path / "logs/third.txt").read_text()
    assert "2 of 4 steps are done" in said.out, "a failure stops no other step"
    assert "left: second, third. Run the same command again" in said.out
    fixed.touch()
    steps["second"] = ["-c", appends.format("second")]
    assert run_steps(steps, tmp_path, minutes=1)
    assert ran.read_text().split() == ["first", "fourth", "second", "third"]
    began = time.monotonic()
    assert not run_steps({"a": ["-c", WAITS], "b": steps["first"]}, tmp_path, minutes=3 / 60)
    assert time.monotonic() - began < 10
    assert "left: a, b" in capsys.readouterr().out, "b does not begin after the time of the call"


def test_every_step_is_a_command_of_this_project(tmp_path: Path) -> None:
    """Suites and options exist, and studies compose at the size of a GPU."""
    for name, command in gpu_steps(tmp_path).items():
        if command[2] == "bench":
            asked = suites.make_context("bench", command[3:]).params
            assert asked["names"][0] in name
            assert (asked["device"], asked["precision"]) == ("cuda", "bf16")
        elif command[2] == "train":
            with initialize_config_dir(str(CONF), version_base="1.3"):
                config = compose("config", overrides=command[3:])
            assert (config.precision, config.device, config.name) == ("bf16", "cuda", name)
            assert config.data.sequence_length * config.train.batch_size == 8192
        else:
            assert name == "tests"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so_in_a_line() -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu"], cwd=gpu.ROOT, capture_output=True, text=True
    )
    assert ended.returncode == 1
    assert ended.stderr.startswith("study: make gpu measures on a CUDA device")
    assert ended.stderr.count("\n") == 1
