"""Limits on the size of files and functions. ruff checks the width of Python."""

import ast
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILE_LINES, FUNCTION_LINES = 800, 60
CODE = ("*.py", "*.js", "*.css", "*.html", ":!plots")  # pages in plots/ are made


def tracked(*patterns: str) -> list[Path]:
    listed = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", *patterns], capture_output=True, text=True
    )
    if listed.returncode != 0:
        pytest.skip("not a clone: git lists no files")
    return [path for name in listed.stdout.split() if (path := ROOT / name).exists()]


def functions(path: Path) -> Iterator[tuple[str, int]]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name, (node.end_lineno or node.lineno) - node.lineno + 1


def test_no_file_is_too_long() -> None:
    """A file is one subject."""
    lengths = {str(p.relative_to(ROOT)): len(p.read_text().splitlines()) for p in tracked(*CODE)}
    assert {name: n for name, n in lengths.items() if n > FILE_LINES} == {}


def test_no_function_is_too_long() -> None:
    long = [
        f"{path.relative_to(ROOT)}: {name}, {lines} lines"
        for path in tracked("*.py")
        for name, lines in functions(path)
        if lines > FUNCTION_LINES
    ]
    assert long == []


def test_no_line_of_the_page_is_too_wide() -> None:
    lines = [line for path in tracked(*CODE[1:]) for line in path.read_text().splitlines()]
    assert [line for line in lines if len(line) > 100] == []


def test_an_experiment_says_what_it_trains_in_at_most_ten_lines() -> None:
    """Plans, additions and what was seen are in ``research/logs``. The first line is Hydra's."""
    comments = {
        path.name: sum(line.strip().startswith("#") for line in path.read_text().splitlines()) - 1
        for path in (ROOT / "conf/experiment").glob("*.yaml")
    }
    assert {name: lines for name, lines in comments.items() if lines > 10} == {}
