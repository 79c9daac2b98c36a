"""The ids of cells: stored results are found by them, so that nothing but the numbers moves them.

They are computed from the configuration alone, with fixed hashes of model, tokenizer and data.
"""

import json
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from study.config import Sources, identity

PINNED = json.loads((Path(__file__).parent / "ids.json").read_text())
"""The overrides of a configuration, and its id."""


@pytest.mark.parametrize(("overrides", "expected"), PINNED, ids=[" ".join(o) for o, _ in PINNED])
def test_the_id_of_a_configuration_is_pinned(cell, overrides, expected):
    assert identity(cell(*overrides), Sources(model="m", tokenizer="t", data="d")) == expected


ADDED = """
import pickle, sys
from study.vocabulary import quantities

quantities.STATS["kurtosis"] = quantities.Stat("kurtosis", "E x^4 / (E x^2)^2")
quantities.USUAL += ("kurtosis",)
from study.config import Sources, identity

sources = Sources(model="m", tokenizer="t", data="d")
print(*(identity(config, sources) for config in pickle.load(sys.stdin.buffer)))
"""
"""Prints ids in a process whose tables have one more usual statistic."""


def test_a_new_usual_statistic_moves_no_id(cell):
    """Only a cell that names it has another id."""
    pinned = [cell(*overrides) for overrides, _ in PINNED]
    named = replace(pinned[0], probes=replace(pinned[0].probes, stats=["all", "kurtosis"]))
    ran = subprocess.run(
        [sys.executable, "-c", ADDED],
        input=pickle.dumps([*pinned, named]),
        cwd=Path(__file__).parents[2],
        capture_output=True,
        check=True,
    )
    *ids, other = ran.stdout.decode().split()
    assert ids == [expected for _, expected in PINNED]
    assert other != ids[0]
