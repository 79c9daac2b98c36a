"""The report's tables of exponents and of p*: numbers, words, and one row per measurement."""

from collections.abc import Callable
from pathlib import Path

import pytest

from study.analysis import load_tables
from study.analysis.wording import factor_text
from study.report import as_markdown
from study.report.sections import exponent_section, p_star_section

OnDisk = Callable[..., Path]


def rows_of(text: str) -> list[list[str]]:
    """The cells of the table in a section, without its head."""
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    return [line.strip("| ").split(" | ") for line in lines[1:]]


def tables(folder: Path):
    return load_tables(folder)


@pytest.mark.parametrize(
    ("factor", "text"),
    [(0.7412, "×0.74"), (1.0, "×1.00"), (0.0123, "×0.012"), (15.96, "×16"), (float("nan"), "")],
)
def test_factors(factor: float, text: str) -> None:
    assert factor_text(factor) == text


def test_exponents_have_factors_theory_and_words(on_disk: OnDisk) -> None:
    """The study has gamma sqrt(r) and gamma^2 r exactly, over ranks 4 to 256."""
    text = as_markdown(exponent_section(tables(on_disk())))
    found = {tuple(row[:3]): row[3:] for row in rows_of(text)}
    norm, descent = "gradient norm over all adapters", "descent of an update"
    assert found["SGD, LoRA", norm, "0"][0] == "-0.50 [-0.50, -0.50]"
    assert found["SGD, LoRA", descent, "1"][1:4] == ["×0.016", "-1.00", "**collapses**"]
    assert found["SGD, rsLoRA", norm, "0"][1:4] == ["×1.00", "0.00", "stable"]
    assert "| exponent [95 % interval] |" in text
    assert "*collapses*: shown to fall by more than a factor of 1.5" in text
    assert "Every word is corrected" in text


def test_with_one_seed_nothing_is_called_an_interval(on_disk: OnDisk) -> None:
    found = tables(on_disk(seeds=(0,)))
    for section in (exponent_section(found), p_star_section(found)):
        text = as_markdown(section)
        assert "95 % interval" not in text
        assert "straightness of the line, one seed" in text
    assert {row[6] for row in rows_of(as_markdown(exponent_section(found)))} == {"one seed"}


def test_two_seeds_have_an_interval_and_no_verdict(on_disk: OnDisk) -> None:
    rows = rows_of(as_markdown(exponent_section(tables(on_disk(seeds=(0, 1))))))
    assert {row[6] for row in rows} == {"unclear"}
    assert all("[" in row[3] for row in rows)


def test_p_star_has_one_row_per_measurement(on_disk: OnDisk) -> None:
    """Rules share their draws, and no optimizer has acted at step 0."""
    on_disk()
    folder = on_disk(optimizer={"name": "signsgd"})
    text = as_markdown(p_star_section(tables(folder)))
    norm = [row for row in rows_of(text) if row[1].startswith("gradient norm") and row[2] == "0"]
    assert [(row[0], row[3]) for row in norm] == [("every optimizer", "LoRA, rsLoRA")]
    assert text.count("the same measurement for every optimizer") == 1
    assert text.count("Rules in one row share their draws and batches") == 1
    descent = [row for row in rows_of(text) if row[1].startswith("descent") and row[2] == "0"]
    assert {row[0] for row in descent} == {"SGD", "SignSGD"}


def test_a_rule_with_another_number_is_named_in_the_row(on_disk: OnDisk) -> None:
    def norm(cell, step):
        return cell["rank"] ** (0.1 if cell["scaling"] == "lora" else 0.0) * (1 + cell["seed"])

    rows = rows_of(as_markdown(p_star_section(tables(on_disk(norm=norm)))))
    norms = [row for row in rows if row[1].startswith("gradient norm") and row[2] == "0"]
    [row] = norms
    assert " but " in row[3]
    for text in ("LoRA", "rsLoRA", "0.50", "1.10"):
        assert text in " ".join(row[3:5])


def test_adam_starts_as_signsgd(on_disk: OnDisk) -> None:
    on_disk(optimizer={"name": "adamw", "eps": 1e-12})
    text = as_markdown(p_star_section(tables(on_disk(optimizer={"name": "signsgd"}))))
    assert "The first update of AdamW is that of SignSGD up to eps." in text
