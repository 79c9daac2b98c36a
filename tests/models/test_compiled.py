"""``pack.compile`` changes a run and its probes by rounding only, and leaves the base unchanged."""

from collections.abc import Callable
from functools import partial

import pandas as pd
import pytest
import torch
from torch._dynamo.utils import counters

from study.config import CellConfig
from study.data import Corpus
from study.models import FrozenBase
from study.training.loop import CellStep, train
from study.training.run import Run


def run(base: FrozenBase, corpus: Corpus, config: CellConfig) -> list[CellStep]:
    return [
        results[0]
        for results in train(base, corpus, [Run.of(config, corpus, base.device)])
        if results[0] is not None
    ]


@pytest.mark.parametrize(
    ("contraction", "backend"), [("factored", "inductor"), ("merged", "aot_eager")]
)
def test_a_compiled_run_equals_a_plain_run(
    tiny_base: FrozenBase,
    corpus: Corpus,
    cell: Callable[..., CellConfig],
    monkeypatch: pytest.MonkeyPatch,
    contraction: str,
    backend: str,
) -> None:
    """aot_eager traces as inductor does, but needs no C++ compiler."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    shape = [
        f"adapter.contraction={contraction}",
        "train.steps=4",
        "train.accumulation=2",
        "probes.steps=[0,3]",
    ]
    counters.clear()
    plain = run(tiny_base, corpus, cell(*shape))
    assert not counters["stats"]
    compiled = run(tiny_base, corpus, cell(*shape, "pack.compile=true"))
    assert counters["stats"]["unique_graphs"] > 0
    for ours, wanted in zip(compiled, plain, strict=True):
        assert ours.metrics == pytest.approx(
            wanted.metrics | {"seconds": ours.metrics["seconds"]}, rel=1e-4
        )
    probes = [steps[3].probes for steps in (compiled, plain)]
    ours, wanted = (probe[["rms", "norm"]] for probe in probes if probe is not None)
    pd.testing.assert_frame_equal(ours, wanted, rtol=1e-3)
    assert not any("forward" in vars(module) for module in tiny_base.model.modules())
