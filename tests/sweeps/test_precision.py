"""The precision of the base: bf16 moves no exponent, and each number of bits has its curves."""

import json
from pathlib import Path

import numpy as np
import pytest

import study
from study.store import load_cells, load_records

PLACE = ["site", "stat", "step", "kind", "layer"]


@pytest.fixture
def small(short, here):
    return ["train", "-m", *short, "train.steps=1", "train.eval_every=0"]


def test_exponents_in_bf16_lie_in_the_intervals_of_float32(works, small):
    swept = ["precision=float32,bf16", "adapter.rank=4,64", "seed=0,1,2"]
    swept += ["adapter.scaling=rslora", "train.batch_size=4", "probes.steps=[0,1]"]
    assert "outputs of adapters are lost" not in works(*small, *swept).err
    exponents = study.load("results/default").exponents.query("layer in ['mean_log', 'model']")
    exponents = exponents[exponents["stat"].isin(["rms", "norm", "descent"])]
    found, wanted = (
        exponents[exponents["precision"] == p].set_index(PLACE) for p in ("bf16", "float32")
    )
    found = found.loc[wanted.index]
    assert len(wanted) > 50
    # Adam's first update is the same for every seed, so its interval has no width: allow 0.01.
    inside = found["exponent"].between(wanted["ci_low"] - 0.01, wanted["ci_high"] + 0.01)
    assert inside.all(), found[~inside]
    assert not np.array_equal(found["exponent"], wanted["exponent"]), "bf16 rounds"


def test_bits_are_swept_recorded_and_kept_apart(works, small):
    line = [*small, "probes.steps=[0]", "probes.stats=[norm,descent]", "adapter.rank=2,4"]
    ran = works(*line, "model.quant_bits=null,8,4")
    assert "6 cells, 0 done, 6 to train in 3 packs" in ran.err
    records = load_records(Path("results/default"))
    four = next(record for record in records if record["config"]["model"]["quant_bits"] == 4)
    assert four["sources"]["model"].endswith("+nf4")
    assert four["model_note"] == "random weights, block linears in 4 bits by bitsandbytes"
    assert four["versions"]["bitsandbytes"]

    rows = study.load("results/default").exponents.query("site == 'adapter_grad'")
    rows = rows[rows["layer"] == "model"]
    assert sorted(rows["quant_bits"].fillna(0)) == [0, 4, 8]
    assert len({round(float(value), 6) for value in rows["exponent"]}) == 3
    assert np.allclose(rows["exponent"], -0.5, atol=0.3)
    plain = works(*line)
    says = "2 cells, 2 done, nothing to train"
    assert says in plain.err, "no bits and null bits are one identity"

    # A record of before there were bits is of a base that is not quantised.
    for path in Path("results/default/cells").glob("*/record.json"):
        record = json.loads(path.read_text())
        del record["config"]["model"]["quant_bits"], record["sha256"], record["files"]
        path.write_text(json.dumps(record))
    assert load_cells("results/default")["quant_bits"].isna().all()


def test_a_line_says_where_bf16_loses_small_outputs(works, small):
    line = [*small, "precision=bf16", "adapter.rank=2", "probes.steps=[0]"]
    factored = "adapter.contraction=factored"
    for more, why in ((factored, factored), ("model.quant_bits=4", "the base has 4 bits")):
        said = works(*line, more).err
        assert f"bf16 ({why}): an output below 1/512 of its layer's is lost" in said
