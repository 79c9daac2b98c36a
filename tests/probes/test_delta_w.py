"""What ``gamma B A`` costs a probed step."""

from collections.abc import Callable

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.products import Products
from study.adapters import AdapterSpec, Contraction, adapted
from study.config import CellConfig
from study.data import Corpus
from study.models import FrozenBase
from study.probes import NormProbe
from study.training.loop import Fold
from tests.probes.folds import SPECS, TOKENS, trained


@pytest.mark.parametrize("form", ["factored", "mixed", "merged"])
def test_delta_w_is_formed_at_most_once(
    tiny_base: FrozenBase, corpus: Corpus, cell: Callable[..., CellConfig], form: str
) -> None:
    """By FLOPs beyond those of a plain step of two micro-batches.

    A step that merges has formed it already. The tokens of the first micro-batch are multiplied by
    it where it has fewer elements than its factors, those of the second by both factors. A factored
    step has multiplied them by one factor already.
    """
    sampled = ["adapter_out", "adapter_in_grad"]
    asked = [["A", "A_grad", "layer_out"], sampled, ["delta_w"], [*sampled, "delta_w"]]
    with trained(tiny_base, corpus, cell, form) as fold:
        counted = []
        for sites in [None, *asked]:
            probe = sites and NormProbe(tiny_base.model, sites=sites, stats=["rms"], tokens=TOKENS)
            with FlopCounterMode(display=False) as counter:
                fold.backward(2, probe or None)
                if probe:
                    probe.before_update()
            counted.append(counter.get_total_flops())
        shapes = [bank.features for bank in fold.banks]
    low, high = (spec.rank for spec in SPECS)
    formed = sum(2 * rank * d * o for d, o in shapes for rank in (low, high))
    factor = {rank: sum(2 * TOKENS * rank * (d + o) for d, o in shapes) for rank in (low, high)}
    through_product = sum(4 * TOKENS * d * o for d, o in shapes)
    extra = [more - counted[0] for more in counted[1:]]
    if form == "factored":
        sampled_too = formed + through_product + 2 * factor[low] + factor[high]
        assert extra == [0, 2 * (factor[low] + factor[high]), formed, sampled_too]
    else:
        through_both = through_product + 4 * factor[low] + 2 * factor[high]
        assert extra == [0, through_both, 0, through_both]


def test_a_probed_step_takes_the_form_that_is_cheapest_with_the_product(
    tiny_base: FrozenBase, corpus: Corpus, cell: Callable[..., CellConfig]
) -> None:
    """At high rank and few tokens a plain step is factored, and one that needs B A is mixed.

    The losses and the gradients of both agree within rounding.
    """
    few = Contraction("auto", 16)
    high, d, o = 512, *tiny_base.card.shapes[0]
    assert few.choose(d, o, high) == "factored"
    assert few.choose(d, o, high, needs_product=True) == "mixed"
    assert few.choose(d, o, 1, needs_product=True) == "factored", "mixing moves more memory"
    config = cell(f"adapter.rank={high}")
    found = []
    for sites in (["A"], ["adapter_out"], ["delta_w"]):
        spec = AdapterSpec(high, 0.5)
        with adapted(tiny_base.model, tiny_base.card.linears, [spec], contraction=few) as banks:
            fold = Fold(tiny_base, corpus, [config], banks)
            fold.backward(0)
            fold.grad_norms()
            fold.update()
            probe = NormProbe(tiny_base.model, sites=sites, stats=["rms"], tokens=TOKENS)
            with Products(tiny_base.model) as products:
                loss_K = fold.backward(1, probe)
                probe.before_update()
            gradients = [factor.grad for bank in banks for factor in bank.pairs[0][:2]]
            found.append((products.flops, loss_K, gradients))
    (plain_flops, loss_K, gradients), (sampled_flops, *same), (flops, loss_2, gradients_2) = found
    torch.testing.assert_close(same, [loss_K, gradients], rtol=0, atol=0)
    torch.testing.assert_close((loss_2, gradients_2), (loss_K, gradients), rtol=1e-5, atol=1e-7)
    formed = sum(2 * high * d * o for d, o in tiny_base.card.shapes)
    assert sampled_flops > plain_flops
    assert flops - plain_flops < formed, "the product alone would cost more"
