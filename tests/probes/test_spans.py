"""Effective ranks and shares of the weight gradient, against numpy in float64."""

import numpy as np
import pytest
import torch

from study.adapters import AdapterSpec, Contraction, LoraBank, adapted
from study.training.loop import Fold
from study.training.measuring import make_probe, probe_other_batches
from study.vocabulary.quantities import HELDOUT, TRAIN, USUAL

SPECS = [
    AdapterSpec(4, 2.0, seed=0),
    AdapterSpec(90, 0.5, seed=1),
    AdapterSpec(6, 1.0, seed=2, init="init_b"),
]
"""delta_w has more elements than the factors of the first, and fewer than those of the second. A of
the third is 0 at the start."""
SITES = ["A", "B", "delta_w"]
ASKED = ["probes.stats=[norm,effective_rank,row_share]", "train.accumulation=2"]


def effective_rank(matrix):
    s = np.linalg.svd(matrix, compute_uv=False)
    with np.errstate(invalid="ignore"):
        return (s**2).sum() ** 2 / (s**4).sum()


def row_share(G, A):
    _, s, rows = np.linalg.svd(A, full_matrices=False)
    rows = rows[s > 1e-5 * s[0]]
    return np.square(G @ rows.T).sum() / np.square(G).sum()


class WeightGradients:
    """``dL/dW`` of each layer and cell in the passes since ``clear``, from hooks of our own."""

    def __init__(self, banks):
        self.found = {}
        for bank in banks:
            bank.register_forward_hook(self._forward)

    def _forward(self, bank, args, y):
        x = args[0].detach().double()
        if y.requires_grad:
            y.register_hook(lambda dy: self._backward(bank.layer, x, dy.double()))

    def _backward(self, layer, x, dy):
        pairs = zip(x.chunk(len(SPECS)), dy.chunk(len(SPECS)), strict=True)
        for k, (x_k, dy_k) in enumerate(pairs):
            G = torch.einsum("bto,btd->od", dy_k, x_k).numpy()
            self.found[layer, k] = self.found.get((layer, k), 0.0) + G


def trained_fold(base, corpus, cell, banks, *settings):
    cells = [
        cell(f"adapter.rank={spec.rank}", f"seed={spec.seed}", *ASKED, *settings) for spec in SPECS
    ]
    return Fold(base, corpus, cells, banks)


def compare(tables, banks, gradients):
    for k, table in enumerate(tables):
        rows = table.set_index(["site", "layer"])
        for bank in banks:
            A, B, _ = (
                x.detach().double().numpy() if hasattr(x, "numpy") else x for x in bank.pairs[k]
            )
            found = rows["effective_rank"].unstack("site").loc[bank.layer, SITES]
            wanted = [effective_rank(matrix) for matrix in (A, B, B @ A)]
            assert list(found) == pytest.approx(wanted, rel=1e-5, nan_ok=True), (bank.layer, k)
            share = row_share(gradients[bank.layer, k], A) if A.any() else 0.0
            assert rows.loc[("A", bank.layer), "row_share"] == pytest.approx(share, rel=1e-5)
        assert rows.drop(index="A")["row_share"].isna().all()
        assert rows.drop(index=SITES)["effective_rank"].isna().all()


@pytest.mark.parametrize("form", ["factored", "merged"])
def test_they_are_their_definitions(tiny_base, corpus, cell, form):
    """Two micro-batches, before the first update and after two; in one fold."""
    with adapted(
        tiny_base.model, tiny_base.card.linears, SPECS, LoraBank, Contraction(form)
    ) as banks:
        fold = trained_fold(tiny_base, corpus, cell, banks)
        reference = WeightGradients(banks)
        for step in range(3):
            reference.found.clear()
            probe = make_probe(fold, TRAIN)
            fold.backward(step, probe)
            probe.before_update()
            compare(probe.collect(step), banks, reference.found)
            fold.update()
        assert fold.alignment is None, "no gradients are summed over steps for them"


def test_row_share_alone_on_the_heldout_batch(tiny_base, corpus, cell):
    """A is measured on the held-out batch if the training batch is not, and needs a backward pass
    there."""
    asked = "probes.batch=heldout", "probes.sites=[A]", "probes.stats=[row_share]"
    with adapted(tiny_base.model, tiny_base.card.linears, SPECS) as banks:
        fold = trained_fold(tiny_base, corpus, cell, banks, *asked)
        probe = make_probe(fold, HELDOUT)
        assert probe.needs_backward
        [sent], _ = probe_other_batches(fold, 0)
        table = sent.frame(0).set_index("layer")
        assert table["row_share"].between(0, 1, inclusive="neither").all()


def test_they_are_not_usual():
    assert {"effective_rank", "row_share"}.isdisjoint(USUAL)
