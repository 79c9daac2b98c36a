"""``study train --help`` says what each key means and what it may hold."""

import re
from collections.abc import Callable
from typing import Any

import pytest

from study.config.compose import CONF
from study.config.keys import choices, limits

Cli = Callable[..., Any]
OPTIONS = {
    group: sorted(file.stem for file in (CONF / group).glob("*.yaml"))
    for group in ("model", "data", "optimizer", "tracker")
}


def entries(text: str) -> dict[str, str]:
    """The text of each entry of the help, by key."""
    found: dict[str, str] = {}
    key = ""
    for line in text.splitlines():
        if entry := re.match(r"  ([\w.]+)=\S*(.*)", line):
            key = entry[1]
            found[key] = entry[2].strip()
        elif line.startswith(" " * 20) and key:
            found[key] = f"{found[key]} {line.strip()}".strip()
        else:
            key = ""
    return found


@pytest.mark.parametrize("number", range(max(map(len, OPTIONS.values()))))
def test_every_key_has_a_meaning_and_its_choices(study_cli: Cli, number: int) -> None:
    chosen = [f"{group}={each[number % len(each)]}" for group, each in OPTIONS.items()]
    text = study_cli("train", "--help", *chosen).out
    assert all(re.search(rf"(?m)^  {re.escape(choice)} ", text) for choice in chosen)
    assert max(map(len, text.splitlines())) <= 100
    found = entries(text)
    for part in ("adapter.rank", "train.steps", "probes.sites", "pack.fold", "checkpoint.every"):
        assert part in found
    assert f"{chosen[2]}: " in text, "what the optimizer is"
    for key, meaning in found.items():
        assert re.search(r"[a-z]{2}", re.sub(r"[\[(].*", "", meaning)), f"{key} has no comment"
        missing = [word for word in choices(key) if word != "null" and word not in meaning]
        assert not missing, key


def test_limits_are_those_of_the_bounds(study_cli: Cli) -> None:
    found = entries(study_cli("train", "--help").out)
    assert found["adapter.dropout"].endswith("(at least 0 and below 1)")
    assert found["adapter.alpha"].endswith("(above 0)")
    assert limits("optimizer.lr") == "above 0", "not the largest number"
    assert limits("adapter.scaling") == ""


def test_the_help_shows_what_the_command_line_sets(study_cli: Cli) -> None:
    text = study_cli("train", "--help", "experiment=quick", "adapter.rank=64").out
    assert re.search(r"(?m)^  adapter\.rank=64 ", text)
    assert re.search(r"(?m)^  name=quick ", text)
    assert re.search(r"(?m)^  experiment=quick ", text)
    assert re.search(r"(?m)^  data\.seed=\$\{seed\} ", text)
