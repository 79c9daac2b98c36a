"""Words of every page of the site, without code and tables: ``python -m docs.words``."""

import re
from pathlib import Path

DOCS = Path(__file__).parent
NOT_PROSE = (
    r"^(`{3,}|:{3,}|~{3,}).*?^\1$",
    r"\$\$.*?\$\$",
    r"\$[^$\n]+(\n[^$\n]+)?\$",
    r"<!--.*?-->",
    r"!\[.*?\]\(.*?\)",
    r"^\s*\|.*?$",
    r"^\(.*\)=$",
)
"""Code and directives, formulas, comments, pictures, rows of tables and targets."""


def prose(text: str) -> str:
    """``text`` without code and tables. Of a link, its words stay."""
    for pattern in NOT_PROSE:
        text = re.sub(pattern, " ", text, flags=re.DOTALL | re.MULTILINE)
    return re.sub(r"\]\([^)]*\)", "]", text)


def words(page: Path) -> int:
    """The words of the prose of a page."""
    return sum(bool(re.search(r"\w", word)) for word in prose(page.read_text()).split())


if __name__ == "__main__":
    counts = {page.relative_to(DOCS): words(page) for page in sorted(DOCS.rglob("*.md"))}
    for name, number in counts.items():
        print(f"{number:6} {name}")
    print(f"{sum(counts.values()):6} in all")
