"""The products of a step are recorded whole, and their time goes into the tables."""

import pandas as pd
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.products import Products
from benchmarks.summary import NOT_MEASURED, limits, markdown
from benchmarks.ways import base_and_corpus, cell
from study.config import CellConfig
from study.training.loop import train
from study.training.run import Run

CPU = torch.device("cpu")
SIZE = ("model=tiny", "device=cpu", "data.sequence_length=32", "train.batch_size=2")


def counted_by_torch(config: CellConfig) -> int:
    """FLOPs of the second step, by torch's own counter."""
    base, corpus = base_and_corpus(config)
    steps = train(base, corpus, [Run.of(config, corpus, CPU)])
    next(steps)
    with FlopCounterMode(display=False) as counter:
        next(steps)
    steps.close()
    return counter.get_total_flops()


@pytest.mark.parametrize("form", ["merged", "mixed"])
def test_the_flops_are_those_that_torch_counts(form: str) -> None:
    config = cell(*SIZE, "train.steps=2", "adapter.rank=4", f"adapter.contraction={form}")
    with sdpa_kernel(SDPBackend.MATH):  # torch does not count the attention kernel of a CPU
        products = Products.of_step(config, *base_and_corpus(config))
        assert products.flops == counted_by_torch(config) > 0
    fused = Products.of_step(config, *base_and_corpus(config))
    assert fused.flops > products.flops, "the fused kernel computes the scores again"


def test_products_that_add_in_place_count() -> None:
    """torch's counter lacks them, so the FLOPs are compared with those of another form."""
    base, corpus = base_and_corpus(cell(*SIZE))
    flops = {}
    for form in ("factored", "merged"):
        config = cell(*SIZE, "adapter.rank=4", f"adapter.contraction={form}")
        flops[form] = Products.of_step(config, base, corpus).flops
    tokens = Run.of(cell(*SIZE), corpus, CPU).tokens
    more = sum(6 * tokens * 4 * (d + o) for d, o in base.card.shapes)
    less = sum(2 * tokens * d * o + 6 * 4 * d * o for d, o in base.card.shapes)
    assert flops["factored"] - flops["merged"] == pytest.approx(more - less, rel=0.02)


def test_products_are_run_again_without_a_change_to_the_weights() -> None:
    config = cell(*SIZE, "adapter.rank=4", "adapter.contraction=factored")
    products = Products.of_step(config, *base_and_corpus(config))
    base, _ = base_and_corpus(config)
    before = [weight.clone() for weight in base.model.parameters()]
    with Products(base.model) as again:
        products.run()
    assert again.flops == products.flops
    assert products.seconds(CPU) > 0
    for weight, old in zip(base.model.parameters(), before, strict=True):
        assert torch.equal(weight, old)


def test_a_table_without_the_column_says_not_measured() -> None:
    row = {"variant": "step", "rank": 4, "seconds": 3.0, "peak": 100.0}
    row |= {"base_flops": 150.0, "adapter_flops": 30.0, "factored_flops": 60.0}
    new = limits(pd.DataFrame([row | {"products": 2.0}])).loc[4]
    assert new["step / its products"] == 1.5
    assert new["% of peak"] == pytest.approx(60)
    assert new["products, % of peak"] == pytest.approx(90)
    old = limits(pd.DataFrame([row]))
    assert old.loc[4, "% of peak"] == new["% of peak"]
    assert markdown(old, "rank").endswith(f"| {NOT_MEASURED} | {NOT_MEASURED} |")
