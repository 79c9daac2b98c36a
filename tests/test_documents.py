"""Every measured number in the documents is that of the committed tables: ``make figures``."""

import re
from datetime import date
from unittest.mock import Mock
from zlib import crc32

import pytest

from docs.words import prose
from research import blocks, findings, make, record
from research.blocks import BLOCK, NoTables, rewrite
from research.record import Record, bare, code_of, is_small, tables_of
from study.analysis.text import minus

TEXTS = {path.relative_to(blocks.ROOT): path.read_text() for path in make.documents()}
MEASURED = re.compile(r"\[[-−+]?\d+\.\d+, [-−+]?\d|\d\.\d+ ?×|×\d+\.\d|\d (minutes|hours)\b")
"""An interval, a factor or a duration."""
NUMBER = re.compile(r"(?<![\w.^])[−-]?\d[\d,.]*")
MOST = {
    "findings": 12,
    "numbers outside tables of FINDINGS": 60,
    "words of README": 800,
    "words of its first screen": 120,
}
OLD = (
    "before\n<!-- numbers: a -->\nold\n<!-- end -->\nx <!-- numbers: b c d=1 -->old<!-- end --> y\n"
)


def visible(text):
    """``text`` without comments, tags, pictures and the targets of links."""
    for pattern in (r"<!--.*?-->", r"<[^>]+>", r"!\[.*?\]\(.*?\)", r"(?<=\])\([^)]*\)"):
        text = re.sub(pattern, "", text, flags=re.DOTALL)
    return " ".join(word for word in text.split() if re.search(r"\w", word))


class Checked(Record):
    """The record, which is not believed of small studies. Nor is it of some other blocks: each is
    computed on one of twenty days."""

    def keeps(self, words, text):
        day = crc32(f"{date.today()} {words}".encode()) % 20
        return super().keeps(words, text) and day and not is_small(words, self.blocks)


def test_documents_have_the_numbers_of_the_committed_tables():
    """If this fails, run ``make figures``. It takes minutes if code or tables have changed since
    then. It is one test, so that each study is read once."""
    found, changed = Checked(make.BLOCKS), []
    for name, text in TEXTS.items():
        if rewrite(text, make.BLOCKS, lambda _: None, found) != text:
            changed.append(name)
    assert changed == []


def test_a_false_number_is_not_believed_because_the_record_was_written_again(tmp_path, monkeypatch):
    """Nor if its tables or its code have not changed."""
    page, file = tmp_path / "page.md", tmp_path / "blocks.json"
    page.write_text("x <!-- numbers: advice-of three -->2<!-- end -->\n")
    computed = []

    def advice_of(word):
        computed.append(word)
        return "3"

    advice_of.__module__ = "research.numbers"
    monkeypatch.setattr(make, "BLOCKS", {"advice-of": advice_of})
    monkeypatch.setattr(make, "documents", lambda: [page])
    monkeypatch.setattr(make, "ROOT", tmp_path)
    for module in (make, record):
        monkeypatch.setattr(module, "FILE", file)
    make.write_documents()
    right, known = page.read_text(), file.read_text()
    assert "-->3<!--" in right
    make.write_documents()
    assert computed == ["three"], "it was computed again for nothing"
    page.write_text(right.replace("-->3<", "-->2<"))
    make.write_documents()
    assert (page.read_text(), file.read_text(), len(computed)) == (right, known, 2)


def test_the_key_of_a_block_is_of_its_tables_and_its_code():
    """Comments and docstrings are in none."""
    first, other, whole = "measured horizons what=best_rate", "ran horizons_gemma3", "law error"
    files = {one: {str(path) for path in tables_of(one, make.BLOCKS)} for one in (first, other)}
    named = f"{blocks.RESULTS}/horizons/cells.parquet", f"{blocks.ROOT}/conf/experiment/horizons"
    assert {named[0], f"{named[1]}.yaml"} <= files[first]
    assert f"{blocks.RESULTS}/horizons_small/cells.parquet" not in files[first]
    own = f"{blocks.RESULTS}/horizons_gemma3/cells.parquet", f"{named[1]}_gemma3.yaml"
    assert {*own} <= files[other]
    assert files[first] < {str(path) for path in tables_of(whole, make.BLOCKS)}
    code = {str(path.relative_to(blocks.ROOT)) for path in code_of(first, make.BLOCKS)}
    assert {"research/findings.py", "study/analysis/fits.py"} <= code
    assert "study/training/loop.py" not in code
    plain = "X = 1\n\n\ndef f() -> int:\n    return X\n"
    said = '"""A module."""\nX = 1  # one\n"""It is one."""\ndef f() -> int:\n "One."\n return X'
    assert bare(plain) == bare(said) != bare(plain.replace("1", "2"))


def test_no_measured_number_stands_outside_of_a_block():
    """In code neither."""
    lines = [(n, line) for n, text in TEXTS.items() for line in BLOCK.sub("", text).splitlines()]
    assert [(name, line) for name, line in lines if MEASURED.search(line)] == []


def test_the_front_pages_are_short_and_each_study_has_a_page():
    readme, text = ((blocks.ROOT / name).read_text() for name in ("README.md", "FINDINGS.md"))
    assert len(visible(readme).split()) <= MOST["words of README"]
    assert len(visible(readme.partition("\n## ")[0]).split()) <= MOST["words of its first screen"]
    assert len(NUMBER.findall(prose(text))) <= MOST["numbers outside tables of FINDINGS"]
    pages = {path.stem for path in (blocks.ROOT / "docs/evidence").glob("*.md")}
    assert pages == {*findings.STUDIES, "index"}


def test_a_finding_has_a_condition_a_link_and_a_small_table():
    text = (blocks.ROOT / "FINDINGS.md").read_text()
    found = text.partition("\n## Claims of the literature")[0].split("\n## ")[1:]
    assert len(found) <= MOST["findings"]
    for one in found:
        assert "*Holds for*" in one
        assert re.search(r"\]\(docs/", one)
        rows = [line for line in one.splitlines() if re.match(r"\|(?!-)", line)]
        assert len(rows) <= 5
        assert max((row.count(" | ") + 1 for row in rows), default=0) <= 5


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
