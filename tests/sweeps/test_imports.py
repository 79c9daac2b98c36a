"""What a command imports, and how."""

import gc
import subprocess
import sys

import pytest

from study.sweeps.imports import without_collections


def test_a_plan_imports_no_package_of_an_optimizer() -> None:
    """They import PEFT and bitsandbytes: more than a second."""
    code = (
        "import sys; from study.sweeps import cells, launch, packs, plan, prepare;"
        "print(*{'peft', 'bitsandbytes', 'pytorch_optimizer', 'matplotlib'} & set(sys.modules))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.split() == []


def test_a_status_imports_no_torch() -> None:
    code = "import sys; from study.sweeps import status, watch; print('torch' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.split() == ["False"]


@pytest.mark.parametrize("enabled", [True, False])
def test_collections_go_on_as_before(enabled: bool) -> None:
    before = gc.isenabled()
    try:
        (gc.enable if enabled else gc.disable)()
        with without_collections():
            assert not gc.isenabled()
        assert gc.isenabled() == enabled
        assert gc.get_freeze_count() > 0
    finally:
        gc.unfreeze()
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
