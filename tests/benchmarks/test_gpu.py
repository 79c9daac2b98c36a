"""``make gpu``: steps have a time limit, and go on where an earlier call stopped.

``make gpu-rehearsal`` runs the real steps with the tiny base.
"""

from pathlib import Path

import pytest
import torch

from benchmarks import gpu
from benchmarks.gpu import run_steps
from study.errors import StudyError

WAITS = """
import signal, subprocess, sys, time
signal.signal(signal.SIGTERM, lambda *_: (print("a checkpoint", flush=True), sys.exit(143)))
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(6000)"])
print(child.pid, flush=True)
time.sleep(6000)
"""


def is_alive(pid):
    state = Path(f"/proc/{pid}/stat")
    return state.exists() and state.read_text().split()[2] != "Z"


def test_steps_go_on_where_an_earlier_call_stopped(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(gpu, "GRACE", 2.0)
    monkeypatch.syspath_prepend(tmp_path)
    ran, fixed, to = tmp_path / "ran", tmp_path / "fixed", tmp_path / "to"
    (tmp_path / "waits.py").write_text(WAITS)
    (tmp_path / "works.py").write_text(f"import sys; open({str(ran)!r}, 'a').write(sys.argv[1])")
    (tmp_path / "needs.py").write_text(f"open({str(fixed)!r})\nimport works")
    steps = {
        "1/first": ["works", "a"],
        "1/second": ["needs", "b"],
        "2/third": ["works", "c"],
        "2/fourth": ["waits"],
        "2/fifth": ["works", "d"],
    }
    assert not run_steps(steps, to, minutes=8 / 60)
    said, log = capsys.readouterr(), (to / "2/fourth.txt").read_text()
    assert "1/second failed" in said.err
    assert "FileNotFoundError" in (to / "1/second.txt").read_text()
    assert "2/fourth was stopped" in said.err
    assert "a checkpoint" in log
    assert not is_alive(int(log.split()[0])), "what it has started ends too"
    assert "2 of 5 steps are done" in said.out
    assert "left: 1/second, 2/fourth, 2/fifth. Run the same command again" in said.out
    fixed.touch()
    steps["2/fourth"] = ["works", "e"]
    assert run_steps(steps, to, minutes=1)
    assert ran.read_text() == "acbed"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so_in_a_line(tmp_path):
    with pytest.raises(StudyError, match="make gpu measures on a CUDA device, and torch sees none"):
        gpu.main([f"--to={tmp_path}"], standalone_mode=False)
