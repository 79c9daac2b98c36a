"""Every number of a probe against its definition, on our banks and on PEFT's layers."""

import copy
from collections.abc import Callable, Iterator

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from study.adapters import AdapterSpec, LoraBank, adapted
from study.config import CellConfig
from study.data import Corpus
from study.models import FrozenBase
from study.probes import NormProbe
from study.probes.frames import KEYS
from study.probes.moments import scaled_sums, unscaled
from study.training.loop import Fold
from study.vocabulary.quantities import MODEL_WIDE, SITES, USUAL

SPECS = [AdapterSpec(4, 2.0, seed=0), AdapterSpec(6, 0.5, seed=1)]
TOKENS = 10


@pytest.fixture
def fold(tiny_base: FrozenBase, corpus: Corpus, cell: Callable[..., CellConfig]) -> Iterator[Fold]:
    """Two cells of different rank after two steps: nothing is zero any more."""
    cells = [
        cell(f"adapter.rank={s.rank}", f"seed={s.seed}", "train.accumulation=2", "train.clip=0.5")
        for s in SPECS
    ]
    with adapted(tiny_base.model, tiny_base.card.linears, SPECS) as banks:
        fold = Fold(tiny_base, corpus, cells, banks)
        for step in range(2):
            fold.backward(step, None)
            fold.grad_norms()
            fold.update()
        yield fold


def definition(x: Tensor) -> dict[str, float]:
    x = x.detach().double()
    return {
        "mean_abs": x.abs().mean().item(),
        "rms": x.square().mean().sqrt().item(),
        "m4": x.pow(4).mean().pow(0.25).item(),
        "max_abs": x.abs().max().item(),
        "norm": x.norm().item(),
        "nonfinite": 0.0,
    }


def assert_row(table: pd.DataFrame, layer: str, site: str, expected: dict[str, float]) -> None:
    rows = table[(table["layer"] == layer) & (table["site"] == site)]
    assert len(rows) == 1, (layer, site)
    for stat, value in expected.items():
        assert rows.iloc[0][stat] == pytest.approx(value, rel=1e-5), (layer, site, stat)


def test_every_site_is_what_it_says(fold: Fold) -> None:
    """Recomputed with autograd and hooks of our own, from one pass over all micro-batches' real tokens."""
    banks, K = fold.banks, len(fold.cells)
    seen: dict[tuple[str, str, int], list[Tensor]] = {}
    sampled: dict[tuple[str, str, int], Tensor] = {}
    micro_batches = [fold._micro_batch(2, m) for m in range(2)]

    probe = NormProbe(fold.base.model, tokens=TOKENS)
    # The reference hooks see what the probe sees, micro-batch by micro-batch.
    order = iter([m for m in micro_batches for _ in banks])
    real = {id(m): m.real_BT.chunk(K) for m in micro_batches}

    def forward(bank: LoraBank, args: tuple[Tensor], y: Tensor) -> None:
        batch = next(order)
        for k in range(K):
            mask = real[id(batch)][k]
            x_k, y_k = args[0].chunk(K)[k][mask], y.chunk(K)[k][mask]
            seen.setdefault((bank.layer, "adapter_in", k), []).append(x_k)
            seen.setdefault((bank.layer, "layer_out", k), []).append(y_k)
            pick = torch.linspace(0, len(x_k) - 1, TOKENS).round().long()
            A, B, gamma = bank.pairs[k]
            sampled.setdefault((bank.layer, "adapter_out", k), gamma * x_k[pick] @ A.mT @ B.mT)

        def backward(dy: Tensor) -> None:
            for k in range(K):
                dy_k = dy.chunk(K)[k][real[id(batch)][k]]
                seen.setdefault((bank.layer, "layer_out_grad", k), []).append(dy_k)
                if batch is micro_batches[0]:
                    pick = torch.linspace(0, len(dy_k) - 1, TOKENS).round().long()
                    A, B, gamma = bank.pairs[k]
                    sampled[bank.layer, "adapter_in_grad", k] = gamma * dy_k[pick] @ B @ A

        y.register_hook(backward)

    hooks = [bank.register_forward_hook(forward) for bank in banks]
    fold.backward(2, probe)
    for hook in hooks:
        hook.remove()
    before = {
        (b.layer, k): (p.A_RD.detach().clone(), p.B_OR.detach().clone())
        for b in banks
        for k, p in enumerate(b.pairs)
    }
    grads = {
        (b.layer, k): (p.A_RD.grad.clone(), p.B_OR.grad.clone())
        for b in banks
        for k, p in enumerate(b.pairs)
    }
    norms = fold.grad_norms()
    probe.before_update()
    factors = fold.update()
    assert all(factor < 1 for factor in factors), "clipping is part of this test"
    probe.after_update(factors)
    tables = probe.collect(7)

    for k, table in enumerate(tables):
        assert list(table.columns) == [*KEYS, *USUAL]
        assert set(table["site"]) == set(SITES)
        assert (table["step"] == 7).all()
        every_grad, every_update = [], []
        for bank in banks:
            for (layer, site, cell), parts in seen.items():
                if layer == bank.layer and cell == k:
                    assert_row(table, layer, site, definition(torch.cat(parts)))
            for site in ("adapter_out", "adapter_in_grad"):
                assert_row(table, bank.layer, site, definition(sampled[bank.layer, site, k]))
            (A0, B0), (dA, dB) = before[bank.layer, k], grads[bank.layer, k]
            A1, B1, gamma = bank.pairs[k]
            delta_w = (gamma * B0 @ A0).double()
            spectral = torch.linalg.matrix_norm(delta_w, 2).item()
            spectra = {"spectral": spectral, "stable_rank": (delta_w.norm().item() / spectral) ** 2}
            assert_row(table, bank.layer, "delta_w", definition(delta_w) | spectra)
            rows = table[table["layer"] == bank.layer]
            assert (rows["d_in"] == A0.shape[1]).all()
            assert (rows["d_out"] == B0.shape[0]).all()
            for site, tensor in {
                "A": A0,
                "B": B0,
                "A_grad": dA,
                "B_grad": dB,
                "A_update": A1 - A0,
                "B_update": B1 - B0,
            }.items():
                assert_row(table, bank.layer, site, definition(tensor))
            grad = torch.cat([dA.flatten(), dB.flatten()])
            update = torch.cat([(A1 - A0).flatten(), (B1 - B0).flatten()]).detach()
            assert_row(table, bank.layer, "adapter_grad", definition(grad))
            descent = -(grad.double() @ update.double()).item()
            assert_row(
                table, bank.layer, "adapter_update", definition(update) | {"descent": descent}
            )
            every_grad.append(grad)
            every_update.append(update)
        grad, update = torch.cat(every_grad), torch.cat(every_update)
        assert_row(table, MODEL_WIDE, "adapter_grad", definition(grad) | {"norm": norms[k]})
        descent = -(grad.double() @ update.double()).item()
        assert_row(table, MODEL_WIDE, "adapter_update", definition(update) | {"descent": descent})
        assert table.loc[table["site"] != "adapter_update", "descent"].isna().all()
        assert (
            table.loc[table["site"] != "delta_w", ["spectral", "stable_rank"]].isna().all(axis=None)
        )
        assert (table.loc[table["layer"] == MODEL_WIDE, ["d_in", "d_out"]] == 0).all(axis=None)
    layer = tables[0][tables[0]["layer"].str.endswith("layers.1.mlp.up_proj")].iloc[0]
    assert (layer["block"], layer["kind"]) == (1, "up_proj")


def test_a_probed_step_is_a_plain_step(fold: Fold) -> None:
    plain = fold.backward(2, None)
    grads = [w.grad.clone() for learner in fold.learners for w in learner.weights]
    probed = fold.backward(2, NormProbe(fold.base.model))
    assert probed == plain
    again = [w.grad for learner in fold.learners for w in learner.weights]
    assert all(torch.equal(a, b) for a, b in zip(grads, again, strict=True))


def test_no_hook_outside_watch_and_none_for_weights_alone(fold: Fold) -> None:
    hooks = lambda: sum(  # noqa: E731
        len(m._forward_hooks) + len(m._backward_hooks) for m in fold.base.model.modules()
    )
    assert hooks() == 0
    probe = NormProbe(fold.base.model)
    assert hooks() == 0
    with probe.watch():
        assert hooks() == len(fold.banks)
    assert hooks() == 0
    with NormProbe(fold.base.model, sites=["A", "adapter_grad"]).watch():
        assert hooks() == 0


def test_only_what_is_asked_for(fold: Fold) -> None:
    probe = NormProbe(fold.base.model, sites=["adapter_grad", "adapter_in"], stats=["norm"])
    fold.backward(2, probe)
    probe.before_update()
    table = probe.collect(2)[0]
    assert set(table["site"]) == {"adapter_grad", "adapter_in"}
    assert list(table.columns) == [*KEYS, "norm"]


def test_nothing_measured_has_no_row(fold: Fold) -> None:
    """A run's last step has no update: no row, rather than zeros."""
    probe = NormProbe(fold.base.model)
    fold.backward(2, probe)
    probe.before_update()
    sites = set(probe.collect(2)[0]["site"])
    assert sites == set(SITES) - {"A_update", "B_update", "adapter_update"}


def test_same_numbers_on_a_peft_model(
    tiny_base: FrozenBase, corpus: Corpus, cell: Callable[..., CellConfig]
) -> None:
    from peft import LoraConfig, get_peft_model
    from torch.nn.functional import cross_entropy

    config = cell(
        "adapter.rank=4", "adapter.alpha=8", "adapter.scaling=rslora", "train.batch_size=4"
    )
    peft_model = get_peft_model(
        copy.deepcopy(tiny_base.model),
        LoraConfig(r=4, lora_alpha=8, use_rslora=True, target_modules="all-linear"),
    )
    with adapted(
        tiny_base.model, tiny_base.card.linears, [AdapterSpec(4, config.adapter.gamma)]
    ) as banks:
        with torch.no_grad():
            for bank in banks:
                torch.nn.init.normal_(bank.pairs[0].B_OR, std=0.1)
                layer = peft_model.get_submodule(f"base_model.model.{bank.layer}")
                layer.lora_A["default"].weight.copy_(bank.pairs[0].A_RD)
                layer.lora_B["default"].weight.copy_(bank.pairs[0].B_OR)
        fold = Fold(tiny_base, corpus, [config], banks)
        ours = NormProbe(tiny_base.model)
        fold.backward(0, ours)
        ours.before_update()
        fold.grad_norms()
        fold.update()
        ours.after_update()
        expected = ours.collect(0)[0]

    batch = corpus.train.batch(0, 0, 4)
    theirs = NormProbe(peft_model)
    optimizer = torch.optim.AdamW(
        [p for p in peft_model.parameters() if p.requires_grad], lr=1e-2, weight_decay=0
    )
    with theirs.watch(batch.real_BT.long()):
        logits = peft_model(
            input_ids=batch.input_ids_BT, attention_mask=batch.real_BT.long()
        ).logits
        cross_entropy(logits.flatten(0, 1), batch.targets_BT.flatten()).backward()
    theirs.before_update()
    optimizer.step()
    theirs.after_update()
    found = theirs.collect(0)[0]
    pd.testing.assert_frame_equal(found, expected, rtol=1e-5, check_exact=False)


@pytest.mark.parametrize("scale", [1e-25, 1e-12, 1.0, 1e12])
def test_moments_at_any_scale(scale: float) -> None:
    x = torch.randn(1000) * scale
    expected = x.double().abs()
    sums = unscaled(scaled_sums(x).numpy())
    for found, wanted in zip(
        sums,
        (expected.sum(), expected.pow(2).sum(), expected.pow(4).sum(), expected.max()),
        strict=True,
    ):
        assert float(found) == pytest.approx(float(wanted), rel=1e-5)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_non_finite_values_are_kept_and_flagged(fold: Fold, bad: float) -> None:
    with torch.no_grad():
        fold.banks[3].pairs[1].A_RD[0, 0] = bad
    probe = NormProbe(fold.base.model, sites=["A", "B"])
    probe.before_update()
    clean, hit = probe.collect(0)
    assert (clean["nonfinite"] == 0).all()
    rows = hit[(hit["layer"] == fold.banks[3].layer) & (hit["site"] == "A")]
    assert rows["nonfinite"].item() == 1
    assert not np.isfinite(rows["mean_abs"].item())
    assert hit["nonfinite"].sum() == 1


def test_zero_tensors_have_zero_moments_and_are_finite() -> None:
    assert unscaled(scaled_sums(torch.zeros(5)).numpy()).tolist() == [0, 0, 0, 0]
