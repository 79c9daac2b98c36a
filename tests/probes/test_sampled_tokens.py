"""``adapter_out`` and ``adapter_in_grad`` of a step with several micro-batches and dropout.

They are compared with autograd on all tokens of the step, with the dropout masks of training.
"""

import copy
from collections import defaultdict
from contextlib import nullcontext

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from study.adapters import AdapterSpec, adapted
from study.adapters.inits import generator_for
from study.probes import NormProbe
from study.training.loop import Fold

ALL = 10**6
"""More tokens than a micro-batch has."""
P, MICRO_BATCHES = 0.3, 3


class ByAutograd:
    """The outputs of adapters and the gradients that they pass to x, by layer.

    ``kept_of(layer, x)``: what dropout multiplied x by.
    """

    def __init__(self, kept_of):
        self.kept_of = kept_of
        self.out: dict[str, list[Tensor]] = defaultdict(list)
        self.dx: dict[str, list[Tensor]] = defaultdict(list)
        self.real_BT = torch.empty(0)

    def watch(self, layer, module, A, B, gamma):
        def on_forward(_, args, y):
            x = args[0].detach().double().requires_grad_()
            kept = self.kept_of(layer, args[0]).double()
            out = gamma * (x * kept) @ A.detach().double().mT @ B.detach().double().mT
            real_BT = self.real_BT
            self.out[layer].append(out[real_BT].detach())

            def on_backward(dy):
                (dx,) = torch.autograd.grad(out, x, dy.double())
                self.dx[layer].append(dx[real_BT])

            y.register_hook(on_backward)

        module.register_forward_hook(on_forward)

    def assert_agrees(self, table):
        rms = table.set_index(["site", "layer"])["rms"]
        for site, found in (("adapter_out", self.out), ("adapter_in_grad", self.dx)):
            for layer, parts in found.items():
                wanted = torch.cat(parts).square().mean().sqrt().item()
                assert rms[site, layer] == pytest.approx(wanted, rel=1e-5), (site, layer)


def test_our_steps_agree_with_autograd(tiny_base, corpus, cell):
    spec = AdapterSpec(4, 2.0, seed=3, dropout=P)
    config = cell(f"train.accumulation={MICRO_BATCHES}", f"adapter.dropout={P}", "adapter.rank=4")
    streams = {}

    def kept_of(layer, x):
        stream = streams.setdefault(layer, generator_for(3, f"{layer}/dropout"))
        return torch.empty_like(x).bernoulli_(1 - P, generator=stream) / (1 - P)

    with adapted(tiny_base.model, tiny_base.card.linears, [spec]) as banks:
        by_autograd = ByAutograd(kept_of)
        micro_batches = [corpus.train.batch(0, n, 3) for n in range(MICRO_BATCHES)]
        of_layers = iter([batch for batch in micro_batches for _ in banks])
        for bank in banks:
            pair = bank.pairs[0]
            nn.init.normal_(pair.B_OR.data, std=0.1, generator=torch.Generator().manual_seed(0))
            bank.register_forward_pre_hook(
                lambda *_: setattr(by_autograd, "real_BT", next(of_layers).real_BT)
            )
            by_autograd.watch(bank.layer, bank, *pair)
        fold = Fold(tiny_base, corpus, [config], banks)
        sites = ["adapter_out", "adapter_in_grad", "delta_w"]
        probe = NormProbe(tiny_base.model, sites=sites, stats=["rms"], tokens=ALL)
        fold.backward(0, probe)
        probe.before_update()
    by_autograd.assert_agrees(probe.collect(0)[0])


def test_steps_of_peft_agree_with_autograd_and_draw_the_same_masks(tiny_base, corpus):
    lora = LoraConfig(r=4, lora_alpha=8, lora_dropout=P, target_modules="all-linear")
    peft_model = get_peft_model(copy.deepcopy(tiny_base.model), lora).train()
    dropped = {}
    by_autograd = ByAutograd(lambda layer, _: dropped[layer])
    seen = NormProbe(peft_model).layers
    for layer in seen:
        down, up = (getattr(layer.module, side)["default"].weight for side in ("lora_A", "lora_B"))
        nn.init.normal_(up.data, std=0.1, generator=torch.Generator().manual_seed(0))
        layer.module.lora_dropout["default"].register_forward_hook(
            lambda _, args, y, name=layer.name: dropped.__setitem__(name, y.detach() / args[0])
        )
        by_autograd.watch(layer.name, layer.module, down, up, 2.0)
    probe = NormProbe(
        peft_model, sites=["adapter_out", "adapter_in_grad"], stats=["rms"], tokens=ALL
    )

    def losses(watch):
        torch.manual_seed(5)
        found = []
        for n in range(MICRO_BATCHES):
            batch = corpus.train.batch(0, n, 3)
            by_autograd.real_BT = batch.real_BT
            with watch(batch.real_BT):
                logits = peft_model(input_ids=batch.input_ids_BT).logits
                loss = cross_entropy(logits.flatten(0, 1), batch.targets_BT.flatten())
                (loss / MICRO_BATCHES).backward()
            found.append(loss.item())
        return found

    probed = losses(probe.watch)
    by_autograd.assert_agrees(probe.collect(0)[0])
    assert losses(lambda _: nullcontext()) == probed
