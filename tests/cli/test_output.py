"""``--json``, ``--csv`` and ``-q``: every JSON keeps to a schema."""

import json
import shutil
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import pytest
from pydantic import BaseModel

from study.cli.group import print_tables

REFERENCE = Path(__file__).parents[2] / "results/reference"
Cli = Callable[..., Any]
Number = float | None
Rank = float | Literal["inf"]


class Curve(BaseModel):
    optimizer: str
    scaling: str
    exponent_p: Number


class Fit(Curve):
    ci_low: Number
    ci_high: Number
    interval: Literal["seeds", "ranks", "none"]
    seeds: int
    ranks: int
    rank_min: Number
    rank_max: Number


class Quantity(Fit):
    site: str
    stat: str
    batch: Literal["train", "heldout", "noise"]
    step: int


class Exponent(Quantity):
    exponent: float
    predicted: Number
    factor: float
    verdict: str
    primary: bool
    bent: bool


class Stable(Quantity):
    method: Literal["linear", "grid"]
    p_star: float
    predicted: Number
    p_star_limit: Number
    limit: Number


class Loss(Curve):
    how: Literal["fixed", "best", "matched"]
    lr: float
    rank: float
    seed: int
    loss: Number


class Transfer(Fit):
    exponent: Number
    predicted_low: Number
    predicted_high: Number


class Horizon(Fit):
    horizon: int
    exponent: Number
    rho: Number
    at_rho_low: Number
    at_rho_high: Number


class BestRate(Curve):
    horizon: int
    rank: float
    seed: int
    best_lr: float
    best_loss: float
    edge: Literal["", "lowest", "highest"]
    rho: Number


class Cell(BaseModel):
    cell_id: str
    study: str
    status: str
    note: str
    rank: Rank
    scaling: str
    exponent: Number
    optimizer: str
    lr: float
    seed: int
    steps: int
    steps_done: Number
    diverged_step: Number
    stuck_step: Number
    seconds: Number
    error: str | None


class Analyzed(BaseModel, extra="forbid"):
    exponents: list[Exponent]
    stable: list[Stable]
    rates: list[Transfer]
    losses: list[Loss]
    answer: list[str]


class Rates(BaseModel, extra="forbid"):
    rates: list[BestRate]
    exponents: list[Horizon]


class Status(BaseModel, extra="forbid"):
    cells: list[Cell]


def refuse(word: str) -> None:
    raise AssertionError(f"{word} is not JSON")


class Study(BaseModel):
    study: str
    model: str
    cells: int
    complete: int
    running: int
    diverged: int


class Studies(BaseModel, extra="forbid"):
    studies: list[Study]


@pytest.mark.parametrize(
    ("command", "name", "schema", "first"),
    [
        ("analyze", "paper_learning_rate", Analyzed, "exponents"),
        ("status", "infinite_rank", Status, "cells"),
        ("rates", "paper_learning_rate", Rates, "rates"),
    ],
)
def test_json_has_a_schema_and_csv_has_its_first_table(
    study_cli: Cli, tmp_path: Path, command: str, name: str, schema: Any, first: str
) -> None:
    folder = shutil.copytree(REFERENCE / name, tmp_path / name)
    ran = study_cli(command, str(folder), "--json", "-q")
    assert (ran.code, ran.err) == (0, "")
    found = json.loads(ran.out, parse_constant=refuse)
    schema.model_validate_json(ran.out, strict=True)
    ran = study_cli(command, str(folder), "--csv", "-q")
    assert (ran.code, ran.err) == (0, "")
    table = pd.read_csv(StringIO(ran.out))
    assert list(table) == list(found[first][0])
    assert len(table) == len(found[first]) > 1


def test_the_studies_of_a_folder_are_listed(
    study_cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ran = study_cli("status")
    assert ran.code == 2
    assert ran.err.startswith("study: no study in results: run study train")
    shutil.copytree(REFERENCE / "paper_b3", "results/here")
    for command in ("status", "list"):
        ran = study_cli(command)
        assert (ran.code, ran.err) == (0, "")
        assert ran.out.splitlines()[1].split() == ["results/here", "smollm2", "30", "complete"]
    ran = study_cli("list", str(REFERENCE), "--json")
    found = Studies.model_validate_json(ran.out, strict=True).studies
    assert {study.study: study.complete for study in found}[str(REFERENCE / "paper_fig5")] == 60
    assert all(study.cells == study.complete + study.diverged for study in found)


@pytest.mark.parametrize(
    ("name", "most", "shared"),
    [
        ("infinite_rank", 80, "model tiny"),
        ("optimizer_history", 80, "model smollm2, scaling"),
        ("bf16_dead_zone", 80, "model smollm2, optimizer adamw"),
    ],
)
def test_a_status_fits_a_terminal_of_80_columns(
    study_cli: Cli, monkeypatch: pytest.MonkeyPatch, name: str, most: int, shared: str
) -> None:
    monkeypatch.setenv("COLUMNS", str(most))
    lines = study_cli("status", str(REFERENCE / name)).out.splitlines()
    assert max(map(len, lines)) <= most
    assert lines[1].startswith(shared)
    assert not any("…" in line for line in lines)


def test_missing_is_null_and_infinity_a_text(capsys: pytest.CaptureFixture[str]) -> None:
    frame = pd.DataFrame({"rank": [4.0, float("inf")], "loss": [float("nan"), 1.5]})
    print_tables("json", cells=frame, best={"rank": frame["rank"].max()})
    assert json.loads(capsys.readouterr().out) == {
        "cells": [{"rank": 4.0, "loss": None}, {"rank": "inf", "loss": 1.5}],
        "best": {"rank": "inf"},
    }
