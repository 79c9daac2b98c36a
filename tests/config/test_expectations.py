"""What an experiment expects: read with its types, and refused in one line."""

import re
from dataclasses import asdict

import pytest
import yaml
from omegaconf import OmegaConf

from study.config.compose import CONF, parse
from study.config.expectations import (
    FLAT_IN_WORDS,
    Expectation,
    Primary,
    check_entries,
    read_entries,
    read_entry,
)
from study.errors import StudyError

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
}
EXPERIMENTS = sorted(path.stem for path in (CONF / "experiment").glob("*.yaml"))


@pytest.fixture
def parsed(cell):
    """The expectations of a configuration that holds some entries."""
    return lambda entries: parse(OmegaConf.create(asdict(cell()) | {"expects": entries})).expects


def test_an_entry_is_typed_and_survives_a_record(parsed):
    [found] = parsed([SLOPE])
    assert (found.p, found.batch, found.place["layer"]) == (0.75, "train", "model")
    assert read_entries([asdict(found), {"what": "nonsense"}]) == [found]


def test_the_tolerance_alone_says_what_refutes():
    """The words of earlier records change nothing, but for a condition."""
    words = SLOPE | {"refuted_by": "a slope shown to fall"}
    assert read_entry(words) == read_entry(SLOPE)
    assert repr(read_entry(words)) == repr(read_entry(SLOPE))
    bits = {"what": "bits_per_parameter", "optimizer": "adamw", "predicted": 2, "tolerance": 0.5}
    bits |= {"source": "theory"}
    flat = read_entry(bits | {"refuted_by": f"fewer bits {FLAT_IN_WORDS}"})
    assert flat == read_entry(bits | {"once": "flat"}) != read_entry(bits)
    for experiment in EXPERIMENTS:
        text = yaml.safe_load((CONF / "experiment" / f"{experiment}.yaml").read_text())
        rows = [one for one in text.get("expects", []) if one["what"] != "primary"]
        assert not [one for one in rows if "refuted_by" in one]


PRIMARY = {
    "what": "primary",
    "rows": ["slope"],
    "rival": "none",
    "rival_predicts": [0],
    "tolerance": 0.1,
    "source": "theory",
    "refuted_by": "a line",
}


def test_the_rows_of_a_primary_test_are_of_its_kinds(parsed):
    """In their order, with the numbers of the rival; null leaves a row out."""
    second, alpha = SLOPE | {"step": 1}, SLOPE | {"what": "p_star"}
    found = parsed([PRIMARY | {"rival_predicts": [None, 0.5]}, SLOPE, alpha, second])
    assert found[0].of(found) == [(found[3], 0.5)]
    assert read_entries([asdict(one) for one in found]) == found
    whole = parsed([SLOPE, second, PRIMARY | {"rival_predicts": 0}])
    assert [number for _, number in whole[2].of(whole)] == [0, 0]


MISTAKES = [
    (SLOPE | {"predcted": 1}, "unknown key expects[0].predcted"),
    (SLOPE | {"tolerance": 0}, "expects[0].tolerance=0 should be greater than 0"),
    (SLOPE | {"optimizer": "sgdd"}, "unknown expects[0].optimizer 'sgdd'"),
    (SLOPE | {"rule": "lorra"}, "expects[0].rule: unknown scaling 'lorra'"),
    (SLOPE | {"step": None}, "expects[0].step is not set: slope needs it"),
    (SLOPE | {"step": -1}, "expects[0].step=-1 is out of range"),
    (SLOPE | {"source": " "}, "expects[0].source=' ': String should match"),
    (SLOPE | {"what": "best_rate"}, "expects[0].site: best_rate has no site, so leave it out"),
    (SLOPE | {"what": "factor"}, "expects[0].tolerance=0.05 of a factor of -0.25: give"),
    (SLOPE | {"what": "p_star", "step": "last"}, "expects[0].step=last: p_star needs a number"),
    (SLOPE | {"once": "flat"}, "expects[0].once: slope has no condition, so leave it out"),
    (3, "expects[0]"),
    (PRIMARY | {"rows": ["loss_gap"]}, "unknown expects[0].rows[0] 'loss_gap'"),
    (PRIMARY, "expects[0].rival_predicts has 1 numbers for 0 expectations"),
]


@pytest.mark.parametrize(("entry", "message"), MISTAKES)
def test_a_mistake_gets_one_line(parsed, entry, message):
    with pytest.raises(StudyError) as caught:
        parsed([entry])
    assert str(caught.value).startswith(message)
    assert read_entries([entry]) == [] or entry is PRIMARY


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_says_what_it_expects(experiment):
    """In its file or, if no table can be compared with it, in a log that the file names."""
    file = CONF / "experiment" / f"{experiment}.yaml"
    text = yaml.safe_load(file.read_text())
    if "expects" not in text:
        [log] = re.findall(r"research/logs/\w+\.md", file.read_text())
        assert f"`{experiment}`" in (CONF.parent / log).read_text()
        return
    entries = [read_entry(entry) for entry in text["expects"]]
    check_entries(entries)
    [primary] = [one for one in entries if isinstance(one, Primary)]
    assert primary.of(entries)
    found = [one for one in entries if isinstance(one, Expectation)]
    swept = text["hydra"]["sweeper"]["params"].get("optimizer", "").split(",")
    named = [line for line in text["defaults"] if isinstance(line, dict)]
    known = {*swept, *(line.get("override /optimizer", "") for line in named)} - {""}
    assert {one.optimizer for one in found} <= (known or {"adamw"}), "an optimizer of the study"
