"""What a received results folder can do to the person who looks at it: nothing."""

import base64
import errno
import io
import os
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
from markdown_it import MarkdownIt

from study import figures
from study.analysis import load_tables
from study.figures import style
from study.report import as_html, page
from study.report.provenance import records_of
from study.store import files

from .received import LAYERS, with_texts, write_study

ATTACKS = {
    "a picture": "![x](../../secret.png)",
    "a picture in a cell": "a | ![x](</etc/passwd>) | b",
    "a picture by reference": "![x][y]\n\n[y]: ../../secret.png",
    "a link": "[click](javascript:alert(1))",
    "a title": '[click](https://evil.example "title")',
    "an address": "https://evil.example/x www.evil.example <https://evil.example>",
    "an element": "<img src=x onerror=alert(1)>",
    "a script": "</script></title></style><script>alert(1)</script>",
    "a comment": "<!-- x",
    "a frame": '"><iframe srcdoc="<b>x</b>">',
    "code": "```\n`` ` ```",
    "a heading": "x\n\n# Title\n\n---\n\n- item",
    "a table": "a\n\n| b | c |\n|---|---|\n| ![x](../../secret.png) | \\| |",
    "emphasis": "**bold** _it_ ~~gone~~ __x__ *",
    "entities": "&lt;script&gt; &#60;b&#62; &copy;",
    "a backslash": "ends\\",
    "backslashes": "\\![x](y) \\\\[z](w) \\|",
    "a formula": "$x_{",
    "two formulas": "$\\frac{$ \\$ $$",
    "markup of rich": "[red]x[/red] [/] [link=file:///etc/passwd]y[/link]",
    "an escape sequence": "\x1b[31mred\x1b]0;title\x07\x08",
    "turned around": "\u202egnp.\u2066x\u2069",
    "lines": "a\u2028b\u2029c\rd\x0be\x0cf\x85g",
    "nothing visible": "\u200b\u00ad\ufeff",
    "a placeholder": "{0} {x.y} {{z}} %s %(a)s ${oc.env:HOME}",
    "a long name": "x" * 5000,
    "other letters": "模型 модель 🤖 naïve",
}
ALL = " ".join(ATTACKS.values())
SECRET = b"\x89PNG a file of the reader"
TAGS = {
    *("html", "head", "meta", "title", "style", "body", "h1", "h2", "p", "ul", "li", "table"),
    *("thead", "tbody", "tr", "th", "td", "strong", "em", "code", "blockquote", "img"),
    *("figure", "figcaption", "details", "summary", "nav", "a"),
}
"""The elements of a report."""


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """One small figure is enough for most tests, and faster."""
    monkeypatch.setattr(figures, "FIGURES", {"loss_curves": figures.FIGURES["loss_curves"]})
    monkeypatch.setattr(style, "DPI", 40)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_study(tmp_path_factory.mktemp("sound") / "results/known")


class Parsed(HTMLParser):
    """The elements, attributes and texts of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str]] = []
        self.texts: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def github(markdown: str) -> list[str]:
    """The types of all tokens, as a renderer reads the text that allows HTML and links."""
    reader = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
    return [
        inner.type for token in reader.parse(markdown) for inner in (token, *(token.children or []))
    ]


NOT_TEXT = {"image", "link_open", "html_inline", "html_block", "s_open", "fence", "em_open"}


@pytest.mark.parametrize("first", range(3))
def test_every_text_of_a_study_is_text_in_its_report(
    sound: Path, tmp_path: Path, first: int
) -> None:
    text = " ".join(list(ATTACKS.values())[first::3])[:280]
    folder = with_texts(sound, tmp_path / "results/x", text)
    tables = load_tables(folder)
    blocks = page(text, tables, records_of(folder, tables), [])
    parsed = Parsed(as_html(blocks, text))
    assert parsed.tags <= TAGS
    addresses = [value for name, value in parsed.attributes if name in ("href", "src", "srcdoc")]
    assert [value for value in addresses if not value.startswith("#")] == []
    assert not [name for name, _ in parsed.attributes if name.startswith("on")]


@pytest.mark.parametrize("text", ATTACKS.values(), ids=ATTACKS)
def test_a_name_in_a_figure_is_text(text: str) -> None:
    cells = pd.DataFrame({"model": [text], "data": [text], "optimizer": [text], "seed": [0]})
    with style.paper():
        drawn = style.figure(1, 1, ratio=0.5)
        [part, _] = style.rows(drawn, [text, f"second {text}"])
        part.subplots(1, 1).plot([1, 2], [1, 2])
        style.finish(drawn, "A sentence with $r$.", shown=[SimpleNamespace(cells=cells)])
        drawn.savefig(io.BytesIO(), format="png", dpi=20)
    assert len(str(drawn.get_label())) < 1500


def test_every_command_shows_a_folder_with_all_attacks(
    run: Any, sound: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Figures, page, export and terminal, once each, with every attack in every text."""
    monkeypatch.setattr(style, "DPI", 40)
    secret = here / "secret.png"
    secret.write_bytes(SECRET)
    folder = with_texts(sound, here / "results/![x](secret.png) <b>$x_{", ALL)
    name = f"results/{folder.name}"
    report = run(["report", name, "--plots", "plots"], seconds=60)
    assert (report.code, "Traceback" in report.err) == (0, False), report.err
    assert base64.b64encode(SECRET).decode() not in (folder / "report.html").read_text()
    parsed = Parsed((folder / "report.html").read_text())
    sources = [value for attribute, value in parsed.attributes if attribute == "src"]
    drawn = [path.read_bytes() for path in (here / "plots").glob("*.png")]
    embedded = [base64.b64decode(s.removeprefix("data:image/png;base64,")) for s in sources]
    assert sorted(embedded) == sorted(drawn)
    assert len(drawn) > 2
    images = re.findall(r"^!\[.*\]\((.*)\)$", (folder / "report.md").read_text(), re.M)
    assert [(folder / one).resolve().parent for one in images] == [here / "plots"] * len(drawn)
    for command in (["status", name], ["analyze", name]):
        ended = run(command, seconds=30)
        assert ended.code == 0, ended.err
        assert "\x1b" not in ended.out + ended.err
        assert "\u202e" not in ended.out
    ended = run(["dashboard", name, "--export", "page.html"], seconds=30)
    assert ended.code == 0, ended.err
    assert Parsed((here / "page.html").read_text()).tags.isdisjoint({"img", "iframe", "b"})


def test_layers_with_any_name_are_drawn(tmp_path: Path) -> None:
    from study.figures import draw_all

    names = tuple(f"model.layers.0.{text.replace('.', '_')[:200]}" for text in ATTACKS.values())
    folder = write_study(tmp_path / "results/layers", (*LAYERS, *names))
    assert len(list(draw_all(load_tables(folder)))) > 2


@pytest.mark.usefixtures("few")
def test_a_link_among_the_figures_is_not_followed(sound: Path, run: Any, here: Path) -> None:
    """A folder of figures that claims to be current, with a link to a file of the reader."""
    (here / "secret.png").write_bytes(SECRET)
    shutil.copytree(sound, here / "results/known")
    assert run("report results/known", seconds=60).code == 0
    picture = here / "plots/known/loss_curves.png"
    drawn = picture.read_bytes()
    picture.unlink()
    picture.symlink_to(here / "secret.png")
    assert run("report results/known", seconds=60).code == 0
    html = (here / "results/known/report.html").read_text()
    assert base64.b64encode(SECRET).decode() not in html
    assert (here / "secret.png").read_bytes() == SECRET
    assert not picture.is_symlink()
    assert picture.read_bytes() == drawn


@pytest.mark.usefixtures("few")
def test_a_link_instead_of_the_report_is_not_followed(sound: Path, run: Any, here: Path) -> None:
    shutil.copytree(sound, here / "results/known")
    (here / "mine.txt").write_text("mine")
    (here / "results/known/report.md").symlink_to(here / "mine.txt")
    assert run("report results/known", seconds=60).code == 0
    assert (here / "mine.txt").read_text() == "mine"


@pytest.mark.usefixtures("few")
def test_damaged_cells_are_left_out_and_counted(sound: Path, run: Any, here: Path) -> None:
    folder = Path(shutil.copytree(sound, here / "results/known"))
    (folder / f"cells/{0:012x}/record.json").write_text("{")
    metrics = folder / f"cells/{1:012x}/metrics.parquet"
    content = bytearray(metrics.read_bytes())
    content[len(content) // 2] ^= 1
    metrics.write_bytes(content)
    ended = run("report results/known", seconds=60)
    assert ended.code == 0, ended.err
    text = (folder / "report.md").read_text()
    assert "**2 cells unreadable**" in text
    assert "left out because they can't be read: 2 cells" in text
    assert "2 cells on known and pydoc" in text


# Places that can't be written.


def broken(monkeypatch: pytest.MonkeyPatch, number: int, below: Path | None = None) -> None:
    """Every rename, at all or ``below`` a folder, fails with the error ``number``."""

    def replace(source: Path, target: Path) -> None:
        if below is None or Path(target).is_relative_to(below):
            raise OSError(number, os.strerror(number), str(target))
        os.replace(source, target)

    monkeypatch.setattr(files, "os", SimpleNamespace(**vars(os) | {"replace": replace}))


PLACES = [
    ("figures results/known --to train.jsonl", "can't write train.jsonl"),
    ("figures results/known --to train.jsonl/x", "can't write train.jsonl/x"),
    ("figures results/known --to /proc/x", "can't write /proc/x"),
    ("report results/known --plots train.jsonl", "can't write train.jsonl"),
    ("report results/known --plots /proc/self/x/y", "can't write /proc/self/x/y"),
    ("dashboard results/known --export /proc/x.html", "can't write /proc/x.html"),
    ("dashboard results/known --export /dev/full", "can't write /dev/full: it is a device"),
    ("dashboard results/known --export train.jsonl/x.html", "can't write train.jsonl"),
]


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize(("command", "says"), PLACES, ids=[row[0] for row in PLACES])
def test_a_place_that_holds_no_file_gets_one_line(
    sound: Path, run: Any, here: Path, command: str, says: str
) -> None:
    shutil.copytree(sound, here / "results/known")
    before = (here / "train.jsonl").read_bytes()
    ended = run(command, seconds=60)
    assert ended.code == 2, ended.err
    [line] = [line for line in ended.err.splitlines() if line.startswith("study: ")]
    assert says in line
    assert "Traceback" not in ended.err
    assert (here / "train.jsonl").read_bytes() == before
    assert not [name for name in ended.wrote if "partial" in name]


@pytest.mark.usefixtures("few")
def test_the_folder_of_the_page_is_checked_too(sound: Path, run: Any, here: Path) -> None:
    shutil.copytree(sound, here / "results/known")
    ended = run("report results/known --to train.jsonl --plots plots", seconds=60)
    assert ended.code == 2, ended.err
    assert "study: can't write train.jsonl" in ended.err


COMMANDS = {
    "analyze": "analyze results/known",
    "figures": "figures results/known",
    "report": "report results/known",
    "export": "dashboard results/known --export page.html",
}


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_a_full_disk_gets_one_line_and_loses_nothing(
    sound: Path, run: Any, here: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    shutil.copytree(sound, here / "results/known")
    (here / "page.html").write_text("old")
    before = {path: path.read_bytes() for path in here.rglob("*") if path.is_file()}
    broken(monkeypatch, errno.ENOSPC)
    ended = run(command, seconds=60)
    assert ended.code == 2, ended.err
    assert ended.err.splitlines()[-1].startswith("study: can't write ")
    assert "No space left on device" in ended.err.splitlines()[-1]
    assert "Traceback" not in ended.err
    assert {path: path.read_bytes() for path in before} == before
    assert not [name for name in ended.wrote if not (here.parent / name).is_dir()]


@pytest.mark.usefixtures("few")
def test_a_folder_that_can_only_be_read_is_shown(
    sound: Path, run: Any, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(shutil.copytree(sound, here / "results/known"))
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    broken(monkeypatch, errno.EROFS, below=folder.relative_to(here))
    for command in (
        "status results/known",
        "report results/known --to page",
        "figures results/known --to figures",
        "dashboard results/known --export page.html",
    ):
        ended = run(command, seconds=60)
        assert ended.code == 0, ended.err
    assert (here / "page/report.html").exists()
    assert len(list((here / "page/figures").glob("*.png"))) == 1
    ended = run("report results/known", seconds=60)
    assert ended.code == 2
    assert "Read-only file system" in ended.err.splitlines()[-1]
    assert {path: path.stat().st_mtime_ns for path in before} == before
