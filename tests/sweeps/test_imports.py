"""What a process that trains has imported at its end, which import contracts can't see: a module's
import runs its package too."""

import json
import os
import subprocess
import sys
from pathlib import Path

CODE = """
import json, sys
from study.cli import main
sys.argv = ["study", *json.loads(sys.argv[1])]
main()
print(json.dumps(sorted(sys.modules)))
"""
DRAWING = "matplotlib", "study.figures", "study.report", "study.dashboard"


def modules_after(words, folder):
    root = Path(__file__).parents[2]
    ran = subprocess.run(
        [sys.executable, "-c", CODE, json.dumps(words)],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    return ran.stdout + ran.stderr, json.loads(ran.stdout.splitlines()[-1])


def test_training_imports_nothing_that_draws(short, tmp_path):
    """Not for the first answer of several seeds either."""
    swept = ["adapter.rank=2,4", "seed=0,1", "pack.fold=1"]
    said, modules = modules_after(["train", "-m", *short, *swept], tmp_path)
    assert "first answer" in said
    assert "study.training.loop" in modules
    assert [name for name in modules if name.startswith(DRAWING)] == []
