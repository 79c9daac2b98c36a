"""A sweep over the bits of the base: each has its own cells, curves and identities."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import study
from study.config import CellConfig
from study.sweeps import packs, run
from study.sweeps.cells import plan
from study.sweeps.estimate import Estimate
from study.sweeps.packs import Prepared, PreparedPack

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
    line = [
        *SMALL,
        "data=file",
        f"data.path={jsonl}",
        "probes.steps=[0]",
        "probes.stats=[norm,descent]",
    ]
    ran = study_cli("train", "-m", *line, "model.quant_bits=null,8,4", "adapter.rank=2,4")
    assert ran.code == 0, ran.err
    assert "6 cells, 0 done, 6 to train in 3 packs" in ran.err
    cells = study.load(str(tmp_path / "results/default")).cells
    assert [tuple(row) for row in cells[["quant_bits", "rank"]].fillna(0).to_numpy()] == [
        (4, 2), (4, 4), (8, 2), (8, 4), (0, 2), (0, 4),
    ]  # fmt: skip
    records = [
        json.loads(path.read_text())
        for path in (tmp_path / "results/default/cells").glob("*/record.json")
    ]
    four = next(record for record in records if record["config"]["model"]["quant_bits"] == 4)
    assert four["sources"]["model"].endswith("+nf4")
    assert four["model_note"] == "random weights, block linears in 4 bits by bitsandbytes"
    assert four["versions"]["bitsandbytes"]

    assert study_cli("analyze", "results/default").code == 0
    exponents = study.load(str(tmp_path / "results/default")).exponents
    rows = exponents[(exponents["site"] == "adapter_grad") & (exponents["layer"] == "model")]
    assert sorted(rows["quant_bits"].fillna(0)) == [0, 4, 8]
    assert len({round(float(value), 6) for value in rows["exponent"]}) == 3
    assert np.allclose(rows["exponent"], -0.5, atol=0.3)

    plain = study_cli("train", "-m", *line, "adapter.rank=2,4")
    assert "2 cells, 2 done, nothing to train" in plain.err, (
        "no bits and null bits are one identity"
    )


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


def test_over_8_bits_on_cuda_every_cell_goes_alone(
    cell: Callable[..., CellConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    """LLM.int8() looks for outliers over the whole batch, so cells would affect each other."""

    def sizes(device: str, *overrides: str) -> list[int]:
        cells = plan([cell(f"adapter.rank={rank}", *overrides) for rank in (2, 3, 4, 5)])
        nothing: Any = None
        prepared = [Prepared(each, nothing, Estimate(1, 1, 1.0)) for each in cells]
        pack = PreparedPack(prepared, torch.device(device), nothing, memory=2**30)
        return [len(fold) for fold in packs.folds(pack, nothing)]

    monkeypatch.setattr(packs, "fastest_fold", lambda *_: 4)

    assert sizes("cuda") == sizes("cuda", "model.quant_bits=4") == [4]
    assert (
        sizes("cuda", "model.quant_bits=8")
        == sizes("cuda", "model.quant_bits=8", "pack.fold=2")
        == [1] * 4
    )
    assert sizes("cpu", "model.quant_bits=8", "pack.fold=2") == [2, 2]


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        ("model.quant_bits=3", "unknown model.quant_bits 3: choose from null, 8, 4"),
        ("model.quant_bits=four", "model.quant_bits"),
    ],
)
def test_bad_bits_get_one_line(
    study_cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bad: str, says: str
) -> None:
    monkeypatch.setattr(run, "load_base", lambda *_: pytest.fail("a model was loaded"))
    ran = study_cli("train", *SMALL, bad)
    assert ran.code == 2
    [error] = ran.err.strip().splitlines()
    assert says in error
    assert not (tmp_path / "results").exists()
