"""Text that looks like an interpolation stays text."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from study.config.literals import literal


@given(st.text(alphabet="\\${}a:.'é ", max_size=12).filter(lambda text: text != "???"))
def test_any_text_comes_back(text: str) -> None:
    config = OmegaConf.create({"key": literal(text), "list": literal([text, {"inner": text}])})
    again = OmegaConf.create(OmegaConf.to_yaml(config))
    assert OmegaConf.to_object(again) == {"key": text, "list": [text, {"inner": text}]}


@pytest.mark.parametrize("value", [None, True, 3, 0.5, "plain", [1, "a"], {"a": None}])
def test_other_values_stay(value: object) -> None:
    assert literal(value) == value
