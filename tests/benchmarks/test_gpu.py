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
from benchmarks.gpu import DONE, FAILED, STOPPED, Ended, Step, conclusion, gpu_steps, run_steps
from study.config.compose import CONF
from study.errors import StudyError

WAITS = """
import signal, subprocess, sys, time
signal.signal(signal.SIGTERM, lambda *_: (print("a checkpoint", flush=True), sys.exit(143)))
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
print(child.pid, flush=True)
time.sleep(60)
"""


def step(name: str, code: str) -> Step:
    return Step(name, ["-c", code])


def appends(name: str, file: Path) -> Step:
    return step(name, f"open({str(file)!r}, 'a').write({name!r} + ' ')")


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Limits of seconds."""
    monkeypatch.setattr(gpu, "STEP_MINUTES", 3 / 60)
    monkeypatch.setattr(gpu, "GRACE", 2.0)


def is_alive(pid: int) -> bool:
    state = Path(f"/proc/{pid}/stat")
    return state.exists() and state.read_text().split()[2] != "Z"


@pytest.mark.usefixtures("soon")
def test_steps_go_on_where_an_earlier_call_stopped(tmp_path: Path) -> None:
    ran, fixed = tmp_path / "ran", tmp_path / "fixed"
    needs = f"open({str(fixed)!r}); open({str(ran)!r}, 'a').write('third ')"
    steps = [
        appends("first", ran),
        step("second", WAITS),
        step("third", needs),
        appends("fourth", ran),
    ]
    said: list[str] = []
    ended = run_steps(steps, tmp_path, minutes=1, say=said.append)
    assert {name: each.status for name, each in ended.items()} == {
        "first": DONE,
        "second": STOPPED,  # at its own limit
        "third": FAILED,
        "fourth": DONE,  # a failure stops no other step
    }
    log = gpu.log_of(tmp_path, "second").read_text()
    assert "a checkpoint" in log
    assert not is_alive(int(log.split()[0])), "what it has started ends too"
    assert 3 <= ended["second"].seconds < 10
    assert "FileNotFoundError" in gpu.log_of(tmp_path, "third").read_text()
    text = conclusion(steps, ended, tmp_path)
    assert text.startswith("2 of 4 steps are done")
    assert f"third failed: {gpu.log_of(tmp_path, 'third')}" in text
    assert "left: second. Run the same command again" in text

    fixed.touch()
    steps[1] = appends("second", ran)
    again = run_steps(steps, tmp_path, minutes=1, say=said.append)
    assert {each.status for each in again.values()} == {DONE}
    assert ran.read_text().split() == ["first", "fourth", "second", "third"]
    assert again["second"].seconds > ended["second"].seconds
    assert run_steps(steps, tmp_path, minutes=1, say=pytest.fail) == again


@pytest.mark.usefixtures("soon")
def test_no_step_begins_after_the_time_of_a_call_or_of_all_calls(tmp_path: Path) -> None:
    steps = [step("long", "import time; time.sleep(60)"), appends("next", tmp_path / "ran")]
    began = time.monotonic()
    ended = run_steps(steps, tmp_path, minutes=4 / 60, say=lambda line: None)
    assert time.monotonic() - began < 10
    assert ended["long"].status == STOPPED
    assert "next" not in ended
    nothing = run_steps(steps, tmp_path, minutes=1, say=pytest.fail, all_minutes=2 / 60)
    assert nothing == ended


def test_a_damaged_state_is_a_line(tmp_path: Path) -> None:
    (tmp_path / gpu.STATE).write_text("{")
    with pytest.raises(StudyError, match="delete it"):
        gpu.read_state(tmp_path)


def test_every_step_is_a_command_of_this_project(tmp_path: Path) -> None:
    """Suites and options exist, and studies compose at the size of a GPU."""
    steps = gpu_steps(tmp_path)
    assert len({each.name for each in steps}) == len(steps)
    kinds = {each.command[2] for each in steps}
    assert kinds == {"-q", "bench", "train"}
    for each in steps:
        if each.command[2] == "bench":
            asked = suites.make_context("bench", list(each.command[3:])).params
            assert asked["names"][0] in each.name
            assert (asked["device"], asked["precision"]) == ("cuda", "bf16")
        elif each.command[2] == "train":
            with initialize_config_dir(str(CONF), version_base="1.3"):
                config = compose("config", overrides=list(each.command[3:]))
            assert (config.precision, config.device, config.name) == ("bf16", "cuda", each.name)
            assert config.data.sequence_length * config.train.batch_size == 8192
    assert conclusion(steps, {"tests": Ended(DONE, 1.0)}, tmp_path).startswith(
        f"1 of {len(steps)} steps"
    )


def test_a_folder_has_the_name_of_the_device() -> None:
    assert gpu.folder_of("NVIDIA H100 80GB HBM3").name == "NVIDIA-H100-80GB-HBM3"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so_in_a_line() -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu"], cwd=gpu.ROOT, capture_output=True, text=True
    )
    assert ended.returncode == 1
    assert ended.stderr.startswith("study: make gpu measures on a CUDA device")
    assert ended.stderr.count("\n") == 1
