"""The real tokens of a batch in one row: the tables are those of padded batches."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from torch.nn.functional import cross_entropy
from transformers import BloomConfig, BloomForCausalLM

from study.config import CellConfig
from study.data import IGNORED, build_corpus
from study.models import FrozenBase, tiny
from study.store import load_records
from tests.conftest import Ran

SWEEP = (
    *("train", "-m", "model=tiny", "data=file", "data.sequence_length=48", "data.heldout=6"),
    *("optimizer.lr=1e-4", "device=cpu", "train.steps=3", "train.batch_size=4"),
    *("train.accumulation=2", "train.eval_every=2"),
    *("probes.steps=[0,1,3]", "probes.batch=[train,heldout,noise]"),
    "probes.stats=[all,r_align,r_sign,r_back,r_eff,rho,mean_norm]",
)


def tables(results: Path, study: str) -> dict[tuple[str, str], pd.DataFrame]:
    return {
        (file.parent.name, file.stem): pd.read_parquet(file)
        for file in sorted((results / study / "cells").glob("*/*.parquet"))
    }


def differ(found: dict[Any, pd.DataFrame], expected: dict[Any, pd.DataFrame]) -> bool:
    """Whether any number differs, which it must by less than 1e-5."""
    assert found.keys() == expected.keys()
    differs = False
    for key, table in expected.items():
        for column in table.select_dtypes("number").columns.difference(["seconds"]):
            one, two = (t[column].to_numpy(float) for t in (found[key], table))
            np.testing.assert_allclose(one, two, rtol=1e-5, err_msg=f"{key} {column}")
            differs |= not np.array_equal(one, two, equal_nan=True)
    return differs


def test_tables_are_those_of_padded_batches(
    jsonl: Path, tmp_path: Path, study_cli: Callable[..., Ran]
) -> None:
    """With two cells of different batches in one pass."""
    for padding_free in ("true", "false"):
        ran = study_cli(
            *(*SWEEP, f"data.path={jsonl}", f"results_dir={tmp_path}", "seed=0,1"),
            *("adapter.rank=4", "adapter.scaling=rslora", "pack.fold=2"),
            *(f"name=free_{padding_free}", f"pack.padding_free={padding_free}"),
        )
        assert ran.code == 0, ran.err
    padded, free = tables(tmp_path, "free_false"), tables(tmp_path, "free_true")
    assert len(padded) == 4  # metrics and probes of two cells, under the same identities
    assert differ(free, padded), "the padding was computed all the same"


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_a_fold_has_the_tables_of_single_cells(
    jsonl: Path, tmp_path: Path, study_cli: Callable[..., Ran], dropout: float
) -> None:
    """Of three ranks under both rules, with accumulation. With dropout all padding stays, and the
    numbers are equal bit for bit."""
    for fold in ("auto", "1"):
        ran = study_cli(
            *(*SWEEP, f"data.path={jsonl}", f"results_dir={tmp_path}", f"name=fold_{fold}"),
            *("adapter.rank=2,4,16", "adapter.scaling=lora,rslora", f"pack.fold={fold}"),
            *("seed=0,1", "probes.steps=[0,3]", f"adapter.dropout={dropout}"),
        )
        assert ran.code == 0, ran.err
    folds = [{r["fold"] for r in load_records(tmp_path / f"fold_{n}")} for n in ("auto", "1")]
    assert list(map(len, folds)) == [1, 12]
    differs = differ(tables(tmp_path, "fold_auto"), tables(tmp_path, "fold_1"))
    assert not (dropout and differs)


def test_packed_examples_have_the_loss_that_each_has_alone(
    cell: Callable[..., CellConfig], tiny_base: FrozenBase
) -> None:
    tokenizer = tiny.tokenizer()

    def losses(packing: str) -> list[float]:
        config = cell("data.sequence_length=192", f"data.sample_packing={packing}")
        rows = build_corpus(config.data, tokenizer, tokenizer.eos_token_id).train
        found: list[float] = []
        for batch in rows.batches(4):
            hidden_BTd = tiny_base.hidden_states(batch.input_ids_BT, batch.lengths)
            learned_BT = batch.targets_BT != IGNORED
            logits_NV = tiny_base.logits(hidden_BTd[learned_BT])
            found += cross_entropy(
                logits_NV, batch.targets_BT[learned_BT], reduction="none"
            ).tolist()
        return sorted(found)

    assert losses("true") == pytest.approx(losses("false"), rel=1e-5)


def test_one_line_names_a_model_that_keeps_the_padding(
    jsonl: Path, tmp_path: Path, study_cli: Callable[..., Ran]
) -> None:
    shape = BloomConfig(vocab_size=len(tiny.tokenizer()), hidden_size=32, n_layer=1, n_head=4)
    BloomForCausalLM(shape).save_pretrained(tmp_path / "bloom")
    tiny.tokenizer().save_pretrained(tmp_path / "bloom")
    ran = study_cli(
        *("train", "model=hf", f"model.path={tmp_path / 'bloom'}", "data=file", "device=cpu"),
        *(f"data.path={jsonl}", f"results_dir={tmp_path}", "train.steps=1", "name=alibi"),
    )
    assert ran.code == 0, ran.err
    assert ran.err.count("padding is computed") == 1
