"""The report's first section: the paper's condition at the first and the last step."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from study.analysis import load_tables
from study.analysis.summary import FAILS, HOLDS, LATE, LOST, OPEN, answer
from study.report import as_markdown
from study.report.answer import answer as said
from study.report.sections import condition_section, exponent_section

OnDisk = Callable[..., Path]
Cell = Mapping[str, Any]


def section(folder: Path) -> str:
    return as_markdown(condition_section(load_tables(folder)))


def noise(cell: Cell, step: int) -> float:
    """A factor near 1 that differs between seeds and ranks, with slopes of mean 0 over seeds."""
    return math.exp(0.002 * (cell["seed"] - 2) * math.log(cell["rank"]) * (1 + step))


def flat(cell: Cell, step: int) -> float:
    return noise(cell, step)


def falling(cell: Cell, step: int) -> float:
    """Flat at step 0; later falling as r^-0.12: a factor of 0.61 from rank 4 to 256."""
    return noise(cell, step) * cell["rank"] ** (-0.12 if step else 0.0)


@pytest.mark.parametrize(
    ("first", "last", "expected"),
    [
        (["stable"], ["stable"], HOLDS),
        (["stable"], ["stable", "falls"], LOST),
        (["rises"], ["explodes", "unclear"], FAILS),
        (["unclear"], ["collapses"], FAILS),
        (["rises"], ["stable"], LATE),
        (["unclear"], ["stable"], OPEN),
        (["stable"], ["unclear"], OPEN),
        (["one seed"], ["one seed"], OPEN),
    ],
)
def test_the_verdicts_of_a_curve_together(first: list[str], last: list[str], expected: str) -> None:
    assert answer(first, last) == expected


def test_a_rule_that_does_not_stay_stable_is_named_first(on_disk: OnDisk) -> None:
    def norm(cell: Cell, step: int) -> float:
        return falling(cell, 1 if cell["scaling"] == "lora" else step)

    text = section(on_disk(norm=norm, outputs={"train": flat}))
    assert text.split("\n\n")[1] == (
        "**Stable at the first step and not at the last**: SGD, rsLoRA. "
        "**Not stable at the last step**: SGD, LoRA."
    )


def test_a_rule_that_stays_stable_is_said_to(on_disk: OnDisk) -> None:
    lead = section(on_disk(norm=flat, outputs={"train": flat})).split("\n\n")[1]
    assert lead == "Stable at the first step and at the last: SGD, LoRA; SGD, rsLoRA."


def test_outputs_are_read_on_held_out_inputs_if_they_were_probed(on_disk: OnDisk) -> None:
    """The two batches have different slopes, so the numbers say which one was read."""
    both = section(on_disk(norm=flat, outputs={"train": flat, "heldout": falling}))
    rows = [line for line in both.splitlines() if line.startswith("| SGD, rsLoRA | adapter output")]
    assert ["| held-out |" in row and "-0.12 [" in row for row in rows] == [True]
    gradient = next(line for line in both.splitlines() if "| gradient norm" in line)
    assert "| training |" in gradient


def test_without_held_out_probes_the_table_says_training(on_disk: OnDisk) -> None:
    text = section(on_disk(norm=flat, outputs={"train": flat}))
    assert "held-out" not in text
    assert "| SGD, rsLoRA | adapter output, rms | training | step 1: stable, 0.00 [" in text


def test_a_study_with_two_batches_says_which_one_each_word_is_about(on_disk: OnDisk) -> None:
    tables = load_tables(on_disk(norm=flat, outputs={"train": flat, "heldout": falling}))
    read = (
        "Read on the held-out batch: the adapter output and the gradient into the inputs. "
        "Read on the training batch: the gradient norm."
    )
    assert read in said(tables)
    exponents = as_markdown(exponent_section(tables))
    assert "| quantity | batch | step |" in exponents
    assert "| adapter output, rms | held-out batch | 1 | -" in exponents
    assert "| adapter output, rms | training batch |" not in exponents, "one verdict on a page"


def test_a_study_with_the_training_batch_names_none(on_disk: OnDisk) -> None:
    tables = load_tables(on_disk(norm=flat, outputs={"train": flat}))
    assert "batch:" not in " ".join(said(tables))
    assert "| quantity | step |" in as_markdown(exponent_section(tables))


def test_one_seed_has_no_verdict_and_no_interval(on_disk: OnDisk) -> None:
    text = section(on_disk(seeds=(0,), norm=falling, outputs={"train": flat}))
    assert text.split("\n\n")[1] == "Not decided: SGD, LoRA; SGD, rsLoRA."
    assert "straightness of the line, one seed" in text
    assert "95 %" not in text


def test_a_bent_line_has_its_slopes_at_both_ends(on_disk: OnDisk) -> None:
    def bent(cell: Cell, step: int) -> float:
        return noise(cell, step) * (cell["rank"] + 30) ** -0.5

    text = section(on_disk(norm=flat, outputs={"train": bent}))
    row = next(line for line in text.splitlines() if "rsLoRA | adapter output" in line)
    low, high = (-0.5 * math.log((b + 30) / (a + 30)) / math.log(b / a) for a, b in ENDS)
    assert f"bent: {low:.2f} at the lowest ranks, {high:.2f} at the highest" in row


ENDS = ((4, 32), (32, 256))
"""The lowest and the highest pair of ranks of a study."""


def test_without_two_ranks_there_is_nothing_to_say(on_disk: OnDisk) -> None:
    assert "Unknown" in section(on_disk(ranks=(8,)))
