"""Held-out and noise batches: their rows, and that training is the same with and without them."""

import math
from itertools import pairwise

import pandas as pd
import pytest
import torch

from study.adapters import AdapterSpec, adapted
from study.adapters.inits import generator_for
from study.training.loop import Fold
from study.training.measuring import heldout_losses, make_probe, probe_other_batches
from study.vocabulary.quantities import HELDOUT, NOISE, SITES, TRAIN, UPDATES, WEIGHTS
from study.vocabulary.thresholds import LAST_PREDICTED_STEP
from tests.trained import trained

MOVES = {*UPDATES, "adapter_update"}


def sites_by_batch(table):
    return {batch: set(rows["site"]) for batch, rows in table.groupby("batch")}


@pytest.mark.parametrize(
    ("own", "batch"), [("adapter.dropout=0.3", "all"), ("adapter.rank=2", "[heldout,noise]")]
)
def test_training_is_the_same_bit_for_bit(tiny_base, corpus, cell, own, batch):
    options = ["train.accumulation=2", "train.clip=0.1"]
    other = cell("adapter.rank=9", *options)
    runs = [
        trained(tiny_base, corpus, cell(own, *options, f"probes.batch={name}"), other)
        for name in ("train", batch)
    ]
    for ours, theirs in zip(*runs, strict=True):
        for a, b in zip(ours, theirs, strict=True):
            shared = {"loss", "grad_norm", "eval_loss"} & a.metrics.keys() & b.metrics.keys()
            assert [a.metrics[name] for name in shared] == [b.metrics[name] for name in shared]
    if batch == "all":
        rows = [of[0][0].probes.query("batch == 'train'").reset_index(drop=True) for of in runs]
        pd.testing.assert_frame_equal(*rows, check_exact=True)


def test_which_sites_have_rows_on_which_batch(tiny_base, corpus, cell):
    [steps] = trained(tiny_base, corpus, cell("probes.batch=[noise,heldout,train]"))
    assert sites_by_batch(steps[1].probes) == {
        TRAIN: set(SITES),
        HELDOUT: set(SITES) - MOVES - set(WEIGHTS),
        NOISE: {"adapter_out", "adapter_in_grad"},
    }
    [alone] = trained(tiny_base, corpus, cell("probes.batch=heldout"))
    assert sites_by_batch(alone[1].probes) == {HELDOUT: set(SITES) - MOVES}, (
        "weights are measured on one batch"
    )
    [nowhere] = trained(
        tiny_base, corpus, cell("probes.batch=noise", "probes.sites=[A,adapter_grad]")
    )
    assert all(step.probes is None for step in nowhere)


@pytest.fixture
def fold(tiny_base, corpus, cell):
    """Two cells after a step, measured on both other batches."""
    specs = [AdapterSpec(4, 2.0, seed=0), AdapterSpec(6, 0.5, seed=1)]
    config = cell("probes.batch=[heldout,noise]", "probes.tokens=500", "adapter.rank=4")
    with adapted(tiny_base.model, tiny_base.card.linears, specs) as banks:
        fold = Fold(tiny_base, corpus, [config, cell("adapter.rank=6")], banks)
        fold.backward(0, None)
        fold.update()
        yield fold


def test_heldout_rows_are_of_the_heldout_batch(fold, corpus):
    """They equal the rows of a training step on the held-out batch with the same weights."""
    [sent, _], first_K = probe_other_batches(fold, 1)
    torch.testing.assert_close(heldout_losses(fold, first_K), heldout_losses(fold))
    tables = [sent.frame(k) for k in range(2)]
    batch = next(corpus.heldout.batches(3))
    both = fold.stacked([batch, batch])
    counts_K = torch.tensor([batch.supervised] * 2)
    fold._micro_batches = lambda _: ([both], counts_K)
    probe = make_probe(fold, HELDOUT)
    fold.backward(1, probe)
    probe.before_update()
    for found, wanted in zip(tables, probe.collect(1, HELDOUT), strict=True):
        pd.testing.assert_frame_equal(found, wanted, rtol=1e-5)
    assert (tables[0].query("site == 'adapter_grad'")["norm"] > 0).all()


def test_noise_is_gaussian_and_the_same_for_every_rank(fold):
    [_, sent], _ = probe_other_batches(fold, 1)
    for k, table in enumerate([sent.frame(k) for k in range(2)]):
        for bank in fold.banks:
            A, B, gamma = bank.pairs[k]
            stream = generator_for(0, f"{bank.layer}/noise")
            x = torch.randn(500, A.shape[1], generator=stream)
            dy = torch.randn(500, B.shape[0], generator=stream)
            rows = table[table["layer"] == bank.layer].set_index("site")
            delta_w = gamma * (B @ A).detach()
            norms = [(x @ delta_w.T).norm().item(), (dy @ delta_w).norm().item()]
            found = rows.loc[["adapter_out", "adapter_in_grad"], "norm"].to_list()
            assert found == pytest.approx(norms, rel=1e-4)
            isotropic = delta_w.norm().item() / math.sqrt(B.shape[0])
            assert rows.loc["adapter_out", "rms"] == pytest.approx(isotropic, rel=0.15)


def test_loss_after_is_the_loss_after(tiny_base, corpus, cell):
    """It equals the next loss on the same data. In the lazy regime it also agrees with descent."""
    whole = ["train.batch_size=54", "probes.every=1", "probes.steps=null", "train.steps=6"]
    [steps] = trained(tiny_base, corpus, cell(*whole))
    for now, later in pairwise(steps[: LAST_PREDICTED_STEP + 2]):
        assert now.metrics["loss_after"] == pytest.approx(later.metrics["loss"], rel=1e-5), (
            "every batch is the data"
        )
    assert [step for step, found in enumerate(steps) if "loss_after" in found.metrics] == [
        *range(LAST_PREDICTED_STEP + 1)
    ]
    lazy = ["optimizer=sgd", "optimizer.lr=1e-2", "adapter.dropout=0.3", "train.accumulation=2"]
    [steps] = trained(tiny_base, corpus, cell(*lazy))
    for step in steps[:-1]:
        if "loss_after" in step.metrics:
            update = step.probes.query("site == 'adapter_update' and layer == 'model'")
            change = step.metrics["loss"] - step.metrics["loss_after"]
            assert change == pytest.approx(update["descent"].item(), rel=0.1)
    [without] = trained(tiny_base, corpus, cell("probes.sites=[A]"))
    assert not any("loss_after" in step.metrics for step in without)
