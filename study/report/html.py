"""The page as one self-contained HTML file, with style and figures embedded."""

import base64
import re
import struct
from collections.abc import Iterable
from html import escape

from markdown_it import MarkdownIt

from study.report.markdown import Block, Contents, Details, Picture, anchor

STYLE = """
:root { color-scheme: light dark; }
body {
  font: 16px/1.55 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto 4rem;
  padding: 0 1.5rem;
}
h1 { font-size: 1.6rem; line-height: 1.25; margin-bottom: .5rem; }
h2 { font-size: 1.25rem; margin: 2.4rem 0 .6rem; }
li { margin: .35rem 0; }
nav { margin: 1.2rem 0; padding: .6rem 1rem; background: #8881; border-radius: 6px; }
nav a { margin-right: 1.2rem; white-space: nowrap; } a { color: inherit; }
details { margin: .8rem 0; } summary { cursor: pointer; }
summary { color: #2364aa; color: light-dark(#2364aa, #8bbcf0); }
details > :not(summary) { margin-left: 1rem; }
table {
  border-collapse: collapse; font-size: .8rem; display: block; overflow-x: auto;
  width: max-content; max-width: 100%;
}
th, td {
  text-align: left; padding: .25rem .9rem .25rem 0; border-bottom: 1px solid #8884;
  vertical-align: top;
}
@media (min-width: 64rem) { table { max-width: min(74rem, max(100%, 50vw + 26rem)); } }
td { font-variant-numeric: tabular-nums; }
figure { margin: 1.6rem 0 2.2rem; }
figure img { max-width: 100%; height: auto; background: #fff; padding: .5rem; border-radius: 4px; }
figcaption p { margin: .3rem 0; font-size: .9rem; }
"""
INCH = 120
"""Pixels of the page per inch of a figure. An 8 point label is then as large as 10 point text."""
UNBROKEN = r"[-+]?\d\.\d+ \[[-+]?\d\.\d+, [-+]?\d\.\d+\]|\d %"
"""``0.50 [0.49, 0.51]`` and ``95 %``. A line must not break inside them."""


POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
"""The content security policy: the page runs no script and loads nothing."""
NOT_OURS = ("image", "link", "autolink", "html_inline", "html_block", "reference")
"""Markdown that the report's texts don't use. A name that contains it stays text."""


def as_html(blocks: Iterable[Block], title: str) -> str:
    """A whole HTML page, with its pictures embedded.

    The only files in it are those of its pictures, and its only links lead to its sections. Names
    in the texts can't become markup, because the texts hold no HTML, links or pictures.
    """
    reader = MarkdownIt("commonmark", {"html": False}).enable("table").disable(list(NOT_OURS))

    def rendered(markdown: str) -> str:
        page = reader.render(markdown)
        page = re.sub(UNBROKEN, lambda found: found[0].replace(" ", "\u00a0"), page)
        return re.sub(r"<h2>(.*?)</h2>", _with_anchor, page)

    def html(block: Block) -> str:
        if isinstance(block, Picture):
            return _embedded(block, rendered(block.caption))
        if isinstance(block, Details):
            summary = reader.renderInline(block.summary)
            return f"<details><summary>{summary}</summary>\n{rendered(block.text)}</details>\n"
        if isinstance(block, Contents):
            links = (
                f'<a href="#{anchor(title)}">{reader.renderInline(title)}</a>'
                for title in block.titles
            )
            return f'<nav aria-label="contents">{" ".join(links)}</nav>\n'
        return rendered(block)

    body = "".join(map(html, blocks))
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n"
        f"<body>\n{body}</body>\n</html>\n"
    )


def _with_anchor(heading: re.Match[str]) -> str:
    return f'<h2 id="{anchor(heading[1])}">{heading[1]}</h2>'


def _embedded(picture: Picture, caption: str) -> str:
    """The figure at its own size: a figure for a column of a paper stays half as wide as a page."""
    content = picture.path.read_bytes()
    data, about = base64.b64encode(content).decode(), escape(picture.caption)
    width = round(INCH * picture_inches(content))
    size = f' width="{width}"' if width else ""
    return (
        f'<figure><img alt="{about}"{size} src="data:image/png;base64,{data}">'
        f"<figcaption>{caption}</figcaption></figure>\n"
    )


def picture_inches(png: bytes) -> float:
    """The width of a PNG file in inches; 0 if it does not say."""
    place = png.find(b"pHYs")
    if png[12:16] != b"IHDR" or place < 0:
        return 0.0
    [pixels] = struct.unpack(">I", png[16:20])
    [per_metre] = struct.unpack(">I", png[place + 4 : place + 8])
    return float(pixels / (per_metre * 0.0254)) if per_metre else 0.0
