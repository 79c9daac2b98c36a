"""The Markdown page as one self-contained HTML file, with style and figures embedded."""

import base64
import re
from collections.abc import MutableMapping, Sequence
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from markdown_it import MarkdownIt
from markdown_it.renderer import RendererHTML
from markdown_it.token import Token
from markdown_it.utils import OptionsDict

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


def as_html(markdown: str, title: str, folder: Path) -> str:
    """``markdown`` as a whole HTML page. Pictures are read relative to ``folder`` and embedded.

    HTML inside the Markdown is escaped, so that the names in a study cannot become markup.
    """
    reader = MarkdownIt("commonmark", {"html": False}).enable("table")

    def image(
        renderer: RendererHTML,
        tokens: Sequence[Token],
        index: int,
        options: OptionsDict,
        env: MutableMapping[str, Any],
    ) -> str:
        source = unquote(str(tokens[index].attrGet("src")))
        data = base64.b64encode((folder / source).read_bytes()).decode()
        return f'<img alt="{escape(tokens[index].content)}" src="data:image/png;base64,{data}">'

    reader.add_render_rule("image", image)
    body = re.sub(UNBROKEN, lambda found: found[0].replace(" ", "\u00a0"), reader.render(markdown))
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n"
        f"<body>\n{body}</body>\n</html>\n"
    )
