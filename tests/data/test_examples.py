"""Examples: reading, content hash and split."""

import hashlib
import json
import zlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from study.config import DataConfig
from study.data import Example, fingerprint, load_rows
from study.data.examples import split_places
from study.errors import StudyError
from study.models import tiny

texts = st.text(st.characters(exclude_categories=["Cs"]))
example_lists = st.lists(st.builds(Example, texts, texts.filter(str.strip)), max_size=40)


def load(path=None, name="file"):
    return load_rows(DataConfig(name, None if path is None else str(path)), tiny.tokenizer).rows


@given(examples=example_lists.filter(bool))
def test_a_file_is_read_as_it_was_written(examples, tmp_path_factory):
    file = tmp_path_factory.mktemp("jsonl") / "rows.jsonl"
    rows = [json.dumps({"doc_path": 1, **vars(e)}, ensure_ascii=False) for e in examples]
    file.write_bytes(b"\xef\xbb\xbf" + "\r\n\n".join(rows).encode())
    assert load(file) == examples


@pytest.mark.parametrize(
    ("path", "name", "message"),
    [
        (None, "file", "data=file reads a file: add data.path="),
        (".", "file", "can't be read"),
        ("blank.jsonl", "file", "has no examples: choose data from"),
        ("rows.jsonl", "pydoc", r"add data=file, or remove data\.path"),
    ],
)
def test_a_bad_path_is_named(here, path, name, message):
    Path("blank.jsonl").write_text("\n  \n")
    with pytest.raises(StudyError, match=message):
        load(path, name)


def test_random_strings_have_distinct_keys_and_cannot_be_compressed():
    few, many = (
        load_rows(DataConfig("random_strings", max_samples=n), tiny.tokenizer).rows
        for n in (9, 4000)
    )
    assert few == many[:9]
    assert len({row.context for row in many}) == 4000
    text = "".join(row.target for row in many)
    assert len(zlib.compress(text.encode(), 9)) == pytest.approx(4000 * 96 / 8, rel=0.02)


def test_the_fingerprint_is_the_sha256sum_of_the_canonical_lines(here):
    Path("rows.jsonl").write_text('{"target":"b",  "context":"\\u00e9", "more": 1}\n\n')
    line = b'{"context":"\\u00e9","target":"b"}\n'
    assert fingerprint(load("rows.jsonl")) == hashlib.sha256(line).hexdigest()


@given(example_lists.filter(lambda rows: len(set(rows)) > 1), st.integers(1, 10), st.randoms())
def test_the_split(examples, heldout, rng):
    train, held = ([examples[place] for place in side] for side in split_places(examples, heldout))
    distinct = len(set(examples))
    assert len(held) == max(1, min(heldout, distinct // 10))
    assert train
    assert set(train) | set(held) == set(examples)
    assert train == [example for example in examples if example not in held]
    rng.shuffle(examples)
    assert [examples[place] for place in split_places(examples, heldout)[1]] == held
