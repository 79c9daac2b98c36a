"""The report: its numbers are those of the tables, its caveats are due, its HTML is one file."""

import base64
import io
import re
from dataclasses import replace

import pandas as pd
import pytest
from PIL import Image

from study.analysis import load_tables
from study.analysis.answers import questions_of
from study.report import answer, answer_table, as_html, report_of, write_report
from study.report.caveats import caveats
from study.report.page import INCH
from study.store import load_records

from .conftest import report_on


def test_ranks_are_whole_numbers(on_disk, study_cli):
    folder = on_disk(ranks=(4, 1_048_576), seeds=(0,))
    printed = [study_cli(command, str(folder)).out for command in ("status", "analyze")]
    for text in (report_on(folder), *printed):
        assert "1048576" in text
        assert "e+06" not in text
        assert "rank=4," not in text, "a rank has a column and is no setting"


def only(name, otherwise, **where):
    """A function of a cell: ``name`` for those with the values ``where``."""
    return lambda cell: name if where.items() <= cell.items() else otherwise


ADAPTED = {"adapted_share": 0.3749, "not_adapted": ["router", "experts.*"]}
CAVEATS = [
    (
        {"seeds": (0,), "ranks": (4, 256), "steps": 20}
        | {"record": {"model_note": "rounded to 4 bits"} | ADAPTED},
        [
            ["**One seed**: there are no verdicts"],
            ["**Two ranks**: an exponent is a change between ranks 4 and 256."],
            ["**The base is not the published weights** (known: rounded"],
            ["**Part of known is adapted**: 37.4 % of the block weights", "not router, experts.*"],
            ["**Short runs**: after 20 steps"],
        ],
    ),
    (
        {"seeds": (0, 1), "status": only("diverged", "complete", scaling="lora", rank=4)}
        | {"lazy": only(0.6, 1.05, scaling="rslora", rank=256, seed=1)},
        [
            ["**2 seeds**: a verdict needs at least 3."],
            ["**2 cells diverged** (LoRA r = 4 at lr 0.001, step 2)", "before a value"],
            [
                "**Steps too large for the linear theory**: at 2 of 24 probed updates",
                *("rsLoRA r = 256", "worst change is 60 % of it"),
            ],
        ],
    ),
    # gamma at r = 32, 256 is 1/2, 1/16 under LoRA, at least 1 under rsLoRA: the gradients are
    # 80, 10 and at least 160 times eps.
    (
        {"seeds": (0, 1, 2), "optimizer": {"name": "adamw", "eps": 1e-9}, "gradient": 1.6e-7}
        | {"status": only("stuck", "complete", scaling="lora", rank=4, seed=1)},
        [
            ["**3 seeds**:", "fewer than 5"],
            ["**1 cell stuck** (LoRA r = 4 at lr 0.001, step 2)", "the gradient was zero"],
            ["**AdamW's eps affects the updates of B**", "6 cells (LoRA r = 32, 256)", "10.0 eps"],
        ],
    ),
    (
        {"lrs": (1e-4, 1e-3), "rules": {"lora": 1.0}},
        [["**Best learning rate at the edge of the grid**: 15 of 15", "the highest rate tried"]],
    ),
]


@pytest.mark.parametrize(("study", "expected"), CAVEATS)
def test_each_caveat(on_disk, study, expected):
    """These, and no others."""
    folder = on_disk(**study)
    lines = caveats(load_tables(folder), load_records(folder))
    assert len(lines) == len(expected), lines
    for words in expected:
        [line] = [line for line in lines if words[0] in line]
        assert all(word in line for word in words)
        assert "\n" not in line


def test_without_the_loss_after_a_step_nothing_is_said_of_its_size(on_disk):
    tables = load_tables(on_disk(**CAVEATS[1][0]))
    tables = replace(tables, metrics=tables.metrics.drop(columns="loss_after"))
    assert not any("linear theory" in line for line in caveats(tables, []))


def test_ranks_that_lack_seeds_are_named(on_disk):
    def end(cell):
        return "interrupted" if cell["rank"] == 256 and cell["seed"] else "complete"

    folder = on_disk(seeds=(0, 1, 2), status=end)
    lines = caveats(load_tables(folder), load_records(folder))
    assert any("**Ranks that lack seeds** (rank 256 has 1 of 3): a rank" in line for line in lines)


def test_what_rounding_takes_and_the_steps_that_it_costs(on_disk):
    """The held-out loss of float32 falls by 0.01 a step. That of bf16 ends 0.6 higher."""
    tables = load_tables(on_disk(outputs={"train": lambda cell, step: 1.0}, rules={"lora": 1.0}))
    plain = {
        name: getattr(tables, name).astype({"cell_id": str})
        for name in ("cells", "metrics", "probes")
    }
    tables = replace(tables, **plain)
    ids = tables.cells.query("rank == 256")["cell_id"]
    rows, cells, metrics = tables.probes, tables.cells, tables.metrics
    out = (rows["site"] == "adapter_out") & rows["cell_id"].isin(set(ids))
    rows["swallowed"] = (0.9 - 0.04 * rows["step"]).where(out)
    exact = cells.assign(precision="float32", cell_id="exact " + cells["cell_id"])
    losses = metrics.assign(eval_loss=4 - 0.01 * metrics["step"])
    own = losses["eval_loss"] + 0.6 * (losses["step"] == 200)
    both = [losses.assign(eval_loss=own), losses.assign(cell_id="exact " + losses["cell_id"])]
    cells = pd.concat([cells.assign(precision="bf16"), exact], ignore_index=True)
    study = replace(tables, cells=cells, metrics=pd.concat(both, ignore_index=True))
    lost, behind = answer(study)
    assert lost.startswith("Rounding to bf16 (bf16) took most from LoRA r = 256 at learning rate")
    assert "in the median layer, 86 % at step 1" in lost
    assert behind == "There the held-out loss of step 200 is behind float32 by 60.0 (bf16) steps."
    [row] = answer_table(study).rows
    assert row["loss minus float32's (bf16)"].startswith("+0.6000")
    rows["swallowed"] = 0.1
    assert not [line for line in answer(tables) if "bf16" in line]


def test_a_sweep_over_rates_is_reported_at_the_lowest(on_disk):
    text = report_on(on_disk(lrs=(1e-4, 1e-3, 1e-2), seeds=(0,), ranks=(4, 256)))
    for title, rows in (("How does each quantity", 8), ("At which p does", 4)):
        part = text.split(f"<summary>{title}")[1].split("</details>")[0]
        assert "All rows are at the lowest learning rate (0.0001)" in part
        assert part.count("\n| SGD") == rows


def test_p_star_is_said_once_for_each_optimizer(on_disk):
    """Not for each rule. Of rules that measured it apart, the one with small steps is read. Rules
    share their draws, and step 0 is before any update."""
    study = {"seeds": (0, 1, 2), "ranks": (4, 256)}
    study["lazy"] = lambda cell: 0.5 if cell["scaling"] == "rslora" else 1.0
    on_disk(**study)
    text = report_on(on_disk(**study, optimizer={"name": "adamw"}))
    stable = text.split("<summary>At which p does")[1].split("</details>")[0]
    named = [line.split("**")[1] for line in stable.splitlines() if line.startswith("- **")]
    assert named == ["AdamW", "SGD", "every optimizer"]
    rows = [line.split(" | ") for line in stable.splitlines() if line.startswith("| ")]
    keys = [tuple(row[:3]) for row in rows]
    assert len(keys) == len(set(keys))
    first = [(row[1][:8], row[0], row[3]) for row in rows if row[2] == "0"]
    assert [row[1:] for row in first if row[0] == "gradient"] == [("| every optimizer", "LoRA")]
    assert {row[1] for row in first if row[0] == "descent "} == {"| AdamW", "| SGD"}
    assert stable.count("Step 0 is before any update, so optimizers agree.") == 1
    assert "\n| SGD | descent of an update | 1 | LoRA |" in stable


@pytest.mark.usefixtures("few_figures")
def test_both_forms_of_the_page_have_one_order_and_every_figure_and_fetch_nothing(
    on_disk, tmp_path
):
    """Question, sentences, figure, table and caveats come first. Everything else is closed."""
    folder = on_disk(ranks=(4, 32), seeds=(0, 1, 2))
    tables = load_tables(folder)
    found, page = write_report(folder, tables, tmp_path / "plots" / "known")
    assert found.asks == "Do outputs and gradients keep their size as the rank grows?"
    assert list(found.sentences) == answer(tables)
    html, text = page.read_text(), (folder / "report.md").read_text()
    for form, image, table in ((html, "<img", "<table"), (text, "![", "| rule |")):
        fold = form.index("<details>")
        order = [form.index(mark) for mark in (found.asks, "Rank 32 against", image, table)]
        assert sorted(order) == order
        assert order[-1] < form.index("Caveats") < fold
        assert form.count(table, 0, fold) == form.count(image, 0, fold) == 1
    folds = len(found.sections) + len(found.figures[1:])
    assert html.count("<details>") == html.count("<summary>") == folds
    linked = re.findall(r"!\[[^]]*\]\(([^)]*)\)", text)
    assert len(linked) == 2
    pictures = [(folder / source).read_bytes() for source in linked]
    fetched = re.findall(r'(?:src|href)="([^"#][^"]*)"', html)
    head = "data:image/png;base64,"
    assert [base64.b64decode(source.removeprefix(head)) for source in fetched] == pictures
    assert not re.search("<(script|link|iframe)", html)
    assert html.count("<table>") >= 3


@pytest.mark.parametrize(
    ("varying", "asks"),
    [
        ([], "Do outputs and gradients keep"),
        (["lr", "steps"], "Which learning rate is best"),
        (["precision", "lr"], "What does rounding"),
        (["optimizer", "steps"], "What does the optimizer"),
        (["steps"], "What does the number of steps"),
        (["dropout"], "What does the setting"),
    ],
)
def test_what_varies_decides_the_question(varying, asks):
    found = [one for one in questions_of(varying) if one.kind != "capacity"]  # all ask it
    assert found[0].asks.startswith(asks)


def test_a_figure_has_its_own_size_and_an_escaped_caption(on_disk):
    """A figure of one column is half as wide as one of two."""
    found = report_of("a", load_tables(on_disk(seeds=(0,))), [], ["descent_vs_rank"])
    for inches in (3.4, 6.8):
        png = io.BytesIO()
        Image.new("RGB", (round(inches * 300), 300)).save(png, format="png", dpi=(300, 300))
        html = as_html(found, lambda name, png=png: png.getvalue())
        assert f' width="{round(INCH * inches)}"' in html
        assert "&lt;gradient, update&gt;" in html
        assert base64.b64encode(png.getvalue()).decode() in html
