"""What a command imports, and how."""

import gc
import subprocess
import sys
from pathlib import Path

import pytest

from study.sweeps.imports import without_collections


def test_training_imports_no_package_that_it_does_not_use(jsonl: Path, tmp_path: Path) -> None:
    """transformers' optimizers and schedules import PEFT, and that bitsandbytes and torch's
    compiler: more than a second.
    """
    cell = ["model=tiny", "data=file", f"data.path={jsonl}", "data.heldout=6", "train.steps=1"]
    command = ["study", "train", *cell, f"results_dir={tmp_path}"]
    unused = {"peft", "bitsandbytes", "pytorch_optimizer", "matplotlib"}
    unused |= {"torch._inductor.compile_fx"}
    code = (
        f"import sys; sys.argv = {command}; from study.cli import main; main();"
        f"print({unused} & set(sys.modules))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.splitlines()[-1] == "set()"
    assert "1 complete" in ran.stderr + ran.stdout


def test_a_status_imports_no_torch() -> None:
    code = "import sys; from study.sweeps import status, watch; print('torch' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.split() == ["False"]


@pytest.mark.parametrize("enabled", [True, False])
def test_collections_go_on_as_before(enabled: bool) -> None:
    before, frozen = gc.isenabled(), gc.get_freeze_count()
    try:
        (gc.enable if enabled else gc.disable)()
        with without_collections():
            assert not gc.isenabled()
        assert gc.isenabled() == enabled
        assert gc.get_freeze_count() > frozen
    finally:
        (gc.enable if before else gc.disable)()


def test_python_ends_with_every_object_collectable() -> None:
    """Extension modules that count their objects report the others as leaks (Triton's does)."""
    code = """
import atexit, gc
atexit.register(lambda: print(gc.get_freeze_count()))  # runs after those registered later
from study.sweeps.imports import without_collections
with without_collections():
    pass
print(gc.get_freeze_count() > 0)
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.split() == ["True", "0"]
