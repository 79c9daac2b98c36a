"""Epochs and warm-up as a share: the steps of the Trainer of transformers, and of one cell."""

import json
from pathlib import Path

import pytest
from transformers import Trainer, TrainingArguments

from study.config import resolved
from study.errors import StudyError
from study.models import tiny
from study.store import load_cells, load_records
from study.sweeps.cells import plan
from study.sweeps.packs import prepare

from .conftest import written


@pytest.mark.parametrize(
    ("rows", "batch", "accumulation", "epochs", "warmup"),
    [(61, 4, 3, 3.0, 0.5), (100, 7, 2, 2.55, 0.07), (10, 3, 2, 1.5, 3)],
)
def test_steps_are_those_of_the_trainer(cell, tmp_path, rows, batch, accumulation, epochs, warmup):
    args = TrainingArguments(
        str(tmp_path),
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=accumulation,
        num_train_epochs=epochs,
        warmup_steps=warmup,
        use_cpu=True,
        report_to=[],
    )
    trainer = Trainer(tiny.build(), args, train_dataset=[{"input_ids": [n]} for n in range(rows)])
    *_, steps = trainer.set_initial_training_values(args, trainer.get_train_dataloader())
    size = (f"train.batch_size={batch}", f"train.accumulation={accumulation}")
    ours = resolved(cell(*size, f"train.epochs={epochs}", f"train.warmup={warmup}"), lambda: rows)
    assert ours.train.steps == steps
    assert ours.train.warmup == args.get_warmup_steps(steps)
    assert isinstance(ours.train.warmup, int)


def test_conversations_are_trained_for_an_epoch(here, works):
    """The same number of steps is the same cell, and a warm-up may be a share of them."""
    turns = [
        [{"from": "human", "value": f"Say {n}."}, {"from": "gpt", "value": f"It is {n}."}]
        for n in range(24)
    ]
    Path("chats.json").write_text(json.dumps([{"conversations": turn} for turn in turns]))
    words = ["model=tiny", "data=file", "data.path=chats.json", "data.chat_template=chatml"]
    words += ["data.sequence_length=128", "train.batch_size=4", "probes.steps=null", "name=chat"]
    words += ["train.answer_tokens=3"]
    epochs = ["train.epochs=1", "train.warmup=0.5"]
    planned = works("train", "--plan", *words, *epochs)
    assert "22 rows of data.format=messages to train on and 2 held out; 0 are cut" in planned.out
    assert "train.epochs=1: 6 steps of 4 rows; train.steps is ignored" in planned.out
    works("train", *words, *epochs)
    (row,) = load_cells("results/chat").to_dict("records")
    assert (row["status"], row["steps"], row["warmup"]) == ("complete", 6, 3)
    assert not {"epochs", "format", "chat_template"} & set(row)
    (record,) = load_records(Path("results/chat"))
    assert record["config"]["train"]["epochs"] == 1
    rows = record["rows"]
    assert 22 * len("It is 0.") <= rows.pop("supervised") <= 22 * len("It is 10.<|im_end|>\n")
    counts = {"train": 22, "heldout": 2, "cut": 0, "dropped": 0, "format": "messages"}
    assert rows == counts
    for warmup in (3, 0.5):
        again = works("train", *words, "train.steps=6", f"train.warmup={warmup}")
        assert "1 done, nothing to train" in again.err


def test_texts_have_no_questions_to_answer(cell, tmp_path):
    path = written(tmp_path / "texts.jsonl", [{"text": f"text {n}"} for n in range(20)])
    with pytest.raises(StudyError, match="no held-out row is a question"):
        prepare(plan([cell("data=file", f"data.path={path}", "train.answer_tokens=4")]))
    prepare(plan([cell("data=file", f"data.path={path}")]))
