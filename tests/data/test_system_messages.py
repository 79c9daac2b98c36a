"""The field ``system`` beside a conversation, as ShareGPT's rows have it."""

import json
from pathlib import Path
from typing import Any

import pytest

from study.config import DataConfig, ModelConfig
from study.data import load_rows
from study.errors import StudyError
from study.models import load_tokenizer

TURNS = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
SAID = "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\na<|im_end|>\n"


def text_of(file: Path, row: dict[str, Any]) -> str:
    """The text of a data set's only row, with chatml."""
    file.write_text(json.dumps([row]))
    config = DataConfig("file", str(file), 64, 8, 0, chat_template="chatml")
    (read,) = load_rows(config, lambda: load_tokenizer(ModelConfig("tiny"))).rows
    return str(read.text)


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
@pytest.mark.parametrize("key", ["messages", "conversations"])
def test_a_system_message_beside_the_turns_is_the_first_turn(
    tmp_path: Path, key: str, system: str | None, turns: list[Any], says: str
) -> None:
    assert text_of(tmp_path / "rows.json", {"system": system, key: turns}) == says + SAID


def test_a_system_message_that_is_no_text_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="'system' is of type int, not a string"):
        text_of(tmp_path / "rows.json", {"system": 3, "messages": TURNS})
