"""The table of verdicts: the numbers and words of the report, on the batches that it names."""

from pathlib import Path

import pytest

from study.analysis import load_tables
from study.dashboard.document import export
from study.report.sections import condition_section, exponent_section

from .conftest import Watched


@pytest.fixture
def page_of_two(offline: Watched, trained: Path, tmp_path: Path) -> Watched:
    """The page of a study with the training batch and a held-out one."""
    export([trained], tmp_path / "small.html")
    offline.open((tmp_path / "small.html").as_uri())
    return offline


def test_verdicts_have_the_numbers_and_words_of_the_report(
    page_of_two: Watched, trained: Path
) -> None:
    """One number: exponent, interval, factor, theory and word are the same text in both.

    The report is about the lowest learning rate. Its first section has the rows on held-out inputs.
    """
    tables = load_tables(trained)
    report = {
        (curve, quantity, batch, step): [*numbers, theory, word.strip("*")]
        for curve, quantity, batch, step, *numbers, theory, word, _ in map(
            dict.values, exponent_section(tables)["rows"]
        )
    }
    condition = {
        (curve, quantity, f"{batch} batch"): last
        for curve, quantity, batch, _, last in map(dict.values, condition_section(tables)["rows"])
    }
    page = page_of_two.show()
    shown = page.evaluate(
        """() => page.overview.verdicts.filter(v => v.curve !== 'lr=1e+30').map(v => [
            [page.overview.optimizers[v.optimizer],
             page.overview.rules.find(rule => rule.id === v.rule).name], v.label,
            page.overview.batches[v.batch], String(v.step),
            [v.estimate, v.factor, v.theory, v.verdict]])"""
    )
    assert len(shown) == 20
    for curve, quantity, batch, step, numbers in shown:
        if batch == "training batch":
            assert numbers == report[", ".join(curve), quantity, batch, step]
        else:
            estimate, factor, _, word = numbers
            last = condition[", ".join(curve), quantity, batch]
            assert last.startswith(f"step {step}: {word}, {estimate}, {factor}")
    cells = page.locator("#verdict-table td .cell > span").all_inner_texts()
    for *_, (estimate, factor, _, word) in shown:
        assert any(
            estimate.replace("-", "−") in cell and f"{word} {factor}" in cell for cell in cells
        )


def test_verdicts_and_charts_say_their_batch(page_of_two: Watched) -> None:
    page = page_of_two.show()
    heads = page.locator("#verdict-table tbody th").all_inner_texts()
    of_output = [head for head in heads if head.startswith("adapter output")]
    assert [head.partition(", ")[2].splitlines()[-1] for head in of_output] == [
        "at step 2, held-out batch"
    ]
    assert any("at step 0, training batch" in head for head in heads)
    page.locator("#verdict-table tbody tr", has_text="held-out batch").first.locator(
        "button"
    ).first.click()
    page.evaluate("rendering")
    assert page.locator("#batch").input_value() == "heldout"
    assert page.locator("#heat-title").inner_text().endswith(", held-out batch")


def test_the_charts_open_on_the_batch_of_the_condition(page_of_two: Watched) -> None:
    for site, batch in (("adapter_out", "heldout"), ("adapter_in", "train")):
        assert (
            page_of_two.show(f"tab=layers&site={site}").evaluate("page.view.quantity.batch")
            == batch
        )
