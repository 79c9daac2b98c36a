"""A pack passes through preparation once: nothing about a cell is computed twice."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from study.sweeps import prepare
from study.training import run

SMALL = ["model=tiny", "train.steps=2", "train.batch_size=2", "data.heldout=2", "probes.steps=[0]"]


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often a cell's typical step and estimate, and a pack's corpus, were computed."""
    counts: Counter[str] = Counter()

    def counted(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            counts[name] += 1
            return real(*arguments)

        return call

    for module, name in (
        (run, "typical_step"),
        (prepare, "estimate"),
        (prepare, "build_pack_corpus"),
    ):
        monkeypatch.setattr(module, name, counted(name, getattr(module, name)))
    return counts


@pytest.mark.parametrize("fold", ["pack.fold=1", "pack.fold=3"])
def test_each_cell_is_prepared_once(
    study_cli: Callable[..., Any],
    computed: Counter[str],
    fold: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    ran = study_cli("train", "-m", *SMALL, fold, "adapter.rank=2,3", "adapter.scaling=lora,rslora")
    assert ran.code == 0, ran.err
    assert computed == {"typical_step": 4, "estimate": 4, "build_pack_corpus": 1}


def test_a_plan_prepares_each_cell_once(
    study_cli: Callable[..., Any],
    computed: Counter[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    ran = study_cli("train", "--plan", "-m", *SMALL, "adapter.rank=2,3", "pack.max_cells=1")
    assert ran.code == 0, ran.err
    assert computed == {"typical_step": 2, "estimate": 2, "build_pack_corpus": 2}
