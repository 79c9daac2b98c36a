"""What a command imports, and how."""

import subprocess
import sys
from pathlib import Path


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
