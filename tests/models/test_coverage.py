"""Which share of the block weights has adapters, and what is said of the rest."""

from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import PretrainedConfig

from study.adapters import resolve_targets
from study.config import CellConfig, ModelConfig
from study.models import Coverage, coverage, describe
from study.store import load_cells, load_records
from study.sweeps.cells import plan
from study.sweeps.launch import announce, train_here
from study.sweeps.packs import packs

from .small import mixtral

Save = Callable[[PretrainedConfig], Path]


def covered(folder: Path | None, targets: str | list[str] = "all-linear") -> Coverage:
    config = ModelConfig("tiny") if folder is None else ModelConfig("hf", str(folder))
    card = describe(config)
    return coverage(card, resolve_targets(card.targets, targets))


def test_a_usual_model_is_covered_and_a_choice_of_targets_is_no_news() -> None:
    assert covered(None) == Coverage(share=1.0, without=(), out_of_reach=False)
    found = covered(None, "attention")
    attention, mlp = 64 * (64 + 32 + 32 + 64), 3 * 64 * 128
    assert found.share == pytest.approx(attention / (attention + mlp))
    assert found.without == ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
    assert found.notice is None


def test_experts_are_linear_layers(save_family: Save) -> None:
    folder, experts, attention = save_family(mixtral()), 4 * 3 * 16 * 24, 4 * 16 * 16
    whole, half = covered(folder), covered(folder, "attention")
    router = 4 * 16
    assert whole.share == pytest.approx(1 - router / (experts + attention + router))
    assert whole.notice == ("adapters on 98.8 % of the block weights; not on: mlp.gate.weight")
    assert half.share == pytest.approx(attention / (experts + attention + router))
    assert half.notice == (
        "adapters on 17.9 % of the block weights; not on: mlp.experts.gate_up_proj, "
        "mlp.experts.down_proj, mlp.gate.weight"
    )
    names = ["gate_up_proj", "down_proj"]
    assert covered(folder, "mlp") == covered(folder, names)
    assert len(covered(folder, names).experts) == 4


def test_the_plan_says_it_and_the_record_keeps_it(
    save_family: Save,
    cell: Callable[..., CellConfig],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = save_family(mixtral())
    common = (f"results_dir={tmp_path}", "name=moe", "train.steps=1", "probes.steps=null")
    cells = plan(
        [
            cell("model=hf", f"model.path={folder}", f"adapter.rank={rank}", *common)
            for rank in (1, 2)
        ]
    )
    capsys.readouterr()
    announce(cells, packs(cells))
    lines = capsys.readouterr().err.splitlines()
    expected = covered(folder)
    assert lines == ["study moe: 2 cells, 0 done, 2 to train in 1 pack", expected.notice]

    train_here(cells[:1], [cells[:1]], lambda free: [free])
    [record] = load_records(tmp_path / "moe")
    assert record["adapted_share"] == expected.share
    assert tuple(record["not_adapted"]) == expected.without
    assert list(load_cells(tmp_path / "moe")["adapted_share"]) == [expected.share]
