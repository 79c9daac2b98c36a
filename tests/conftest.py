"""Small data, the tiny base, typed cells and the console script for every test.

The process that hands out tests reads this file before it starts the others. So fixtures import
torch, which takes seconds.
"""

from __future__ import annotations

import gc
import json
import logging
import os
import sys
from collections.abc import Callable, Generator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
import yaml
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode

from study import cli
from study.config import CellConfig, ModelConfig
from study.config.compose import CONF, compose

yaml.SafeLoader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""Hydra reads 25 files for a configuration, and PyYAML's loader in C takes a tenth of the time."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.name != "test_documents.py")  # the longest test first


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """The garbage collector does not look at what collecting has imported, which stays."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


@pytest.fixture(autouse=True)
def _as_alone(monkeypatch):
    """A test sees neither the terminal nor what earlier tests left: width, log level, random state.

    One thread: results do not depend on the load, and tiny tensors are faster.
    """
    import torch

    import study.cli.tables  # noqa: F401  its options are the figures, which some tests replace

    torch.set_num_threads(1)
    torch.manual_seed(0)
    logging.getLogger().setLevel(logging.WARNING)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.delenv("FORCE_COLOR", raising=False)


@pytest.fixture(scope="session")
def jsonl(tmp_path_factory) -> Path:
    """Sixty short examples of uneven length, in FinLoRA's form."""
    path = tmp_path_factory.mktemp("data") / "train.jsonl"
    rows = [
        {"context": f"Say {'very ' * (n % 5)}{n} twice:", "target": f" {n} {n}{' ok' * (n % 4)}"}
        for n in range(60)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="session")
def cell(jsonl) -> Callable[..., CellConfig]:
    """A typed cell on the tiny base: ``cell("adapter.rank=8", "optimizer=sgd")``."""
    small = f"model=tiny data=file data.path={jsonl} data.sequence_length=48 data.heldout=6 "
    small += "train.steps=3 train.batch_size=3 optimizer.lr=1e-2"

    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
    load = loader.load_configuration

    @cache
    def of_groups(name, *overrides):
        return load(name, list(overrides), run_mode=RunMode.RUN)

    # Hydra takes most of the time, and its result depends on nothing but the choices of groups:
    # `compose` sets values on a copy, and interpolations are not resolved yet.
    loader.load_configuration = lambda name, overrides, run_mode: of_groups(name, *overrides)
    loader.get_group_options = cache(loader.get_group_options)

    def build(*overrides):
        [config] = compose(loader, "config", small.split(), [overrides])
        return config

    return build


@pytest.fixture(scope="session")
def short(jsonl) -> list[str]:
    """The words of ``study train`` for two steps of two short examples on the tiny base."""
    data = f"data=file data.path={jsonl} data.sequence_length=32 data.heldout=2"
    return f"model=tiny {data} train.batch_size=2 train.steps=2".split()


@pytest.fixture(scope="session")
def tiny_base():
    """The base, a ``FrozenBase`` in float32."""
    import torch

    from study.models import load_base

    return load_base(ModelConfig("tiny"), torch.device("cpu"), "float32")


@pytest.fixture(scope="session")
def corpus(cell):
    """The ``Corpus`` of a cell."""
    from study.data.batches import build_corpus
    from study.models import load_tokenizer

    config = cell()
    tokenizer = load_tokenizer(config.model)
    return build_corpus(config.data, tokenizer, tokenizer.eos_token_id)


@pytest.fixture(scope="session", autouse=True)
def _no_wait_for_the_disk():
    """``fsync`` checks the descriptor and does not wait: no machine loses power during a test.

    Whether it is called, and when, is seen by tests that replace it, and by :mod:`tests.faults`.
    Processes that are not forked call the true one.
    """
    os.fsync = os.fstat


@dataclass
class Ran:
    code: int
    out: str
    err: str


@pytest.fixture
def study_cli(monkeypatch, capsys) -> Callable[..., Ran]:
    """``study_cli("train", "-m", ...)`` runs the console script: exit code, stdout, stderr.

    Handlers that an earlier test left on the root logger go, because they write to closed streams.
    """

    def run(*arguments):
        GlobalHydra.instance().clear()
        monkeypatch.setattr(sys, "argv", ["study", *arguments])
        capsys.readouterr()
        code = 0
        logging.root.handlers = [
            handler
            for handler in logging.root.handlers
            if type(handler).__module__.startswith("_pytest")
        ]
        try:
            cli.main()
        except SystemExit as leaving:
            code = leaving.code if isinstance(leaving.code, int) else int(bool(leaving.code))
        captured = capsys.readouterr()
        return Ran(code, captured.out, captured.err)

    return run


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """The test's own folder, as the working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def works(study_cli) -> Callable[..., Ran]:
    """``works("train", ...)``: what a command that ends with 0 has printed."""

    def run(*words):
        ran = study_cli(*map(str, words))
        assert ran.code == 0, ran.err
        return ran

    return run


@pytest.fixture
def refused(study_cli, monkeypatch, tmp_path) -> Callable[..., str]:
    """``refused("train", ...)``: the line of a command that loads no model and writes nothing."""

    def run(*words):
        before = sorted(tmp_path.rglob("*"))
        with monkeypatch.context() as patch:
            patch.setattr(
                "study.sweeps.run.load_base", lambda *_: pytest.fail("a model was loaded")
            )
            ran = study_cli(*map(str, words))
        assert (ran.code, sorted(tmp_path.rglob("*"))) == (2, before), ran.err
        [line] = ran.err.strip().splitlines()
        assert line.startswith("study: ")
        return line

    return run


@pytest.fixture
def few_figures(monkeypatch):
    """Reports draw two figures, which is faster, and lack data for a third one."""
    from study.figures import FIGURES

    for name in FIGURES.keys() - {"grad_norm_vs_rank", "loss_curves", "learning_rate_basins"}:
        monkeypatch.delitem(FIGURES, name)
