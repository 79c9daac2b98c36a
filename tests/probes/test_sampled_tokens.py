"""``adapter_out`` and ``adapter_in_grad`` of a step of PEFT with several micro-batches and dropout.

They are compared with autograd on all tokens of the step, with the dropout masks of training. Those
of our own steps: ``test_norm_probe.py``.
"""

import copy
from collections import defaultdict

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.nn.functional import cross_entropy

from study.probes import NormProbe

ALL = 10**6
"""More tokens than a micro-batch has."""
P, MICRO_BATCHES = 0.3, 3


class ByAutograd:
    """The outputs of adapters and the gradients that they pass to x, by layer."""

    def __init__(self):
        self.kept, self.out, self.dx = {}, defaultdict(list), defaultdict(list)
        self.real_BT = torch.empty(0)

    def watch(self, layer, module):
        A, B = (getattr(module, side)["default"].weight for side in ("lora_A", "lora_B"))
        nn.init.normal_(B.data, std=0.1, generator=torch.Generator().manual_seed(0))

        def on_dropout(_, args, y):
            self.kept[layer] = y.detach() / args[0]

        def on_forward(_, args, y):
            x = args[0].detach().double().requires_grad_()
            dropped = x * self.kept[layer].double()
            out = 2 * dropped @ A.detach().double().mT @ B.detach().double().mT
            real_BT = self.real_BT
            self.out[layer].append(out[real_BT].detach())

            def on_backward(dy):
                (dx,) = torch.autograd.grad(out, x, dy.double())
                self.dx[layer].append(dx[real_BT])

            y.register_hook(on_backward)

        module.lora_dropout["default"].register_forward_hook(on_dropout)
        module.register_forward_hook(on_forward)


def test_steps_of_peft_agree_with_autograd(tiny_base, corpus):
    lora = LoraConfig(r=4, lora_alpha=8, lora_dropout=P, target_modules="all-linear")
    peft_model = get_peft_model(copy.deepcopy(tiny_base.model), lora).train()
    by_autograd, sites = ByAutograd(), ["adapter_out", "adapter_in_grad"]
    for layer in NormProbe(peft_model).layers:
        by_autograd.watch(layer.name, layer.module)
    probe = NormProbe(peft_model, sites=sites, stats=["rms"], tokens=ALL)

    torch.manual_seed(5)
    for n in range(MICRO_BATCHES):
        batch = corpus.train.batch(0, n, 3)
        by_autograd.real_BT = batch.real_BT
        with probe.watch(batch.real_BT):
            logits = peft_model(input_ids=batch.input_ids_BT).logits
            loss = cross_entropy(logits.flatten(0, 1), batch.targets_BT.flatten())
            (loss / MICRO_BATCHES).backward()
    rms = probe.collect(0)[0].set_index(["site", "layer"])["rms"]
    for site, found in zip(sites, (by_autograd.out, by_autograd.dx), strict=True):
        for layer, parts in found.items():
            wanted = torch.cat(parts).square().mean().sqrt().item()
            assert rms[site, layer] == pytest.approx(wanted, rel=1e-5), (site, layer)
