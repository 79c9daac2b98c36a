"""The rows to read first, and the tables of the terminal that show them."""

import io
import math
import os
from contextlib import redirect_stdout
from unittest import mock

import numpy as np
import pandas as pd
import pytest

from study.analysis import (
    first_to_read,
    fit_exponents,
    side_by_side,
    stable_exponents,
    summary,
    with_predictions,
    with_verdicts,
)
from study.analysis.stable import EVERY_OPTIMIZER
from study.cli.tables import print_table
from study.report.sections import exponent_section, p_star_section, short
from study.store import StudyTables
from study.vocabulary.quantities import PRIMARY


def law(cell, layer, step):
    return cell["rank"] ** (-0.5 if cell["scaling"] == "lora" else 0.0) * math.exp(
        1e-3 * math.sin(hash((cell["rank"], cell["seed"])))
    )


LAWS = {(q.site, q.stat): law for q in PRIMARY} | {("layer_out", "rms"): law}


def shown(**tables):
    """What ``study analyze`` prints of derived tables on 80 columns."""
    none = dict.fromkeys(("cells", "metrics", "probes"), pd.DataFrame())
    found = StudyTables(**none, **tables)
    with mock.patch.dict(os.environ, COLUMNS="80"), redirect_stdout(io.StringIO()) as text:
        for section in filter(None, (exponent_section(found), p_star_section(found))):
            for table in section.tables:
                print_table(short(table))
    return text.getvalue()


def judged(study, laws=LAWS, **axes):
    return with_verdicts(fit_exponents(*study(laws, **axes)))


def p_stars(study, laws, **axes):
    cells, probes = study(laws, **axes)
    metrics = pd.DataFrame({"cell_id": cells["cell_id"], "step": 0, "loss": 2.0})
    metrics = metrics.assign(loss_after=np.nan, clip_factor=1.0)
    return stable_exponents(with_predictions(fit_exponents(cells, probes), cells, metrics, probes))


def test_first_and_last_steps_of_the_primary_quantities(study):
    found = summary(judged(study, steps=(0, 1, 3, 7), scaling=("lora", "rslora")))
    assert list(dict.fromkeys(found["rule"])) == ["lora", "rslora"]
    lora = found[found["rule"] == "lora"]
    shown_steps = {
        name: list(zip(rows["step"], rows["primary"], strict=True))
        for name, rows in lora.groupby("quantity", sort=False)
    }
    assert shown_steps == {
        "adapter_grad norm": [(0, True), (7, False)],
        "adapter_update descent": [(0, True), (1, True), (7, False)],
        "adapter_out rms": [(0, False), (7, True)],
        "adapter_in_grad rms": [(0, False), (7, True)],
    }
    assert set(lora["verdict"]) == {"shrinks"}
    assert set(found.loc[found["rule"] == "rslora", "verdict"]) == {"keeps its size"}
    assert set(found["curve"]) == {""}


def test_the_table_fits_a_terminal_and_says_what_it_must(study):
    text = shown(exponents=judged(study, steps=(0, 7), scaling=("lora", "rslora")))
    assert max(map(len, text.splitlines())) <= 80
    for words in (
        "SGD, rsLoRA",
        "-0.50 [-0.50, -0.50]",
        "×0.06",
        "Brackets are 95 % intervals over 3 seeds.",
        "shrinks: by more than 1.5 times",
        "Verdicts are stricter than the intervals",
    ):
        assert words in " ".join(text.split())
    for words in ("bent", "grows", "straightness", "…", "*"):
        assert words not in text


def test_each_quantity_is_read_on_one_batch_which_the_table_names(study):
    cells, train = study(LAWS, steps=(0, 7))
    out = {place: law for place, law in LAWS.items() if place[0] == "adapter_out"}
    _, heldout = study(out, steps=(0, 7), batch="heldout")
    found = summary(with_verdicts(fit_exponents(cells, pd.concat([train, heldout]))))
    batches = found.groupby("quantity")["batch"].unique().map(list).to_dict()
    assert batches["adapter_out rms"] == ["heldout"], "as the answer below the table"
    assert batches["adapter_in_grad rms"] == ["train"]
    text = shown(exponents=with_verdicts(fit_exponents(cells, pd.concat([train, heldout]))))
    assert text.index(", held-out") < text.index("adapter output") < text.index("Brackets")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"seed": 0}, "Brackets show the straightness of the line, one seed."),
        ({"seed": 0, "rank": (4, 16)}, "A slope without brackets has one seed and two ranks."),
    ],
)
def test_what_the_intervals_are_over_is_said(study, changes, words):
    text = " ".join(shown(exponents=judged(study, **changes)).split())
    assert words in text
    assert "95 %" not in text


def test_a_gradient_at_step_0_is_one_measurement_for_every_optimizer(study):
    """Three optimizers with one gradient; their updates differ."""

    def update(cell, layer, step):
        return cell["rank"] ** (0.0 if cell["optimizer"] == "sgd" else 0.5) * law(cell, layer, step)

    laws = {("adapter_grad", "norm"): law, ("adapter_update", "descent"): update}
    optimizers = ("sgd", "adamw", "signsgd")
    axes = {"steps": (0, 1), "scaling": "rslora", "optimizer": optimizers, "eps": 1e-8}
    stable = p_stars(study, laws, **axes)
    rows = side_by_side(first_to_read(stable))
    for site, step, expected in (
        ("adapter_grad", 0, [EVERY_OPTIMIZER]),
        ("adapter_grad", 1, optimizers),
        ("adapter_update", 0, optimizers),
    ):
        here = rows[(rows["site"] == site) & (rows["step"] == step)]
        assert sorted(here["optimizer"]) == sorted(expected)
    text = shown(exponents=pd.DataFrame(), stable=stable)
    flat = " ".join(text.split())
    assert flat.count("Step 0 is before any update, so optimizers agree.") == 1
    assert "Rules in one row" not in flat
    assert flat.count("The first update of AdamW is that of SignSGD up to eps.") == 1
    assert "Brackets are 95 % intervals over 3 seeds." in flat
    assert max(map(len, text.splitlines())) <= 80


def test_rules_with_one_measurement_are_one_row_of_p_star(study):
    """Before training moves the weights, rules differ by a power of gamma."""
    gradient = {
        ("adapter_grad", "norm"): lambda cell, layer, step: (
            law(cell | {"scaling": "rslora"}, layer, step)
            * cell["rank"] ** (-0.5 if cell["scaling"] == "lora" else 0.0)
        )
    }
    stable = p_stars(study, gradient, scaling=("lora", "rslora"))
    text = shown(exponents=pd.DataFrame(), stable=stable)
    assert sum("gradient norm" in line for line in text.splitlines()) == 1
