"""What the page says of a study: its cells, its settings, its findings, and what is damaged."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from matplotlib.colors import to_hex

import study
from study.dashboard.document import Page, export
from study.dashboard.studies import read_studies
from study.dashboard.values import Measured
from study.errors import StudyError
from study.figures import style
from study.figures.selection import Rule
from study.store import CellWriter

LAYER = "model.layers.0.q_proj"
NORM = Measured("adapter_grad", "norm", "train")
Odd = Callable[..., Path]


def shown(*folders: Path) -> dict[str, Any]:
    """The overview of the page, as the browser reads it."""
    return json.loads(Page(read_studies(folders), live=False).text())


@pytest.fixture
def odd(by_hand: Callable[..., Any], one_step: Callable[..., None], tmp_path: Path) -> Odd:
    """``odd("a", "b", steps=2)`` writes complete cells and returns the study's folder."""

    def write(*cells: str, steps: int = 2) -> Path:
        for rank, name in enumerate(cells, 2):
            writer = by_hand(name, rank=rank)
            for step in range(steps):
                one_step(writer, step, {LAYER: float(rank)})
            writer.close("complete", steps_done=steps - 1)
        return tmp_path / "results/odd"

    return write


def test_verdicts_are_those_of_the_analysis_one_for_each_quantity(trained: Path) -> None:
    tables = study.load(trained)
    found = study.analysis.analyze(tables.cells, tables.metrics, tables.probes)
    rows = shown(trained)["verdicts"]
    names = ("optimizer", "curve", "quantity", "batch", "step", "estimate", "verdict")
    whole = study.analysis.headline(found.exponents)
    assert {tuple(row[name] for name in names) for row in rows} <= set(
        whole[list(names)].astype({"step": int}).itertuples(index=False, name=None)
    )
    places = [(*(row[n] for n in (*names[:3], "rule", "over")), row["step"]) for row in rows]
    assert len(places) == len(set(places)), "a quantity has one verdict"
    of_output = {row["batch"] for row in rows if row["site"] == "adapter_out"}
    assert of_output == {"heldout"}, "the batch of the paper's condition, as in the report"
    assert len(rows) >= 20


def test_the_main_settings_are_one_short_line_and_the_rest_is_elsewhere(
    trained: Path, jsonl: Path
) -> None:
    found = shown(trained)["configuration"]
    assert found["main"] == [
        *("model tiny", f"data {jsonl}", "2 steps", "batch size 2", "AdamW, SGD"),
        *("learning rate 0.0001, 0.01, 1e+30", "alpha 16", "init kaiming", "targets all-linear"),
        *("float32", "seed 0, 1"),
    ]
    assert found["rest"]["sequence_length"] == "24"
    assert {"model_sha256", "probes_every"} < set(found["rest"])
    assert not {"model", "lr", "rank"} & set(found["rest"])


def test_many_values_of_a_setting_are_counted(odd: Odd, by_hand: Callable[..., Any]) -> None:
    folder = odd("a")
    for seed in range(20):
        by_hand(f"seed-{seed}", seed=seed).close("failed", error="x")
    assert "20 values from 0 to 19" in str(shown(folder)["configuration"]["main"])


def test_a_note_says_why_there_are_no_verdicts(odd: Odd) -> None:
    page = shown(odd("aaa"))
    assert page["verdicts"] == []
    assert "two ranks" in page["verdict_notes"][0]


def test_a_rule_has_the_colours_of_the_figures(trained: Path) -> None:
    rules = {rule["id"]: rule for rule in shown(trained)["rules"]}
    ranks = [2.0, 4.0, 8.0]
    for scaling, p in (("lora", 1.0), ("rslora", 0.5)):
        drawn = {
            f"{rank:g}": to_hex(style.shade(Rule.of(scaling, p), rank, ranks)) for rank in ranks
        }
        assert rules[f"{scaling} p={p:g}"]["shades"]["light"] == drawn


def test_no_study_is_a_one_line_error(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="no study in"):
        read_studies([tmp_path])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)


DAMAGE: dict[str, Callable[[Path], Any]] = {
    "half a record": lambda cell: (cell / "record.json").write_text('{"cell_id": "b", '),
    "an unknown rule": lambda cell: (cell / "record.json").write_text(
        (cell / "record.json").read_text().replace('"lora"', '"<b>"')
    ),
    "no probes": lambda cell: (cell / "probes.parquet").unlink(),
    "a changed byte": lambda cell: flip(cell / "metrics.parquet"),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_cell_is_unreadable_and_the_others_are_shown(
    odd: Odd, damage: Callable[[Path], Any]
) -> None:
    folder = odd("a", "b")
    damage(folder / "cells/b")
    page = Page(read_studies([folder]), live=False)
    assert [cell["cell_id"] for cell in page.overview["cells"]] == ["a"]
    [lost] = page.overview["unreadable"]
    assert lost["cell_id"] == "b"
    assert "\n" not in lost["note"]
    assert page.overview["counts"]["unreadable"] == 1
    assert b'"cell":"a"' in page.message(NORM)
    assert b'"cell":"b"' not in page.message(NORM)


def test_the_page_lists_unreadable_cells(offline: Any, odd: Odd, tmp_path: Path) -> None:
    folder = odd("a", "b", "c")
    (folder / "cells/b/record.json").write_text("<b>{")
    export([folder], tmp_path / "some.html")
    page = offline.open((tmp_path / "some.html").as_uri() + "#tab=cells")
    assert page.locator("#counts").inner_text().endswith("1 unreadable")
    row = page.locator("#cells tbody tr", has_text="unreadable").inner_text()
    assert "b" in row.split()
    assert "record.json" in row
    assert page.locator("#cells tbody tr").count() == 3
    assert page.locator("#tabs [data-tab=layers]").is_visible()
    assert offline.errors == []


def test_a_page_without_a_readable_cell_has_no_charts(
    offline: Any, odd: Odd, tmp_path: Path
) -> None:
    folder = odd("a")
    (folder / "cells/a/record.json").write_text("")
    export([folder], tmp_path / "none.html")
    page = offline.open((tmp_path / "none.html").as_uri() + "#tab=cells")
    assert not page.locator("#tabs [data-tab=layers]").is_visible()
    assert not page.locator("#choices").is_visible()
    page.locator("#theme").click()
    assert page.locator("#cells tbody tr").count() == 1
    assert offline.errors == []


def test_a_running_cell_shows_what_it_has(
    by_hand: Callable[..., CellWriter], one_step: Callable[..., None], tmp_path: Path
) -> None:
    writer = by_hand("aaa", rank=4)
    one_step(writer, 0, {LAYER: 1.0})
    one_step(writer, 3, {LAYER: 2.0})
    [cell] = shown(tmp_path / "results/odd")["cells"]
    assert (cell["status"], cell["steps_done"], cell["probed"]) == ("running", 3, 2)
    assert cell["curves"]["loss"] == {"step": [0, 3], "value": pytest.approx([2.0, 1.7])}
    writer.close("failed", error="x")
