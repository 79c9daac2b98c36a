"""Small data, the tiny base, typed cells and the console script for every test."""

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from study import cli
from study.config import CellConfig, ModelConfig, parse
from study.config.compose import CONF
from study.data import Corpus, build_corpus
from study.models import FrozenBase, load_base, load_tokenizer


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", action="store_true", help="also run the tests that take minutes")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--long"):
        for item in items:
            if item.get_closest_marker("long"):
                item.add_marker(pytest.mark.skip(reason="takes minutes: --long, or make faults"))


@pytest.fixture(scope="session", autouse=True)
def _threads() -> None:
    """One thread: results do not depend on the load, and tiny tensors are faster."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def jsonl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty short examples of uneven length, in FinLoRA's form."""
    path = tmp_path_factory.mktemp("data") / "train.jsonl"
    rows = [
        {"context": f"Say {'very ' * (n % 5)}{n} twice:", "target": f" {n} {n}{' ok' * (n % 4)}"}
        for n in range(60)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="session")
def cell(jsonl: Path) -> Callable[..., CellConfig]:
    """A typed cell on the tiny base: ``cell("adapter.rank=8", "optimizer=sgd")``."""

    def build(*overrides: str) -> CellConfig:
        GlobalHydra.instance().clear()
        small = [
            "model=tiny",
            "data=jsonl",
            f"data.path={jsonl}",
            "data.sequence_length=48",
            "data.heldout=6",
        ]
        small += ["train.steps=3", "train.batch_size=3", "optimizer.lr=1e-2"]
        with initialize_config_dir(str(CONF), version_base="1.3"):
            return parse(compose("config", overrides=[*small, *overrides]))

    return build


@pytest.fixture(scope="session")
def tiny_base() -> FrozenBase:
    return load_base(ModelConfig("tiny"), torch.device("cpu"), "float32")


@pytest.fixture(scope="session")
def corpus(cell: Callable[..., CellConfig]) -> Corpus:
    config = cell()
    tokenizer = load_tokenizer(config.model)
    return build_corpus(config.data, tokenizer, tokenizer.eos_token_id)


@dataclass
class Ran:
    code: int
    out: str
    err: str


@pytest.fixture
def study_cli(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Ran]:
    """``study_cli("train", "-m", ...)`` runs the console script: exit code, stdout, stderr."""

    def run(*arguments: str) -> Ran:
        GlobalHydra.instance().clear()
        monkeypatch.setattr(sys, "argv", ["study", *arguments])
        capsys.readouterr()
        code = 0
        try:
            cli.main()
        except SystemExit as leaving:
            code = leaving.code if isinstance(leaving.code, int) else int(bool(leaving.code))
        captured = capsys.readouterr()
        return Ran(code, captured.out, captured.err)

    return run
