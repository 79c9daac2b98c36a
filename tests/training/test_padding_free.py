"""The real tokens of a batch in one row, and several cells in a pass: the tables are the same."""

import numpy as np
import pandas as pd
import pytest

from study.store import load_records

SWEEP = (
    *("train", "-m", "model=tiny", "data=file", "data.sequence_length=48", "data.heldout=6"),
    *("optimizer.lr=1e-4", "device=cpu", "train.steps=3", "train.batch_size=4"),
    *("train.accumulation=2", "train.eval_every=2"),
    *("probes.steps=[0,1,3]", "probes.batch=[train,heldout,noise]"),
    "probes.stats=[all,r_align,r_sign,r_back,r_eff,rho,mean_norm]",
)
FOUR = "adapter.rank=2,16 adapter.scaling=lora,rslora"
MIXED = "adapter.rank=2,16 optimizer=adamw,sgd adapter.dropout=0.2 train.clip=0.1 "
MIXED += "train.schedule=cosine"


@pytest.mark.parametrize(
    ("same", "key", "values"),
    [
        (f"{FOUR} pack.fold=4", "pack.padding_free", ("true", "false")),
        (MIXED, "pack.fold", ("auto", "1")),
    ],
)
def test_tables_are_those_of_padded_batches_and_of_single_cells(
    jsonl, tmp_path, works, same, key, values
):
    found = []
    for value in values:
        line = (*SWEEP, *same.split(), f"{key}={value}", f"name=is_{value}", f"data.path={jsonl}")
        works(*line, f"results_dir={tmp_path}")
        files = sorted((tmp_path / f"is_{value}" / "cells").glob("*/*.parquet"))
        found.append({(file.parent.name, file.stem): pd.read_parquet(file) for file in files})
    differ = False
    for place, table in found[1].items():
        for column in table.select_dtypes("number").columns.difference(["seconds"]):
            one, two = (t[column].to_numpy(float) for t in (found[0][place], table))
            np.testing.assert_allclose(one, two, rtol=1e-5, err_msg=f"{place} {column}")
            differ |= not np.array_equal(one, two, equal_nan=True)
    assert differ or key == "pack.fold", "the padding was computed all the same"
    assert not (differ and same == MIXED), "with dropout all padding stays, and a fold is exact"
    folds = [{r["fold"] for r in load_records(tmp_path / f"is_{value}")} for value in values]
    assert [len(fold) for fold in folds] == [1, len(found[1]) // 2 if key == "pack.fold" else 1]
