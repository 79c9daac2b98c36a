"""Identity and validation of cells."""

import re
from dataclasses import asdict

import pytest

from study.config import Sources, identity, probe_steps
from study.config.hashing import recorded_identities
from study.errors import StudyError
from study.vocabulary.optimizers import OPTIMIZERS

SOURCES = Sources(model="m", tokenizer="t", data="d")


DOES_NOT = """
name=other results_dir=elsewhere plots_dir=x device=cpu pack.fold=3 pack.max_cells=2
pack.compile=true adapter.alpha=16 probes.steps=[0,1,2,3] train.eval_every=3
probes.stats=[nonfinite,mean_abs,rms,m4,max_abs,norm,descent,stable_rank,spectral]
"""
"""Steps as log and the usual evaluation have them, and all usual statistics in another order."""


def test_what_moves_no_number_does_not_move_the_identity(cell):
    """What does is in tests/contract/ids.json."""
    found = {identity(cell(override), SOURCES) for override in DOES_NOT.split()}
    assert found == {identity(cell(), SOURCES)}


def test_the_form_of_a_bf16_cell_is_part_of_its_identity(cell):
    """In bf16 forms differ by more than rounding noise."""
    forms = [f"adapter.contraction={form}" for form in ("auto", "concatenated", "factored")]
    cells = [cell("precision=bf16", "train.clip=1.0", key) for key in forms]
    auto, concatenated, factored = (identity(each, SOURCES) for each in cells)
    assert auto == concatenated != factored
    assert recorded_identities(asdict(cells[0]), asdict(SOURCES)) == [auto]


def test_a_number_as_the_rule_is_the_same_cell_as_the_power_rule(cell):
    number = cell("adapter.scaling=0.75")
    assert number == cell("adapter.scaling=power", "adapter.exponent=0.75")
    assert identity(cell("adapter.scaling=0.5"), SOURCES) != identity(
        cell("adapter.scaling=rslora"), SOURCES
    )


def test_the_order_of_targets_does_not_matter(cell):
    a, b = cell("adapter.targets=[q_proj,v_proj]"), cell("adapter.targets=[v_proj,q_proj]")
    assert identity(a, SOURCES) == identity(b, SOURCES)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["train.steps=10", "probes.steps=log"], (0, 1, 2, 4, 8, 10)),
        (["train.steps=1", "probes.steps=log"], (0, 1)),
        (["train.steps=7", "probes.steps=null", "probes.every=3"], (0, 3, 6, 7)),
        (["train.steps=5", "probes.steps=[4,0,2,9]"], (0, 2, 4)),
        (["train.steps=5", "probes.steps=3"], (3,)),
    ],
)
def test_probe_schedules(cell, overrides, expected):
    assert probe_steps(cell(*overrides)) == expected


INFINITE = "adapter.rank=inf needs adapter.scaling=rslora, optimizer=sgd"
MISTAKES = {
    "adapter.scaling=lorra": "choose from lora, rslora, power, crossover, or a number",
    "adapter.scaling=power": "needs a finite adapter.exponent",
    "adapter.scaling=0.75 adapter.exponent=0.5": "give one of them",
    "adapter.exponent=0.5": "in one sweep: adapter.scaling=lora,0.5",
    "adapter.scaling=crossover adapter.crossover=null": "needs adapter.crossover: give 40",
    "adapter.crossover=-1": "adapter.crossover=-1 should be greater than or equal to 0",
    "adapter.rank=0": "adapter.rank=0",
    "adapter.rank=inf adapter.scaling=rslora optimizer=adamw": INFINITE,
    "adapter.rank=inf adapter.exponent=0.6 adapter.scaling=power optimizer=sgd": INFINITE,
    "adapter.rank=inf adapter.scaling=rslora optimizer=sgd adapter.init=orthogonal": INFINITE,
    "adapter.rank=inf adapter.scaling=rslora optimizer=sgd train.save_adapter=true": "no factors",
    "adapter.alpha=nan": "adapter.alpha=nan",
    "adapter.dropout=1": "adapter.dropout=1",
    "adapter.targets=[]": "give all-linear, attention, mlp",
    "adapter.init=zeros": "unknown adapter.init 'zeros': choose from kaiming, gaussian",
    "adapter.contraction=concatenated": "it is for bf16 weights, so use adapter.contraction=auto",
    "adapter.contraction=merged precision=bf16": "use adapter.contraction=auto or factored",
    "optimizer.name=adamx": f"unknown optimizer 'adamx': choose from {', '.join(OPTIMIZERS)}",
    "optimizer.betas=[0.9,x]": "optimizer.betas[1]",
    "optimizer=adam optimizer.weight_decay=0.1": "use optimizer=adamw",
    "train.steps=ten": "train.steps='ten' should be a valid integer",
    "train.steps=true": "train.steps",
    "train.warmup=1.5": "train.warmup=1.5 is out of range: give a whole number of steps",
    "train.epochs=0": "train.epochs=0 should be greater than 0",
    "train.checkpointing=true adapter.dropout=0.1": "set one of them to false or 0",
    "train.answer_tokens=3 train.eval_every=0": "never evaluates",
    "probes.sites=[adapter_inn]": "unknown probes.sites 'adapter_inn': choose from all, adapter_in",
    "probes.steps=soon": "probes.steps=soon is not a schedule",
    "probes.every=2": "both set",
    "probes.truncations=deep": "probes.truncations=deep: ranks must be",
    "pack.compile=maybe": "pack.compile='maybe' should be a valid boolean",
    "pack.padding_free=0": "unknown pack.padding_free 0: choose from true, false, auto",
    "results_dir=": "results_dir=",
}


@pytest.mark.parametrize("override", MISTAKES)
def test_a_bad_value_gets_one_line(cell, override):
    with pytest.raises(StudyError, match=re.escape(MISTAKES[override])):
        cell(*override.split(" "))
