"""Numbers of the pages on the law."""

import pytest

from research import law_page
from research.blocks import ROOT
from study.analysis import advice
from study.analysis.law import Setting


def rows_of(page, start):
    """The rows of the first table after the text ``start``, by column."""
    lines = (ROOT / "docs" / page).read_text().partition(start)[2].split("\n\n")[0].splitlines()
    heads, _, *body = ([cell.strip() for cell in x.split("|")[1:-1]] for x in lines if "|" in x)
    return [dict(zip(heads, cells, strict=True)) for cells in body]


@pytest.mark.parametrize("start", ["law-test -->", "law-test rank -->"])
def test_the_law_is_nearer_than_the_same_rate_or_keeps_it(start):
    """In the mean over the studies left out; the single pairs of two sweeps are the exceptions."""
    rows = rows_of("law.md", f"<!-- numbers: {start}")
    assert len(rows) > 8
    for row in rows:
        error, kept = row["median error"], row["keep the rate"]
        if "decays" in row.get("", ""):
            assert error == kept
        elif kept and row.get("sweep") not in ("rank-threshold", "lora-optimizers-4k"):
            assert float(error) < float(kept)


def test_every_table_of_a_test_has_the_error_of_the_same_rate():
    for page, block in [("law.md", "law-blind"), ("choose.md", "law-test")]:
        assert any(row["keep the rate"] for row in rows_of(page, f"<!-- numbers: {block} -->"))
    followed = rows_of("choose.md", "<!-- numbers: followed -->")
    assert all(float(row["keep the rate / best"]) > 0 for row in followed)
    by_study = {row["study"]: row for row in rows_of("law.md", "law-residuals -->")}
    for study in ("horizons_small", "horizons"):
        row = by_study[study]
        assert float(row["steps: median error"]) > float(row["steps: keep the rate"])


@pytest.mark.parametrize(("rank", "published"), [("32", 3.0), ("256", 6.9)])
def test_from_lora_to_rslora_the_rate_falls_less_than_by_the_square_root_of_the_rank(
    rank, published
):
    """Two published pairs at rank 32 say about 3; paper_learning_rate says 6.9 at rank 256."""
    factor = float(law_page.rule_change(rank).split(" ")[0])
    assert factor == pytest.approx(published, rel=0.2)
    assert factor < 0.6 * int(rank) ** 0.5


def test_a_rate_alone_is_known_better_near_the_sweeps_than_far_from_them():
    """The blind sweeps of Llama-3.1-8B lie near them."""

    def factor(model, steps):
        run = Setting(32, 64.0, "lora", "adamw", steps=steps, model=model, schedule="cosine")
        [law] = advice.advise(run, run)
        return law.rate.high / law.rate.value

    near = factor("llama-3.1-8b", 450)
    assert near < 2.2
    assert factor("llama-70b", 450) > 1.5 * near
    assert factor("llama-3.1-8b", 9000) > 1.5 * near
    points = law_page.blind_points().query("fit == '5e954293' and kind == 'alone'")
    assert len(points) == 12
    assert points["holds"].all()
