"""The ids of cells: stored results are found by them, so that nothing but the numbers moves them.

They are computed from the configuration alone, with fixed hashes of model, tokenizer and data.
"""

import json
from pathlib import Path

import pytest

from study.config import Sources, identity

PINNED = json.loads((Path(__file__).parent / "ids.json").read_text())
"""The overrides of a configuration, and its id."""


@pytest.mark.parametrize(("overrides", "expected"), PINNED, ids=[" ".join(o) for o, _ in PINNED])
def test_the_id_of_a_configuration_is_pinned(cell, overrides, expected):
    assert identity(cell(*overrides), Sources(model="m", tokenizer="t", data="d")) == expected
