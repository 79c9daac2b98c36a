"""The generated parts of the site, as a Sphinx extension.

A page of :data:`GENERATED` is a Jinja template over :data:`NAMES`. Formulas become MathML, which
browsers draw without a network.
"""

import itertools
import re
from functools import partial
from pathlib import Path
from typing import Any

import jinja2
from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml

from research.blocks import PLOTS, QUICK, RESULTS, ROOT, STUDIES
from study.dashboard.document import export
from study.figures import FIGURES
from study.report.page import caption
from study.theory.rows import ROWS
from study.vocabulary import quantities, statuses, verdicts

GENERATED = (
    *("experiments", "exponents", "files", "findings"),
    *("gallery", "glossary", "index", "keys", "statistics"),
)
MOST_BYTES = 2_500_000
"""Of the dashboard on the site's front: Plotly takes 2 MB of them."""
LINK = re.compile(r"(?<!!)\[([^]]*)\]\((?!https?:|#)([^)#]+)\)")
CONF, DOCS = ROOT / "conf", ROOT / "docs"
ELSEWHERE = [("py:.*", r"(?!study\.).*"), ("py:.*", r"study\.([a-z_.]+|(adapters|vocabulary)\..+)")]
"""References that nitpicky mode does not check: other packages, and modules without a page."""


def options(group: str) -> dict[str, str]:
    """The options of a group of ``conf/``, each with the comment that its file begins with."""
    found = {}
    for file in sorted((CONF / group).glob("*.yaml")):
        lines = file.read_text().splitlines()
        comment = itertools.takewhile(lambda line: line.startswith("#"), lines)
        found[file.stem] = " ".join(line[2:] for line in comment if "@package" not in line)
    return found


def gallery() -> list[dict[str, str]]:
    """Every figure: its caption, and the first committed study that shows it."""
    found = []
    for name in FIGURES:
        shown = (study for study in STUDIES if (PLOTS / study / f"{name}.png").exists())
        found.append({"name": name, "caption": caption(name), "study": next(shown, "")})
    return found


def document(name: str) -> str:
    """A Markdown file of the root, with its links as a page of ``docs`` writes them."""
    text = re.sub(r"\]\((?!https?:|#)", "](../", (ROOT / name).read_text())
    return text.replace("](../docs/", "](")


def front(name: str) -> str:
    """The top of a document: what it found, its two commands and the three ways in. Of a picture
    with a narrow version, ``site.css`` shows the one for the screen."""
    text = document(name).partition("## Look at")[0]
    found = r'<picture>.*?srcset="(.*?)".*?alt="(.*?)" src="(.*?)".*?</picture>'
    image = "```{{image}} ../{}\n:alt: {}\n:class: {}\n```\n"
    both = image.format(r"\3", r"\2", "on-wide") + image.format(r"\1", r"\2", "on-narrow")
    return re.sub(found, both.replace("\n", r"\n"), text)


def outside(page: str, found: re.Match[str]) -> str:
    """A link to a folder or to a document that is no page, as text. Sphinx checks the others."""
    text, target = found.groups()
    path = (DOCS / page).parent.joinpath(target).resolve()
    elsewhere = path.suffix == ".md" and path.exists() and DOCS not in path.parents
    if not (elsewhere or path.is_dir()):
        return found[0]
    name = str(path.relative_to(ROOT))
    return f"`{name}`" if text == name else f"{text} (`{name}`)"


def cell(text: object) -> str:
    """``text`` for a cell of a table in Markdown."""
    return " ".join(str(text).replace("|", r"\|").split())


def code(text: object) -> str:
    """``text`` as code in a cell of a table in Markdown; nothing for an empty one."""
    return f"`{cell(text)}`" if str(text) else ""


def where(name: str, stat: quantities.Stat) -> str:
    """The sites at which a statistic is measured."""
    if stat.kind == "moment" and name not in ("descent", "swallowed"):
        return " and ".join(map(code, quantities.UNIONS)) if name == "mean_norm" else "every site"
    if name == "effective_rank":
        return f"{code('A')}, {code('B')} and {code('delta_w')}"
    special = {"descent": "adapter_update", "r_back": "adapter_in_grad", "row_share": "A"}
    of_kind = {"spectrum": "delta_w", "motion": "A"}
    return code(special.get(name) or of_kind.get(stat.kind, "adapter_out"))


FUNCTIONS = (options, gallery, document, front, where, code, cell)
TABLES = {"quantities": quantities, "verdicts": verdicts, "statuses": statuses, "ROWS": ROWS}
NAMES: dict[str, Any] = {function.__name__: function for function in FUNCTIONS} | TABLES
"""What the templates know."""


def fill(app: Any, page: str, source: list[str]) -> None:
    """Fill the template of a generated page, and mend the links of every page."""
    text = source[0]
    if page in GENERATED:
        text = jinja2.Template(text, trim_blocks=True, lstrip_blocks=True).render(NAMES)
    if page == "evidence/index":
        text += "\n```{toctree}\n:hidden:\n:glob:\n\n*\n```\n"
    source[0] = LINK.sub(partial(outside, page), text)


def outdated(*_: Any) -> list[str]:
    """The generated pages, which Sphinx reads again at every build: they also depend on README.md,
    FINDINGS.md and the package."""
    return [*GENERATED]


def formula(translator: Any, node: nodes.math | nodes.math_block) -> None:
    """Write a formula as MathML; one that stands alone scrolls if it is wide."""
    is_block = isinstance(node, nodes.math_block)
    text = tex2mathml(node.astext(), as_block=is_block)
    translator.body.append(f'<div class="formula">{text}</div>' if is_block else text)
    raise nodes.SkipNode


def add_dashboard(app: Any, error: Exception | None) -> None:
    """Write the dashboard of the quick study beside the pages."""
    if error is None:
        export([RESULTS / QUICK], Path(app.outdir) / "quick.html", MOST_BYTES)


def setup(app: Any) -> dict[str, bool]:
    """Sphinx calls this."""
    app.add_html_math_renderer("mathml", (formula, None), (formula, None))
    app.connect("env-get-outdated", outdated)
    app.connect("source-read", fill)
    app.connect("build-finished", add_dashboard)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
