"""Words of every page of the site, without code, formulas and tables: ``python -m docs.words``."""

import re
from pathlib import Path

DOCS = Path(__file__).parent
USER_GROUPS = ("Start", "Decide", "Look", "Run", "Extend")
"""The captions of the sidebar whose pages are for users."""
NOT_PROSE = (
    r"^(`{3,}|:{3,}|~{3,}).*?^\1$",
    r"\$\$.*?\$\$",
    r"\$[^$\n]+(\n[^$\n]+)?\$",
    r"<!--.*?-->",
    r"{[{%].*?[%}]}",
    r"!\[.*?\]\(.*?\)",
    r"^\s*\|.*?$",
)
"""Code and directives, formulas, comments, templates, pictures and rows of tables."""
TOCTREE = re.compile(r"^```{toctree}\n(.*?)^```", re.DOTALL | re.MULTILINE)


def prose(text: str) -> str:
    """``text`` without code, formulas and tables. Of a link, its words stay."""
    for pattern in NOT_PROSE:
        text = re.sub(pattern, " ", text, flags=re.DOTALL | re.MULTILINE)
    return re.sub(r"\]\([^)]*\)", "]", text)


def words(page: Path) -> int:
    """The words of the prose of a page."""
    return sum(bool(re.search(r"\w", word)) for word in prose(page.read_text()).split())


def below(page: str, captions: tuple[str, ...] = ()) -> list[str]:
    """The pages that the sidebar shows below ``page``, at any depth. ``captions``: only those under
    these captions."""
    found = []
    for tree in TOCTREE.findall((DOCS / f"{page}.md").read_text()):
        caption = re.search(r"^:caption: (.*)$", tree, re.MULTILINE)
        if not captions or (caption and caption[1] in captions):
            names = [line for line in tree.splitlines() if line and not line.startswith(":")]
            found += [one for name in names for one in (name, *below(name))]
    return found


def counts() -> dict[str, int]:
    """The words of every page, by its name."""
    pages = sorted(DOCS.rglob("*.md"))
    return {str(page.relative_to(DOCS).with_suffix("")): words(page) for page in pages}


if __name__ == "__main__":
    number = counts()
    for name, count in number.items():
        print(f"{count:6} {name}")
    print(f"{sum(number[name] for name in below('index', USER_GROUPS)):6} in the user groups")
    print(f"{sum(number.values()):6} in all")
