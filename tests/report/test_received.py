"""What a received results folder can do to the person who looks at it: nothing."""

import base64
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest
from markdown_it import MarkdownIt

from study.figures import style
from study.store.records import record_hash

ATTACKS = (
    "![x](../../secret.png)",
    "a | ![x](</etc/passwd>) | b",
    "[click](javascript:alert(1))",
    "https://evil.example/x www.evil.example <https://evil.example>",
    "<img src=x onerror=alert(1)>",
    "</script></title></style><script>alert(1)</script>",
    "<!-- x",
    '"><iframe srcdoc="<b>x</b>">',
    "```\n`` ` ```",
    "x\n\n# Title\n\n---\n\n- item",
    "**bold** _it_ ~~gone~~ __x__ *",
    "&lt;script&gt; &#60;b&#62; &copy;",
    "$\\frac{$ \\$ $$",
    "[red]x[/red] [/] [link=file:///etc/passwd]y[/link]",
    "\x1b[31mred\x1b]0;title\x07\x08",
    "\u202egnp.\u2066x\u2069",
    "a\u2028b\u2029c\rd\x0be\x0cf\x85g",
    "{0} {x.y} {{z}} %s %(a)s ${oc.env:HOME}",
    "模型 модель 🤖 naïve",
)
SECRET = b"\x89PNG a file of the reader"
TEXTS = ("model", "model_note", "data", "device", "device_name", "started", "finished", "fold")
OF_CONFIG = ("adapter.targets", "adapter.init", "train.schedule", "optimizer.name", "precision")
OF_A_PAGE = {"script", "iframe", "object", "embed", "form", "link", "base", "svg"}
"""Elements that run or load something. None is in a report."""


def with_texts(study, folder, text):
    """A copy of ``study`` with ``text`` in every free text of every record."""
    shutil.copytree(study, folder)
    for path in folder.glob("cells/*/record.json"):
        record = json.loads(path.read_text())
        record |= dict.fromkeys(TEXTS, text)
        record["git"] = {"commit": text, "dirty": True}
        record["versions"] = {"torch": text, text: "1"}
        record["sources"] = dict.fromkeys(record["sources"], text)
        for key in OF_CONFIG:
            group, _, name = key.rpartition(".")
            (record["config"][group] if group else record["config"])[name] = text
        # Two values, so that it is a part of the name of each curve.
        record["config"]["train"]["mode"] = f"{text}{record['config']['adapter']['scaling']}"
        record["sha256"] = record_hash(record)
        path.write_text(json.dumps(record))
    return folder


class Parsed(HTMLParser):
    """The elements and attributes of a page."""

    def __init__(self, html):
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str]] = []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes += [(name, value or "") for name, value in attrs]


@pytest.mark.usefixtures("few_figures")
def test_every_command_shows_a_folder_with_any_text(study_cli, on_disk, tmp_path, monkeypatch):
    """Figures, page, export and terminal, once each, with all attacks in every text."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(style, "DPI", 40)
    Path("secret.png").write_bytes(SECRET)
    sound = on_disk(ranks=(4, 16), seeds=(0,), record={"error": "OutOfMemoryError: none left"})
    folder = with_texts(sound, tmp_path / "results/![x](secret.png) <b>$x_{", " ".join(ATTACKS))
    name = f"results/{folder.name}"
    report = study_cli("report", name)
    assert report.code == 0, report.err
    assert "\x1b" not in report.out + report.err
    html = (folder / "report.html").read_text()
    assert base64.b64encode(SECRET).decode() not in html
    parsed = Parsed(html)
    assert parsed.tags.isdisjoint(OF_A_PAGE)
    addresses = [value for key, value in parsed.attributes if key in ("href", "src", "srcdoc")]
    assert [value for value in addresses if not value.startswith(("#", "data:image/png;"))] == []
    assert not [key for key, _ in parsed.attributes if key.startswith("on")]
    # Also a program that shows HTML finds none in the Markdown, and links to figures only.
    text = (folder / "report.md").read_text()
    parsed = Parsed(MarkdownIt("commonmark", {"html": True}).enable("table").render(text))
    assert parsed.tags.isdisjoint(OF_A_PAGE)
    images = [value for key, value in parsed.attributes if key == "src"]
    plots = tmp_path / "plots" / folder.name
    assert {(folder / unquote(image)).resolve().parent for image in images} == {plots}
    assert all(value.startswith("#") for key, value in parsed.attributes if key == "href")
    assert {key for key, _ in parsed.attributes} <= {"src", "href", "alt"}
    assert all(line.isprintable() for line in text.split("\n"))
    shutil.copytree(sound, "results/sound")
    compared = ("compare", "results/sound", name)
    lists = (("list",), ("status", name, "--csv"), ("rates", name), ("rates", name, "--csv"))
    for words in (("status", name), ("analyze", name), ("check", name), compared, *lists):
        ended = study_cli(*words)
        assert "Traceback" not in ended.err
        assert not re.search("[\x1b\x08\u202e\x85]", ended.out + ended.err), words
    ended = study_cli("dashboard", name, "--export", "page.html")
    assert ended.code == 0, ended.err
    assert Parsed(Path("page.html").read_text()).tags.isdisjoint({"img", "iframe", "b"})
