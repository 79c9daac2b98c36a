"""What a received results folder can do to the person who looks at it: nothing."""

import base64
import re
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from study.figures import style

from .received import with_texts, write_study

Cli = Callable[..., Any]

ATTACKS = (
    "![x](../../secret.png)",
    "a | ![x](</etc/passwd>) | b",
    "![x][y]\n\n[y]: ../../secret.png",
    "[click](javascript:alert(1))",
    "https://evil.example/x www.evil.example <https://evil.example>",
    "<img src=x onerror=alert(1)>",
    "</script></title></style><script>alert(1)</script>",
    "<!-- x",
    '"><iframe srcdoc="<b>x</b>">',
    "```\n`` ` ```",
    "x\n\n# Title\n\n---\n\n- item",
    "a\n\n| b | c |\n|---|---|\n| ![x](../../secret.png) | \\| |",
    "**bold** _it_ ~~gone~~ __x__ *",
    "&lt;script&gt; &#60;b&#62; &copy;",
    "\\![x](y) \\\\[z](w) \\|",
    "$\\frac{$ \\$ $$",
    "[red]x[/red] [/] [link=file:///etc/passwd]y[/link]",
    "\x1b[31mred\x1b]0;title\x07\x08",
    "\u202egnp.\u2066x\u2069",
    "a\u2028b\u2029c\rd\x0be\x0cf\x85g",
    "\u200b\u00ad\ufeff",
    "{0} {x.y} {{z}} %s %(a)s ${oc.env:HOME}",
    "x" * 5000,
    "模型 модель 🤖 naïve",
)
SECRET = b"\x89PNG a file of the reader"
OF_A_PAGE = {"script", "iframe", "object", "embed", "form", "link", "base", "svg"}
"""Elements that run or load something. None is in a report."""


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


@pytest.mark.parametrize("first", range(3))
def test_every_command_shows_a_folder_with_any_text(
    study_cli: Cli, sound: Path, here: Path, monkeypatch: pytest.MonkeyPatch, first: int
) -> None:
    """Figures, page, export and terminal, once each, with a third of the attacks in every text."""
    monkeypatch.setattr(style, "DPI", 40)
    (here / "secret.png").write_bytes(SECRET)
    text = " ".join(ATTACKS[first::3])[:280]
    folder = with_texts(sound, here / "results/![x](secret.png) <b>$x_{", text)
    name = f"results/{folder.name}"
    report = study_cli("report", name, "--plots", "plots")
    assert report.code == 0, report.err
    html = (folder / "report.html").read_text()
    assert base64.b64encode(SECRET).decode() not in html
    parsed = Parsed(html)
    assert parsed.tags.isdisjoint(OF_A_PAGE)
    addresses = [value for key, value in parsed.attributes if key in ("href", "src", "srcdoc")]
    assert [value for value in addresses if not value.startswith(("#", "data:image/png;"))] == []
    assert not [key for key, _ in parsed.attributes if key.startswith("on")]
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


def test_a_link_among_the_figures_is_not_followed(
    study_cli: Cli, sound: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder of figures with a link to a file of the reader."""
    monkeypatch.setattr(style, "DPI", 40)
    (here / "secret.png").write_bytes(SECRET)
    shutil.copytree(sound, here / "results/known")
    picture = here / "plots/known/loss_curves.png"
    picture.parent.mkdir(parents=True)
    picture.symlink_to(here / "secret.png")
    assert study_cli("report", "results/known").code == 0
    html = (here / "results/known/report.html").read_text()
    assert base64.b64encode(SECRET).decode() not in html
    assert (here / "secret.png").read_bytes() == SECRET
