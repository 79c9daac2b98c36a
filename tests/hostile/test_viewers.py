"""What a received results folder can do to the person who looks at it: nothing."""

import base64
import re
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

import study.report  # noqa: F401  it takes FIGURES when it is first imported, so before `few`
from study import figures
from study.figures import style

from .received import with_texts, write_study

Cli = Callable[..., Any]

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
OF_A_PAGE = {"script", "iframe", "object", "embed", "form", "link", "base", "svg"}
"""Elements that run or load something. None is in a report."""


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """One small figure is enough for most tests, and faster."""
    monkeypatch.setattr(figures, "FIGURES", {"loss_curves": figures.FIGURES["loss_curves"]})
    monkeypatch.setattr(style, "DPI", 40)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_study(tmp_path_factory.mktemp("sound") / "results/known")


class Parsed(HTMLParser):
    """The elements and attributes of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str]] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += [(name, value or "") for name, value in attrs]


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize("first", range(3))
def test_every_text_of_a_study_is_text_in_its_report(
    study_cli: Cli, sound: Path, here: Path, first: int
) -> None:
    text = " ".join(list(ATTACKS.values())[first::3])[:280]
    folder = with_texts(sound, here / "results/x", text)
    ended = study_cli("report", "results/x")
    assert ended.code == 0, ended.err
    parsed = Parsed((folder / "report.html").read_text())
    assert parsed.tags.isdisjoint(OF_A_PAGE)
    addresses = [value for name, value in parsed.attributes if name in ("href", "src", "srcdoc")]
    assert [value for value in addresses if not value.startswith(("#", "data:image/png;"))] == []
    assert not [name for name, _ in parsed.attributes if name.startswith("on")]


def test_every_command_shows_a_folder_with_all_attacks(
    study_cli: Cli, sound: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Figures, page, export and terminal, once each, with every attack in every text."""
    monkeypatch.setattr(style, "DPI", 40)
    (here / "secret.png").write_bytes(SECRET)
    folder = with_texts(sound, here / "results/![x](secret.png) <b>$x_{", ALL)
    name = f"results/{folder.name}"
    report = study_cli("report", name, "--plots", "plots")
    assert report.code == 0, report.err
    assert base64.b64encode(SECRET).decode() not in (folder / "report.html").read_text()
    images = re.findall(r"^!\[.*\]\((.*)\)$", (folder / "report.md").read_text(), re.M)
    assert len(images) > 2
    assert {(folder / image).resolve().parent for image in images} == {here / "plots"}
    for command in ("status", "analyze"):
        ended = study_cli(command, name)
        assert ended.code == 0, ended.err
        assert "\x1b" not in ended.out + ended.err
        assert "\u202e" not in ended.out
    ended = study_cli("dashboard", name, "--export", "page.html")
    assert ended.code == 0, ended.err
    assert Parsed((here / "page.html").read_text()).tags.isdisjoint({"img", "iframe", "b"})


@pytest.mark.usefixtures("few")
def test_a_link_among_the_figures_is_not_followed(study_cli: Cli, sound: Path, here: Path) -> None:
    """A folder of figures with a link to a file of the reader."""
    (here / "secret.png").write_bytes(SECRET)
    shutil.copytree(sound, here / "results/known")
    picture = here / "plots/known/loss_curves.png"
    picture.parent.mkdir(parents=True)
    picture.symlink_to(here / "secret.png")
    assert study_cli("report", "results/known").code == 0
    html = (here / "results/known/report.html").read_text()
    assert base64.b64encode(SECRET).decode() not in html
    assert (here / "secret.png").read_bytes() == SECRET
