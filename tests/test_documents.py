"""Every measured number in the documents is that of the committed tables: ``make figures``."""

import re
from unittest.mock import Mock

import pytest

from docs import blocks, findings, make
from docs.blocks import BLOCK, NoTables, rewrite
from study.report.text import minus

TEXTS = {path.relative_to(blocks.ROOT): path.read_text() for path in make.documents()}
MEASURED = re.compile(r"\[[-−+]?\d+\.\d+, [-−+]?\d|\d\.\d+ ?×|×\d+\.\d|\d (minutes|hours)\b")
"""An interval, a factor or a duration."""
OLD = (
    "before\n<!-- numbers: a -->\nold\n<!-- end -->\nx <!-- numbers: b c d=1 -->old<!-- end --> y\n"
)


def test_documents_have_the_numbers_of_the_committed_tables():
    """If this fails, run ``make figures``. It takes minutes, unless nothing has changed since then.
    It is one test, so that each study is read once."""
    if make.is_written():
        return
    changed = [n for n, text in TEXTS.items() if rewrite(text, make.BLOCKS, lambda _: None) != text]
    assert changed == []


def test_no_measured_number_stands_outside_of_a_block():
    """In code neither."""
    lines = [(n, line) for n, text in TEXTS.items() for line in BLOCK.sub("", text).splitlines()]
    assert [(name, line) for name, line in lines if MEASURED.search(line)] == []


def test_the_front_pages_are_short_and_each_study_has_a_page():
    readme, text = ((blocks.ROOT / name).read_text() for name in ("README.md", "FINDINGS.md"))
    assert (len(readme.splitlines()) <= 110, len(text.splitlines()) <= 150) == (True, True)
    answers, claims = text.split("## Claims of the literature")
    assert answers.count("<!-- numbers: ran ") <= 12
    assert claims.count("\n| ") <= 21
    pages = {path.stem for path in (blocks.ROOT / "docs/evidence").glob("*.md")}
    assert pages == {*findings.STUDIES, "claims", "index", "models", "open", "order"}


def test_every_block_is_in_a_document():
    used = {found[2].split()[0] for text in TEXTS.values() for found in BLOCK.finditer(text)}
    assert used == set(make.BLOCKS)


def test_markers_leave_the_paragraph_whole():
    """In Markdown, a line that begins with a comment ends the paragraph."""
    lines = [line for text in TEXTS.values() for line in text.splitlines()]
    markers = [line for line in lines if line.startswith(("<!-- numbers:", "<!-- end"))]
    assert [line for line in markers if not line.endswith("-->") or line.count("<!--") > 1] == []


def test_blocks_are_written_between_their_markers():
    """A block without tables stays, and says so."""
    both = {"a": lambda: "| 1 |", "b": lambda *words: " ".join(words)}
    new = rewrite(OLD, both, pytest.fail)
    assert new == OLD.replace("\nold\n", "\n| 1 |\n").replace("-->old<", "-->c d=1<")
    assert rewrite(new, both, pytest.fail) == new
    with pytest.raises(KeyError, match="b"):
        rewrite(OLD, {"a": lambda: "1"}, pytest.fail)
    said, absent = [], Mock(side_effect=NoTables("no tables here"))
    assert rewrite(OLD, both | {"a": absent}, said.append) == OLD.replace("-->old<", "-->c d=1<")
    assert said == ["a stays as it is: no tables here"]


def test_minus_signs_of_numbers_are_true_ones():
    assert minus("-0.50 [-0.52, -0.48], 1e-4, SmolLM2-135M, x-1") == (
        "−0.50 [−0.52, −0.48], 1e-4, SmolLM2-135M, x-1"
    )
