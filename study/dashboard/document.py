"""The page as HTML: the files under ``page/`` in one document, with plotly.js and a study's data inside or not."""

import base64
import gzip
import html
import re
from collections.abc import Sequence
from pathlib import Path

from plotly.offline import get_plotlyjs

PARTS = Path(__file__).parent / "page"
SCRIPTS = (
    "values.js",
    "fits.js",
    "view.js",
    "parts.js",
    "heat.js",
    "lines.js",
    "tables.js",
    "main.js",
)
"""In the order in which they need each other."""

POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:; connect-src "
"""Nothing is loaded from elsewhere, whatever a study's names hold; ``'self'`` or ``'none'`` goes after it."""


def live_document(title: str) -> str:
    """The page that asks its server for plotly.js, the overview and the values."""
    return _document(title, POLICY + "'self'", "")


def whole_document(title: str, overview: bytes, values: Sequence[str]) -> str:
    """The page with everything inside; ``values`` are messages that :func:`embedded` has made text."""
    data = [("plotly", embedded(get_plotlyjs().encode())), ("overview", embedded(overview))]
    data += [(f"values-{n}", text) for n, text in enumerate(values)]
    scripts = "\n".join(
        f'<script type="application/gzip" id="{name}">{text}</script>' for name, text in data
    )
    return _document(title, POLICY + "'none'", scripts)


def embedded(data: bytes) -> str:
    """Bytes as text that an HTML file can hold: gzipped, base64."""
    return base64.b64encode(gzip.compress(data, 9, mtime=0)).decode()


def _document(title: str, policy: str, data: str) -> str:
    parts = {
        "title": html.escape(title),
        "policy": policy,
        "style": f"<style>\n{_text('style.css')}</style>",
        "data": data,
        "scripts": "\n".join(f"<script>\n{_text(name)}</script>" for name in SCRIPTS),
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda place: parts[place[1]], _text("page.html"))


def _text(name: str) -> str:
    return (PARTS / name).read_text(encoding="utf-8")
