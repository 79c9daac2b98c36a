"""Infinite rank: full fine-tuning at a rate of each layer, and the limit of finite ranks."""

import copy

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from tests.trained import series, trained


@pytest.mark.parametrize(("init", "side"), [("kaiming", "in"), ("init_b", "out")])
def test_without_decay_it_is_full_fine_tuning(tiny_base, corpus, cell, init, side):
    """At the rate ``lr alpha^2 v`` of each layer, momentum included. The entries of the drawn
    factor have the variance ``v = 1 / (3 D)``, under Init[B] ``1 / (3 O)``."""
    config = cell(
        *("adapter.rank=inf", "adapter.scaling=rslora", f"adapter.init={init}", "probes.steps=[3]"),
        *("optimizer=nesterov", "optimizer.lr=0.01", "adapter.alpha=4"),
    )
    [steps] = trained(tiny_base, corpus, config)
    tuned, groups = copy.deepcopy(tiny_base.model), []
    for path in tiny_base.card.linears:
        layer = tuned.get_submodule(path)
        rate = 0.01 * 4**2 / (3 * getattr(layer, f"{side}_features"))
        groups.append({"params": [layer.weight.requires_grad_()], "lr": rate})
    optimizer = torch.optim.SGD(groups, momentum=0.9, nesterov=True)
    losses = []
    for step in range(4):
        batch = corpus.train.batch(config.data.seed, step, config.train.batch_size)
        logits = tuned(batch.input_ids_BT).logits
        loss = cross_entropy(logits.flatten(0, 1), batch.targets_BT.flatten())
        losses.append(loss.item())
        if step < 3:
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    assert series(steps, "loss") == pytest.approx(losses, rel=1e-4)
    rows = steps[-1].probes.query("site == 'delta_w'").set_index("layer")["norm"]
    for path in tiny_base.card.linears:
        moved = tuned.get_submodule(path).weight - tiny_base.model.get_submodule(path).weight
        assert rows[path] == pytest.approx(moved.norm().item(), rel=1e-3), path


@pytest.mark.parametrize(
    ("optimizer", "made"), [("adamw", torch.optim.AdamW), ("sgd", torch.optim.SGD)]
)
def test_rank_full_trains_the_weights_as_torch_does(tiny_base, corpus, cell, optimizer, made):
    """Whatever the rule and alpha: rank full has none of them."""
    config = cell(
        *("adapter.rank=full", "adapter.scaling=rslora", "adapter.alpha=64", "adapter.init=init_b"),
        *(f"optimizer={optimizer}", "optimizer.lr=1e-3", "probes.steps=[3]"),
    )
    [steps] = trained(tiny_base, corpus, config)
    tuned = copy.deepcopy(tiny_base.model)
    weights = [tuned.get_submodule(path).weight for path in tiny_base.card.linears]
    options = {"weight_decay": 0.0} if optimizer == "adamw" else {}
    stepper = made([weight.requires_grad_() for weight in weights], lr=1e-3, **options)
    losses = []
    for step in range(4):
        batch = corpus.train.batch(config.data.seed, step, config.train.batch_size)
        logits = tuned(batch.input_ids_BT).logits
        loss = cross_entropy(logits.flatten(0, 1), batch.targets_BT.flatten())
        losses.append(loss.item())
        stepper.zero_grad()
        loss.backward()
        if step < 3:
            stepper.step()
    assert losses[0] - losses[3] > 0.01
    assert series(steps, "loss") == pytest.approx(losses, rel=1e-5)
    rows = steps[-1].probes.query("site == 'delta_w'").set_index("layer")["norm"]
    for path in tiny_base.card.linears:
        moved = tuned.get_submodule(path).weight - tiny_base.model.get_submodule(path).weight
        assert rows[path] == pytest.approx(moved.norm().item(), rel=1e-3), path


@pytest.mark.parametrize("init", ["kaiming", "init_b"])
def test_a_cell_of_infinite_rank_is_near_a_high_rank(tiny_base, corpus, cell, init):
    """In the training loop with every option: losses, gradient norms and probes are close."""
    common = ["adapter.scaling=rslora", f"adapter.init={init}", "optimizer=nesterov"]
    common += ["optimizer.weight_decay=0.1", "optimizer.loraplus_lr_ratio=2", "optimizer.lr=0.02"]
    common += ["train.clip=0.5", "train.schedule=linear", "probes.steps=[0,1,3]"]
    common += ["probes.batch=[train,heldout,noise]", "probes.stats=[all,rho,r_align]"]
    common += ["adapter.targets=[q_proj,down_proj]"]  # fewer products of high rank
    runs = [
        trained(tiny_base, corpus, cell(f"adapter.rank={rank}", *common))[0]
        for rank in (4096, "inf")
    ]
    losses, norms = (
        [[step.metrics.get(name) for step in run] for run in runs] for name in ("loss", "grad_norm")
    )
    assert losses[1][0] - losses[1][-1] != 0
    assert losses[0] == pytest.approx(losses[1], rel=1e-2)
    assert norms[0] == pytest.approx(norms[1], rel=5e-2)
    probes = [run[-1].probes.set_index(["layer", "site", "batch"])["norm"] for run in runs]
    assert set(probes[1].index.get_level_values("site")) == {
        *("adapter_in", "adapter_out", "layer_out", "layer_out_grad", "adapter_in_grad", "delta_w")
    }
    both = np.log(probes[0].reindex(probes[1].index) / probes[1])
    assert both.abs().max() < 0.1, both.abs().idxmax()
