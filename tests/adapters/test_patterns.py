"""Regexes of others: matched as PEFT matches them, or one line."""

import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from study.adapters.patterns import SECONDS, PathPatterns
from study.errors import StudyError

PATHS = ["model.layers.0.self_attn.q_proj", "model.layers.11.mlp.up_proj", "lm_head", "a", "ab"]
ENDLESS = "(?:(?P<a>.)|(?P<b>..)|(?P<c>...))*" + "(?P=a)(?P=b)(?P=c)(?P=a)(?P=b)"
patterns = st.text(alphabet="ab_.\\d*+?|()[]{}0,1^$", max_size=12) | st.sampled_from(
    [
        "q_proj",
        r"layers\.\d{1,2}\.mlp",
        ".*proj",
        "up_proj|q_proj",
        r"[^.]+\.up_proj",
        "(?i)LM_HEAD",
    ]
)


@given(patterns, st.sampled_from(PATHS))
def test_it_matches_as_python_does_or_is_refused(pattern: str, path: str) -> None:
    try:
        found = PathPatterns([pattern], "x")
    except StudyError:
        return
    whole, end = found.match_whole(path), found.first_at_end(path)
    assert whole == bool(re.fullmatch(pattern, path))
    if not pattern.startswith("(?i)"):  # PEFT wraps the pattern, where re allows no flags
        assert end == (pattern if re.match(rf"(.*\.)?({pattern})$", path) else None)


def test_the_first_that_matches_counts() -> None:
    assert PathPatterns(["v_proj", "q_proj", ".*"], "x").first_at_end(PATHS[0]) == "q_proj"


def test_what_is_refused() -> None:
    with pytest.raises(StudyError, match="not a valid regex"):
        PathPatterns(["("], "x")


def test_matching_ends() -> None:
    begin = time.process_time()
    found = PathPatterns([ENDLESS, "a"], "rank_pattern")
    with pytest.raises(StudyError, match=f"rank_pattern takes over {SECONDS:g} s"):
        found.first_at_end(PATHS[0])
    assert time.process_time() - begin < 5
