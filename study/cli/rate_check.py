"""The check of ``study advise``: short runs of the user's model at several rates."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from study.analysis import advice
from study.analysis.advice import Answer
from study.analysis.law import USUAL_STEPS
from study.cli.given import CHECK, Given
from study.errors import command_line
from study.theory import family

SHORTER, FEWEST_STEPS, SEED = 10, 20, "0"
"""A check has the steps of its run over the first number, and at least the second."""
STEP, MOST_STEPS_AWAY = 2.0, 3
"""Its rates lie a factor of 2 apart, over the interval of the advised one and at most 8 times away
from it."""
UNKNOWN_RATE, AWAY_IF_UNKNOWN = 1e-2, 5
"""The middle of the rates if none is known, and the factors of 2 on each side."""
HIGHEST_RATE = 0.02
"""Of a check under Adam. Recipes for pretrained models have far lower ones."""
NOT_TAKEN = [
    "name",
    "seed",
    "data.seed",
    "data.heldout",
    "adapter.exponent",
    "adapter.rank",
    "train.epochs",
    "train.save_adapter",
    "train.eval_every",
    "optimizer.lr",
]
"""Keys that a check does not take from a run, apart from those that it sets."""


@dataclass(frozen=True)
class Check:
    """``command``: what measures the best rates, in so many ``runs``. ``lacks``: what it leaves out
    of the run. ``then``: the command that reads what it measured."""

    runs: int
    steps: int
    command: str
    lacks: str
    then: str

    def script(self, name: str) -> str:
        """The file of ``--check``. ``name``: of the file."""
        lacks = [f"# It leaves out your {self.lacks}."] if self.lacks else []
        steps = ", with the number of your steps for STEPS" if "STEPS" in self.then else ""
        lines = [
            "#!/bin/sh",
            f"# {self.runs} runs of {self.steps} steps, to measure the best learning rate.",
            f"# Time and memory, before anything is trained: sh {name} --plan",
            *lacks,
            f'{self.command} "$@"',
            f"# Then{steps}: {self.then}",
        ]
        return "\n".join(lines) + "\n"


def check_of(given: Given, answer: Answer, asked: str, has_steps: bool) -> Check:
    """The check of an answer. ``asked``: the command that it answers."""
    new, old = answer.advice, answer.run
    steps = max(FEWEST_STEPS, math.ceil((new.steps or USUAL_STEPS) / SHORTER))
    rates = check_rates(answer, steps)
    low, high = sorted((new.rank, old.rank if old.rank != new.rank else new.rank // 4 or 4))
    own = [f"optimizer={new.optimizer}", f"adapter.scaling={new.rule}", "probes.steps=null"]
    own += [f"adapter.alpha={new.alpha:.10g}", f"train.steps={steps}", f"adapter.rank={low},{high}"]
    own += [f"optimizer.lr={','.join(f'{rate:.2g}' for rate in rates)}", f"seed={SEED}"]
    own += [f"adapter.crossover={new.crossover:g}"] if new.rule == "crossover" else []
    taken = {word.partition("=")[0] for word in own}.union(NOT_TAKEN)
    shared = [word for word in given.words if word.partition("=")[0] not in taken]
    shared = [word for word in shared if not re.match(r"train\.warmup=[1-9]", word)]  # in steps
    if "data=file" in shared and not any(word.startswith("data.path") for word in shared):
        shared.append("data.path=YOUR_FILE")
    has_data = given.is_cell or any(word.startswith("data") for word in shared)
    lacks = [] if has_data else ["data (add data=file data.path=YOUR_FILE)"]
    more = "" if has_steps else " --steps STEPS"
    return Check(
        runs=2 * len(rates),
        steps=steps,
        command=command_line("train", "-m", f"name={CHECK}", *shared, *own),
        lacks=", ".join([*lacks, *given.untaken]),
        then=f"{asked}{more} --study results/{CHECK}",
    )


def check_rates(answer: Answer, steps: int) -> Sequence[float]:
    """The rates, ascending: around the advised one, moved to fewer ``steps``."""
    new = replace(answer.advice, steps=answer.advice.steps or int(USUAL_STEPS))
    below = above = AWAY_IF_UNKNOWN
    centre = UNKNOWN_RATE
    if new.lr and answer.rate:
        centre = new.lr * advice.parts(new, replace(new, steps=steps)).get("steps", 1.0)
        _, low, high = answer.rate.rate
        ends = (math.ceil(math.log(over, STEP)) for over in (new.lr / low, high / new.lr))
        below, above = (min(max(1, end), MOST_STEPS_AWAY) for end in ends)
    if family(new.optimizer) == "sign":
        centre = min(centre, HIGHEST_RATE / STEP**above)
    return [centre * STEP**place for place in range(-below, above + 1)]
