"""The Hydra application of ``study train``: it makes cells of configs, and a line of an error.

Cells train in this process, unless a launcher starts others. It gets a pack as Hydra overrides
(:func:`job_overrides`), one string per cell, and its process composes the cells again from them.
torch is imported only after the configuration is checked.
"""

import json
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import Quote, QuotedString
from omegaconf import DictConfig, OmegaConf

from study.config.compose import CONF, compose, parse, search_path
from study.config.hints import arranged, as_study_errors, reference
from study.errors import StudyError
from study.sweeps import signals
from study.sweeps.progress import Outcome, must_stop

PLAN_FLAG, PLAN_KEY = "--plan", "_plan_only"
"""Hydra's parser accepts only its own flags, so ours is passed as a key that no cell has. Its value
names the device to plan for; empty means this machine."""
_CELLS, _SWEEP = "_cells", "_sweep"
"""The keys of a job: the overrides of its cells, and the file of its sweep."""
_JOBS = ("n_jobs", "array_parallelism")
"""The settings of joblib and of submitit that bound how many jobs run at the same time."""


def _reference(_root_: DictConfig) -> str:
    return reference(_root_).replace("$", "$$")  # Hydra's template takes one $ for a placeholder


def _visible_gpus() -> int:
    import torch  # takes seconds

    return max(1, torch.cuda.device_count())


OmegaConf.register_new_resolver("reference", _reference, replace=True)
"""For the help of ``study train``: ``${reference:}`` is the reference of all keys."""
OmegaConf.register_new_resolver("gpus", _visible_gpus, replace=True)
"""For ``conf/launcher``: ``${gpus:}`` is the number of GPUs that this process sees, at least 1."""


def main(arguments: Sequence[str]) -> None:
    """Run ``study train`` with Hydra's command line, and ``--plan``, which trains nothing."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # exceptions arrive unchanged; they become lines below
    plans = [text for text in arguments if text.partition("=")[0] == PLAN_FLAG]
    own = arranged([argument for argument in arguments if argument not in plans])
    own += [f"+{PLAN_KEY}={quoted(text.partition('=')[2])}" for text in plans[-1:]]
    if "--hydra-help" in own:
        own.append("hydra/hydra_help=study")  # Hydra's own advertises study -sc
    sys.argv = [sys.argv[0], *own]
    mistakes: list[str | None] = []

    def task(composed: DictConfig) -> Outcome:
        outcome = job(composed)
        mistakes.append(outcome.mistake)
        return outcome

    app = hydra.main(config_path=str(CONF), config_name="config", version_base="1.3")(task)
    with as_study_errors(), signals.listen(["train", *arguments]):
        app()
    for mistake in filter(None, mistakes):
        raise StudyError(mistake)


def job(composed: DictConfig) -> Outcome:
    """The cells of a pack, or without ``cells`` that of the config. Hydra would print a mistake
    with all overrides, so it is part of the outcome."""
    signals.listen_in_worker()
    try:
        with as_study_errors():
            return (_run_pack if _CELLS in composed else _run_one)(composed)
    except StudyError as error:
        return Outcome(mistake=str(error))


def _run_one(composed: DictConfig) -> Outcome:
    config = parse(composed)  # before torch is imported, which takes seconds
    from study.sweeps import cells, launch, plan

    planned = cells.plan([config])
    packs = [pack] if (pack := cells.to_train(planned)) else []
    if PLAN_KEY in composed:
        plan.show_plan(planned, packs, composed[PLAN_KEY])
    else:
        launch.train_here(planned, packs, lambda free: [free])
    return Outcome()


def _run_pack(composed: DictConfig) -> Outcome:
    overrides, posted = json.loads(composed[_CELLS]), Path(composed[_SWEEP])
    if must_stop(posted):  # before it composes and imports, which takes seconds
        return Outcome(signum=signals.asked())
    hydra_config = HydraConfig.get()
    shared = search_path(hydra_config.overrides.hydra)
    internal = (f"+{_CELLS}=", f"+{_SWEEP}=")
    shared += [o for o in hydra_config.overrides.task if not o.startswith(internal)]
    name = hydra_config.job.config_name
    loader = GlobalHydra.instance().config_loader()
    configs = compose(loader, name, shared, [shlex.split(own) for own in overrides])
    from study.sweeps import cells, run

    with run.Worker() as worker:  # the process may get no further job
        return run.train_pack(cells.plan(configs), worker, posted)


def parallel_jobs(launcher: Mapping[str, Any]) -> int:
    """How many jobs a launcher runs at a time, by its settings, or 1. joblib's -1 is all cores."""
    said = next((launcher[key] for key in _JOBS if launcher.get(key)), 1)
    return int(said) if said > 0 else max(1, (os.cpu_count() or 1) + 1 + int(said))


def job_overrides(cells: Sequence[str], posted: Path) -> list[str]:
    """The overrides of a job that are not shared. ``cells``: each cell's own, as one text."""
    # One string, because Hydra takes long to parse a list of thousands. A dollar in it would begin
    # an interpolation of the job's configuration, which is not the cell's.
    texts = json.dumps(list(cells)).replace("$", "\\u0024")
    return [f"+{_CELLS}={quoted(texts)}", f"+{_SWEEP}={quoted(str(posted))}"]


def quoted(text: str) -> str:
    return QuotedString(text, Quote.double).with_quotes()
