"""A study from the command line to its files, tables, figures and pages."""

import json
import sys
from pathlib import Path

import pandas as pd
import pytest

import study
from tests.contract.conftest import SWEEP

IDS = json.loads((Path(__file__).parent / "small.json").read_text())
"""The id of every cell of the small study, and some of its numbers, by rule, rank and seed."""


def test_the_cells_have_their_ids_files_and_records(small):
    folders = {folder.name: folder for folder in (small / "cells").iterdir()}
    assert set(folders) == {numbers["id"] for numbers in IDS.values()}
    for folder in folders.values():
        files = {"config.yaml", "record.json", "metrics.parquet", "probes.parquet"}
        assert files <= {path.name for path in folder.iterdir()}
        record = json.loads((folder / "record.json").read_text())
        assert record["status"] == "complete"
        assert {"cell_id", "config", "sources", "versions", "device", "seconds"} <= set(record)
        assert pd.read_parquet(folder / "metrics.parquet")["loss"].notna().any()


def test_the_tables_have_the_measured_numbers(small):
    tables = study.load(str(small))
    assert len(tables.cells) == 12
    metrics = tables.metrics[tables.metrics["step"] == 1].set_index("cell_id")
    probes = tables.probes[(tables.probes["step"] == 1) & (tables.probes["batch"] == "train")]
    output = probes[probes["site"] == "adapter_out"].groupby("cell_id", observed=True)["rms"].mean()
    for name, expected in IDS.items():
        cell = expected["id"]
        assert metrics.loc[cell, "loss"] == pytest.approx(expected["loss"], rel=1e-4), name
        assert metrics.loc[cell, "grad_norm"] == pytest.approx(expected["norm"], rel=1e-3), name
        assert output[cell] == pytest.approx(expected["adapter_out"], rel=1e-3), name


def test_the_exponents_are_those_of_the_theory(small):
    """At step 0 the gradient norm goes as gamma sqrt(r): r^-1/2 under LoRA, r^0 under rsLoRA."""
    exponents = study.load(str(small)).exponents
    assert {"verdict", "predicted", "ci_low", "ci_high", "exponent"} <= set(exponents.columns)
    whole = exponents[
        (exponents["site"] == "adapter_grad")
        & (exponents["stat"] == "norm")
        & (exponents["step"] == 0)
        & (exponents["layer"] == "model")
        & (exponents["batch"] == "train")
    ].set_index("scaling")["exponent"]
    assert whole["lora"] == pytest.approx(-0.5, abs=0.15)
    assert whole["rslora"] == pytest.approx(0.0, abs=0.15)


@pytest.mark.usefixtures("few_figures")
def test_a_notebook_shows_what_was_found_and_writes_the_report(small, tmp_path):
    loaded = study.load(small)
    shown = loaded._repr_html_()
    assert "<h2>Do outputs and gradients keep their size as the rank grows?</h2>" in shown
    assert "<th>gradient norm</th>" in shown
    assert '<img alt="' in shown
    assert loaded.figure("grad_norm_vs_rank").axes
    with pytest.raises(study.errors.StudyError, match="no figure learning_rate_basins: "):
        loaded.figure("learning_rate_basins")
    page = loaded.report(to=tmp_path / "page")
    assert page.read_text().startswith("<!doctype html>")
    assert list((tmp_path / "page/figures").glob("*.png"))


def test_the_same_line_again_trains_nothing(small, command):
    before = {path: path.stat().st_mtime_ns for path in small.rglob("*.parquet")}
    assert "nothing to train" in command(*SWEEP)
    assert {path: path.stat().st_mtime_ns for path in small.rglob("*.parquet")} == before


def test_every_reader_says_what_it_found(small, home, command):
    assert command("status", "results/small").count("complete") >= 12
    analyzed = command("analyze", "results/small")
    assert "rsLoRA" in analyzed
    assert "…" not in analyzed
    assert max(map(len, analyzed.splitlines())) <= 100, "the columns of the terminal"
    assert pd.read_parquet(small / "exponents.parquet").shape[0] > 100
    assert "no problem" in command("check", "results/small")
    command("figures", "results/small", "--only", "grad_norm_vs_rank", "--formats", "png")
    assert (home / "plots/small/grad_norm_vs_rank.png").stat().st_size > 10_000
    command("report", "results/small")
    page = (small / "report.html").read_text()
    assert "rsLoRA" in page
    assert "Do outputs and gradients keep their size" in (small / "report.md").read_text()
    command("dashboard", "results/small", "--export", "page.html")
    assert (home / "page.html").stat().st_size > 100_000


def test_an_adapter_goes_out_and_comes_back(small, home, command):
    cell = IDS["rslora 4 0"]["id"]
    command("export", "results/small", cell, "adapter")
    settings = json.loads((home / "adapter/adapter_config.json").read_text())
    assert (settings["r"], settings["use_rslora"], settings["lora_alpha"]) == (4, True, 16)
    assert (home / "adapter/adapter_model.safetensors").exists()
    printed = command("import", "adapter", "model=tiny")
    assert "study train" in printed
    assert "adapter.path=" in printed


def test_a_notebook_trains_a_sweep(home, monkeypatch):
    monkeypatch.chdir(home)
    short = {"model": "tiny", "data": "file", "data.path": "train.jsonl", "data.heldout": 4}
    short |= {"train.steps": 1, "train.batch_size": 2, "data.sequence_length": 32}
    argv = list(sys.argv)
    for ranks in ([1, 2], [1, 2, 4]):
        found = study.train(short | {"adapter.rank": ranks, "train.save_adapter": False}, "own")
    assert sorted(found.cells["rank"]) == [1, 2, 4]
    assert sys.argv == argv
    with pytest.raises(study.errors.StudyError, match="rnak"):
        study.train({"adapter.rnak": 4}, "own")
    assert set(study.__all__) == set(dir(study))
