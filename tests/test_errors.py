"""The message of a user's mistake is one line that a terminal can print."""

import pickle
import subprocess
import sys

from study.errors import MOST_CHARACTERS, StudyError, unknown


def test_a_message_is_one_printable_line() -> None:
    said = str(StudyError("name='a\nb\x1b[31m\u202e\udcff': give another"))
    assert said == r"name='a\nb\x1b[31m\u202e\udcff': give another"


def test_a_long_message_keeps_its_ends() -> None:
    said = str(StudyError("key=" + "9" * 5000 + ": give a number"))
    assert len(said) == MOST_CHARACTERS
    assert said.startswith("key=999")
    assert said.endswith("9: give a number")


def test_a_long_value_is_cut() -> None:
    assert len(str(unknown("scaling", "x" * 5000, ["lora"]))) < 150


def test_it_survives_a_trip_to_another_process() -> None:
    error = StudyError("a\nb")
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


def test_import_study_alone_gives_the_exception() -> None:
    line = "import study; print(study.errors.StudyError.__name__)"
    done = subprocess.run([sys.executable, "-c", line], capture_output=True, text=True)
    assert done.stdout == "StudyError\n", done.stderr
