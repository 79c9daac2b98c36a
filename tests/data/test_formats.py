"""Rows of every format and file: what becomes of them, and the line for each that can't be used."""

import gzip
import sys

import pyarrow as pa
import pytest

from study.config import DataConfig
from study.data import Conversation, Document, Example, fingerprint, load_rows
from study.errors import StudyError
from study.models import tiny

from .conftest import corpus_of, written


def rows_of(path, **keys):
    """The rows of a file and its format."""
    return load_rows(DataConfig("file", str(path), **keys), tiny.tokenizer)


def say(*turns):
    return [{"role": role, "content": content} for role, content in turns]


ALPACA = [
    {"instruction": "Add {x}.", "input": "1 2", "output": "3"},
    {"instruction": "Say hi.", "input": "", "output": "hi"},
]
ADD = (
    "Below is an instruction that describes a task, paired with an input that provides further "
    "context. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\nAdd {x}.\n\n### Input:\n1 2\n\n### Response:\n"
)
HI = (
    "Below is an instruction that describes a task. Write a response that appropriately completes "
    "the request.\n\n### Instruction:\nSay hi.\n\n### Response:\n"
)
READ = [Example(ADD, "3"), Example(HI, "hi")]
TURNS = say(("user", "q"), ("assistant", "a"))
SHAREGPT = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]
PARTS = [{"type": "text", "text": "q"}]
SAID = "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\na<|im_end|>\n"
CHAT = Conversation(SAID, ((len(SAID) - len("a<|im_end|>\n"), len(SAID)),), "a")


CHATS = {
    "openai": {"messages": TURNS},
    "sharegpt": {"conversations": SHAREGPT},
    "trl": {"conversations": TURNS, "id": 3},
    "with other fields": {"messages": TURNS, "prompt": "q"},
    "parts": {"messages": [{"role": "user", "content": PARTS}, TURNS[1]]},
    "a prompt and a completion": {"prompt": TURNS[:1], "completion": TURNS[1:]},
    "an empty system": {"messages": TURNS, "system": ""},
    "no system": {"messages": TURNS, "system": None},
}


@pytest.mark.parametrize("kind", CHATS)
def test_messages(tmp_path, kind):
    path = written(tmp_path / "rows.json", [CHATS[kind], CHATS[kind]])
    found = rows_of(path, chat_template="chatml")
    assert found.rows == [CHAT, CHAT]
    assert found.format == ("completion" if "completion" in CHATS[kind] else "messages")


def test_a_system_message_beside_the_turns_is_the_first_turn(tmp_path):
    """A turn comes before the field."""
    own = {"system": "s", "messages": [*say(("system", "t")), *TURNS]}
    path = written(tmp_path / "rows.json", [{"system": "s", "messages": TURNS}, own])
    texts = [row.text for row in rows_of(path, chat_template="chatml").rows]
    assert texts == [f"<|im_start|>system\n{system}<|im_end|>\n{SAID}" for system in "st"]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"text": "all of it"}, Document("all of it")),
        ({"prompt": "q", "completion": " a"}, Example("q", " a")),
        ({"prompt": "q", "completion": " a", "text": "q a"}, Example("q", " a")),
    ],
)
def test_completion(tmp_path, row, expected):
    found = rows_of(written(tmp_path / "rows.jsonl", [row]))
    assert (found.rows, found.format) == ([expected], "completion")


def test_the_same_texts_are_the_same_data_whatever_the_file(tmp_path):
    rows = [{"context": "q", "target": "é\n1"}, {"context": "", "target": 'x, "y"'}]
    endings = ("jsonl", "json", "csv", "parquet")
    found = [rows_of(written(tmp_path / f"rows.{ending}", rows)).rows for ending in endings]
    assert len(set(map(fingerprint, found))) == 1
    assert found[0] == [Example("q", "é\n1"), Example("", 'x, "y"')]


@pytest.mark.parametrize(("ending", "compression"), [("gz", "gzip"), ("zst", "zstd")])
def test_compressed_files(tmp_path, ending, compression):
    path = tmp_path / f"rows.csv.{ending}"
    content = written(tmp_path / "rows.csv", ALPACA).read_bytes()
    with pa.CompressedOutputStream(pa.OSFile(str(path), "wb"), compression) as file:
        file.write(content)
    found = rows_of(path)
    assert (found.rows, found.format) == (READ, "alpaca")


def test_datasets_reads_what_a_name_of_the_hub_stands_for(tmp_path, monkeypatch):
    """No hub is reachable: ``datasets`` reads a file of this machine, all else is its own."""
    datasets = pytest.importorskip("datasets")
    load, file = datasets.load_dataset, str(written(tmp_path / "a.parquet", ALPACA))

    def local(path, subset, split):
        assert path == "org/name"
        return load(subset, data_files=file, split=split, cache_dir=str(tmp_path))

    monkeypatch.setattr(datasets, "load_dataset", local)
    assert rows_of("org/name", subset="parquet", split="train[:1]").rows == READ[:1]
    with pytest.raises(StudyError, match=r"'org/name' is no file here, .*data.split=test"):
        rows_of("org/name", subset="parquet", split="test")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(StudyError, match=r"needs datasets: pip install '\.\[data\]'"):
        rows_of("org/name")


ONE, TWO = {"text": "a"}, {"prompt": "b", "completion": "c"}
PAIR = {"context": "a", "target": "b"}
NO_TEXT = [{"type": "image_url"}]
CASES = [
    ("has the fields 'question', 'answer', which", [{"question": "q", "answer": "a"}], {}),
    ("needs a str as 'text', but 'text' is of type int", [{"text": 3}], {}),
    ("needs a str as 'output'", [{"instruction": "a", "output": float("nan")}], {}),
    ("needs a str as 'instruction'", [ONE], {"format": "alpaca"}),
    ("no turn in 'completion'", [{"prompt": TURNS, "completion": []}], {}),
    ("needs a list as 'messages', but 'messages' is of type str", [{"messages": "hello"}], {}),
    ("line 1, turn 1 is 'hello'", [{"messages": ["hello"]}], {}),
    ("line 1 has no turn of the assistant", [{"messages": TURNS[:1]}], {}),
    ("unknown role in .*turn 1: 'bot': ", [{"messages": say(("bot", "a"))}], {}),
    ("turn 1 needs a str as 'content'", [{"messages": [{"role": "assistant"}]}], {}),
    ("is not text", [{"messages": say(("assistant", NO_TEXT))}], {}),
    ("unknown 'from' in", [{"conversations": [{"from": "x", "value": "y"}]}], {}),
    ("'tools' is no list of JSON schemas", [{"messages": TURNS, "tools": "{"}], {}),
    ("'tools' is no list of JSON schemas", [{"messages": TURNS, "tools": ["sum"]}], {}),
    ("'system' is of type int", [{"messages": TURNS, "system": 3}], {}),
    ("line 2 has other fields or types than the rows before", [ONE, TWO], {}),
    (
        r"needs a str as 'target' \(its keys: 'context', 'x'\)",
        [PAIR, {"context": "a", "x": "b"}],
        {},
    ),
    ("line 1: 'target' is empty", [{"context": "a", "target": " \n"}], {}),
    ("the rows are of data.format=completion: remove it", [ONE], {"chat_template": "chatml"}),
    ("data.split and .* is a file: remove them", [ONE], {"split": "test"}),
]


@pytest.mark.parametrize(("says", "rows", "keys"), CASES)
def test_rows_that_can_not_be_used_are_one_line(tmp_path, says, rows, keys):
    if {"messages", "conversations"} & set(rows[0]):
        keys = {"chat_template": "chatml"}
    with pytest.raises(StudyError, match=says):
        rows_of(written(tmp_path / "rows.jsonl", rows), **keys)


CUT = gzip.compress(b'{"text": "a"}\n' * 999, mtime=0)[:-9]
GOOD = b'{"context": "a", "target": "b"}\n\n'
FILES = [
    ("x.jsonl", GOOD + b'{"context": "a", "target": "b"', "line 3 is not valid JSON .*Expecting"),
    ("x.jsonl", GOOD + b"[" * 100_000, "line 3 is not valid JSON"),
    ("x.jsonl", GOOD + b'["a", "b"]\n' + GOOD, "line 3 is of type list"),
    ("x.jsonl", GOOD + b'{"context": "\xe9"}', "line 3 is not valid JSON in UTF-8"),
    ("x.jsonl.gz", CUT, "can't be read"),
    ("x.parquet", b'{"text": "a"}\n', "can't be read"),
    ("x.json", b'[{"text": "a"},', "is not valid JSON"),
    ("x.jsonl", b'{"text": "a"}\n{"text": "\\udead"}\n', "line 2 has half of a surrogate pair"),
    ("x.csv", "text\né\n".encode("latin-1"), "no valid CSV in UTF-8"),
    ("x.csv", b"prompt,completion\na\n", "line 2 has more or fewer fields than the header"),
    ("x.csv", b'text\n"a\n', "no valid CSV"),
]


@pytest.mark.parametrize(("name", "content", "says"), FILES)
def test_a_file_that_can_not_be_read_is_one_line(tmp_path, name, content, says):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(StudyError, match=says) as caught:
        rows_of(tmp_path / name)
    assert name in str(caught.value)


# What is learned, cut and dropped.

MORE = [*TURNS, *say(("user", "more"), ("assistant", "b"))]


def test_every_token_of_a_text_is_learned_as_in_trl(tmp_path):
    """TRL: the tokens of the text and eos, all of them labels; the first has none before it."""
    texts = [{"text": text} for text in ("abc", "abcdefgh", " ")]
    corpus = corpus_of(written(tmp_path / "rows.jsonl", texts), 6)
    rows = [*corpus.train.batches(1), *corpus.heldout.batches(1)]
    for batch in rows:
        ids = batch.input_ids_BT[batch.real_BT]
        assert ids[:3].tolist() == tiny.tokenizer()("abc").input_ids
        assert batch.targets_BT[batch.real_BT].tolist() == [*ids[1:].tolist(), -100]
    assert sorted(len(batch.real_BT[batch.real_BT]) for batch in rows) == [4, 6]
    assert sum(int((batch.input_ids_BT == 256).sum()) for batch in rows) == 1
    supervised = sum(batch.supervised for batch in corpus.train.batches(1))
    counts = {"train": 1, "heldout": 1, "supervised": supervised, "cut": 1, "dropped": 1}
    assert corpus.rows == counts | {"format": "completion"}
    assert corpus.questions.contexts == []


def test_a_conversation_is_cut_on_the_right_and_dropped_without_a_turn_left(tmp_path):
    rows = [{"messages": [*say(("system", f"s{n}")), *MORE]} for n in range(40)]
    late = {"messages": [*say(("user", "long " * 99)), TURNS[1]]}
    path = written(tmp_path / "rows.jsonl", [*rows, late, late])
    first = len("<|im_start|>system\ns1<|im_end|>\n" + SAID)
    corpus = corpus_of(path, first + 9, chat_template="chatml")
    assert corpus.rows["cut"] == corpus.rows["train"] + corpus.rows["heldout"]
    assert corpus.rows["dropped"] == 2
    text = tiny.tokenizer().decode(corpus.train.batch(0, 0, 1).input_ids_BT[0])
    assert text.startswith("<|im_start|>system\ns")
    assert len(corpus.questions.contexts) < corpus.rows["heldout"]


def test_the_question_of_a_conversation_is_its_last_turn(tmp_path):
    rows = [{"messages": [*say(("system", f"s{n}")), *MORE]} for n in range(4)]
    corpus = corpus_of(written(tmp_path / "rows.jsonl", rows), 400, chat_template="chatml")
    (context,) = corpus.questions.contexts
    text = tiny.tokenizer().decode(context)
    assert text.endswith("user\nmore<|im_end|>\n<|im_start|>assistant\n")
    assert list(corpus.questions.targets) == ["b"]
