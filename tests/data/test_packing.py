"""Several examples in a row: what is packed, and that nothing of it is lost."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from study.config import DataConfig
from study.data.batches import IGNORED, TokenTable, build_corpus
from study.models import tiny

TOKENIZER = tiny.tokenizer()


def table(lengths, room):
    """Examples of these lengths. The tokens of example ``i`` are ``i``; all are learned."""
    tokens = np.repeat(np.arange(len(lengths), dtype=np.int32), lengths)
    starts = np.cumsum([0, *lengths])
    rows = [[row] for row in range(len(lengths))]
    return TokenTable(tokens, np.ones(len(tokens), bool), starts, rows, room, padding_id=0)


@given(lengths=st.lists(st.integers(2, 16), min_size=1, max_size=60))
def test_packing_keeps_every_example_and_target_once(lengths):
    whole = table(lengths, room=16)
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
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def corpus(file, **options):
    config = DataConfig("file", str(file), 64, heldout=4, seed=0)
    for key, value in options.items():
        setattr(config, key, value)
    return build_corpus(config, TOKENIZER, TOKENIZER.eos_token_id)


def texts(rows):
    return [TOKENIZER.decode(rows.example(example)[0]) for (example,) in rows.examples]


def test_only_the_training_rows_are_packed(file):
    plain, packed = corpus(file), corpus(file, sample_packing=True)
    assert packed.rows["packed"] == len(packed.train) < len(plain.train) == packed.rows["train"]
    assert texts(packed.heldout) == texts(plain.heldout)


def test_long_rows_are_dropped_if_asked(file):
    cut = corpus(file, sequence_length=20)
    dropped = corpus(file, sequence_length=20, excess_length_strategy="drop")
    assert dropped.rows["dropped"] == cut.rows["cut"] > 0
    assert dropped.rows["cut"] == 0


def test_several_files_a_prompt_and_the_most_rows_of_each(file):
    both = corpus(file, path=[str(file), str(file)], max_samples=3, prompt="[INST]{context}[/INST]")
    assert len(both.train) + len(both.heldout) == 5, "the copy of the held-out row leaves"
    assert all(text.startswith("[INST]") and "?[/INST]" in text for text in texts(both.train))


def test_alpaca_rows_go_through_the_chat_template(tmp_path):
    path = tmp_path / "alpaca.json"
    rows = [{"instruction": f"Add {n}", "input": "1 2", "output": f"{n}"} for n in range(12)]
    path.write_text(json.dumps(rows))
    chat = corpus(path, format="alpaca_chat", chat_template="chatml", sequence_length=128)
    assert "<|im_start|>user\nAdd 1\n1 2<|im_end|>\n<|im_start|>assistant\n1<|im_end|>" in "".join(
        texts(chat.train) + texts(chat.heldout)
    )
