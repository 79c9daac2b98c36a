"""The page as one self-contained HTML file, with style and figures embedded."""

import base64
import re
from collections.abc import Iterable
from html import escape

from markdown_it import MarkdownIt

from study.report.markdown import Block, Picture

STYLE = """
:root { color-scheme: light dark; }
body {
  font: 16px/1.55 system-ui, sans-serif; max-width: 76rem; margin: 2rem auto; padding: 0 1rem;
}
h1, h2, p, ul, blockquote { max-width: 62rem; }
h1 { font-size: 1.6rem; line-height: 1.25; } h2 { font-size: 1.2rem; margin-top: 2.2rem; }
table { border-collapse: collapse; font-size: .85rem; display: block; overflow-x: auto; }
th, td {
  text-align: left; padding: .25rem .7rem .25rem 0; border-bottom: 1px solid #8884;
  vertical-align: top;
}
td { font-variant-numeric: tabular-nums; }
blockquote { margin: 1rem 0; padding-left: 1rem; border-left: 3px solid #8888; }
img { max-width: 100%; background: #fff; } p:has(> img) { margin-bottom: 0; }
"""
UNBROKEN = r"[-+]?\d\.\d+ \[[-+]?\d\.\d+, [-+]?\d\.\d+\]|\d %"
"""``0.50 [0.49, 0.51]`` and ``95 %``. A line must not break inside them."""


POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
"""The content security policy: the page runs no script and loads nothing."""
NOT_OURS = ("image", "link", "autolink", "html_inline", "html_block", "reference")
"""Markdown that the report's texts don't use. A name that contains it stays text."""


def as_html(blocks: Iterable[Block], title: str) -> str:
    """A whole HTML page, with its pictures embedded.

    The only files in it are those of its pictures. Names in the texts can't become markup, because
    the texts hold no HTML, links or pictures.
    """
    reader = MarkdownIt("commonmark", {"html": False}).enable("table").disable(list(NOT_OURS))

    def rendered(markdown: str) -> str:
        page = reader.render(markdown)
        return re.sub(UNBROKEN, lambda found: found[0].replace(" ", "\u00a0"), page)

    body = "".join(
        rendered(block) if isinstance(block, str) else _embedded(block) + rendered(block.caption)
        for block in blocks
    )
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n"
        f"<body>\n{body}</body>\n</html>\n"
    )


def _embedded(picture: Picture) -> str:
    data = base64.b64encode(picture.path.read_bytes()).decode()
    about = escape(picture.caption)
    return f'<p><img alt="{about}" src="data:image/png;base64,{data}"></p>\n'
