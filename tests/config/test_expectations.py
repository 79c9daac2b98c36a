"""What an experiment expects: read with its types, and refused in one line."""

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

import pytest
import yaml
from omegaconf import OmegaConf

from study.config import CellConfig
from study.config.compose import CONF, parse
from study.config.expectations import Expectation, read_expectation
from study.config.values import read
from study.errors import StudyError

Parsed = Callable[[Any], list[Expectation]]
SLOPE = {
    "what": "slope",
    "site": "adapter_grad",
    "stat": "norm",
    "optimizer": "sgd",
    "rule": 0.75,
    "step": 0,
    "predicted": -0.25,
    "tolerance": 0.05,
    "source": "theory",
    "refuted_by": "another slope",
}
EXPERIMENTS = sorted(path.stem for path in (CONF / "experiment").glob("*.yaml"))


@pytest.fixture
def parsed(cell: Callable[..., CellConfig]) -> Parsed:
    """The expectations of a configuration that holds some entries."""
    return lambda entries: parse(OmegaConf.create(asdict(cell()) | {"expects": entries})).expects


def test_an_entry_is_typed_and_survives_a_record(parsed: Parsed) -> None:
    [found] = parsed([SLOPE])
    assert (found.p, found.batch, found.place["layer"]) == (0.75, "train", "model")
    assert read_expectation(asdict(found)) == found


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"predcted": 1}, "unknown key expects[0].predcted"),
        ({"predicted": "low"}, "expects[0].predicted='low': give a valid number"),
        ({"what": "slop"}, "unknown expects[0].what 'slop': choose from slope, factor"),
        ({"tolerance": 0}, "expects[0].tolerance=0 is out of range"),
        ({"tolerance": "???"}, "expects[0].tolerance is not set: give"),
        ({"optimizer": "sgdd"}, "unknown expects[0].optimizer 'sgdd'"),
        ({"rule": "lorra"}, "expects[0].rule: unknown scaling 'lorra'"),
        ({"step": None}, "expects[0].step is not set: slope needs it"),
        ({"step": -1}, "expects[0].step=-1 is out of range"),
        ({"site": "A_gradd"}, "unknown expects[0].site 'A_gradd'"),
        ({"source": " "}, "expects[0].source is empty: write a sentence"),
        ({"what": "best_rate"}, "expects[0].site: best_rate has no site, so leave it out"),
        ({"what": "distance"}, "expects[0].site: distance has no site, so leave it out"),
        ({"what": "distance", "site": None, "stat": None}, "expects[0].measure is not set"),
        ({"measure": "l1"}, "unknown expects[0].measure 'l1': choose from input_weighted"),
        ({"what": "factor"}, "expects[0].tolerance=0.05 of a factor of -0.25: give a factor above"),
        ({"what": "p_star", "step": "last"}, "expects[0].step=last: p_star needs a number"),
        ({"what": "loss_gap"}, "expects[0].site: loss_gap has no site, so leave it out"),
        (
            {"what": "loss_gap", "site": None, "stat": None, "step": None},
            "expects[0].step is not set: loss_gap needs it",
        ),
        (
            {"what": "best_alpha", "site": None, "stat": None},
            "expects[0].step: best_alpha has no step, so leave it out",
        ),
    ],
)
def test_a_mistake_gets_one_line(parsed: Parsed, change: Mapping[str, Any], message: str) -> None:
    with pytest.raises(StudyError) as caught:
        parsed([SLOPE | change])
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("entries", [3, "none", [3], [[]]])
def test_anything_but_entries_is_refused(parsed: Parsed, entries: Any) -> None:
    with pytest.raises(StudyError, match=r"^expects"):
        parsed(entries)


@pytest.mark.parametrize(
    "change",
    [
        *({"more": 1}, {"predicted": "x"}, {"predicted": float("nan")}, {"what": "best"}),
        *({"rule": "lorra"}, {"site": None}, {"site": "x"}, {"stat": 3}, {"optimizer": "x"}),
        *({"step": 1.5}, {"what": "factor"}, {"source": None}),
    ],
)
def test_a_record_that_somebody_changed_holds_none(change: Mapping[str, Any]) -> None:
    assert read_expectation(SLOPE | {"rule": "0.75"}) is not None
    assert read_expectation(SLOPE | {"rule": "0.75"} | change) is None


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_says_what_it_expects(experiment: str) -> None:
    text = (CONF / "experiment" / f"{experiment}.yaml").read_text()
    entries = yaml.safe_load(text)["expects"]
    found = [read(Expectation, entry) for entry in entries]
    for one in found:
        one.check("")
    assert found
    sweep = yaml.safe_load(text)["hydra"]["sweeper"]["params"]
    swept = str(sweep.get("optimizer", "")).split(",") if "optimizer" in sweep else []
    overridden = [str(line.get("override /optimizer", "")) for line in _defaults(text)]
    known = set(filter(None, [*swept, *overridden])) or {"adamw"}
    assert {one.optimizer for one in found} <= known, "it is about an optimizer of the study"


def _defaults(text: str) -> list[dict[str, Any]]:
    return [line for line in yaml.safe_load(text)["defaults"] if isinstance(line, dict)]
