"""The page as HTML: the files in ``page/`` as one document, with or without a study's data."""

import base64
import gzip
import html
import re
from collections.abc import Sequence
from pathlib import Path

import plotly

PARTS = Path(__file__).parent / "page"
PLOTLY = Path(plotly.__file__).parent / "package_data/plotly.min.js"
STYLES = ("style.css", "panels.css")
SCRIPTS = (
    "values.js",
    "fits.js",
    "view.js",
    "parts.js",
    "ticks.js",
    "heat.js",
    "lines.js",
    "against.js",
    "tables.js",
    "render.js",
    "losses.js",
    "downloads.js",
    "main.js",
)
"""Each may use the ones before it."""

POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "img-src data: blob:; connect-src "
)
"""The content security policy: the page loads nothing from other addresses, even if a name in the
study contains markup. ``'self'`` or ``'none'`` is appended."""


def live_document(title: str) -> str:
    """The page that fetches plotly.js, the overview and the values from its server."""
    return _document(title, POLICY + "'self'", "")


def whole_document(title: str, overview: bytes, values: Sequence[str]) -> str:
    """The page with everything embedded. ``values``: messages encoded by :func:`embedded`."""
    data = [("plotly", embedded(PLOTLY.read_bytes())), ("overview", embedded(overview))]
    data += [(f"values-{n}", text) for n, text in enumerate(values)]
    scripts = "\n".join(
        f'<script type="application/gzip" id="{name}">{text}</script>' for name, text in data
    )
    return _document(title, POLICY + "'none'", scripts)


def embedded(data: bytes) -> str:
    """Bytes as text for an HTML file: gzipped, then base64."""
    return base64.b64encode(gzip.compress(data, 9, mtime=0)).decode()


def _document(title: str, policy: str, data: str) -> str:
    parts = {
        "title": html.escape(title),
        "policy": policy,
        "style": f"<style>\n{''.join(map(_text, STYLES))}</style>",
        "data": data,
        "scripts": "\n".join(f"<script>\n{_text(name)}</script>" for name in SCRIPTS),
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda place: parts[place[1]], _text("page.html"))


def _text(name: str) -> str:
    return (PARTS / name).read_text(encoding="utf-8")
