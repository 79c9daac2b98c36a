"""Examples: reading, content hash and split."""

import hashlib
import json
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from study.config import DataConfig
from study.data import Example, fingerprint, load_examples, split
from study.data.sources import SOURCES
from study.errors import StudyError

texts = st.text(st.characters(exclude_categories=["Cs"]))
example_lists = st.lists(st.builds(Example, texts, texts.filter(str.strip)), max_size=40)


def config(path: object = None, name: str = "file") -> DataConfig:
    return DataConfig(
        name=name, path=None if path is None else str(path), sequence_length=64, heldout=8, seed=0
    )


def written(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


GOOD = '{"context": "a", "target": "b"}'


@given(examples=example_lists.filter(bool))
def test_a_file_is_read_as_it_was_written(examples, tmp_path_factory):
    file = tmp_path_factory.mktemp("jsonl") / "rows.jsonl"
    rows = [
        json.dumps({"target": e.target, "doc_path": 1, "context": e.context}, ensure_ascii=False)
        for e in examples
    ]
    file.write_bytes(b"\xef\xbb\xbf" + "\r\n\n".join(rows).encode())
    assert load_examples(config(file)) == examples


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"context": "a", "target": "b"', r"line 3 is not valid JSON \(Expecting"),
        ("[" * 100_000, "line 3 is not valid JSON"),
        ('["a", "b"]', "line 3 is of type list, not an object"),
        (
            '{"context": "a", "completion": "b"}',
            r"line 3 has no key 'target' \(its keys: 'context', 'completion'\)",
        ),
        ("{}", r"line 3 has no key 'context' \(its keys: none\)"),
        ('{"context": "a", "target": 3}', "line 3: 'target' is of type int, not a string"),
        ('{"context": null, "target": "b"}', "line 3: 'context' is of type NoneType"),
        ('{"context": "a", "target": " \\n"}', "line 3: 'target' is empty"),
        ('{"context": "a", "target": "\\ud800"}', "line 3: 'target' has an unpaired surrogate"),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, message):
    file = written(tmp_path / "rows.jsonl", GOOD, "", line, GOOD)
    with pytest.raises(StudyError, match=message) as caught:
        load_examples(config(file))
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_utf8_is_named_with_its_line(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_bytes(GOOD.encode() + b'\n{"context": "\xe9", "target": "b"}\n')
    with pytest.raises(StudyError, match="line 2 is not UTF-8"):
        load_examples(config(file))


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (None, "data=file reads a file: add data.path="),
        ("", "data=file reads a file: add data.path="),
        ("absent.jsonl", "absent.jsonl' does not exist"),
        (".", "can't be read"),
        ("empty.jsonl", "has no examples: name another file"),
        ("blank.jsonl", "has no examples: name another file"),
    ],
)
def test_a_bad_path_is_named(tmp_path, monkeypatch, path, message):
    monkeypatch.chdir(tmp_path)
    Path("empty.jsonl").touch()
    Path("blank.jsonl").write_text("\n  \n")
    with pytest.raises(StudyError, match=message) as caught:
        load_examples(config(path))
    assert "\n" not in str(caught.value)


def test_a_path_for_a_data_set_that_reads_none_is_refused():
    with pytest.raises(StudyError, match=r"add data=file, or remove data\.path"):
        load_examples(config("rows.jsonl", name="pydoc"))


def test_a_data_set_without_examples_names_the_others(monkeypatch):
    monkeypatch.setitem(SOURCES, "pydoc", lambda _: [])
    with pytest.raises(StudyError, match=r"data=pydoc has no examples: .* xbrl_extract, file$"):
        load_examples(config(name="pydoc"))


def test_the_fingerprint_is_of_the_content(tmp_path):
    one = written(tmp_path / "one.jsonl", '{"context": "é", "target": "b"}', GOOD)
    two = written(
        tmp_path / "two.jsonl", '{"target":"b",  "context":"\\u00e9", "more": 1}', "", GOOD
    )
    assert fingerprint(load_examples(config(one))) == fingerprint(load_examples(config(two)))
    # `sha256sum` of the canonical line gives the same.
    assert (
        fingerprint([Example("a", "b")])
        == hashlib.sha256(b'{"context":"a","target":"b"}\n').hexdigest()
    )


@given(
    example_lists.filter(lambda examples: len(set(examples)) >= 2), st.integers(1, 10), st.randoms()
)
def test_the_split(examples, heldout, rng: random.Random):
    train, held = split(examples, heldout)
    distinct = len(set(examples))
    assert len(held) == max(1, min(heldout, distinct // 10))
    assert train
    assert not set(train) & set(held)
    assert set(train) | set(held) == set(examples)
    assert train == [example for example in examples if example not in held]
    rng.shuffle(examples)
    assert split(examples, heldout)[1] == held


@pytest.mark.parametrize("examples", [[], [Example("a", "b")], [Example("a", "b")] * 30])
def test_one_example_cannot_be_split(examples):
    with pytest.raises(StudyError, match="distinct example"):
        split(examples, 8)
