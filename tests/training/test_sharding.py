"""A cell over two processes follows the path that it follows alone, and so do its probes."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from study.adapters.processes import ALONE, Order, Processes
from study.config import CellConfig
from study.data import Corpus, build_corpus
from study.errors import StudyError
from study.models import FrozenBase, load_base, load_tokenizer
from study.sweeps import processes
from study.training.checkpoint import Snapshot
from study.training.loop import train
from study.training.run import Run
from study.vocabulary.quantities import STATS
from tests.together import together
from tests.trained import copied

Build = Callable[..., CellConfig]
CPU = torch.device("cpu")
PLAIN = ("probes.every=null", "probes.steps=null")
EVERY_NUMBER = ("probes.steps=[0,1,2,4]", "probes.batch=all", f"probes.stats=[{','.join(STATS)}]")
TWO_STEPS = (*EVERY_NUMBER, "probes.steps=[0,1]")
STOP = 2
"""The step after which a run is stopped and goes on elsewhere."""

CELLS = {
    # 3 sequences, or 7 held out in batches of 3, can't be divided by 2: a process gets none.
    "every number": (*EVERY_NUMBER, "train.steps=4", "train.eval_every=1", "adapter.rank=3"),
    "micro-batches": (*TWO_STEPS, "train.accumulation=2", "optimizer=sgd", "probes.tokens=20"),
    "clipped": (*PLAIN, "train.clip=0.05", "train.steps=4", "train.save_adapter=true"),
    "checkpointing": (*TWO_STEPS, "train.checkpointing=true"),
    "bf16": (*PLAIN, "precision=bf16"),
    **{name: (*PLAIN, f"optimizer={name}", "optimizer.lr=1e-3") for name in ("sgd", "lion")},
}
TOLERANCE = {"bf16": 1e-2}


def trained(
    base: FrozenBase, corpus: Corpus, config: CellConfig, world: Processes, resume: Any = ()
) -> list[dict[str, Any]]:
    """What each step leaves, with the state after step :data:`STOP`."""
    steps = []
    run = Run.of(config, corpus)
    for [result] in train(base, corpus, [run], resume, world=world):
        assert result is not None
        is_stop = result.step == STOP < config.train.steps
        snapshot = copied(result.snapshot()) if is_stop and world.number == 0 else None
        held = 0
        if world.number and world.agreed() is Order.CAPTURE:
            held = sum(x.numel() for x in result.snapshot().tensors.values())
            world.agreed()
        elif world.number == 0:
            world.agreed(Order.GO_ON)
        adapter = result.adapter and {n: (p.A_RD, p.B_OR) for n, p in result.adapter.items()}
        step = {"metrics": result.metrics, "probes": result.probes, "step": result.step}
        steps.append({**step, "snapshot": snapshot, "adapter": adapter, "held": held})
    return steps


@pytest.fixture(scope="module")
def configs(cell: Build) -> dict[str, CellConfig]:
    small = ("train.steps=3", "data.heldout=7", "adapter.contraction=factored")
    return {name: cell(*small, *own, "train.shard=true") for name, own in CELLS.items()}


@pytest.fixture(scope="module")
def bases(configs: dict[str, CellConfig]) -> dict[str, FrozenBase]:
    model = configs["sgd"].model
    return {precision: load_base(model, CPU, precision) for precision in ("float32", "bf16")}


@pytest.fixture(scope="module")
def corpus(configs: dict[str, CellConfig]) -> Corpus:
    config = configs["sgd"]
    tokenizer = load_tokenizer(config.model)
    return build_corpus(config.data, tokenizer, tokenizer.eos_token_id)


@pytest.fixture(scope="module")
def alone(bases: Any, corpus: Corpus, configs: Any) -> dict[str, Any]:
    return {
        name: trained(bases[config.precision], corpus, config, ALONE)
        for name, config in configs.items()
    }


@pytest.fixture(scope="module")
def divided(bases: Any, corpus: Corpus, configs: Any, alone: Any, tmp_path_factory: Any) -> Any:
    """By two processes: every cell, and the one that goes on from the state of one process."""

    def task(number: int) -> dict[str, Any]:
        world = processes.world(CPU)
        found = {
            name: trained(bases[config.precision], corpus, config, world)
            for name, config in configs.items()
        }
        state = alone["clipped"][STOP]["snapshot"]
        found["resumed"] = trained(bases["float32"], corpus, configs["clipped"], world, [state])
        return found if number == 0 else {"held": found["clipped"][STOP]["held"]}

    found = together(task, tmp_path_factory.mktemp("together"))
    assert not isinstance(found[0], Exception), found[0]
    return found[0] | found[1]


def assert_close(ours: list[dict[str, Any]], theirs: list[dict[str, Any]], loss: float) -> None:
    assert [step["step"] for step in ours] == [step["step"] for step in theirs]
    for one, other in zip(ours, theirs, strict=True):
        assert one["metrics"].keys() == other["metrics"].keys()
        wanted = other["metrics"] | {"seconds": one["metrics"]["seconds"]}
        assert one["metrics"] == pytest.approx(wanted, rel=loss, abs=loss)
        assert (one["probes"] is None) == (other["probes"] is None)
        if one["probes"] is not None:
            shared = [1 / each["probes"].pop("r_parts") for each in (one, other)]  # may be near 0
            np.testing.assert_allclose(*shared, rtol=1e-5, atol=1e-6)
            pd.testing.assert_frame_equal(one["probes"], other["probes"], rtol=1e-5, atol=0)


@pytest.mark.parametrize("name", CELLS)
def test_two_processes_follow_the_path_of_one(alone: Any, divided: Any, name: str) -> None:
    assert_close(divided[name], alone[name], TOLERANCE.get(name, 1e-6))


def test_a_run_goes_on_with_another_number_of_processes(
    bases: Any, corpus: Corpus, configs: Any, alone: Any, divided: Any
) -> None:
    state = divided["clipped"][STOP]["snapshot"]
    assert isinstance(state, Snapshot)
    assert state.tensors.keys() == alone["clipped"][STOP]["snapshot"].tensors.keys()
    whole = sum(x.numel() for x in state.tensors.values())
    assert divided["held"] == pytest.approx(whole / 2, rel=0.01), "the other process: its part"
    by_one = trained(bases["float32"], corpus, configs["clipped"], ALONE, [state])
    for resumed in (by_one, divided["resumed"]):
        assert_close(resumed, alone["clipped"][STOP + 1 :], 1e-6)
        for layer, factors in alone["clipped"][-1]["adapter"].items():
            for ours, theirs in zip(resumed[-1]["adapter"][layer], factors, strict=True):
                torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=2e-5)


def test_checkpointing_changes_nothing(
    bases: dict[str, FrozenBase], corpus: Corpus, configs: dict[str, CellConfig], cell: Build
) -> None:
    """Bit for bit: hooks see every forward pass once for their sums."""
    kept = cell(*CELLS["checkpointing"], "train.checkpointing=false")
    again = cell(*CELLS["checkpointing"])
    ours, theirs = (trained(bases["float32"], corpus, c, ALONE) for c in (kept, again))
    for one, other in zip(ours, theirs, strict=True):
        one["metrics"].pop("seconds"), other["metrics"].pop("seconds")
        assert one["metrics"] == other["metrics"]
        if one["probes"] is not None:
            pd.testing.assert_frame_equal(one["probes"], other["probes"], check_exact=True)


REFUSED = ("optimizer=muon", "optimizer=adafactor", "adapter.dropout=0.1", "pack.compile=auto")
REFUSED += ("adapter.contraction=merged", "model.quant_bits=8", "pack.fold=2", "pack.compile=true")
REFUSED += ("train.answer_tokens=4", "train.example_losses=true", "probes.truncations=[1]")


def test_what_needs_whole_factors_is_refused(cell: Build) -> None:
    for override in REFUSED:
        with pytest.raises(StudyError, match=r"train\.shard=true can't train with") as refused:
            cell("train.shard=true", override)
        assert override.partition("=[")[0] in str(refused.value)
    for override in ("adapter.dropout=0.1", "pack.compile=true"):
        with pytest.raises(StudyError, match=r"train\.checkpointing=true and"):
            cell("train.checkpointing=true", override)
