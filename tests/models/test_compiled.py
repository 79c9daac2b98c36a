"""``pack.compile`` changes a run and its probes by rounding only, and leaves the base unchanged.

``auto`` says what it chose; the ranks of a pack share a program.
"""

import re
from collections.abc import Callable
from functools import partial

import pandas as pd
import pytest
import torch
from torch._dynamo.utils import counters

from study.config import CellConfig
from study.data import Corpus
from study.models import FrozenBase, compiled
from study.models.compiled import compiler
from study.training.loop import CellStep, train
from study.training.run import Run


def run(
    base: FrozenBase, corpus: Corpus, config: CellConfig, of_pack: compiled.Compiler | None = None
) -> list[CellStep]:
    runs = [Run.of(config, corpus, base.device)]
    return [
        results[0]
        for results in train(base, corpus, runs, compiles=of_pack)
        if results[0] is not None
    ]


def assert_same_numbers(ours: list[CellStep], wanted: list[CellStep], rel: float) -> None:
    for step, other in zip(ours, wanted, strict=True):
        seconds = {"seconds": step.metrics["seconds"]}
        assert step.metrics == pytest.approx(other.metrics | seconds, rel=rel)


@pytest.mark.parametrize(
    ("contraction", "backend"),
    [("factored", "inductor"), ("mixed", "aot_eager"), ("merged", "aot_eager")],
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
    ours = run(tiny_base, corpus, cell(*shape, "pack.compile=true"))
    # The tiny base has one block after the first.
    assert counters["stats"]["unique_graphs"] == 1, "micro-batches do not break its graph"
    assert torch._inductor.config.fx_graph_cache, "the next run does not compile again"
    assert_same_numbers(ours, plain, rel=1e-4)
    probes = [steps[3].probes for steps in (ours, plain)]
    found, wanted = (probe[["rms", "norm"]] for probe in probes if probe is not None)
    pd.testing.assert_frame_equal(found, wanted, rtol=1e-3)
    assert not any("forward" in vars(module) for module in tiny_base.model.modules())


@pytest.mark.parametrize(("form", "micro_batches"), [("factored", 1), ("merged", 1), ("merged", 2)])
def test_the_ranks_of_a_pack_share_a_program(
    tiny_base: FrozenBase,
    corpus: Corpus,
    cell: Callable[..., CellConfig],
    monkeypatch: pytest.MonkeyPatch,
    form: str,
    micro_batches: int,
) -> None:
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    shape = [
        f"adapter.contraction={form}",
        f"train.accumulation={micro_batches}",
        *("train.steps=2", "probes.steps=null"),
    ]
    counters.clear()
    with compiler(True) as of_pack:
        for rank in (16, 24, 33):
            config = cell(*shape, "pack.compile=true", f"adapter.rank={rank}")
            ours = run(tiny_base, corpus, config, of_pack)
            assert counters["stats"]["unique_graphs"] == 1, f"compiled again at rank {rank}"
    assert_same_numbers(ours, run(tiny_base, corpus, cell(*shape, "adapter.rank=33")), rel=1e-4)


def test_auto_says_what_it_chose_and_moves_no_number(
    tiny_base: FrozenBase,
    corpus: Corpus,
    cell: Callable[..., CellConfig],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The choice is made once for all folds of a pack, also among runs with dropout."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    monkeypatch.setattr(compiled, "TRIAL", 0.01)
    monkeypatch.setattr(compiled, "LEAST_COMPILING", 1e9)
    shape = ["train.steps=4", "probes.steps=null", "adapter.dropout=0.1"]
    plain, asked = cell(*shape), cell(*shape, "pack.compile=auto")
    wanted = run(tiny_base, corpus, plain)
    said: list[str] = []
    counters.clear()
    with compiler("auto", said.append) as of_pack:
        for _ in range(2):
            assert_same_numbers(run(tiny_base, corpus, asked, of_pack), wanted, rel=0)
    [line] = said
    assert re.fullmatch(
        "pack.compile=auto: not compiled: the 4 passes left take .* s, too little to pay for it",
        line,
    )
    assert not counters["stats"], "nothing was compiled for a trial"

    monkeypatch.setattr(compiled, "LEAST_COMPILING", 0.0)
    with compiler("auto", said.append) as of_pack:
        ours = run(tiny_base, corpus, asked, of_pack)
    assert re.match(
        "pack.compile=auto: (not )?compiled: a block takes .* ms compiled and ", said[1]
    )
    assert counters["stats"]["unique_graphs"] >= 1
    assert_same_numbers(ours, wanted, rel=1e-4)
    assert not any("forward" in vars(module) for module in tiny_base.model.modules())

    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("no compiler")

    monkeypatch.setattr(torch, "compile", partial(torch.compile.func, backend=broken))
    with compiler("auto", said.append) as of_pack:
        run(tiny_base, corpus, asked, of_pack)
    assert "not compiled: torch.compile fails: " in said[2]
    assert "BackendCompilerFailed" in said[2]
