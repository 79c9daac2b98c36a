"""A sweep over the bits of the base: each has its own cells, curves and identities."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import study
from study.store import load_records

Cli = Callable[..., Any]
SMALL = [
    "model=tiny",
    "train.batch_size=2",
    "data.sequence_length=32",
    "data.heldout=2",
    "train.steps=1",
]


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_bits_are_swept_recorded_and_kept_apart(
    study_cli: Cli, jsonl: Path, tmp_path: Path
) -> None:
    line = [*SMALL, "data=file", f"data.path={jsonl}", "probes.steps=[0]"]
    line += ["probes.stats=[norm,descent]"]
    ran = study_cli("train", "-m", *line, "model.quant_bits=null,8,4", "adapter.rank=2,4")
    assert ran.code == 0, ran.err
    assert "6 cells, 0 done, 6 to train in 3 packs" in ran.err
    tables = study.load("results/default")
    found = tables.cells[["quant_bits", "rank"]].fillna(0).to_numpy()
    assert [tuple(row) for row in found] == [(4, 2), (4, 4), (8, 2), (8, 4), (0, 2), (0, 4)]
    records = load_records(tmp_path / "results/default")
    four = next(record for record in records if record["config"]["model"]["quant_bits"] == 4)
    assert four["sources"]["model"].endswith("+nf4")
    assert four["model_note"] == "random weights, block linears in 4 bits by bitsandbytes"
    assert four["versions"]["bitsandbytes"]

    exponents = tables.exponents
    rows = exponents[(exponents["site"] == "adapter_grad") & (exponents["layer"] == "model")]
    assert sorted(rows["quant_bits"].fillna(0)) == [0, 4, 8]
    assert len({round(float(value), 6) for value in rows["exponent"]}) == 3
    assert np.allclose(rows["exponent"], -0.5, atol=0.3)

    plain = study_cli("train", "-m", *line, "adapter.rank=2,4")
    says = "2 cells, 2 done, nothing to train"
    assert says in plain.err, "no bits and null bits are one identity"


def test_an_identity_of_before_there_were_bits_still_holds(
    study_cli: Cli, jsonl: Path, tmp_path: Path
) -> None:
    """A record without the key is of an unquantised base."""
    line = [*SMALL, "data=file", f"data.path={jsonl}", "probes.steps=[0]"]
    study_cli("train", *line)
    path = next((tmp_path / "results/default/cells").glob("*/record.json"))
    record = json.loads(path.read_text())
    del record["config"]["model"]["quant_bits"]
    path.write_text(json.dumps(record))
    assert study.load(str(tmp_path / "results/default")).cells["quant_bits"].isna().all()
