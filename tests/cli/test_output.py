"""``--json``, ``--csv`` and ``-q``: every JSON has its tables and columns."""

import json
import runpy
import shutil
import sys
from io import StringIO
from pathlib import Path

import pandas as pd
import pytest

import study
from study.cli.group import print_tables
from study.cli.texts import print_texts

REFERENCE = Path(__file__).parents[2] / "results/reference"
CURVE = "optimizer scaling exponent_p crossover"
FIT = f"{CURVE} ci_low ci_high interval seeds ranks rank_min rank_max"
QUANTITY = f"{FIT} site stat batch step predicted"
LOSS = f"{CURVE} rank seed"
TABLES = {
    "analyze": {
        "exponents": f"{QUANTITY} exponent factor verdict primary bent",
        "stable": f"{QUANTITY} method p_star p_star_limit limit",
        "rates": f"{FIT} exponent predicted_low predicted_high",
        "losses": f"{LOSS} how lr loss",
        "answer": "",
    },
    "status": {
        "cells": "cell_id study status note rank scaling exponent optimizer lr seed steps "
        "steps_done diverged_step stuck_step seconds error"
    },
    "rates": {
        "rates": f"{LOSS} horizon best_lr best_loss edge rho",
        "exponents": f"{FIT} horizon exponent rho at_rho_low at_rho_high",
    },
}
"""The tables of each command's JSON, with the columns that programs may rely on."""


@pytest.mark.parametrize(
    ("command", "name"),
    [
        ("analyze", "paper_learning_rate"),
        ("status", "infinite_rank"),
        ("rates", "paper_learning_rate"),
    ],
)
def test_json_has_its_tables_and_csv_the_first_one(works, tmp_path, command, name):
    folder = shutil.copytree(REFERENCE / name, tmp_path / name)
    ran = works(command, str(folder), "--json", "-q")
    assert ran.err == ""
    found = json.loads(ran.out, parse_constant=pytest.fail)
    assert set(found) == set(TABLES[command])
    first = next(iter(TABLES[command]))
    for table, columns in TABLES[command].items():
        assert all({*columns.split()} <= set(row) for row in found[table] if columns), table
    ran = works(command, str(folder), "--csv", "-q")
    assert ran.err == ""
    table = pd.read_csv(StringIO(ran.out))
    assert list(table) == list(found[first][0])
    assert len(table) == len(found[first]) > 1


def test_the_studies_of_a_folder_are_listed(works, refused, here):
    assert refused("status").startswith("study: no study in results: run study train")
    shutil.copytree(REFERENCE / "paper_b3", "results/here")
    for command in ("status", "list"):
        ran = works(command)
        assert ran.err == ""
        assert ran.out.splitlines()[1].split() == ["results/here", "smollm2", "30", "complete"]
    assert "or choose from results/here" in refused("analyze", "here", "-q")
    shutil.copytree(REFERENCE / "paper_fig5", "results/there")
    found = json.loads(works("list", "results", "--json").out)["studies"]
    complete = {study["study"]: (study["cells"], study["complete"]) for study in found}
    assert complete == {"results/here": (30, 30), "results/there": (60, 60)}


@pytest.mark.parametrize(
    ("name", "shared"),
    [
        ("infinite_rank", "model tiny"),
        ("optimizer_history", "model smollm2, scaling"),
        ("bf16_dead_zone", "model smollm2, optimizer adamw"),
    ],
)
def test_a_status_fits_a_terminal_of_80_columns(works, name, shared):
    lines = works("status", str(REFERENCE / name)).out.splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[1].startswith(shared)
    assert not any("…" in line for line in lines)


def test_a_table_loses_no_word_in_a_narrow_terminal(capsys):
    """Its first column once had no place beside five others, and words of these were cut."""
    names = ["rule", "step", "adapter output", "gradient into the inputs", "gradient norm", "loss"]
    row = ["LoRA", "first (0 or 1)", "shrinks to 56 %", "shrinks to 15 %", "keeps its size (102 %)"]
    print_texts("", pd.DataFrame([[*row, "2.871 to 2.925"]], columns=names), by="rule")
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= 80
    assert {*" ".join([*names[1:], *row, "2.871 to 2.925"]).split()} <= {*printed.split()}


def test_missing_is_null_and_infinity_a_text(capsys):
    frame = pd.DataFrame({"rank": [4.0, float("inf")], "loss": [float("nan"), 1.5]})
    print_tables("json", cells=frame, best={"rank": frame["rank"].max()})
    assert json.loads(capsys.readouterr().out) == {
        "cells": [{"rank": 4.0, "loss": None}, {"rank": "inf", "loss": 1.5}],
        "best": {"rank": "inf"},
    }


def test_the_package_runs_as_a_module(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["study", "--version"])
    runpy.run_module("study", run_name="__main__")
    assert study.__version__ in capsys.readouterr().out
