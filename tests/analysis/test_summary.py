"""The rows to read first, and the tables of the terminal that show them."""

import io
import math
import os
from contextlib import redirect_stdout
from unittest import mock

import pandas as pd

from study.analysis import (
    fit_exponents,
    summary,
    with_verdicts,
)
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
