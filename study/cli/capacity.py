"""The rank that holds the user's data (docs/capacity.md), for ``study advise``."""

import math
from collections.abc import Iterator, Mapping
from contextlib import redirect_stderr
from dataclasses import replace
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import study
from study.analysis.advice import committed
from study.config.values import written
from study.store import find_cell
from study.store.tables import rows_of
from study.vocabulary.sources import DATASETS, model_label

if TYPE_CHECKING:
    from study.cli.given import Given

DATA = ("examples", "tokens", "loss", "parameters")
"""The options on the data: examples, supervised tokens of each, the base's loss, and parameters of
the adapter."""
TOP_RANK = 2048
"""No study here has a higher rank."""


def of_cell(folder: Path, record: Mapping[str, Any]) -> dict[str, float]:
    """The values of :data:`DATA` in a cell's record and its losses of step 0. None if the record
    lacks them: that of a loop, or an old one."""
    rows = record.get("rows") or {}
    if "supervised" not in rows or (steps := rows_of(folder, "metrics")).empty:
        return {}
    losses = steps.iloc[0].reindex(["eval_loss", "loss"]).dropna()
    found = (rows["train"], rows["supervised"] / rows["train"], losses.iloc[0])
    return dict(zip(DATA, (*found, record["parameters"]), strict=True))


def with_data(given: "Given", data: str) -> "Given":
    """The run on a file or data set, whose values of :data:`DATA` one step of it shows."""
    named = [f"data={data}"] if data in DATASETS else ["data=file", f"data.path={written(data)}"]
    words = [w for w in given.words if w.partition("=")[0] not in ("name", "data", "data.path")]
    own = ["train.steps=1", "train.batch_size=1", "train.accumulation=1", "train.epochs=null"]
    own += ["train.warmup=0", "probes.steps=null", "data.heldout=64"]
    taken = {word.partition("=")[0] for word in own}
    kept = [word for word in words if word.partition("=")[0] not in taken]
    with TemporaryDirectory() as folder, redirect_stderr(StringIO()):
        own += [f"adapter.rank={given.run.rank}", f"results_dir={folder}"]
        pairs = (word.partition("=")[::2] for word in [*kept, *named, *own])
        study.train(dict(pairs), name="data")
        found = of_cell(*find_cell(Path(folder, "data"), ""))
    untaken = [key for key in given.untaken if not key.startswith("data")]
    return replace(given, words=[*words, *named], untaken=untaken, data=found)


def rank_lines(rank: int, about: Mapping[str, float]) -> Iterator[str]:
    """What the data have to learn, what the adapter of ``rank`` holds, and the rank that holds it.

    No line without one of :data:`DATA`.
    """
    if not about:
        return
    if lacks := [f"--{name}" for name in DATA if not about.get(name)]:
        yield f"The rank that your data need is not known without {', '.join(lacks)}."
        return
    examples, tokens, loss, parameters = (about[name] for name in DATA)
    known = committed()["capacity"]
    bits = examples * tokens * loss / math.log(2)
    mean, low, high = (parameters * each for each in known["bits"])
    least, *others = (max(1, math.ceil(rank * bits / held)) for held in (mean, high, low))
    smallest = f"{least} [{others[0]}, {others[1]}]" if least <= TOP_RANK else f"above {TOP_RANK}"
    held = f"{mean / 1e6:.2g} Mbit [{low / 1e6:.2g}, {high / 1e6:.2g}] in {known['passes']} passes"
    yield (
        f"Your data have at most {bits / 1e6:.2g} Mbit to learn ({examples:,} examples of "
        f"{tokens:.3g} supervised tokens, {loss:.3g} nats each), and rank {rank} stores about "
        f"{held}: the smallest rank that stores all is {smallest} "
        f"({known['source']}: random strings, {model_label(known['model'])})."
    )
