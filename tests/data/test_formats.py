"""Rows of every format and file: what becomes of them, and the line for each that can't be used."""

import gzip
import json
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest

from study.config import DataConfig, ModelConfig
from study.data import Conversation, Document, Example, build_corpus, fingerprint, load_rows
from study.errors import StudyError
from study.models import load_tokenizer

TINY = ModelConfig("tiny")


def rows_of(path: object, **keys: Any) -> Any:
    """The rows of a file and its format."""
    return load_rows(DataConfig("file", str(path), **keys), lambda: load_tokenizer(TINY))


def written(path: Path, rows: list[Any]) -> Path:
    """``rows`` in the file ``path``, in the format of its ending."""
    if path.suffix == ".json":
        path.write_text(json.dumps(rows))
    elif path.suffix == ".csv":
        pd.DataFrame(rows).to_csv(path, index=False)
    elif path.suffix == ".parquet":
        pd.DataFrame(rows).to_parquet(path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


ALPACA = [
    {"instruction": "Add {x}.", "input": "1 2", "output": "3"},
    {"instruction": "Say hi.", "input": "", "output": "hi"},
]
ADD = (
    "Below is an instruction that describes a task, paired with an input that provides further "
    "context. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\nAdd {x}.\n\n### Input:\n1 2\n\n### Response:\n"
)
SAY = (
    "Below is an instruction that describes a task. Write a response that appropriately completes "
    "the request.\n\n### Instruction:\nSay hi.\n\n### Response:\n"
)
TURNS = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
SAID = "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\na<|im_end|>\n"
CHAT = Conversation(SAID, ((len(SAID) - len("a<|im_end|>\n"), len(SAID)),), "a")


@pytest.mark.parametrize("ending", ["jsonl", "json", "csv", "parquet"])
def test_alpaca(tmp_path: Path, ending: str) -> None:
    found = rows_of(written(tmp_path / f"rows.{ending}", ALPACA))
    assert found.rows == [Example(ADD, "3"), Example(SAY, "hi")]
    assert found.format == "alpaca"


@pytest.mark.parametrize("ending", ["json", "parquet"])
@pytest.mark.parametrize(
    "row",
    [
        {"messages": TURNS},
        {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
        {"conversations": TURNS, "id": 3},
        {"messages": TURNS, "prompt": "q"},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "q"}]}, TURNS[1]]},
    ],
    ids=["openai", "sharegpt", "trl", "with other fields", "parts"],
)
def test_messages(tmp_path: Path, ending: str, row: dict[str, Any]) -> None:
    if ending == "parquet" and isinstance(row.get("messages", [{}])[0].get("content"), list):
        pytest.skip("Parquet has one type for a field")
    path = written(tmp_path / f"rows.{ending}", [row, row])
    found = rows_of(path, chat_template="chatml")
    assert found.rows == [CHAT, CHAT]
    assert found.format == "messages"


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"text": "all of it"}, Document("all of it")),
        ({"prompt": "q", "completion": " a"}, Example("q", " a")),
        ({"prompt": "q", "completion": " a", "text": "q a"}, Example("q", " a")),
    ],
)
def test_completion(tmp_path: Path, row: dict[str, str], expected: Any) -> None:
    found = rows_of(written(tmp_path / "rows.jsonl", [row]))
    assert (found.rows, found.format) == ([expected], "completion")


def test_the_same_texts_are_the_same_data_whatever_the_file(tmp_path: Path) -> None:
    rows = [{"context": "q", "target": "é\n1"}, {"context": "", "target": 'x, "y"'}]
    prints = {
        fingerprint(rows_of(written(tmp_path / f"rows.{ending}", rows)).rows)
        for ending in ("jsonl", "json", "csv", "parquet")
    }
    assert prints == {fingerprint([Example("q", "é\n1"), Example("", 'x, "y"')])}


@pytest.mark.parametrize(("ending", "compression"), [("gz", "gzip"), ("zst", "zstd")])
def test_compressed_files(tmp_path: Path, ending: str, compression: str) -> None:
    path = tmp_path / f"rows.csv.{ending}"
    content = written(tmp_path / "rows.csv", ALPACA).read_bytes()
    with pa.CompressedOutputStream(pa.OSFile(str(path), "wb"), compression) as file:
        file.write(content)
    assert rows_of(path).rows == [Example(ADD, "3"), Example(SAY, "hi")]


def test_json_files_may_have_a_row_per_line(tmp_path: Path) -> None:
    (tmp_path / "rows.json").write_text("\ufeff" + "".join(json.dumps(r) + "\n" for r in ALPACA))
    assert len(rows_of(tmp_path / "rows.json").rows) == 2


def test_values_of_csv_are_text(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text('context,target\nNaN,1\nnull,"NaN"\n\n,NA\n')
    assert rows_of(tmp_path / "rows.csv").rows == [
        Example("NaN", "1"),
        Example("null", "NaN"),
        Example("", "NA"),
    ]


def test_prompts_and_completions_of_turns(tmp_path: Path) -> None:
    row = {"prompt": TURNS[:1], "completion": TURNS[1:]}
    found = rows_of(written(tmp_path / "rows.jsonl", [row]), chat_template="chatml")
    assert (found.rows, found.format) == ([CHAT], "completion")


@pytest.mark.parametrize(
    ("system", "turns", "says"),
    [
        ("s", TURNS, "<|im_start|>system\ns<|im_end|>\n"),
        ("s", [{"role": "system", "content": "t"}, *TURNS], "<|im_start|>system\nt<|im_end|>\n"),
        ("", TURNS, ""),
        (None, TURNS, ""),
    ],
    ids=["a field", "a turn and a field", "an empty field", "a field of null"],
)
def test_a_system_message_beside_the_turns_is_the_first_turn(
    tmp_path: Path, system: str | None, turns: list[Any], says: str
) -> None:
    path = written(tmp_path / "rows.json", [{"system": system, "messages": turns}])
    (row,) = rows_of(path, chat_template="chatml").rows
    assert row.text == says + SAID


def test_rows_of_two_kinds_are_refused(tmp_path: Path) -> None:
    rows = [{"text": "a"}, {"prompt": "b", "completion": "c"}]
    with pytest.raises(StudyError, match="line 2 has other fields or types than the rows before"):
        rows_of(written(tmp_path / "rows.jsonl", rows))


def test_a_format_that_is_named_is_not_guessed(tmp_path: Path) -> None:
    path = written(tmp_path / "rows.jsonl", [{"text": "t", "prompt": "p", "completion": "c"}])
    with pytest.raises(StudyError, match="needs a str as 'instruction'"):
        rows_of(path, format="alpaca")


def test_datasets_reads_what_a_name_of_the_hub_stands_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No hub is reachable: ``datasets`` reads a file of this machine, all else is its own."""
    datasets = pytest.importorskip("datasets")
    load, file = datasets.load_dataset, str(written(tmp_path / "a.parquet", ALPACA))

    def local(path: str, subset: str, split: str) -> Any:
        assert path == "org/name"
        return load(subset, data_files=file, split=split, cache_dir=str(tmp_path))

    monkeypatch.setattr(datasets, "load_dataset", local)
    found = rows_of("org/name", subset="parquet", split="train[:1]")
    assert found.rows == [Example(ADD, "3")]
    with pytest.raises(StudyError, match=r"data\.path='org/name', split test, subset"):
        rows_of("org/name", subset="parquet", split="test")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(StudyError, match=r"needs datasets: pip install '\.\[data\]'"):
        rows_of("org/name")


def say(*turns: tuple[str, Any]) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


REFUSED: dict[str, tuple[Any, str]] = {
    "no format": ({"question": "q", "answer": "a"}, "has the fields 'question', 'answer', which"),
    "a number": ({"text": 3}, "needs a str as 'text', but 'text' is of type int"),
    "an output of NaN": ({"instruction": "a", "output": float("nan")}, "'output' is of type float"),
    "no completion": ({"prompt": TURNS, "completion": []}, "no turn in 'completion'"),
    "turns that are text": (
        {"messages": "hello"},
        "needs a list as 'messages', but 'messages' is of",
    ),
    "a turn that is text": ({"messages": ["hello"]}, "line 1, turn 1 is 'hello'"),
    "no assistant": (say(("user", "q")), "line 1 has no turn of the assistant"),
    "an unknown role": (say(("user", "q"), ("bot", "a")), "unknown role in .*turn 2: 'bot': "),
    "no content": ({"messages": [{"role": "assistant"}]}, "turn 1 needs a str as 'content'"),
    "an image": (say(("assistant", [{"type": "image_url"}])), "is not text"),
    "unknown in ShareGPT": ({"conversations": [{"from": "x", "value": "y"}]}, "unknown 'from' in"),
    "bad tools": (say(("assistant", "a")) | {"tools": "{"}, "'tools' is no list of JSON schemas"),
    "names of tools": (say(("assistant", "a")) | {"tools": ["sum"]}, "'tools' is no list of JSON"),
    "a number for system": (say(("assistant", "a")) | {"system": 3}, "'system' is of type int"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_row_that_cannot_be_used_is_one_line(tmp_path: Path, case: str) -> None:
    row, says = REFUSED[case]
    path = written(tmp_path / "rows.jsonl", [row])
    with pytest.raises(StudyError, match=says) as caught:
        rows_of(path, chat_template="chatml" if {"messages", "conversations"} & set(row) else None)
    assert "line 1" in str(caught.value)
    assert "\n" not in str(caught.value)


FILES: dict[str, tuple[str, bytes, str]] = {
    "a cut gzip": ("x.jsonl.gz", gzip.compress(b'{"text": "a"}\n' * 999)[:-9], "can't be read"),
    "no Parquet": ("x.parquet", b'{"text": "a"}\n', "can't be read"),
    "an open list": ("x.json", b'[{"text": "a"},', "is not valid JSON"),
    "a list of texts": ("x.json", b'["a", "b"]', "row 1 is of type str"),
    "CSV in latin-1": ("x.csv", "text\né\n".encode("latin-1"), "is not valid CSV in UTF-8"),
    "a short row": ("x.csv", b"prompt,completion\na\n", "line 2 has 1 fields, and the header"),
    "an open quote": ("x.csv", b'text\n"a\n', "is not valid CSV"),
}


@pytest.mark.parametrize("case", FILES)
def test_a_file_that_cannot_be_read_is_one_line(tmp_path: Path, case: str) -> None:
    name, content, says = FILES[case]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(StudyError, match=says) as caught:
        rows_of(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_a_template_for_rows_without_conversations_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "rows.jsonl", [{"text": "a"}])
    with pytest.raises(StudyError, match=r"the rows are of data\.format=completion: remove it"):
        rows_of(path, chat_template="chatml")


def test_a_file_has_no_split(tmp_path: Path) -> None:
    path = written(tmp_path / "rows.jsonl", [{"text": "a"}])
    with pytest.raises(StudyError, match=r"data\.split=test .* is a file: remove data\.split"):
        rows_of(path, split="test")


# What is learned, cut and dropped.


def corpus_of(path: Path, length: int, **keys: Any) -> Any:
    tokenizer = load_tokenizer(TINY)
    about = DataConfig("file", str(path), sequence_length=length, heldout=2, seed=0, **keys)
    return build_corpus(about, tokenizer, tokenizer.eos_token_id)


def test_every_token_of_a_text_is_learned_as_in_trl(tmp_path: Path) -> None:
    """TRL: the tokens of the text and eos, all of them labels; the first has none before it."""
    texts = ("abc", "abcdefgh", " ")
    corpus = corpus_of(written(tmp_path / "rows.jsonl", [{"text": text} for text in texts]), 6)
    rows = [*corpus.train.batches(1), *corpus.heldout.batches(1)]
    eos = load_tokenizer(TINY).eos_token_id
    for batch in rows:
        ids = batch.input_ids_BT[batch.real_BT]
        assert ids[:3].tolist() == list(load_tokenizer(TINY)("abc").input_ids)
        assert batch.targets_BT[batch.real_BT].tolist() == [*ids[1:].tolist(), -100]
    assert sorted(len(batch.real_BT[batch.real_BT]) for batch in rows) == [4, 6]
    assert sum(int((batch.input_ids_BT == eos).sum()) for batch in rows) == 1
    assert corpus.rows == {"train": 1, "heldout": 1, "cut": 1, "dropped": 1, "format": "completion"}
    assert corpus.questions.contexts == []


def test_a_conversation_is_cut_on_the_right_and_dropped_without_a_turn_left(tmp_path: Path) -> None:
    turns = [*TURNS, {"role": "user", "content": "more"}, {"role": "assistant", "content": "b"}]
    rows = [{"messages": [{"role": "system", "content": f"s{n}"}, *turns]} for n in range(40)]
    late = {"messages": [{"role": "user", "content": "long " * 99}, TURNS[1]]}
    path = written(tmp_path / "rows.jsonl", [*rows, late, late])
    first = len("<|im_start|>system\ns1<|im_end|>\n" + SAID)
    corpus = corpus_of(path, first + 9, chat_template="chatml")
    assert corpus.rows["cut"] == corpus.rows["train"] + corpus.rows["heldout"]
    assert corpus.rows["dropped"] == 2
    text = load_tokenizer(TINY).decode(corpus.train.batch(0, 0, 1).input_ids_BT[0])
    assert text.startswith("<|im_start|>system\ns")
    assert len(corpus.questions.contexts) < corpus.rows["heldout"]


def test_the_question_of_a_conversation_is_its_last_turn(tmp_path: Path) -> None:
    turns = [*TURNS, {"role": "user", "content": "more"}, {"role": "assistant", "content": "b"}]
    rows = [{"messages": [{"role": "system", "content": f"s{n}"}, *turns]} for n in range(4)]
    corpus = corpus_of(written(tmp_path / "rows.jsonl", rows), 400, chat_template="chatml")
    (context,) = corpus.questions.contexts
    text = load_tokenizer(TINY).decode(context)
    assert text.endswith("user\nmore<|im_end|>\n<|im_start|>assistant\n")
    assert list(corpus.questions.targets) == ["b"]
