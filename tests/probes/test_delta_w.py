"""What ``gamma B A`` costs a probed step."""

from collections.abc import Callable

import pytest
from torch.utils.flop_counter import FlopCounterMode

from study.config import CellConfig
from study.data import Corpus
from study.models import FrozenBase
from study.probes import NormProbe
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
