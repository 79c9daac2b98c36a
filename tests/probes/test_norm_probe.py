"""Every number of a probe compared with its definition, with dropout and without."""

from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

from study.adapters import AdapterSpec, Contraction, LoraBank, adapted
from study.probes import NormProbe, statistics
from study.probes.delta_w import core, largest_singular_values
from study.probes.measurements import KEYS
from study.training.loop import Fold
from study.vocabulary.quantities import MEAN_NORM, MODEL_WIDE, SITES, UNIONS, USUAL

SPECS = [AdapterSpec(4, 2.0, seed=0), AdapterSpec(90, 0.5, seed=1)]
"""delta_w has more elements than the factors of the first, and fewer than those of the second."""
TOKENS, P = 10, 0.3
MEASURED = [*USUAL, MEAN_NORM]
SPECTRA = {"spectral", "stable_rank"}
"""By iteration: fewer digits than sums."""


@contextmanager
def trained(base, corpus, cell, form):
    """Two cells of different rank after two steps, so that no weight is zero. Factored products
    have dropout."""
    specs = [replace(spec, dropout=P if form == "factored" else 0.0) for spec in SPECS]
    cells = [
        cell(f"adapter.rank={s.rank}", f"seed={s.seed}", "train.accumulation=2", "train.clip=0.5")
        for s in SPECS
    ]
    with adapted(base.model, base.card.linears, specs, LoraBank, Contraction(form)) as banks:
        fold = Fold(base, corpus, cells, banks)
        for step in range(2):
            fold.backward(step, None)
            fold.grad_norms()
            fold.update()
        yield fold


def definition(x):
    x = x.detach().double()
    return {
        "mean_abs": x.abs().mean().item(),
        "rms": x.square().mean().sqrt().item(),
        "m4": x.pow(4).mean().pow(0.25).item(),
        "max_abs": x.abs().max().item(),
        "norm": x.norm().item(),
        "nonfinite": 0.0,
    }


def assert_row(table, layer, site, expected):
    rows = table[(table["layer"] == layer) & (table["site"] == site)]
    assert len(rows) == 1, (layer, site)
    for stat, value in expected.items():
        rel = 1e-5 if stat in SPECTRA else 1e-6
        assert rows.iloc[0][stat] == pytest.approx(value, rel=rel), (layer, site, stat)


class Reference:
    """Activations and their gradients by layer, site and cell, from hooks of our own."""

    def __init__(self, fold, step):
        self.fold = fold
        self.micro_batches, _ = fold._micro_batches(step)
        self.seen: dict[tuple[str, str, int], list[Tensor]] = {}
        self.sampled: dict[tuple[str, str, int], list[Tensor]] = {}
        self._order = iter([batch for batch in self.micro_batches for _ in fold.banks])
        self._masks = {
            bank.layer: [torch.Generator().set_state(s) for s in bank.dropout_state() or []]
            for bank in fold.banks
        }
        self.hooks = [bank.register_forward_hook(self._forward) for bank in fold.banks]

    def remove(self):
        for hook in self.hooks:
            hook.remove()

    def _forward(self, bank, args, y):
        batch = next(self._order)
        kept = self._kept(bank, args[0])
        for k, (x_k, y_k, kept_k) in enumerate(self._real(batch, args[0], y, kept)):
            self.seen.setdefault((bank.layer, "adapter_in", k), []).append(x_k)
            self.seen.setdefault((bank.layer, "layer_out", k), []).append(y_k)
            A, B, gamma = bank.pairs[k]
            dropped = (x_k * kept_k)[evenly(len(x_k))].double()
            out = gamma * dropped @ A.double().mT @ B.double().mT
            self.sampled.setdefault((bank.layer, "adapter_out", k), []).append(out)
        y.register_hook(lambda dy: self._backward(bank, batch, dy, kept))

    def _backward(self, bank, batch, dy, kept):
        for k, (dy_k, kept_k) in enumerate(self._real(batch, dy, kept)):
            self.seen.setdefault((bank.layer, "layer_out_grad", k), []).append(dy_k)
            A, B, gamma = bank.pairs[k]
            some = evenly(len(dy_k))
            dx = gamma * dy_k[some].double() @ B.double() @ A.double() * kept_k[some]
            self.sampled.setdefault((bank.layer, "adapter_in_grad", k), []).append(dx)

    def _kept(self, bank, x):
        """What dropout multiplies the inputs of each cell's adapter by."""
        kept = torch.ones_like(x)
        for kept_k, mask in zip(kept.chunk(len(SPECS)), self._masks[bank.layer], strict=False):
            kept_k.bernoulli_(1 - P, generator=mask).div_(1 - P)
        return kept

    def _real(self, batch, *tensors):
        """The real tokens of each cell."""
        K = len(self.fold.cells)
        parts = zip(batch.real_BT.chunk(K), *(t.chunk(K) for t in tensors), strict=True)
        return [tuple(t[mask] for t in of_cell) for mask, *of_cell in parts]


def evenly(count):
    return torch.linspace(0, count - 1, TOKENS).round().long()


@pytest.fixture(scope="module", params=["factored", "merged"])
def measured(request, tiny_base, corpus, cell):
    """In chunks so small that tensors have several, the last one incomplete."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(statistics, "CHUNK", 1000)
        with trained(tiny_base, corpus, cell, request.param) as fold:
            return measure(fold)


def measure(fold):
    """A probed step: the probe's tables, and the tensors that it measured."""
    probe = NormProbe(fold.base.model, stats=MEASURED, tokens=TOKENS)
    reference = Reference(fold, 2)
    fold.backward(2, probe)
    reference.remove()
    pairs = {(b.layer, k): p[:2] for b in fold.banks for k, p in enumerate(b.pairs)}
    weights = {key: tuple(w.detach().clone() for w in pair) for key, pair in pairs.items()}
    gradients = {key: tuple(w.grad.clone() for w in pair) for key, pair in pairs.items()}
    norms = fold.grad_norms().tolist()
    probe.before_update()
    factors = fold.update()
    assert all(factor < 1 for factor in factors), "clipping is part of this test"
    probe.after_update(factors)
    updates = {
        key: tuple((w - old).detach() for w, old in zip(pair, weights[key], strict=True))
        for key, pair in pairs.items()
    }
    seen = {"weights": weights, "gradients": gradients, "updates": updates, "norms": norms}
    return SimpleNamespace(fold=fold, reference=reference, tables=probe.collect(7), **seen)


def test_activations_and_what_is_sampled_from_them(measured):
    """From one pass over the real tokens of all micro-batches."""
    reference, layers = measured.reference, len(measured.fold.banks) * len(SPECS)
    assert (len(reference.seen), len(reference.sampled)) == (3 * layers, 2 * layers)
    for (layer, site, k), parts in reference.seen.items():
        assert_row(measured.tables[k], layer, site, definition(torch.cat(parts)))
    for (layer, site, k), parts in reference.sampled.items():
        assert_row(measured.tables[k], layer, site, definition(torch.cat(parts)))


def test_weights_gradients_and_updates(measured):
    for (layer, k), factors in measured.weights.items():
        table = measured.tables[k]
        for suffix, tensors in {
            "": factors,
            "_grad": measured.gradients[layer, k],
            "_update": measured.updates[layer, k],
        }.items():
            for factor, tensor in zip("AB", tensors, strict=True):
                assert_row(table, layer, f"{factor}{suffix}", definition(tensor))
        delta_w = SPECS[k].gamma * factors[1].double() @ factors[0].double()
        spectral = torch.linalg.matrix_norm(delta_w, 2).item()
        spectra = {"spectral": spectral, "stable_rank": (delta_w.norm().item() / spectral) ** 2}
        assert_row(table, layer, "delta_w", definition(delta_w) | spectra)


def test_unions_of_A_and_B_by_layer_and_over_the_model(measured):
    def flat(pair):
        return torch.cat([tensor.flatten() for tensor in pair])

    for k, table in enumerate(measured.tables):
        layers = [bank.layer for bank in measured.fold.banks]
        gradients = {layer: flat(measured.gradients[layer, k]) for layer in layers}
        updates = {layer: flat(measured.updates[layer, k]) for layer in layers}
        gradients[MODEL_WIDE] = flat(tuple(gradients.values()))
        updates[MODEL_WIDE] = flat(tuple(updates.values()))
        for layer, gradient in gradients.items():
            update = updates[layer]
            assert_row(table, layer, "adapter_grad", definition(gradient))
            descent = {"descent": -(gradient.double() @ update.double()).item()}
            assert_row(table, layer, "adapter_update", definition(update) | descent)
        assert_row(table, MODEL_WIDE, "adapter_grad", {"norm": measured.norms[k]})
        # A mean of 2 x layers numbers, which is not a mean of norms by layer.
        every = [w for layer in layers for w in measured.gradients[layer, k]]
        mean = sum(tensor.double().norm().item() for tensor in every) / len(every)
        assert_row(table, MODEL_WIDE, "adapter_grad", {MEAN_NORM: mean})
        assert table.loc[~table["site"].isin(UNIONS), MEAN_NORM].isna().all()


def test_rows_and_columns(measured):
    for k, table in enumerate(measured.tables):
        assert list(table.columns) == [*KEYS, *MEASURED]
        assert set(table["site"]) == set(SITES)
        assert (table["step"] == 7).all()
        assert table.loc[table["site"] != "adapter_update", "descent"].isna().all()
        others = table.loc[table["site"] != "delta_w", ["spectral", "stable_rank"]]
        assert others.isna().all(axis=None)
        sizes = table.set_index("layer")[["d_in", "d_out"]]
        for bank in measured.fold.banks:
            A, B, _ = bank.pairs[k]
            assert (sizes.loc[bank.layer] == [A.shape[1], B.shape[0]]).all(axis=None)
        assert (sizes.loc[MODEL_WIDE] == 0).all(axis=None)
    layers = measured.tables[0]
    row = layers[layers["layer"].str.endswith("layers.1.mlp.up_proj")].iloc[0]
    assert (row["block"], row["kind"]) == (1, "up_proj")


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_non_finite_values_are_kept_and_flagged(tiny_base, corpus, cell, bad):
    with trained(tiny_base, corpus, cell, "factored") as fold:
        fold.banks[3].pairs[1].A_RD.data[0, 0] = bad
        probe = NormProbe(tiny_base.model, sites=["A", "B"])
        probe.before_update()
        clean, hit = probe.collect(0)
    assert (clean["nonfinite"] == 0).all()
    rows = hit[(hit["layer"] == fold.banks[3].layer) & (hit["site"] == "A")]
    assert rows["nonfinite"].item() == 1
    assert not np.isfinite(rows["mean_abs"].item())
    assert hit["nonfinite"].sum() == 1


# The largest singular value, against a full decomposition.


def largest_singular_value(*factors):
    return largest_singular_values([core(*factors)])[0]


def after_sgd(o, r, d):
    """``B = G A^T`` as after lazy SGD; the singular values of G fall slowly."""
    falling = torch.arange(1, 65).float() ** -0.7
    A = (torch.rand(r, d) * 2 - 1) / d**0.5
    return (torch.randn(o, 64) * falling) @ torch.randn(64, d) @ A.mT, A


@pytest.mark.parametrize("r", [1, 4, 48, 300])
@pytest.mark.parametrize(("d", "o"), [(192, 576), (576, 192), (10, 300), (3, 2)])
def test_it_is_the_largest_singular_value(d, o, r):
    torch.manual_seed(0)
    for B, A in (after_sgd(o, r, d), (torch.randn(o, r), torch.randn(r, d))):
        exact = torch.linalg.matrix_norm(B.double() @ A.double(), 2).item()
        for scale in (1e-12, 1.0, 1e6):
            assert largest_singular_value(B * scale, A).item() == pytest.approx(
                exact * scale, rel=1e-4
            )
        assert largest_singular_value(B @ A).item() == pytest.approx(exact, rel=1e-4)


def test_zero_and_non_finite():
    B, A = torch.zeros(6, 3), torch.randn(3, 5)
    assert largest_singular_value(B, A).item() == 0
    B[0, 0] = float("inf")
    assert largest_singular_value(B, A).isnan()
