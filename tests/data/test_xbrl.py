"""Generated XBRL questions, answered from their fragment."""

import re
import xml.etree.ElementTree as ElementTree

from study.data import fingerprint, xbrl

NAMESPACE = "http://fasb.org/us-gaap/2024"


def facts_of(context: str) -> dict[tuple[str, int], str]:
    """The values of a fragment by (element, fiscal year)."""
    xml = "\n".join(line for line in context.splitlines() if line.startswith("<"))
    facts = {}
    for fact in ElementTree.fromstring(f'<xbrl xmlns:us-gaap="{NAMESPACE}">{xml}</xbrl>'):
        element = fact.tag.removeprefix(f"{{{NAMESPACE}}}")
        found = re.fullmatch(r"F([ID])(\d{4})Q4", fact.attrib["contextRef"])
        assert found is not None
        assert found[1] == ("I" if element in xbrl.INSTANTS else "D")
        facts[element, int(found[2])] = str(fact.text)
    return facts


def test_they_are_the_same_on_every_machine_each_with_a_fragment_of_its_own() -> None:
    examples = list(xbrl.questions())
    assert len(examples) == xbrl.COUNT >= 3000
    assert len({"".join(re.findall("<.*>", e.context)) for e in examples}) == len(examples)
    assert fingerprint(examples)[:12] == "0d7bf87bf5b6"


def test_answers_are_in_the_fragment() -> None:
    """A third of the questions each asks for a tag, a value and a formula."""
    for index, example in enumerate(xbrl.questions()):
        question = next(x for x in example.context.splitlines() if x.startswith("Question: "))
        found = re.search(r"FY (\d{4})", question)
        assert found is not None
        year, facts = int(found[1]), facts_of(example.context)
        if index % 3 == 0:
            element = example.target.removeprefix("us-gaap:")
            assert (element, year) in facts
            assert xbrl.label(element) in question
        elif index % 3 == 1:  # a label may start with another label
            asked = [e for e, of in facts if of == year and xbrl.label(e) in question]
            assert facts[max(asked, key=len), year] == example.target
        else:
            name = max((name for name in xbrl.FORMULAS if name in question), key=len)
            values = {element: value for (element, of), value in facts.items() if of == year}
            assert example.target == xbrl.FORMULAS[name].format_map(values)
