"""A sweep over a mixture of experts, and the share of the block weights that has adapters."""

import numpy as np
import pandas as pd
import pytest
import torch

import study
from study.adapters import resolve_targets
from study.config import ModelConfig
from study.models import Coverage, coverage, describe, load_base
from study.store import is_done, load_cells, load_records
from study.sweeps.cells import plan
from study.sweeps.launch import announce, train_here
from study.sweeps.packs import packs
from tests.trained import series, trained

from .small import mixtral


@pytest.fixture
def model(save_family):
    return ModelConfig("hf", str(save_family(mixtral())))


@pytest.fixture
def moe(model, cell):
    small = ["model=hf", f"model.path={model.path}", "train.eval_every=0", "train.batch_size=2"]
    return lambda *overrides: cell(*small, "train.steps=2", "probes.steps=[0,1]", *overrides)


def probes(of_cell):
    return pd.concat([result.probes for result in of_cell if result.probes is not None])


def test_a_fold_equals_its_cells_and_probes_measure_the_factors_of_experts(model, corpus, moe):
    """Of linears, also the activations."""
    base = load_base(model, torch.device("cpu"), "float32")
    common = ("train.accumulation=2", "probes.stats=[all,r_align,r_back,rho]")
    sgd = ("optimizer=sgd", "optimizer.lr=0.1")
    cells = [moe("adapter.rank=2", *common), moe("adapter.rank=3", *common, *sgd)]
    folds = trained(base, corpus, *cells)
    for config, folded in zip(cells, folds, strict=True):
        [alone] = trained(base, corpus, config)
        wanted = pytest.approx(series(alone, "loss"), rel=1e-5, nan_ok=True)
        assert series(folded, "loss") == wanted
        both = probes(folded).merge(probes(alone), on=["step", "layer", "site"], validate="1:1")
        assert len(both) == len(probes(alone))
        np.testing.assert_allclose(both["norm_x"], both["norm_y"], rtol=1e-3, atol=1e-7)
    found = probes(folds[0])
    experts = found[found["layer"].isin(base.card.experts)]
    assert set(experts["layer"]) == set(base.card.experts)
    factors = {"A", "B", "A_grad", "B_grad", "delta_w", "A_update", "B_update"}
    assert factors <= set(experts["site"])
    assert not set(experts["site"]) & {"adapter_in", "adapter_out", "layer_out", "layer_out_grad"}
    assert np.isfinite(experts["norm"]).all()
    moved = experts[(experts["step"] == 1) & (experts["site"] == "delta_w")]
    assert (moved["norm"] > 0).all()
    sizes = experts.groupby("kind", observed=True)[["d_in", "d_out"]].first()
    assert sizes.loc["gate_up_proj"].tolist() == [16, 48]
    assert sizes.loc["down_proj"].tolist() == [24, 16]
    linears = found[found["layer"] == base.card.linears[0]]
    assert {"adapter_in", "adapter_out", "layer_out_grad"} <= set(linears["site"])


def test_a_study_is_trained_continued_and_analysed(moe, model, tmp_path, capsys):
    """Experts change the identity; attention alone does not. The plan says which share of the
    weights has adapters, and records keep it."""
    common = (f"results_dir={tmp_path}", "name=moe", "train.steps=1", "train.save_adapter=true")
    values = [(rank, seed) for rank in (1, 2, 4) for seed in (0, 1, 2)]
    asked = (*common, "probes.truncations=[1]")
    cells = plan([moe(*asked, f"adapter.rank={r}", f"seed={s}") for r, s in values])
    assert cells[0].sources.model == f"{cells[0].card.fingerprint}+experts"
    capsys.readouterr()
    announce(cells, packs(cells))
    covers = covered(model.path)
    said, notice = capsys.readouterr().err.splitlines()
    assert said.startswith("study moe: 9 cells, 0 done, 9 to train")
    assert notice == covers.notice
    train_here(cells, [cells], lambda free: [free])
    for record in load_records(tmp_path / "moe"):
        assert (record["status"], record["adapted_share"]) == ("complete", covers.share)
        assert tuple(record["not_adapted"]) == covers.without
    assert set(load_cells(tmp_path / "moe")["adapted_share"]) == {covers.share}
    exponents = study.load(tmp_path / "moe").exponents
    kinds = exponents[exponents["site"] == "delta_w"]["kind"].astype(str)
    assert {"gate_up_proj", "down_proj", "q_proj"} <= set(kinds)

    again = moe(*common[:1], "name=on", "train.steps=1", f"adapter.path={cells[0].folder}/adapter")
    [continued] = plan([again])
    assert set(continued.coverage.experts) == set(describe(model).experts)
    train_here([continued], [[continued]], lambda free: [free])
    assert is_done(continued.folder)
    [attention] = plan([moe("adapter.targets=attention")])
    assert attention.sources.model == attention.card.fingerprint
    assert attention.coverage.experts == ()


def test_a_mixture_in_4_bits_has_its_experts(save_family):
    pytest.importorskip("bitsandbytes")
    config = mixtral()
    config.hidden_size, config.head_dim = 64, 32
    card = describe(ModelConfig("hf", str(save_family(config)), 4))
    assert len(card.experts) == 2 * config.num_hidden_layers


# Which share of the block weights has adapters, and what is said of the rest.


def covered(folder, targets="all-linear"):
    config = ModelConfig("tiny") if folder is None else ModelConfig("hf", str(folder))
    card = describe(config)
    return coverage(card, resolve_targets(card.shapes, targets))


def test_a_usual_model_is_covered_and_a_choice_of_targets_is_no_news():
    assert covered(None) == Coverage(share=1.0, without=(), out_of_reach=False)
    found = covered(None, "attention")
    attention, mlp = 64 * (64 + 32 + 32 + 64), 3 * 64 * 128
    assert found.share == pytest.approx(attention / (attention + mlp))
    assert found.without == ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
    assert found.notice is None


def test_experts_are_linear_layers(save_family):
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
