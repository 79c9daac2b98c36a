"""Generated questions: of the standard library's docstrings, and of XBRL, in their fragment."""

import inspect
import json
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from study.data import fingerprint, pydoc, xbrl

ANOTHER = (
    "from study.data import fingerprint, pydoc;print(fingerprint(list(pydoc.documentation())))"
)


@pytest.fixture(scope="module")
def examples():
    return list(pydoc.documentation())


def test_there_are_thousands_of_docstrings_and_none_twice(examples):
    assert len(examples) > 3000
    assert len({e.target for e in examples}) == len({e.context for e in examples}) == len(examples)
    answers = {e.context.removesuffix(" in Python? Answer:"): e.target.strip() for e in examples}
    dumps = answers["What does json.dumps(obj, skipkeys, ensure_ascii, ...) do"]
    assert dumps == " ".join((inspect.getdoc(json.dumps) or "").split("\n\n")[0].split())
    join = answers["What does str.join(iterable) do"]
    assert join == " ".join((str.join.__doc__ or "").split("\n\n")[0].split())


def test_another_process_reads_the_same(examples):
    """Other imports must not matter: pytest, for example, replaces hooks of sys and threading."""
    root = Path(__file__).parents[2]
    ran = [sys.executable, "-c", ANOTHER]
    done = subprocess.run(ran, cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == fingerprint(examples)


# XBRL.

NAMESPACE = "http://fasb.org/us-gaap/2024"


def facts_of(context):
    """The values of a fragment by (element, fiscal year)."""
    xml = "\n".join(line for line in context.splitlines() if line.startswith("<"))
    facts = {}
    for fact in ElementTree.fromstring(f'<xbrl xmlns:us-gaap="{NAMESPACE}">{xml}</xbrl>'):
        element = fact.tag.removeprefix(f"{{{NAMESPACE}}}")
        found = re.fullmatch(r"F([ID])(\d{4})Q4", fact.attrib["contextRef"])
        assert found[1] == ("I" if element in xbrl.INSTANTS else "D")
        facts[element, int(found[2])] = str(fact.text)
    return facts


def test_they_are_the_same_on_every_machine_each_with_a_fragment_of_its_own():
    examples = list(xbrl.questions())
    assert len(examples) == xbrl.COUNT >= 3000
    assert len({"".join(re.findall("<.*>", e.context)) for e in examples}) == len(examples)
    assert fingerprint(examples)[:12] == "0d7bf87bf5b6"


def test_answers_are_in_the_fragment():
    """A third of the questions each asks for a tag, a value and a formula."""
    for index, example in enumerate(xbrl.questions()):
        question = next(x for x in example.context.splitlines() if x.startswith("Question: "))
        found = re.search(r"FY (\d{4})", question)
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
