"""The message of a user's mistake is one line that a terminal can print."""

import pickle

from study.errors import MOST_CHARACTERS, StudyError, unknown


def test_a_message_is_one_printable_line_of_limited_length() -> None:
    said = str(StudyError("name='a\nb\x1b[31m\u202e\udcff': give another"))
    assert said == r"name='a\nb\x1b[31m\u202e\udcff': give another"
    said = str(StudyError("key=" + "9" * 5000 + ": give a number"))
    assert len(said) == MOST_CHARACTERS
    assert said.startswith("key=999")
    assert said.endswith("9: give a number")
    assert len(str(unknown("scaling", "x" * 5000, ["lora"]))) < 150


def test_it_survives_a_trip_to_another_process() -> None:
    error = StudyError("a\nb")
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
