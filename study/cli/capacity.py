"""``study advise``: the smallest rank whose adapter can store the data (docs/capacity.md)."""

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import click

from study.analysis.advice import committed
from study.vocabulary.sources import model_label

DATA = {
    "--examples": (int, "Examples of your data, for the rank that holds them."),
    "--tokens": (float, "Their supervised tokens, per example."),
    "--loss": (float, "The base's loss on them, in nats per token: that of step 0."),
    "--parameters": (int, "Parameters of the adapter at the run's own rank, as PEFT prints them."),
}

HIGHEST = 2048
"""No study here has a higher rank."""


def data_options(command: Callable[..., None]) -> Callable[..., None]:
    for name, (kind, text) in reversed(DATA.items()):
        command = click.option(name, type=kind, help=text)(command)
    return command


def rank_lines(rank: int, options: Mapping[str, Any]) -> Iterator[str]:
    """What the data have to learn, what the adapter of ``rank`` holds, and the rank that holds it.

    No line without one of :data:`DATA`.
    """
    given = {name: options[name.removeprefix("--")] for name in DATA}
    if not any(given.values()):
        return
    if lacks := [name for name, value in given.items() if not value]:
        yield f"The rank that your data need is not known without {', '.join(lacks)}."
        return
    examples, tokens, loss, parameters = given.values()
    known = committed()["capacity"]
    bits = examples * tokens * loss / math.log(2)
    mean, low, high = (parameters * each for each in known["bits"])
    least, *others = (max(1, math.ceil(rank * bits / held)) for held in (mean, high, low))
    smallest = f"{least} [{others[0]}, {others[1]}]" if least <= HIGHEST else f"above {HIGHEST}"
    held = f"{mean / 1e6:.2g} Mbit [{low / 1e6:.2g}, {high / 1e6:.2g}] in {known['passes']} passes"
    yield (
        f"Your data have at most {bits / 1e6:.2g} Mbit to learn, and rank {rank} stores about "
        f"{held}: the smallest rank that stores all is {smallest} "
        f"({known['source']}: random strings, {model_label(known['model'])}; docs/capacity.md)."
    )
