"""FINDINGS.md and what it rests on: archives, their order in git, claims, and gaps."""

import json
from datetime import datetime

import pytest

from research import findings, horizons
from research.blocks import PLOTS, RESULTS, ROOT, NoTables
from research.findings import CLAIMS, STUDIES
from study.analysis.capacity import FULL, best_stored
from study.analysis.fits import mean_interval
from study.analysis.text import minus
from study.analysis.wording import interval_text
from study.config.expectations import read_entries
from study.figures import FIGURES
from study.store import cell_folders, load_records
from study.store.archive import FILES
from study.store.records import ARCHIVE
from study.store.tables import load_measured

COMMITTED = sorted(path.parent.name for path in RESULTS.glob(f"*/{ARCHIVE}"))
MOST_MEGABYTES = {"archives": 45, "pictures": 9}
"""Of all archives, and of all committed pictures, reports and the page of a dashboard."""


def megabytes(paths):
    return sum(path.stat().st_size for path in paths) / 1e6


def test_archives_and_pictures_are_small():
    tables = (path for name in FILES for path in RESULTS.glob(f"*/{name}"))
    assert megabytes(tables) < MOST_MEGABYTES["archives"], "leave a study out, or thin it"
    kept = (path for path in PLOTS.rglob("*") if path.suffix in (".png", ".html", ".md"))
    assert megabytes(kept) < MOST_MEGABYTES["pictures"]
    assert set(COMMITTED) == set(STUDIES)


@pytest.mark.parametrize("study", COMMITTED)
def test_a_committed_study_names_its_own_folders_and_began_after_its_expectations(study):
    """``research.archive`` has checked the hash of every table. Each expectation was committed as
    it is, before every cell whose record holds it."""
    records, began = load_records(RESULTS / study), {}
    assert len(records) == len(cell_folders(RESULTS / study)), "the others can't be read"
    for record in records:
        assert record["study"] == study
        assert record["config"]["results_dir"] == "results/reference"
        assert record["config"]["plots_dir"] == "plots/reference"
        held = json.dumps(record.get("expects", []))
        started = datetime.fromisoformat(record["started"])
        began[held] = min(began.get(held, started), started)
    try:
        dates = [
            (findings.stated(study, entry), started)
            for held, started in began.items()
            for entry in read_entries(json.loads(held))
        ]
    except NoTables:
        pytest.skip("no git history")
    assert dates or not findings.entries(study)
    assert all(date and date < started for date, started in dates)


def test_a_condition_that_was_not_met_is_no_difference():
    """Two bits a parameter are expected once twice the steps add less than 5 %."""
    words = {row.verdict for row in findings.matching("capacity_small", {"once": "flat"})}
    assert words == {"condition not met"}
    assert findings.failed().count("2 ± 0.5") == 0


def test_an_expectation_is_tested_more_strictly_than_by_its_interval():
    """As docs/measured.md says: an interval inside the tolerance may be unclear."""
    rows = findings.matching("learning_rate_rho_tiny", {"predicted": -0.44, "tolerance": 0.12})
    inside = [row for row in rows if row.low > -0.56 and row.high < -0.32]
    assert "unclear" in {row.verdict for row in inside}
    text = (ROOT / "docs/measured.md").read_text().partition("## Expectations")[2]
    assert "Holm" in text.partition("\n\n**")[0].partition("The **primary")[0]


def test_a_claim_says_where_it_holds_and_with_which_exponent(monkeypatch):
    """At high rank the gradient into the inputs keeps its size, at ranks 4 to 256 it falls."""
    [claim] = [one for one in CLAIMS if "gradient into the inputs" in one["claim"]]
    monkeypatch.setattr(findings, "CLAIMS", [claim])
    holds, fails = findings.claims().splitlines()[-1].split(" | ")[2:4]
    assert "limit of high rank" in holds
    assert "ranks 4" not in holds
    assert fails.count("ranks 4 to 256: r^−0.") == 3


def test_the_documents_agree_on_the_bits_that_adapters_store():
    """Of 128 strings in 100 passes, three seeds; those that stored nearly all are left out."""
    table = best_stored(load_measured(RESULTS / "capacity_small"))
    table = table[(table["passes"] == 100) & (table["max_samples"] == 129)]
    means = table.assign(each=table["bits"] / table["parameters"]).groupby(
        ["scaling", "targets", "rank"], observed=True
    )
    full = means["bits"].mean() >= FULL * means["offered"].mean()
    each = means["each"].mean()[(means["seed"].nunique() == 3) & ~full]
    assert (round(each.min(), 1), round(each.max(), 1)) == (0.3, 1.0)
    for name in ("docs/more-findings.md", "docs/capacity.md", "docs/evidence/capacity_smollm2.md"):
        assert "not shown to store more" in (ROOT / name).read_text()


def test_a_study_on_a_second_model_may_have_a_file_of_its_own():
    assert findings.entries("horizons_gemma3") != findings.entries("horizons")
    assert findings.entries("rho_ends_gemma3") == findings.entries("rho_ends")


def test_seeds_that_came_after_a_look_are_named():
    try:
        findings.history("optimizer_history")
    except NoTables:
        pytest.skip("no git history")
    assert "before the last cells of seeds 0, 1" in findings.looks("bf16_dead_zone")[0]
    for study in ("optimizer_history", "theorem_over_training_tiny"):
        assert findings.looks(study) == [], "all of its cells are new"


def test_rows_name_studies_and_figures_that_exist():
    assert {test["study"] for one in CLAIMS for test in one["tests"]} <= {*STUDIES}
    assert {figure for study in STUDIES.values() for figure in study["figures"]} <= set(FIGURES)


def test_a_gap_is_at_the_rates_of_the_lowest_mean_over_seeds():
    """The best rate of each seed would be the best by chance (docs/measured.md)."""
    tables = load_measured(RESULTS / "longer_training")
    ends = tables.metrics.query("step == 2048").set_index("cell_id")["eval_loss"]
    cells = tables.cells.query("scaling == 'lora' and steps == 2048")
    cells = cells.assign(loss=cells["cell_id"].map(ends))
    loss = cells.pivot_table("loss", "seed", ["rank", "lr"])
    low, high = (loss[rank][loss[rank].mean().idxmin()] for rank in (4, 256))
    expected = interval_text(*mean_interval(high - low), places=3)
    assert horizons.best_gap("lora", "2048", "longer_training") == minus(expected)
