"""The Hydra application of ``study train``: it makes cells of configs, and a line of an error.

A job is a pack. The sweeper passes it to a launcher as Hydra overrides (:func:`job_overrides`): one
string of overrides per cell. The job composes its cells again from those strings, in the process
that the launcher starts. torch is imported only after the configuration is checked.
"""

import json
import os
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from study.config.compose import CONF, compose, parse, search_path
from study.config.hints import arranged, as_study_errors, reference
from study.errors import StudyError
from study.sweeps import signals
from study.sweeps.progress import Outcome, must_stop

if TYPE_CHECKING:
    from study.sweeps.run import Worker

PLAN_FLAG, PLAN_KEY = "--plan", "plan_only"
"""Hydra's parser accepts only its own flags, so ours is passed as a key that no cell has. Its value
names the device to plan for; empty means this machine."""
_CELLS, _SWEEP = "cells", "sweep"
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
    """Run ``study train`` with Hydra's command line, and ``--plan``, which trains nothing.

    ``--plan=h100`` plans for another device than this machine's. Mistakes that Hydra reports are
    :class:`StudyError` too.
    """
    os.environ["HYDRA_FULL_ERROR"] = "1"  # exceptions arrive unchanged; they become lines below
    plans = [text for text in arguments if text.partition("=")[0] == PLAN_FLAG]
    own = arranged([argument for argument in arguments if argument not in plans])
    own += [f"+{PLAN_KEY}={quoted(text.partition('=')[2])}" for text in plans[-1:]]
    if "--hydra-help" in own:
        own.append("hydra/hydra_help=study")  # Hydra's own advertises study -sc
    sys.argv = [sys.argv[0], *own]
    mistakes: list[str | None] = []
    workers: list[Worker] = []  # one, when torch is imported

    def task(composed: DictConfig) -> Outcome:
        outcome = job(composed, workers)
        mistakes.append(outcome.mistake)
        return outcome

    app = hydra.main(config_path=str(CONF), config_name="config", version_base="1.3")(task)
    try:
        with as_study_errors(), signals.listen(["train", *arguments]):
            app()
    finally:
        for worker in workers:
            worker.close()
    for mistake in filter(None, mistakes):
        raise StudyError(mistake)


def job(composed: DictConfig, workers: list["Worker"]) -> Outcome:
    """One job: the cells of a pack or, without ``cells``, the one cell of the config itself.

    ``workers``: what this process keeps from job to job. A user's mistake is part of the outcome.
    Hydra would print an exception together with all overrides of the job.
    """
    signals.listen_in_worker()
    try:
        with as_study_errors():
            return (_run_pack if _CELLS in composed else _run_one)(composed, workers)
    except StudyError as error:
        return Outcome(mistake=str(error))


def _run_one(composed: DictConfig, workers: list["Worker"]) -> Outcome:
    config = parse(composed)  # before torch is imported, which takes seconds
    from study.sweeps import cells, launch, plan, run

    planned = cells.plan([config])
    packs = [pack] if (pack := cells.to_train(planned)) else []
    if PLAN_KEY in composed:
        plan.show_plan(planned, packs, composed[PLAN_KEY])
        return Outcome()
    worker = run.Worker()
    workers.append(worker)
    launch.conduct(
        planned,
        packs,
        lambda free, files: [run.train_pack(free, worker, files[free[0].study_dir])],
    )
    return Outcome()


def _run_pack(composed: DictConfig, workers: list["Worker"]) -> Outcome:
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

    pack = cells.plan(configs)
    if signals.current().is_worker:  # it may get no further job
        with run.Worker() as worker:
            return run.train_pack(pack, worker, posted)
    if not workers:
        workers.append(run.Worker())
    return run.train_pack(pack, workers[0], posted)


def parallel_jobs(launcher: Mapping[str, Any]) -> int:
    """How many jobs a launcher runs at the same time, by its settings; 1 if they don't say.

    joblib takes -1 for a process per core.
    """
    said = next((launcher[key] for key in _JOBS if launcher.get(key)), 1)
    return int(said) if said > 0 else max(1, (os.cpu_count() or 1) + 1 + int(said))


def job_overrides(cells: Sequence[str], posted: Path) -> list[str]:
    """The overrides of a job that are not shared. ``cells``: each cell's own, as one text."""
    # One string, because Hydra takes long to parse a list of thousands. A dollar in it would begin
    # an interpolation of the job's configuration, which is not the cell's.
    texts = json.dumps(list(cells)).replace("$", "\\u0024")
    return [f"+{_CELLS}={quoted(texts)}", f"+{_SWEEP}={quoted(str(posted))}"]


def quoted(text: str) -> str:
    """``text`` as a quoted string of Hydra's override grammar.

    Quotes are escaped, and so are backslashes before a quote.
    """
    return '"' + re.sub(r'(\\*)("|$)', lambda m: m[1] * 2 + (m[2] and '\\"'), text) + '"'
