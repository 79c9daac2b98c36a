"""The page on studies: its data, and the HTML document, live or with the data in it."""

import base64
import gzip
import hashlib
import html
import json
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import plotly

from study.dashboard.overview import overview
from study.dashboard.studies import ShownStudy, read_studies
from study.dashboard.values import Values
from study.errors import StudyError
from study.store import cell_folders, write_output

PARTS = Path(__file__).parent / "page"
PLOTLY = Path(plotly.__file__).parent / "package_data/plotly.min.js"
STYLES = ("style.css", "panels.css")
SCRIPTS = (
    "values.js",
    "view.js",
    "parts.js",
    "heat.js",
    "lines.js",
    "against.js",
    "tables.js",
    "render.js",
    "losses.js",
    "main.js",
)
"""Each may use the ones before it."""

POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "img-src data: blob:; connect-src "
)
"""The content security policy: the page loads nothing from other addresses, even if a name in the
study contains markup. ``'self'`` or ``'none'`` is appended."""


MOST_BYTES, MOST_CELLS = 10_000_000, 1_000
"""Of an exported file."""


class Page:
    """The data of the page. ``quantities``: those with values. ``version``: a hash that changes
    when values do."""

    def __init__(self, studies: Sequence[ShownStudy], live: bool, state: str = "") -> None:
        values = Values(studies)
        self.message = cache(values.message)
        """The packed values of a quantity; the same bytes for every request."""
        self.quantities = values.measured()
        self.overview = overview(studies, values, live)
        text = json.dumps(self.overview, sort_keys=True, allow_nan=False) + state
        self.version = hashlib.sha256(text.encode()).hexdigest()[:32]
        self.overview["version"] = self.version

    def text(self) -> bytes:
        return json.dumps(self.overview, allow_nan=False).encode()

    @property
    def title(self) -> str:
        return f"{self.overview['study']}: dashboard"


def export(folders: Sequence[Path], file: Path, most_bytes: int = MOST_BYTES) -> tuple[int, int]:
    """Write the page to ``file``, which works offline, with quantities up to ``most_bytes``.
    Returns how many it has, of how many."""
    if (cells := sum(len(cell_folders(folder)) for folder in folders)) > MOST_CELLS:
        few = f"name studies of at most {MOST_CELLS:,} cells, or leave --export out"
        raise StudyError(f"{cells:,} cells are too many for one file: {few}")
    page = Page(read_studies(folders), live=False)
    bytes_left = most_bytes - len(whole_document(page, []).encode())
    values: list[str] = []
    for quantity in page.quantities:
        text = embedded(page.message(quantity))
        bytes_left -= len(text) + 100  # Its element and its entry in the overview take some too.
        if bytes_left < 0 and values:
            break
        values.append(text)
    page.overview["left_out"] = len(page.quantities) - len(values)
    kept = page.overview["quantities"] = page.overview["quantities"][: len(values)]
    for one in page.overview["pages"]:
        one["quantities"] = [quantity for quantity in one["quantities"] if quantity in kept]
    write_output(file, whole_document(page, values))
    return len(values), len(page.quantities)


def live_document(title: str) -> str:
    """The page that fetches plotly.js, the overview and the values from its server."""
    return _document(title, POLICY + "'self'", "")


def whole_document(page: Page, values: Sequence[str]) -> str:
    """The page with everything embedded. ``values``: messages encoded by :func:`embedded`."""
    data = [("plotly", embedded(PLOTLY.read_bytes())), ("overview", embedded(page.text()))]
    data += [(f"values-{n}", text) for n, text in enumerate(values)]
    scripts = "\n".join(
        f'<script type="application/gzip" id="{name}">{text}</script>' for name, text in data
    )
    return _document(page.title, POLICY + "'none'", scripts)


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
