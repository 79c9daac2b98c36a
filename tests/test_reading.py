"""Files that others wrote: a result or one line, whatever they hold. The line of a mistake."""

import pickle
from pathlib import Path

import pytest

from study import reading
from study.errors import MOST_CHARACTERS, StudyError, command_line, unknown

MOST = 1 << 16


def read(path):
    return reading.read_object(path, "x.json", "fix it", MOST)


def test_other_content_is_named(tmp_path):
    path = tmp_path / "x.json"
    for content, says in (
        ("", "is not valid JSON \\(Expecting value\\)"),
        ("[1]", "holds a list, not an object"),
        ('{"a": {"b": 1, "b": 1}}', "the key 'b' occurs twice"),
        ("{" * 10_000, "is not valid JSON"),
        (" " * (MOST + 1), "is larger than 0.0625 MiB"),
    ):
        path.write_text(content)
        with pytest.raises(StudyError, match=says):
            read(path)
    path.write_text('\ufeff{"a": [1]}')
    assert read(path) == {"a": [1]}


def test_free_memory_respects_limits(tmp_path, monkeypatch):
    before = reading.free_memory()
    assert before > 0
    size = reading.psutil.Process().memory_info().vms
    with monkeypatch.context() as limited:
        limited.setattr(reading.resource, "getrlimit", lambda _: (size + 1000, size + 1000))
        assert reading.free_memory() <= 1000
    group = tmp_path / "a"
    group.mkdir()
    files = {
        "/proc/self/cgroup": ["4:memory:/old", "0::/a/b"],
        "/sys/fs/cgroup/a/memory.max": ["5000"],
        "/sys/fs/cgroup/a/memory.current": ["3000"],
        "/sys/fs/cgroup/a/memory.stat": ["anon 5", "inactive_file 700"],
        "/sys/fs/cgroup/a/b/memory.max": ["max"],
        "/sys/fs/cgroup/a/b/memory.current": ["1"],
    }
    monkeypatch.setattr(reading, "_lines", lambda path: files.get(str(path), []))
    assert reading.free_memory() == 5000 - 3000 + 700
    with pytest.raises(StudyError, match=r"x needs 2 GiB of memory and 1 GiB are free: fix it"):
        reading.check_memory(2 << 30, 1 << 30, "x", "fix it")


# The message of a mistake is one line that a terminal can print.


def test_a_message_is_one_printable_line_of_limited_length():
    said = str(StudyError("name='a\nb\x1b[31m\u202e\udcff': give another"))
    assert said == r"name='a\nb\x1b[31m\u202e\udcff': give another"
    said = str(StudyError("key=" + "9" * 5000 + ": give a number"))
    assert len(said) == MOST_CHARACTERS
    assert said.startswith("key=999")
    assert said.endswith("9: give a number")
    assert len(str(unknown("scaling", "x" * 5000, ["lora"]))) < 150


def test_a_printed_command_can_be_pasted():
    assert command_line("report", Path("my results/a")) == "study report 'my results/a'"


def test_it_survives_a_trip_to_another_process():
    error = StudyError("a\nb")
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
