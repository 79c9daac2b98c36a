"""The report and its verdicts on expectations, on studies with known slopes."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from study.analysis import load_tables
from study.analysis.expectations import compare, judged
from study.analysis.power import POWER, need_of_primary
from study.analysis.text import minus
from study.config.expectations import Primary, read_entry
from study.report import as_markdown, report_of
from study.report.expected import (
    expected_section,
    primary_answers,
    primary_details,
    primary_text,
    verdict_counts,
)
from study.vocabulary.verdicts import DIFFERS
from tests.config.test_expectations import PRIMARY, SLOPE

ABOUT = {"source": "Theorem 3.2 | its limit"}
NORM = read_entry(SLOPE | {"rule": "rslora", "predicted": 0.0, "tolerance": 0.02} | ABOUT)
P_STAR = replace(NORM, what="p_star", rule=None, predicted=0.5)


def norm(cell, step):
    """gamma sqrt(r), with slopes over seeds of mean 0 and standard deviation 0.003."""
    return cell["gamma"] * cell["rank"] ** (0.5 + 0.002 * (cell["seed"] - 2))


def compared(folder, *expectations):
    return compare(expectations, load_tables(folder))


@pytest.fixture(scope="module")
def five_seeds(on_disk_in, tmp_path_factory):
    return on_disk_in(tmp_path_factory.mktemp("five"), norm=norm, ranks=(4, 256))


@pytest.fixture(scope="module")
def tables(five_seeds):
    return load_tables(five_seeds)


def test_the_interval_decides(tables):
    """The half-width is 2.776 x 0.002 x sqrt(2.5 / 5) = 0.0039, which allows for two rows."""
    near, far = compare([NORM, replace(NORM, predicted=0.3)], tables)
    assert near.measured == pytest.approx(0.0, abs=1e-6)
    assert near.high - near.low == pytest.approx(2 * 0.00393, rel=0.01)
    assert (near.verdict, far.verdict) == ("agrees", "differs")
    [narrow] = compare([replace(NORM, tolerance=0.003)], tables)
    [wide] = compare([replace(NORM, tolerance=0.0041)], tables)
    assert (narrow.verdict, wide.verdict) == ("unclear", "agrees")


def test_a_factor_is_a_ratio(tables):
    """Under LoRA the norm falls by 64^-1/2 = 1/8 from rank 4 to 256."""
    one = replace(NORM, what="factor", rule="lora", predicted=1 / 8, tolerance=1.1)
    right, wrong = compare([one, replace(one, predicted=1.0)], tables)
    assert right.measured == pytest.approx(1 / 8, rel=1e-5)
    assert right.low < 1 / 8 < right.high
    assert (right.verdict, wrong.verdict) == ("agrees", "differs")


def test_a_row_for_each_rule_or_one_if_rules_share_it(tables):
    rows = compare([P_STAR], tables)
    assert [(row.verdict, round(row.measured, 4)) for row in rows] == [("agrees", 0.5)]
    rows = compare([replace(NORM, rule=None)], tables)
    curves = sorted((row.curve, row.verdict) for row in rows)
    assert curves == [("p=0.5", "agrees"), ("p=1", "differs")]


@pytest.mark.parametrize(
    ("seeds", "verdict"), [((0,), "one seed"), ((0, 1), "unclear"), ((0, 1, 2), "agrees")]
)
def test_a_verdict_needs_three_seeds(on_disk, seeds, verdict):
    [row] = compared(on_disk(norm=norm, seeds=seeds, ranks=(4, 256), rules={"rslora": 0.5}), NORM)
    assert (row.verdict, row.seeds) == (verdict, len(seeds))


def test_the_lowest_rate_is_read_unless_one_is_named_and_what_is_missing_is_said(on_disk):
    """The norm has the slope 0 at 1e-3 and 0.5 at 1e-2; each step adds 0.1."""
    folder = on_disk(
        lrs=(1e-3, 1e-2),
        probed=(0, 1, 4),
        ranks=(4, 256),
        rules={"rslora": 0.5},
        norm=lambda c, s: norm(c, s) * c["rank"] ** (0.5 * (c["lr"] > 1e-3) + 0.1 * s),
    )
    rate = replace(NORM, what="best_rate", site=None, stat=None, step=None)
    named, last = replace(NORM, lr=1e-2, predicted=0.5), replace(NORM, step="last", predicted=0.4)
    found = compared(folder, NORM, named, last, replace(NORM, step=3), rate)
    assert [row.verdict for row in found] == ["agrees"] * 3 + ["not measured"] * 2
    assert found[2].step == 4
    assert math.isnan(found[3].measured)


def test_best_rates(on_disk):
    """The best rate is 1e-3 at every rank."""
    folder = on_disk(
        lrs=(1e-5, 1e-4, 1e-3, 1e-2, 1e-1), ranks=(4, 256), seeds=(0, 1, 2), rules={"lora": 1.0}
    )
    one = replace(NORM, what="best_rate", rule="lora", site=None, stat=None, step=None)
    one = replace(one, tolerance=0.14)
    right, wrong = compared(folder, one, replace(one, predicted=1.0))
    assert (right.verdict, wrong.verdict) == ("agrees", "differs")


def test_the_section_counts_and_lists_them(tables):
    def text(*records, whole=False):
        complete = [{"status": "complete", **one} for one in records]
        if whole:
            return as_markdown(report_of("known", tables, complete), Path(), Path())
        return str(expected_section(tables, complete))

    wrong = replace(NORM, predicted=0.3, source="[a claim](http://example.org)")
    whole = {"expects": [vars(NORM), vars(wrong), {"what": "nonsense"}]}
    found = text(whole, whole, whole=True)
    assert "2 comparisons, identities: 1 agrees and 1 **differs**. Each" in found
    loss = {"what": "loss_gap", "site": None, "stat": None, "step": "last"}
    both = text({"expects": [vars(NORM), vars(replace(NORM, **loss))]})
    assert "identities: 1 agrees; predictions: 1 agrees. Each" in both
    assert "| 0 ± 0.02 | 0.000 [−0.004, 0.004] | agrees | Theorem 3.2 \\| its limit |" in found
    assert "refuted by" not in found
    assert "only some" not in found
    [right, wrong] = compare([NORM, wrong], tables)
    assert verdict_counts([right, right, wrong, wrong]) == "2 agree and 2 **differ**"
    heldout = text({"expects": [vars(replace(NORM, batch="heldout"))]})
    assert "gradient norm over all adapters (held-out)" in heldout
    assert "only some" in text(whole, {"expects": []})
    assert text({"expects": []}) == "None"


def test_the_primary_test_leads(tables):
    """Seeds differ by 0.002 in both slopes, so in the intercept and not in the slope."""
    lora = replace(NORM, rule="lora", predicted=-0.5)
    about = {"rival": "no change with the rank", "rival_predicts": 0, "source": "Theorem 3.2"}
    primary = read_entry(PRIMARY | about)
    rows = [vars(NORM), vars(lora)]

    def both(**record):
        later = {**record, "expects": [*record["expects"], {**rows[0], "what": "factor"}]}
        return [{"status": "complete", **one} for one in (record, later)]

    def text(late=(), **record):
        [one] = primary_answers(tables, both(**record), late)
        return minus(f"{primary_text(*one)}\n{primary_details(one[0])}")

    records = both(expects=[vars(primary), *rows])
    stated = as_markdown(report_of("known", tables, records), Path(), Path())
    said = "- Primary test of 2 exponents, which follow from B = 0 and a random A: as theory says,"
    assert stated.count(f"{said} within 0.1.\n") == 1
    assert stated.index(said) < stated.index("## Caveats") < stated.index("comparisons,")
    assert "intercept 0.000 [−0.004, 0.004], slope 1.000 [1.000, 1.000]" in stated
    assert "0.000 from theory, as a root mean square, and 0.354 from the rival (no change" in stated
    assert "after the cells" not in stated
    assert "after the cells had run" in text([primary, NORM, lora], expects=rows)
    begun = [{"started": "2026-01-01", "expects": rows}, {"started": "2026-01-02", **records[0]}]
    assert [is_late for _, is_late in primary_answers(tables, begun)] == [True]
    of_one_row = text(expects=[vars(replace(primary, rival_predicts=0.5)), rows[0]])
    said = "Primary test of 1 exponent, which follows from B = 0 and a random A: as theory says,"
    assert of_one_row.startswith(f"{said} within 0.1.\n")
    assert "its exponent minus theory's is 0.000 [−0.004, 0.004] (tolerance 0.1)" in of_one_row
    undecided = replace(primary, tolerance=1e-6)
    assert text(expects=[vars(undecided), *rows]).startswith("\nThe primary test is unclear")
    wrong = replace(primary, rival_predicts=[0, -0.5])
    assert "not as theory says: 0.14 from it, not within 0.1" in text(
        [wrong, replace(NORM, predicted=-0.2), lora], expects=rows
    )


def test_how_many_seeds_are_needed(five_seeds, tmp_path, works, refused):
    """The standard deviation of a slope is 0.002 sqrt(2.5) = 0.0032."""
    rows = [vars(NORM), vars(replace(NORM, tolerance=0.0001)), vars(replace(NORM, predicted=1.0))]
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump({"expects": rows}))
    said = works("power", five_seeds, "--for", file).out
    right, narrow, wrong = [line for line in said.splitlines() if "0.00316" in line]
    assert right.split()[-3:-1] == wrong.split()[-3:-1] == ["3", "3"]
    assert narrow.split()[-3:] == ["hopeless", ">", "50"]
    assert "5 seeds here" in said
    file.write_text("a note")
    assert f"{file} holds no keys" in refused("power", five_seeds, "--for", file)
    refused("power", five_seeds)


def test_a_plan_that_the_error_of_its_rates_leaves_undecided_is_refused(study_cli):
    """The two exponents are 0.375 apart. The grid's standard error of the slope is 0.14, so even
    without scatter 80 % power needs a tolerance of (1.96 + 1.28) x 0.14."""
    study = Path(__file__).parents[2] / "results/reference/paper_learning_rate"
    plan = f"{study.parents[2]}/conf/experiment/paper_learning_rate.yaml"
    ran = study_cli("power", str(study), "--for", plan)
    assert "hopeless" in ran.out
    assert "primary test: all seeds share the error of the pilot's rates" in ran.err
    assert "a tolerance of 0.46 and has 0.15" in ran.err


def test_the_slope_of_a_distance_to_infinite_rank(tables):
    cells = tables.cells[tables.cells["scaling"] == "rslora"]
    place = {"layer": "0.q", "kind": "q", "step": 1, "measure": "frobenius"}
    rows = [
        {"cell_id": cell["cell_id"], "rank": cell["rank"], **place}
        | {"distance": cell["rank"] ** (-0.5 + 0.002 * (cell["seed"] - 2))}
        for cell in cells.to_dict("records")
    ]
    one = replace(NORM, what="distance", site=None, stat=None, measure="frobenius", step=1)
    one = replace(one, predicted=-0.5)
    wanted = [one, replace(one, predicted=0.0), replace(one, measure="input_weighted")]
    found = compare(wanted, replace(tables, distances=pd.DataFrame(rows)))
    assert found[0].measured == pytest.approx(-0.5, abs=1e-6)
    assert [row.verdict for row in found] == ["agrees", "differs", "not measured"]


def test_the_seeds_of_a_primary_test_decide_as_often_as_asked():
    """Theory is off by 0.2 at every row, and the pilot is large, so that its own error is small."""
    draw, rows = np.random.default_rng(0), np.array([-0.5, -0.25, 0.0] * 2)
    about = {"what": "primary", "rows": ["exponent"], "source": "s", "refuted_by": "r"}
    asked = Primary(**about, rival="x", rival_predicts=0.0, tolerance=0.1)

    def study(seeds):
        noise = draw.normal(0, 0.07, (seeds, 1)) + draw.normal(0, 0.05, (seeds, 6))
        return judged(asked, rows, rows - 0.3, rows + 0.2 + noise, np.zeros(6))

    seeds = int(need_of_primary(study(1000)).as_pilot)
    decided = [study(seeds).verdict == DIFFERS for _ in range(300)]
    assert np.mean(decided) == pytest.approx(POWER, abs=0.08)
