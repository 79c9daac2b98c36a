"""``study compare``: known differences are found, and intervals cover them."""

import json
import math
from pathlib import Path

import pandas as pd
import pytest

from study.analysis.compare import compare, conclusion, differing_settings, table_texts
from study.errors import StudyError
from study.store import StudyTables

from .conftest import study_of

REFERENCE = Path(__file__).parents[2] / "results/reference"
OUT, GRAD = ("adapter_out", "rms"), ("adapter_grad", "norm")


def tables(slope, last, **axes):
    """A study whose exponents are ``slope``, with another noise for each seed."""

    def law(cell, layer, step):
        noise = 0.01 * math.sin(7 * cell["seed"] + cell.get("jitter", 0))
        return float(cell["rank"] ** (slope + noise)) * (step + 1)

    cells, probes = study_of({OUT: law, GRAD: law}, steps=(0, 1, last), **axes)
    metrics = pd.DataFrame(
        [
            {"cell_id": cell, "step": step, "eval_loss": 3 - slope + 0.001 * seed}
            for cell, seed in zip(cells["cell_id"], cells["seed"], strict=True)
            for step in (0, last)
        ]
    )
    return StudyTables(cells, metrics.assign(loss=4.0, loss_after=3.9, clip_factor=1.0), probes)


def test_a_known_difference_is_found_at_shared_ranks_and_aligned_steps():
    one = tables(0.2, last=10, lr=1e-3)
    other = tables(0.5, last=20, rank=(4, 16, 64), lr=2e-3, scaling="rslora")
    studies = {"one": one, "other": other}
    found, settings = compare(studies), differing_settings(studies).set_index("setting")
    assert settings.loc["lr"].tolist() == ["0.001", "0.002"]
    assert settings.loc["rank"].tolist() == ["4, 16, 64, 256, 1024", "4, 16, 64"]
    assert sorted(settings.index) == ["lr", "rank", "scaling"]
    slopes = found[found["what"] == "exponent"]
    assert set(zip(slopes["step"], slopes["other_step"], strict=True)) == {(0, 0), (10, 20)}
    assert slopes["difference"].tolist() == pytest.approx([0.3] * len(slopes))
    assert slopes["paired"].all()
    assert (slopes["ci_high"] - slopes["ci_low"]).max() < 1e-6, "the noise of a seed cancels"
    losses = found[found["what"] == "loss"]
    assert sorted(set(losses["rank"])) == [4, 16, 64]
    assert losses["difference"].tolist() == pytest.approx([-0.3] * len(losses))
    assert set(found["curve"]) == {"SGD, LoRA | SGD, rsLoRA"}
    assert conclusion(found).startswith("0 of 4 exponents and 0 of 3 losses agree")


def test_other_seeds_are_compared_by_welch_without_one_that_lacks_a_rank():
    one, other = tables(0.2, 10), tables(0.2, 10, seed=(3, 4, 5, 6, 7))
    lost = other.cells["cell_id"][(other.cells["rank"] == 1024) & (other.cells["seed"] == 7)]
    probes = other.probes[~other.probes["cell_id"].isin(lost)]
    rows = compare({"one": one, "other": StudyTables(other.cells, other.metrics, probes)})
    assert not rows["paired"].any()
    assert set(rows["curve"]) == {"SGD, LoRA"}
    slopes = rows[rows["what"] == "exponent"]
    assert ((slopes["ci_low"] < 0) & (slopes["ci_high"] > 0)).all()
    assert (slopes["seeds"].unique(), slopes["other_seeds"].unique()) == ([3], [4])


def test_studies_without_a_common_number_get_one_line():
    one, other = (tables(0.2, 10, rank=rank) for rank in (4, 8))
    with pytest.raises(StudyError, match="one and other have no exponent and no loss in common"):
        compare({"one": one, "other": other})


ROW = (
    "study curve what quantity at rank step other_step value low high seeds other other_low "
    "other_high other_seeds difference ci_low ci_high paired"
)


def test_the_command_prints_a_sentence_and_a_table_and_has_columns(works, refused):
    studies = [str(REFERENCE / name) for name in ("paper_b3", "quick")]
    ran = works("compare", *studies, "--json", "-q")
    assert ran.err == ""
    found = json.loads(ran.out)
    assert set(found) == {"rows", "settings"}
    assert set(found["rows"][0]) == set(ROW.split())
    rows = pd.DataFrame(found["rows"])
    assert set(rows["study"]) == {"quick"}
    ran = works("compare", *studies, "-q")
    assert ran.out.startswith("- A = paper_b3, B = quick: 1 of 6 exponents and 0 of 2 losses agree")
    assert all(text in ran.out for text in table_texts(rows)["B - A"])
    refused("compare", studies[0])
    assert "twice" in refused("compare", studies[0], studies[0])
