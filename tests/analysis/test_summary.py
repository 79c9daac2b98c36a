"""The rows to read first, and the terminal table that shows them."""

import io
import math

import pytest
from rich.console import Console

from study.analysis import fit_exponents, render_table, summary, with_verdicts
from study.analysis.summary import interval_text
from study.vocabulary.quantities import PRIMARY


def law(cell, layer, step):
    return cell["rank"] ** (-0.5 if cell["scaling"] == "lora" else 0.0) * math.exp(
        1e-3 * math.sin(hash((cell["rank"], cell["seed"])))
    )


LAWS = {(q.site, q.stat): law for q in PRIMARY} | {("layer_out", "rms"): law}


def shown(table, width=80):
    out = io.StringIO()
    Console(file=out, width=width).print(table)
    return out.getvalue()


def test_intervals_as_text():
    assert interval_text(-0.5, -0.52, -0.48) == "-0.50 [-0.52, -0.48]"
    assert interval_text(-0.001, -0.004, 0.0049) == "0.00 [0.00, 0.00]"
    assert interval_text(1.0, math.nan, math.nan) == "1.00"


def test_first_and_last_steps_of_the_primary_quantities(study):
    found = summary(
        with_verdicts(fit_exponents(*study(LAWS, steps=(0, 1, 3, 7), scaling=("lora", "rslora"))))
    )
    assert list(dict.fromkeys(found["rule"])) == ["lora", "rslora"]
    lora = found[found["rule"] == "lora"]
    assert [tuple(pair) for pair in lora[["quantity", "step"]].to_numpy()] == [
        ("adapter_grad norm", 0),
        ("adapter_grad norm", 7),
        ("adapter_update descent", 0),
        ("adapter_update descent", 1),
        ("adapter_update descent", 7),
        ("adapter_out rms", 0),
        ("adapter_out rms", 7),
        ("adapter_in_grad rms", 0),
        ("adapter_in_grad rms", 7),
    ]
    assert list(lora["primary"]) == [True, False, True, True, False, False, True, False, True]
    assert set(lora["verdict"]) == {"collapses"}
    assert set(found.loc[found["rule"] == "rslora", "verdict"]) == {"stable"}
    assert set(found["curve"]) == {""}


def test_the_table_fits_a_terminal_and_says_what_it_must(study, capsys):
    exponents = with_verdicts(fit_exponents(*study(LAWS, steps=(0, 7), scaling=("lora", "rslora"))))
    text = shown(render_table(summary(exponents)))
    assert capsys.readouterr().out == ""
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text
    for words in (
        "sgd, lora",
        "sgd, rslora",
        "-0.50 [-0.50, -0.50]",
        "adapter_out rms (layers)",
        "collapses",
        "stable: within ±0.073, a factor of 1.5 from rank 4 to 1024",
        "mean over 6 layers of the log",
        "intervals over 3 seeds",
    ):
        assert words in text
    assert "theory" not in text


def test_what_tells_curves_apart_is_named(study):
    cells, probes = study(LAWS, lr=(1e-3, 1e-2), scaling="power", exponent=0.75)
    found = summary(
        with_verdicts(
            fit_exponents(cells, probes, predict=lambda rows: 0 * rows["exponent"] - 0.25)
        )
    )
    assert list(dict.fromkeys(found["curve"])) == ["lr=0.001", "lr=0.01"]
    text = shown(render_table(found))
    assert "sgd, power p=0.75, lr=0.001" in text
    assert "theory" in text
    assert "-0.25" in text


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"seed": 0}, "intervals from ranks only (one seed): they do not cover other seeds"),
        ({"rank": (4, 16)}, "fewer than three ranks: no interval"),
        ({"rank": (4, 16, 64, math.inf)}, "cells of a curve that its fit leaves out: up to 3"),
        ({"rank": 4}, "nothing to show"),
    ],
)
def test_what_the_intervals_are_over_is_said(study, changes, words):
    text = shown(render_table(summary(with_verdicts(fit_exponents(*study(LAWS, **changes))))))
    assert words in text
