"""Values of overrides that are wrong or absurd: one line, in a second, and nothing written."""

import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from .conftest import BOMB

NAMES = {
    "name=../../x": "name='../../x' has a slash or a backslash",
    "name=..": "name='..' is not the name of a folder",
    "name=.": "name='.' is not the name of a folder",
    "name=/tmp/x": "name='/tmp/x' has a slash or a backslash",
    "name=''": "name='' is empty",
    "name=' x '": "starts or ends with a space",
    "name='x '": "starts or ends with a space",
    r"name='a\b'": "has a slash or a backslash",
    "name='a\tb'": "has characters that can't be printed",
    "name='a\x1b[31m'": "has characters that can't be printed",
    "name='a\u202eb'": "has characters that can't be printed",
    f"name={'x' * 300}": "is longer than 200 bytes",
    f"name='{'é' * 101}'": "is longer than 200 bytes",
    "name=null": "name=None: give a valid string",
    "name=[a,b]": "name=['a', 'b']: give a valid string",
    "name=???": "name is not set",
    "name=é": "a value with spaces, brackets or letters beyond a to z has quotes of its own",
}
VALUES = {
    "adapter.rank=0": "adapter.rank=0: rank must be a positive integer or inf",
    "adapter.rank=1000000000": "adapter.rank=1000000000 is too large: give at most 16777216",
    "adapter.rank=-inf": "adapter.rank=-inf: rank must be",
    "adapter.rank=nan": "adapter.rank=nan: rank must be",
    f"adapter.rank={'9' * 400}": "is too large",
    f"adapter.alpha={'9' * 400}": "give a valid number",
    f"seed={'9' * 400}": "is out of range",
    f"seed={'9' * 5000}": "Exceeds the limit (4300 digits)",
    "adapter.targets=null": "adapter.targets=None is neither a name nor a list of names",
    "adapter.targets=[]": "adapter.targets=[] is empty or holds an empty name",
    "adapter.targets=[[q_proj]]": "is neither a name nor a list of names",
    "adapter.targets=3": "adapter.targets=3 is neither a name nor a list of names",
    "adapter.targets=''": "is empty or holds an empty name",
    "adapter.targets='(unclosed'": "is not a valid regex",
    "adapter.scaling=null": "adapter.scaling",
    "adapter.scaling=power adapter.exponent=1e308": "adapter.exponent=1e+308 is out of range",
    "adapter.dropout=true": "adapter.dropout",
    "optimizer.betas=[0.9]": "optimizer.betas=[0.9]: List should have at least 2 items",
    "optimizer.betas=[0.9,1]": "optimizer.betas[1]=1 is out of range",
    "optimizer.betas=[0.9,-0.1]": "optimizer.betas[1]=-0.1 is out of range",
    "optimizer.betas=null": "optimizer.betas",
    "optimizer=nesterov optimizer.momentum=0": "optimizer.momentum=0 is out of range",
    "optimizer=adafactor optimizer.clip_threshold=0": "optimizer.clip_threshold=0 is out of",
    "optimizer=adafactor optimizer.decay_rate=1e308": "optimizer.decay_rate=1e+308 is out of range",
    "optimizer=null": "Config group override must be a string or a list",
    "optimizer=[1]": "can't compose the configuration",
    "optimizer=adamx": "Could not find 'optimizer/adamx': choose from adafactor",
    "optimizer.name=sgd": "optimizer",
    "train.steps=1000000000000": "train.steps=1000000000000 is out of range",
    "train.batch_size=1000000000": "train.batch_size=1000000000 is out of range",
    "train.accumulation=1000000000": "train.accumulation=1000000000 is out of range",
    "train.eval_every=1 train.steps=100000000": "stands for 100000000 steps of",
    "probes.steps=null probes.every=1 train.steps=100000000": "give at least 100",
    "probes.steps=1.5": "probes.steps=1.5 is not a schedule",
    "probes.stats=[]": "probes.stats=[] chooses nothing: give at least one of mean_abs",
    "probes.stats=null": "unknown probes.stats None",
    "probes.sites=[]": "probes.sites=[] chooses nothing",
    "probes.sites={a:1}": "unknown probes.sites {'a': 1}",
    "probes.batch=[]": "probes.batch=[] chooses nothing",
    "probes.truncations=-1": "probes.truncations=-1: ranks must be",
    "pack.fold=null": "pack.fold=None is out of range",
    "pack.fold=soon": "pack.fold='soon' is out of range",
    "pack.memory_gb=1e308": "pack.memory_gb=1e+308 is out of range",
    "data.sequence_length=1000000000": "data.sequence_length=1000000000 is out of range",
    "data.heldout=0": "data.heldout=0 is out of range",
    "model.quant_bits=3": "unknown model.quant_bits 3",
    "results_dir=/proc/x": "results_dir=/proc/x can't be written (/proc: ",
    "results_dir=/dev/null/x": "(/dev/null: Not a directory)",
    "results_dir=''": "results_dir='' is not a path",
    f"results_dir={'a' * 300}": "is not a path",
    "+cells=5": "cells and agenda are keys that a sweep gives to its jobs",
    "+cells=['x=1'] +agenda=a": "cells and agenda are keys that a sweep gives to its jobs",
    "train.stepss=3": "unknown key train.stepss: did you mean train.steps?",
    "adapter=5": "Config group override must be a string or a list",
    "train.steps": "can't read train.steps",
    "seed=${oc.env:NO_SUCH_VARIABLE}": "NO_SUCH_VARIABLE",
    "seed=${nope}": "seed: Interpolation key 'nope' not found",
    "hydra.run.dir=/proc/x": "can't compose the configuration",
    "experiment=nope": "Could not find 'experiment/nope': choose from",
    "--config-dir=/nope": "/nope",
}
SWEEPS = {
    "seed=range(4,1)": "has no values to sweep over",
    "seed=interval(1,2)": "Can only enumerate CHOICE and RANGE sweeps",
    "name=a,../b": "name='../b' has a slash",
    "adapter.rank=4,0": "adapter.rank=0: rank must be",
    "adapter.targets=mlp,null": "adapter.targets=None is neither",
}
Refused = Callable[..., str]


@pytest.mark.parametrize("override", NAMES, ids=[text[:30] for text in NAMES])
def test_a_study_name_is_one_component_of_a_path(refused: Refused, override: str) -> None:
    refused(["train", override], NAMES[override])


@pytest.mark.parametrize("overrides", VALUES, ids=[text[:40] for text in VALUES])
def test_a_wrong_value_gets_one_line(refused: Refused, overrides: str) -> None:
    refused(["train", *overrides.split(" ")], VALUES[overrides])


@pytest.mark.parametrize("overrides", SWEEPS, ids=SWEEPS)
def test_a_wrong_sweep_gets_one_line(refused: Refused, overrides: str) -> None:
    refused(["train", "-m", *overrides.split(" ")], SWEEPS[overrides], seconds=BOMB)


@pytest.mark.parametrize(
    "overrides", ["adapter.rank=9999999", "adapter.rank=300000", "train.batch_size=1000000"]
)
def test_what_no_memory_holds_is_refused_before_the_base(run: Any, overrides: str) -> None:
    """In 500 MB. The first line of the output says what will be trained."""
    ended = run(["train", overrides, "pack.memory_gb=null"], seconds=BOMB)
    assert ended.code == 2
    assert "Traceback" not in ended.err
    assert f"{overrides} " in ended.err.splitlines()[-1]
    assert "GiB of memory: lower them" in ended.err.splitlines()[-1]


def test_one_cell_of_every_name_is_trained(run: Any) -> None:
    """Both studies have the same cell: its identity doesn't depend on the name."""
    ended = run(["train", "-m", "name=a,'été ☃'"], seconds=30)
    assert ended.code == 0, ended.err
    records = [path for path in ended.wrote if path.endswith("record.json")]
    assert sorted(path.split("/")[2] for path in records) == ["a", "été ☃"]
    assert len({path.split("/")[4] for path in records}) == 1


def test_the_small_cell_trains(run: Any) -> None:
    """Otherwise a case could be refused for another reason than its own."""
    ended = run("train", seconds=20)
    assert ended.code == 0, ended.err
    assert "here/results/default/cells" in ended.wrote


def test_a_mistake_in_a_value_is_found_before_torch_is_imported(here: Path) -> None:
    """In a new process, with all its imports: within a second of the processor."""
    code = "import sys; from study.cli import main\ntry: main()\nfinally: print(*sys.modules)"
    command = [sys.executable, "-c", code, "train", "model=tiny", "adapter.rank=0"]
    begin = resource.getrusage(resource.RUSAGE_CHILDREN)
    ended = subprocess.run(command, capture_output=True, text=True)
    end = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert ended.returncode == 2
    assert "rank must be a positive integer" in ended.stderr
    assert not {"torch", "transformers"} & set(ended.stdout.split())
    assert end.ru_utime + end.ru_stime - begin.ru_utime - begin.ru_stime < 1
