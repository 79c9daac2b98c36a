"""Alignments against theory's own, computed from arrays of the same run; rho by its definition."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from study.adapters import AdapterSpec, adapted
from study.adapters.bank import initial_pair
from study.probes.alignment import ALIGNED
from study.training.loop import Fold
from study.training.measuring import make_probe
from study.vocabulary.quantities import ALIGNMENTS, HELDOUT, NOISE, TRAIN
from tests.theory.measured_layer import measure_layer
from tests.trained import trained

SPECS = [AdapterSpec(4, 2.0, seed=0), AdapterSpec(6, 0.5, seed=1, init="init_b")]
TOKENS = 20


class Captured:
    """Inputs and output gradients of every layer, by micro-batch, from hooks of our own."""

    def __init__(self, banks):
        self.x: dict[str, list[Tensor]] = {bank.layer: [] for bank in banks}
        self.dy: dict[str, list[Tensor]] = {bank.layer: [] for bank in banks}
        for bank in banks:
            bank.register_forward_hook(self.forward)

    def forward(self, bank, args, y):
        self.x[bank.layer].append(args[0].detach())
        y.register_hook(lambda dy: self.dy[bank.layer].append(dy))


def test_alignments_agree_with_theory(tiny_base, corpus, cell):
    """Two updates of two micro-batches each; A is drawn in one cell, B in the other."""
    schedule = ["train.schedule=linear", "train.accumulation=2", f"probes.tokens={TOKENS}"]
    stats = "probes.stats=[norm,r_align,r_sign,r_diag,r_eff,r_nuc,r_rows,r_joint,r_back]"
    cells = [
        cell("adapter.rank=4", stats, "probes.steps=[0,2]", *schedule),
        cell("adapter.rank=6", *schedule),
    ]
    with adapted(tiny_base.model, tiny_base.card.linears, SPECS) as banks:
        captured = Captured(banks)
        fold = Fold(tiny_base, corpus, cells, banks)
        rates = []
        for step in range(2):
            rates.append(fold.learning_rates()[0])
            fold.backward(step, None)
            fold.update()
        assert rates[1] < rates[0]
        probe = make_probe(fold, TRAIN)
        fold.backward(2, probe)
        assert fold.alignment is None, "gradients are dropped after the last probe that needs them"
        tables = probe.collect(2)
        real_KBT = fold._micro_batches(2)[0][0].real_BT.chunk(2)

    for k, (spec, table) in enumerate(zip(SPECS, tables, strict=True)):
        drawn = "B" if spec.init == "init_b" else "A"
        for bank in banks:
            x, dy = (
                [t.chunk(2)[k].double() for t in of[bank.layer]] for of in (captured.x, captured.dy)
            )
            G = sum(rates[m // 2] * torch.einsum("bto,btd->od", dy[m], x[m]) for m in range(4))
            real = real_KBT[k]
            pick = torch.linspace(0, int(real.sum()) - 1, TOKENS).round().long()
            wanted = measure_layer(
                G.numpy(), x[4][real][pick].numpy(), dy[4][real][pick].numpy(), init=drawn
            )
            rows = table[table["layer"] == bank.layer].set_index("site")
            near, far = ["adapter_out", "adapter_in_grad"][:: 1 if drawn == "A" else -1]
            expected = {stat: getattr(wanted, stat) for stat in ALIGNED} | {"r_back": math.nan}
            opposite = dict.fromkeys(ALIGNED, math.nan) | {"r_back": wanted.r_back}
            for site, values in ((near, expected), (far, opposite)):
                found = rows.loc[site, list(values)].to_dict()
                assert found == pytest.approx(values, rel=1e-5, nan_ok=True), (bank.layer, site)
            others = rows.drop(index=[near, far])[list(ALIGNMENTS)]
            assert others.isna().all(axis=None)


def probes(base, corpus, config):
    [steps] = trained(base, corpus, config)
    return {int(step.metrics["step"]): step.probes for step in steps if step.probes is not None}


def test_from_step_1_to_step_3_and_only_where_asked_for(tiny_base, corpus, cell):
    steps = ["train.steps=5", "probes.steps=[0,1,3,4]", "probes.batch=all"]
    by_step = probes(tiny_base, corpus, cell("probes.stats=[norm,r_align,r_back]", *steps))
    measured = {
        step: set(table.loc[table["r_align"].notna(), "batch"]) for step, table in by_step.items()
    }
    everywhere = {TRAIN, HELDOUT, NOISE}
    assert measured == {0: set(), 1: everywhere, 3: everywhere, 4: set()}
    out = by_step[1][by_step[1]["site"] == "adapter_out"]
    aligned_by = out.groupby("batch", observed=True)["r_align"].median()
    assert aligned_by[NOISE] > 2 * max(aligned_by[TRAIN], aligned_by[HELDOUT])
    with adapted(tiny_base.model, tiny_base.card.linears, SPECS[:1]) as banks:
        assert Fold(tiny_base, corpus, [cell(*steps)], banks).alignment is None


def test_rho_is_the_motion_of_A(tiny_base, corpus, cell):
    config = cell("probes.sites=[A]", "probes.stats=[rho]", "probes.tokens=6", "adapter.rank=4")
    with adapted(tiny_base.model, tiny_base.card.linears, SPECS) as banks:
        captured = Captured(banks)
        fold = Fold(tiny_base, corpus, [config, cell("adapter.rank=6")], banks)
        first = make_probe(fold, TRAIN)
        fold.backward(0, first)
        first.before_update()
        fold.update()
        fold.backward(1, None)
        fold.update()
        second = make_probe(fold, TRAIN)
        fold.backward(2, second)
        second.before_update()
        before, after = first.collect(0), second.collect(2)
        real = fold._micro_batches(2)[0][0].real_BT.chunk(2)[0]
        pick = torch.linspace(0, int(real.sum()) - 1, 6).round().long()
        assert (before[0]["rho"] == 0).all()
        for bank in banks:
            x = captured.x[bank.layer][2].chunk(2)[0][real][pick].double()
            A = bank.pairs[0].A_RD.detach().double()
            A0 = initial_pair(SPECS[0], bank.layer, *bank.features)[0].double()
            rho = after[0].set_index("layer").loc[bank.layer, "rho"]
            expected = ((x @ (A - A0).T).norm() / (x @ A0.T).norm()).item()
            assert rho == pytest.approx(expected, rel=1e-5)
            assert rho > 0
    assert np.isnan(after[1]["rho"]).all(), "A was 0 at the start in this cell"


def test_after_one_step_of_adam_r_parts_is_r_sign(tiny_base, corpus, cell):
    """A is drawn anew at each rank, so the parts of one output scatter about their mean."""
    settings = ["optimizer=adamw", "optimizer.eps=1e-20", "probes.stats=[r_sign,r_parts]"]
    config = cell(*settings, "probes.sites=[adapter_out]", "probes.steps=[1]", "adapter.rank=256")
    table = probes(tiny_base, corpus, config)[1].set_index("layer")
    ratio = np.log(table["r_parts"] / table["r_sign"])
    assert np.exp(ratio.mean()) == pytest.approx(1, abs=0.05)
    assert ratio.std() < 0.2
