"""``adapter_out`` and ``adapter_in_grad`` of a step of PEFT with several micro-batches and dropout.

They are compared with their definitions on all tokens of the step, with the dropout masks of
training. Those of our own steps: ``test_norm_probe.py``.
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


class ByDefinition:
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
            x, kept, real_BT = args[0].detach().double(), self.kept[layer].double(), self.real_BT
            delta_w = 2 * B.detach().double() @ A.detach().double()
            self.out[layer].append(((x * kept) @ delta_w.mT)[real_BT])
            y.register_hook(
                lambda dy: self.dx[layer].append((dy.double() @ delta_w * kept)[real_BT])
            )

        module.lora_dropout["default"].register_forward_hook(on_dropout)
        module.register_forward_hook(on_forward)


def test_steps_of_peft_are_those_of_the_definition(tiny_base, corpus):
    lora = LoraConfig(r=4, lora_alpha=8, lora_dropout=P, target_modules="all-linear")
    peft_model = get_peft_model(copy.deepcopy(tiny_base.model), lora).train()
    definition, sites = ByDefinition(), ["adapter_out", "adapter_in_grad"]
    for layer in NormProbe(peft_model).layers:
        definition.watch(layer.name, layer.module)
    probe = NormProbe(peft_model, sites=sites, stats=["rms"], tokens=ALL)

    torch.manual_seed(5)
    for n in range(MICRO_BATCHES):
        batch = corpus.train.batch(0, n, 3)
        definition.real_BT = batch.real_BT
        with probe.watch(batch.real_BT):
            logits = peft_model(input_ids=batch.input_ids_BT).logits
            loss = cross_entropy(logits.flatten(0, 1), batch.targets_BT.flatten())
            (loss / MICRO_BATCHES).backward()
    rms = probe.collect(0)[0].set_index(["site", "layer"])["rms"]
    for site, found in zip(sites, (definition.out, definition.dx), strict=True):
        for layer, parts in found.items():
            wanted = torch.cat(parts).square().mean().sqrt().item()
            assert rms[site, layer] == pytest.approx(wanted, rel=1e-5), (site, layer)
