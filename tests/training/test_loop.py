"""The loop: a diverged cell of a fold disturbs no other, and a schedule of measurements is kept."""

import math

import pytest
import torch
from torch.nn.functional import cross_entropy

from study.training import fold
from study.training.fold import target_losses
from tests.trained import series, trained


def test_a_cell_that_diverges_disturbs_no_other(tiny_base, corpus, cell):
    steady = [cell("adapter.rank=2"), cell("adapter.rank=8")]
    wild = cell("adapter.rank=4", "optimizer=sgd", "optimizer.lr=1e30")
    first, diverging, second = trained(tiny_base, corpus, steady[0], wild, steady[1])
    assert [step.diverged for step in diverging] == [False] * (len(diverging) - 1) + [True]
    assert len(diverging) < len(first)
    last = diverging[-1].metrics
    assert not math.isfinite(last["loss"] + last["grad_norm"]), "such values are kept"
    for config, steps in zip(steady, (first, second), strict=True):
        [alone] = trained(tiny_base, corpus, config)
        assert series(steps, "loss") == pytest.approx(series(alone, "loss"), rel=1e-4, nan_ok=True)
        assert not any(step.diverged for step in steps)


def test_schedule_of_measurements(tiny_base, corpus, cell):
    probed = cell("train.steps=5", "train.eval_every=2", "probes.steps=[1,5,99]")
    [steps] = trained(tiny_base, corpus, probed)
    assert [s.metrics["step"] for s in steps] == [0, 1, 2, 3, 4, 5]
    assert [s.metrics["step"] for s in steps if "eval_loss" in s.metrics] == [0, 2, 4, 5]
    tables = {s.metrics["step"]: s.probes for s in steps if s.probes is not None}
    assert list(tables) == [1, 5]
    updated = ["adapter_update" in set(table["site"]) for table in tables.values()]
    assert updated == [True, False], "the last step only measures"
    unseen = cell("train.steps=5", "train.eval_every=0", "probes.steps=null")
    [plain] = trained(tiny_base, corpus, unseen)
    assert series(plain[:5], "loss") == series(steps[:5], "loss"), "probes change nothing"
    assert "loss" not in plain[5].metrics
    assert not any("eval_loss" in step.metrics for step in plain)


@pytest.mark.parametrize("padding_free", ["true", "false"])
def test_losses_of_examples_add_up_to_the_heldout_loss(tiny_base, corpus, cell, padding_free):
    """In a fold, and as each example alone has them."""
    own = ["train.example_losses=true", f"pack.padding_free={padding_free}"]
    cells = [cell(*own, f"adapter.rank={rank}", "optimizer.lr=0.01") for rank in (2, 4)]
    for steps in trained(tiny_base, corpus, *cells):
        table, last = steps[-1].tables["examples"], steps[-1].metrics["eval_loss"]
        assert table["loss"].sum() / table["tokens"].sum() == pytest.approx(last, rel=1e-5)
        assert list(table["tokens"]) == [b.supervised for b in corpus.heldout.batches(1)]
        assert not any(step.tables for step in steps[:-1])
    untrained = [cell(*own, "train.steps=1", "optimizer.lr=1e-30")]
    [[*_, end]] = trained(tiny_base, corpus, *untrained)
    for batch, loss in zip(corpus.heldout.batches(1), end.tables["examples"]["loss"], strict=True):
        logits = tiny_base.model(batch.input_ids_BT).logits.flatten(0, 1)
        alone = torch.nn.functional.cross_entropy(
            logits, batch.targets_BT.flatten(), reduction="sum", ignore_index=-100
        )
        assert loss == pytest.approx(float(alone), rel=1e-4)


def test_truncations_run_from_the_base_to_the_run_itself_and_move_nothing(tiny_base, corpus, cell):
    """Kept 0 is the base, kept r the run; in a fold each cell has its own ranks."""
    plain = [[f"adapter.rank={rank}", "adapter.scaling=rslora"] for rank in (3, 8)]
    cut = trained(tiny_base, corpus, *(cell(*of, "probes.truncations=log") for of in plain))
    uncut = trained(tiny_base, corpus, *(cell(*of) for of in plain))
    for kept, ours, theirs in zip(([0, 1, 2, 3], [0, 1, 2, 4, 8]), cut, uncut, strict=True):
        assert series(ours, "loss") == series(theirs, "loss")
        assert not any(step.tables for step in [*ours[:-1], *theirs])
        table, evaluated = ours[-1].tables["truncations"], series(ours, "eval_loss")
        assert list(table["kept"]) == kept
        ends = [table["loss"].iloc[0], table["loss"].iloc[-1]]
        assert ends == pytest.approx([evaluated[0], evaluated[-1]], rel=1e-5)
        assert table["share"].iloc[0] == 0
        assert table["share"].iloc[-1] == pytest.approx(1)
        assert table["share"].is_monotonic_increasing
    infinite = ["adapter.rank=inf", "adapter.scaling=rslora", "optimizer=sgd"]
    [steps] = trained(tiny_base, corpus, cell(*infinite, "probes.truncations=[2]"))
    assert list(steps[-1].tables["truncations"]["kept"]) == [2, math.inf]


# The loss in chunks: it equals the loss, and never holds more logits than it says.


@pytest.mark.parametrize(("chunk", "targets"), [(1, 23), (7, 23), (100, 23), (4, 0)])
def test_losses_and_gradients_are_those_of_the_whole(tiny_base, monkeypatch, chunk, targets):
    vocabulary, sizes = tiny_base.card.vocabulary, []
    monkeypatch.setitem(fold.LOGITS, "cpu", chunk * vocabulary)
    torch.manual_seed(0)
    hidden_Nd, weights_N = torch.randn(targets, 64), torch.rand(targets)
    targets_N = torch.randint(vocabulary, (targets,))

    def logits(hidden_nd):
        sizes.append(len(hidden_nd))
        return tiny_base.logits(hidden_nd)

    ours, whole = hidden_Nd.clone().requires_grad_(), hidden_Nd.clone().requires_grad_()
    nll_N = target_losses(ours, targets_N, logits, vocabulary)
    reference_N = cross_entropy(tiny_base.logits(whole), targets_N, reduction="none")
    torch.testing.assert_close(nll_N, reference_N)
    (nll_N * weights_N).sum().backward()
    (reference_N * weights_N).sum().backward()
    torch.testing.assert_close(ours.grad, whole.grad)
    assert max(sizes) == min(chunk, targets)
    with torch.no_grad():
        assert not target_losses(ours, targets_N, logits, vocabulary).requires_grad
