"""Several examples in a row: what is packed, and that nothing of it is lost."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from study.data.batches import IGNORED
from study.models import tiny

from .conftest import corpus_of, table_of, written


@given(lengths=st.lists(st.integers(2, 16), min_size=1, max_size=60))
def test_packing_keeps_every_example_and_target_once(lengths):
    whole = table_of(lengths, room=16)
    packed = whole.packed()
    assert sorted(e for row in packed.examples for e in row) == list(range(len(lengths)))
    (batch,) = packed.batches(len(packed))
    assert [sum(row) for row in batch.lengths] == batch.real_BT.sum(1).tolist()
    assert batch.supervised == sum(length - 1 for length in lengths)
    for row, of_row in zip(batch.targets_BT.tolist(), batch.lengths, strict=True):
        ends = np.cumsum(of_row) - 1
        assert all(row[end] == IGNORED for end in ends), "an example must not predict the next"
    # First fit leaves at most one row half empty.
    assert sum(sum(row) <= 8 for row in batch.lengths) <= 1


@pytest.fixture
def file(tmp_path):
    rows = [{"context": f"{'very ' * (n % 7)}{n}?", "target": f"{n}"} for n in range(40)]
    return written(tmp_path / "rows.jsonl", rows)


def corpus(file, length=64, **keys):
    return corpus_of(file, length, **{"heldout": 4, **keys})


def texts(rows):
    return [tiny.tokenizer().decode(rows.example(example)[0]) for (example,) in rows.examples]


def test_only_the_training_rows_are_packed(file):
    plain, packed = corpus(file), corpus(file, sample_packing=True)
    assert packed.rows["packed"] == len(packed.train) < len(plain.train) == packed.rows["train"]
    assert texts(packed.heldout) == texts(plain.heldout)


def test_long_rows_are_dropped_if_asked(file):
    cut = corpus(file, 20)
    dropped = corpus(file, 20, excess_length_strategy="drop")
    assert dropped.rows["dropped"] == cut.rows["cut"] > 0
    assert dropped.rows["cut"] == 0


def test_several_files_a_prompt_and_the_most_rows_of_each(file):
    both = corpus(file, path=[str(file), str(file)], max_samples=3, prompt="[INST]{context}[/INST]")
    assert len(both.train) + len(both.heldout) == 5, "the copy of the held-out row leaves"
    assert all(text.startswith("[INST]") and "?[/INST]" in text for text in texts(both.train))


def test_alpaca_rows_go_through_the_chat_template(tmp_path):
    rows = [{"instruction": f"Add {n}", "input": "1 2", "output": f"{n}"} for n in range(12)]
    path = written(tmp_path / "alpaca.json", rows)
    chat = corpus(path, 128, format="alpaca_chat", chat_template="chatml")
    assert "<|im_start|>user\nAdd 1\n1 2<|im_end|>\n<|im_start|>assistant\n1<|im_end|>" in "".join(
        texts(chat.train) + texts(chat.heldout)
    )
