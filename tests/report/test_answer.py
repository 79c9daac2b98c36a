"""The answer says what the tables show, for any study, and no more."""

import math
import shutil
from functools import partial

import pytest

from study.analysis import load_tables
from study.report import answer, answer_table

from .conftest import report_on

POWERS = {"lora": 1.0, "rslora": 0.5, "power 0": 0.0, "power 0.75": 0.75, "power 1.5": 1.5}


@pytest.fixture
def on_disk(on_disk):
    """A small study: three ranks, of which the highest is 100 times the lowest; three seeds."""
    return partial(on_disk, ranks=(4, 16, 400), seeds=(0, 1, 2))


def said(folder):
    return answer(load_tables(folder))


def seeded(cell):
    """A factor near 1 that differs between seeds and ranks."""
    return math.exp(0.001 * (cell["seed"] - 1) * math.log(cell["rank"]))


def growing(cell, step):
    """Outputs that grow as r^0.5 under rsLoRA, and not at all under LoRA."""
    return seeded(cell) * (cell["gamma"] * cell["rank"]) ** 1.0


def flat(cell, step):
    return seeded(cell)


def learns(cell):
    """A loss that falls with the rank under rsLoRA only."""
    gain = 0.05 * math.log2(cell["rank"]) if cell["scaling"] == "rslora" else 0.0
    return 2.5 - gain + 0.001 * cell["seed"]


def test_a_study_that_grows_and_learns_says_why(on_disk):
    folder = on_disk(outputs={"train": growing}, final=learns)
    sizes, losses, why = said(folder)
    assert sizes == (
        "Rank 400 against rank 4 (3 ranks; known, pydoc, SGD, learning rate 0.001, α = 16, "
        "batch 2 × 48 tokens, 3 seeds, 200 steps), step 1: under LoRA the adapter output changes "
        "by less than 1.5 times (×1.00), the gradient into the inputs changes by less than 1.5 "
        "times (×1.00) and the gradient norm changes by ×0.10. Under rsLoRA the adapter output "
        "changes by ×10, the gradient into the inputs changes by ×10 and the gradient norm changes "
        "by less than 1.5 times (×1.00)."
    )
    row = answer_table(load_tables(folder)).rows[0]
    assert (row["adapter output"], row["gradient norm"]) == ("~×1.00", "**×0.10**")
    assert losses == (
        "Held-out perplexity (20.1 before training): under LoRA it shows no steady change with the "
        "rank (12.2 at rank 4, 12.2 at rank 400); under rsLoRA it falls from 11.0 at rank 4 to "
        "7.92 at rank 400."
    )
    assert why.startswith("A larger output means a larger step: under ")
    assert "under rsLoRA one update changes the model more" in why, "SGD's descent keeps its size"
    assert why.endswith("sweep optimizer.lr.")


@pytest.mark.parametrize(
    "study",
    [
        {"outputs": {"train": flat}, "final": learns},
        {"outputs": {"train": growing}},
        {"outputs": {"train": growing}, "final": learns, "seeds": (0,)},
        {"outputs": {"train": growing}, "final": lambda cell: 4.9 - learns(cell)},
        {"final": learns},
    ],
    ids=["no growth", "no gain", "one seed", "a loss", "no outputs"],
)
def test_without_both_there_is_no_reason_to_give(on_disk, study):
    assert not [line for line in said(on_disk(**study)) if line.startswith("A larger output")]


def test_one_seed_gives_measurements_and_no_verdict(on_disk):
    lines = said(on_disk(seeds=(0,), outputs={"train": growing}, final=learns))
    assert "the gradient norm is at ×0.10" in lines[0]
    assert "under LoRA it is 12.2 at rank 4 and" in lines[1]
    for word in ("shrinks", "grows", "falls", "keeps", "changes"):
        assert word not in " ".join(lines)


def test_of_many_rules_the_extremes_are_named(on_disk):
    lines = said(on_disk(rules=POWERS, outputs={"train": growing}, final=learns))
    assert lines[0].endswith(
        "step 1: of 5 rules, the adapter output changes least under LoRA (×1.00) and most under "
        "power p = 0 (×100); the gradient into the inputs changes least under LoRA (×1.00) "
        "and most under power p = 0 (×100); the gradient norm changes least under rsLoRA "
        "(×1.00) and most under power p = 1.5 (×0.01)."
    )
    assert "lowest held-out perplexity at rank 400 is that of rsLoRA (7.92)." in lines[1]


def test_a_rule_that_broke_at_the_highest_rank_is_not_the_best_there(on_disk):
    """It is the worst at the ranks that it has."""
    end = lambda c: "diverged" if c["exponent"] == 0 and c["rank"] == 400 else "complete"  # noqa: E731
    worse = lambda c: learns(c) + 0.05 * (c["exponent"] == 0)  # noqa: E731
    lines = said(on_disk(rules=POWERS, final=worse, status=end))
    assert "lowest held-out perplexity at rank 400 is that of rsLoRA (7.92)." in lines[-1]


def test_each_setting_has_its_own_rate_and_each_rule_its_own_ranks(on_disk):
    for name, best in (("sgd", 1e-4), ("adamw", 1e-2)):
        loss = lambda c, best=best: learns(c) + 0.1 * math.log(c["lr"] / best) ** 2  # noqa: E731
        folder = on_disk(lrs=(1e-4, 1e-3, 1e-2), final=loss, optimizer={"name": name})
    for cell in load_tables(folder).cells.itertuples():
        if (cell.scaling, cell.rank) in (("lora", 400), ("rslora", 4)):
            shutil.rmtree(folder / "cells" / cell.cell_id)
    *_, losses, first, second = said(folder)
    assert "under LoRA (SGD) at learning rate 0.0001 it" in losses
    assert "under LoRA (AdamW) at learning rate 0.01 it" in losses
    assert "rates, rank 4 and rank 16 have 12.2 and 12.2 under LoRA" in first
    assert "rates, rank 16 and rank 400 have" in second


def test_settings_with_the_same_sentence_are_merged(on_disk):
    on_disk(outputs={"train": growing})
    [line, *_] = said(on_disk(outputs={"train": growing}, optimizer={"name": "signsgd"}))
    assert line.endswith("changes by less than 1.5 times (×1.00). SignSGD is equal.")


def test_one_rank_is_said_to_be_one(on_disk):
    folder = on_disk(ranks=(8,))
    lines = said(folder)
    assert lines[0] == (
        "Every cell has rank 8, so the study can't say how anything changes with the rank: sweep "
        "adapter.rank."
    )
    assert lines[1] == (
        "Held-out perplexity (20.1 before training): under LoRA it is 12.2 after training; under "
        "rsLoRA it is 12.2 after training."
    )
    assert len(lines) == 2
    report = report_on(folder)
    assert "How does each quantity change" not in report
    assert "<summary>What was run?" in report


def test_infinite_rank_is_neither_a_rank_to_fit_nor_an_error(on_disk):
    [only] = said(on_disk(rules={"rslora": 0.5}, ranks=(math.inf,), norm=flat, final=lambda _: 2.5))
    assert only.startswith("Every cell has rank ∞, so the study can't say how anything")


def test_an_unfinished_study_says_how_far_it_is(on_disk):
    lines = said(on_disk(status=lambda c: "interrupted" if c["rank"] == 400 else "complete"))
    assert lines[0] == "So far 12 of 18 cells are done."
    assert lines[1].startswith("Rank 16 against rank 4 (2 ranks; ")
    lines = said(on_disk(status=lambda c: "diverged" if c["rank"] > 4 else "complete"))
    assert lines[0].startswith("12 of 18 cells diverged or got stuck")


def test_the_rank_of_runs_that_broke_off_has_no_loss(on_disk):
    def end(cell):
        high = cell["scaling"] == "rslora" and cell["rank"] == 400
        return "diverged" if high and cell["seed"] else "complete"

    lines = said(on_disk(status=end, final=learns))
    assert not lines[0].startswith("So far")
    assert "falls from 11.0 at rank 4 to 9.98 at rank 16" in lines[1]


def test_of_several_rates_the_best_at_the_lowest_rank_is_read(on_disk):
    lines = said(on_disk(lrs=(1e-4, 1e-3, 1e-2), final=learns_at, outputs={"train": growing}))
    law, fixed, best, why = lines
    head = "Rank 400 against rank 4 (3 ranks; known, pydoc, SGD, α = 16, "
    assert law.startswith(head)
    assert ": the best learning rate " in law
    assert "is ×1.00 [0.17, 6.02] (r^0.000 [-0.390, 0.390]) under LoRA" in law
    assert "at learning rate 0.001: under LoRA" in fixed
    assert "falls from 11.0 at rank 4 to 7.92" in fixed
    assert best.endswith("and 11.0 and 7.92 under rsLoRA.")
    assert "sweep optimizer.lr" not in why


def test_two_ranks_have_a_change_and_no_law(on_disk):
    rates = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
    [law, *_] = said(on_disk(lrs=rates, ranks=(4, 256), rules={"lora": 1.0}))
    assert law.endswith("the best learning rate stays the same at ×1.00 [1.00, 1.00] under LoRA.")


def test_a_rule_whose_best_rates_are_at_an_edge_is_not_known(on_disk):
    """The best rate is 1e-3. Under LoRA lower ones are better."""
    lower = lambda cell: cell["lr"] if cell["scaling"] == "lora" else learns_at(cell)  # noqa: E731
    law, unknown, *_ = said(on_disk(lrs=(1e-4, 1e-3, 1e-2), ranks=(4, 256), final=lower))
    assert "under rsLoRA" in law
    assert "under LoRA" not in law
    assert unknown.startswith(
        "Under LoRA, how the best learning rate changes with the rank is not "
    )


def test_a_rule_that_is_not_known_is_told_from_one_that_is(on_disk):
    same = {"lrs": (1e-4, 1e-3, 1e-2), "ranks": (4, 256), "rules": {"lora": 1.0}}
    on_disk(**same, final=lambda cell: cell["lr"])
    law, unknown, *_ = said(on_disk(**same, final=learns_at, optimizer={"name": "adamw"}))
    assert "under AdamW with LoRA" in law
    assert unknown.startswith("Under SGD with LoRA, how")


def learns_at(cell):
    return learns(cell) + 0.1 * math.log(cell["lr"] / 1e-3) ** 2
