"""``data=xbrl_extract``: invented XBRL facts under real us-gaap names, with questions about them.

Task and questions (which tag, which value, which formula) follow FinLoRA's extraction sets
(wangd12rpi/FinLoRA). Companies and amounts are invented. Fragments are short, valid XML with
``contextRef``, ``unitRef`` and ``decimals``. No data of FinLoRA is copied.
"""

import json
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from study.data.examples import Example

# A third for each kind of question. Every question has its own fragment, so that no fragment gives
# away the answer to another question.
COUNT = 3600

# Fixed, and not ``data.seed``, which orders the batches. If it changed the questions too, each seed
# of a sweep would have its own data, and held-out losses would not be comparable between seeds.
_GENERATOR_SEED = 20231203

_INSTRUCTION = (
    "Answer the question about this XBRL instance. "
    "Give the answer alone, without XML or explanation."
)

_TABLES = json.loads(Path(__file__).with_suffix(".json").read_text("utf-8"))

FORMULAS: dict[str, str] = _TABLES["formulas"]
"""Ratios as analysts define them. Braces hold us-gaap elements; an answer has their values."""

GROUPS: dict[str, list[str]] = _TABLES["elements"]
"""Names of us-gaap elements, by unit and by period type: balances are at a date, flows over a
period. They are those of yearly editions of the *US GAAP Financial Reporting Taxonomy* (FASB),
whose definitions are not copied."""
ELEMENTS = tuple(name for group in GROUPS.values() for name in group)
_GROUP_OF = {name: key for key, group in GROUPS.items() for name in group}
INSTANTS = frozenset(n for key, group in GROUPS.items() if key.endswith("balances") for n in group)

_T = TypeVar("_T")


@dataclass(frozen=True)
class _Fact:
    element: str
    year: int
    unit: str
    decimals: str
    value: str

    def xml(self) -> str:
        # SEC filers name two contexts per fiscal year: its last day (FI) and the whole year (FD).
        context = f"{'FI' if self.element in INSTANTS else 'FD'}{self.year}Q4"
        tag = f"us-gaap:{self.element}"
        attributes = f'contextRef="{context}" unitRef="{self.unit}" decimals="{self.decimals}"'
        return f"<{tag} {attributes}>{self.value}</{tag}>"


def questions() -> Iterator[Example]:
    """Yield ``COUNT`` examples, the same on every machine and in every version of Python.

    The context has an instruction, a fragment and a question. A fragment has three or four facts of
    one fiscal year, some of them also for the year before. The kinds of target alternate: a tag
    (``us-gaap:InventoryNet``), a value (``16116000000``) and a formula
    (``(6226000000 / 38542000000) * 100``).
    """
    # Only random() is called: Python promises the same sequence in all versions only for it.
    rng, asks = random.Random(_GENERATOR_SEED), _TABLES["questions"]
    for index in range(COUNT):
        names = (_TABLES[key] for key in ("names", "trades", "suffixes"))
        company = " ".join(_pick(rng, choices) for choices in names)
        year = 2012 + int(rng.random() * 13)
        kind = ("tag", "value", "formula")[index % 3]
        ratio = _pick(rng, tuple(FORMULAS)) if kind == "formula" else ""
        facts = _fragment(rng, year, re.findall(r"{(\w+)}", FORMULAS.get(ratio, "")))
        if kind == "formula":
            values = {fact.element: fact.value for fact in facts if fact.year == year}
            question, subject = _pick(rng, asks["formula"]), ratio
            target = FORMULAS[ratio].format_map(values)
        else:
            fact = _pick(rng, facts)
            year, subject = fact.year, label(fact.element)
            if kind == "tag":
                question, target = _pick(rng, asks["tag"]), f"us-gaap:{fact.element}"
            else:
                question, target = _pick(rng, asks["value"]), fact.value
        asked = question.format(subject=subject, company=company, year=year)
        fragment = "\n".join(fact.xml() for fact in facts)
        yield Example(f"{_INSTRUCTION}\n{fragment}\nQuestion: {asked}\nAnswer:", target)


def _fragment(rng: random.Random, year: int, elements: Sequence[str]) -> list[_Fact]:
    """Facts for ``elements`` and others, shuffled; a quarter also for the year before."""
    chosen = list(elements)
    size = max(3 + int(rng.random() * 2), len(chosen))
    while len(chosen) < size:
        element = _pick(rng, ELEMENTS)
        if element not in chosen:
            chosen.append(element)
    scale = _pick(rng, (1e8, 3e8, 1e9, 3e9, 1e10, 3e10, 1e11))  # the company's size, in dollars
    facts = []
    for element in sorted(chosen, key=lambda _: rng.random()):
        facts.append(_fact(rng, element, year, scale))
        if rng.random() < 0.25:
            facts.append(_fact(rng, element, year - 1, scale))
    return facts


def _fact(rng: random.Random, element: str, year: int, scale: float) -> _Fact:
    """One fact of a plausible size. The facts of a fragment do not add up."""
    # Products only: the last digit of a power differs between machines.
    spread = 0.01 + rng.random() * rng.random()
    group = _GROUP_OF[element]
    if group.startswith("per_share"):
        return _Fact(element, year, "usdPerShare", "2", f"{0.01 + 12 * spread:.2f}")
    if group.startswith("share"):
        return _Fact(element, year, "shares", "-3", f"{1 + int(scale * spread / 50_000)}000")
    if group.startswith("rate"):
        return _Fact(element, year, "pure", "3", f"{0.001 + 0.3 * spread:.3f}")
    negative = "-" if element in _SIGNED and rng.random() < 0.25 else ""
    millions = 1 + int(scale * spread / 1_000_000)
    return _Fact(element, year, "usd", "-6", f"{negative}{millions}000000")


# Amounts that can be negative. Those in FORMULAS stay positive: a ratio over a loss has no meaning.
_SIGNED = frozenset(
    element
    for element in GROUPS["flows"]
    if re.search(
        "IncreaseDecrease|GainLoss|IncomeLoss|ProvidedByUsedIn|IncomeExpense|ExpenseBenefit",
        element,
    )
) - frozenset(re.findall(r"{(\w+)}", "".join(FORMULAS.values())))


def _pick(rng: random.Random, choices: Sequence[_T]) -> _T:
    return choices[int(rng.random() * len(choices))]


def label(element: str) -> str:
    """The name in words, without a version number: ``InventoryNet`` -> ``Inventory Net``."""
    return re.sub(
        r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", " ", element.rstrip("0123456789")
    )
