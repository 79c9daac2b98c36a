"""Generated XBRL questions, answered from their fragment."""

import re
import xml.etree.ElementTree as ElementTree

import pytest

from study.data import fingerprint, xbrl


@pytest.fixture(scope="module")
def examples():
    return list(xbrl.questions())


def facts_of(context: str) -> dict[tuple[str, int], ElementTree.Element]:
    """The facts of a fragment by (element, fiscal year)."""
    xml = "\n".join(line for line in context.splitlines() if line.startswith("<"))
    root = ElementTree.fromstring(
        f'<xbrl xmlns:us-gaap="http://fasb.org/us-gaap/2024">{xml}</xbrl>'
    )
    facts = {}
    for fact in root:
        element = fact.tag.removeprefix("{http://fasb.org/us-gaap/2024}")
        kind, year = re.fullmatch(r"F([ID])(\d{4})Q4", fact.attrib["contextRef"]).groups()
        assert kind == ("I" if element in xbrl.INSTANTS else "D")
        facts[element, int(year)] = fact
    assert len(facts) == len(root)  # no fact occurs twice
    return facts


def asked(context: str) -> tuple[str, int]:
    question = next(line for line in context.splitlines() if line.startswith("Question: "))
    return question, int(re.search(r"FY (\d{4})", question).group(1))


def test_there_are_thousands_each_with_a_fragment_of_its_own(examples):
    assert len(examples) == xbrl.COUNT >= 3000
    assert len({"".join(re.findall("<.*>", e.context)) for e in examples}) == len(examples)
    # They are the same on every machine.
    assert fingerprint(examples)[:12] == "0d7bf87bf5b6"


def test_the_tag_is_the_one_whose_label_is_asked(examples):
    for example in examples[0::3]:
        question, year = asked(example.context)
        element = example.target.removeprefix("us-gaap:")
        assert (element, year) in facts_of(example.context)
        assert xbrl.label(element) in question


def test_the_value_is_that_of_the_fact_whose_label_and_year_are_asked(examples):
    for example in examples[1::3]:
        question, year = asked(example.context)
        facts = facts_of(example.context)
        labels = [
            element for element, of in facts if of == year and xbrl.label(element) in question
        ]
        element = max(labels, key=len)  # a label may start with another label
        assert facts[element, year].text == example.target


def test_the_formula_is_the_ratio_that_is_asked_with_the_facts_of_its_year(examples):
    seen = set()
    for example in examples[2::3]:
        question, year = asked(example.context)
        facts = facts_of(example.context)
        name = max((name for name in xbrl.FORMULAS if name in question), key=len)
        seen.add(name)
        values = {element: fact.text for (element, of), fact in facts.items() if of == year}
        assert example.target == xbrl.FORMULAS[name].format_map(values)
        assert re.fullmatch(r"[-+*/(). 0-9]+", example.target)
        assert abs(eval(example.target)) < 1e12
    assert seen == set(xbrl.FORMULAS)
