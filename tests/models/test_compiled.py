"""``pack.compile`` changes a run and its probes by rounding only, and leaves the base unchanged."""

from functools import partial

import pandas as pd
import pytest
import torch
from torch._dynamo.utils import counters

from tests.trained import trained


@pytest.fixture(autouse=True)
def _no_programs(monkeypatch):
    """aot_eager traces as inductor does, without its C++ compiler, which takes half a minute."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    torch.compiler.reset()
    counters.clear()
    yield
    torch.compiler.reset()


@pytest.mark.parametrize("form", ["factored", "mixed", "merged"])
def test_a_compiled_run_equals_a_plain_run_and_ranks_share_its_program(
    tiny_base, corpus, cell, form
):
    shape = (f"adapter.contraction={form}", "train.steps=4", "train.accumulation=2")
    shape += ("probes.steps=[0,3]",)
    plain, compiled = (
        trained(tiny_base, corpus, cell(*shape, "adapter.rank=16", more))[0]
        for more in ("pack.compile=false", "pack.compile=true")
    )
    # The tiny base has one block after the first.
    assert counters["stats"]["unique_graphs"] == 1, "micro-batches do not break its graph"
    for step, other in zip(compiled, plain, strict=True):
        seconds = {"seconds": step.metrics["seconds"]}
        assert step.metrics == pytest.approx(other.metrics | seconds, rel=1e-4)
    probes = [steps[3].probes for steps in (compiled, plain)]
    found, wanted = (probe[["rms", "norm"]] for probe in probes if probe is not None)
    pd.testing.assert_frame_equal(found, wanted, rtol=1e-3)
    assert not any("forward" in vars(module) for module in tiny_base.model.modules())
    short = ("pack.compile=true", "train.steps=2", "probes.steps=null")
    for rank in (24, 33):
        trained(tiny_base, corpus, cell(*shape, *short, f"adapter.rank={rank}"))
        assert counters["stats"]["unique_graphs"] == 1, f"compiled again at rank {rank}"
