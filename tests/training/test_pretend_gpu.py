"""Training on a pretend GPU, in a process of its own.

The device must be registered before the first backward pass of a process, and it would be the
accelerator of every test after it.
"""

import os
from pathlib import Path

import pytest
from torch.utils import backend_registration

from tests.forked import ROOT, Forked

CHECKS = Path(__file__).with_name("pretend_gpu_checks.py")


@pytest.mark.skipif(
    not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"),
    reason="this version of torch has no devices in Python",
)
def test_on_a_pretend_gpu():
    code = "import sys, pytest; sys.exit(pytest.main(sys.argv[1:]))"
    options = ["-q", "-p", "no:cacheprovider", "-p", "no:xdist", str(CHECKS)]
    ended = Forked(code, options, ROOT, os.environ | {"PYTEST_ADDOPTS": ""}).wait()
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert " passed" in ended.stdout
    assert "skipped" not in ended.stdout
