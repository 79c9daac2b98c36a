"""The Hydra application behind ``study train``: composed configs to cells, Hydra errors to a line.

A job is a pack. The sweeper hands it to a launcher as Hydra overrides (:func:`job_overrides`): one
string of overrides per cell. The job composes its cells again from those strings, in whatever
process the launcher starts.
"""

import json
import os
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from study.config.compose import CONF, compose, parse, search_path
from study.config.hints import arranged, as_study_errors, reference
from study.errors import StudyError
from study.sweeps import processes, signals
from study.sweeps.fleet import Fleet, fleet
from study.sweeps.imports import without_collections
from study.sweeps.launchers import visible_gpus
from study.sweeps.sharing import Outcome, StopRequest, train_all

PLAN_FLAG, PLAN_KEY = "--plan", "plan_only"
"""Hydra's parser accepts no flags but its own, so ours travels as a key that no cell has."""
HERE = "here"
"""The value of that key for a plan for this machine."""
_CELLS, _AGENDA = "cells", "agenda"
"""The keys of a job: the overrides of its cells, and the agenda of its sweep."""


def _reference(_root_: DictConfig) -> str:
    return reference(_root_).replace("$", "$$")  # Hydra's template takes one $ for a placeholder


OmegaConf.register_new_resolver("reference", _reference, replace=True)
"""For the help of ``study train``: ``${reference:}`` is the reference of all keys."""
OmegaConf.register_new_resolver("gpus", visible_gpus, replace=True)
"""For ``conf/launcher``: ``${gpus:}`` is the number of GPUs that this process sees, at least 1."""


def main(arguments: Sequence[str]) -> None:
    """Run ``study train`` with Hydra's command line, and ``--plan``, which trains nothing.

    ``--plan=8xh100`` plans for other devices than this machine's (:mod:`study.sweeps.fleet`).

    Raises :class:`StudyError` for every mistake of the user, including those that Hydra reports.
    """
    os.environ["HYDRA_FULL_ERROR"] = "1"  # exceptions arrive unchanged; they become lines below
    plans = [text for text in arguments if text.partition("=")[0] == PLAN_FLAG]
    own = arranged([argument for argument in arguments if argument not in plans])
    asked = [text.partition("=")[2] for text in plans]
    for text in filter(None, asked):
        fleet(text)
    sys.argv = [sys.argv[0], *own, *(f"+{PLAN_KEY}={text or HERE}" for text in asked[-1:])]
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


def planned_for(composed: DictConfig) -> Fleet | None:
    """The devices that ``--plan`` names; None for those of this machine."""
    text = str(composed[PLAN_KEY])
    return None if text == HERE else fleet(text)


def job_overrides(cells: Sequence[str], agenda: Path) -> list[str]:
    """The overrides of a job beside the shared ones. ``cells``: each cell's own, as one text."""
    # One string, because Hydra takes long to parse a list of thousands. A dollar in it would begin
    # an interpolation of the job's configuration, which is not the cell's.
    texts = json.dumps(list(cells)).replace("$", "\\u0024")
    return [f"+{_CELLS}={_quoted(texts)}", f"+{_AGENDA}={_quoted(str(agenda))}"]


def _cells_and_agenda(composed: DictConfig) -> tuple[list[str], Path]:
    """What :func:`job_overrides` was given."""
    try:
        cells, agenda = json.loads(composed[_CELLS]), Path(composed[_AGENDA])
        if isinstance(cells, list):
            return [str(cell) for cell in cells], agenda
    except (OmegaConfBaseException, TypeError, ValueError):
        pass
    raise StudyError(
        f"{_CELLS} and {_AGENDA} are keys that a sweep gives to its jobs: give overrides of "
        "cells instead, such as -m adapter.rank=4,8"
    )


def job(composed: DictConfig) -> Outcome:
    """One job: the cells of a pack or, without ``cells``, the one cell of the config itself.

    A user's mistake is part of the outcome. Hydra would print an exception together with all
    overrides of the job.
    """
    signals.listen_in_worker()
    try:
        with as_study_errors():
            if _CELLS in composed or _AGENDA in composed:
                return _run_pack(composed)
            _run_one(composed)
    except StudyError as error:
        return Outcome(mistake=str(error))
    return Outcome()


def _run_one(composed: DictConfig) -> None:
    """Train the one cell of a configuration, or show what that takes."""
    config = parse(composed)  # before torch is imported, which takes seconds
    with without_collections():
        from study.sweeps import launch
        from study.sweeps.cells import plan, to_train
        from study.sweeps.plan import show_plan
        from study.sweeps.run import train_pack

    cells = plan([config])
    packs = [pack] if (pack := to_train(cells)) else []
    if PLAN_KEY in composed:
        return show_plan(cells, packs, planned_for(composed))
    launch.check_weights(cells)
    processes.check(cells)
    launch.announce(cells, packs)
    with launch.on_agenda(packs) as agendas:
        train_all(cells, lambda free: [train_pack(free, agendas[free[0].study_dir])])
    return launch.conclude(cells)


def _run_pack(composed: DictConfig) -> Outcome:
    """Train the cells of a pack that no other process holds."""
    cells, agenda = _cells_and_agenda(composed)
    if StopRequest(agenda)():  # before it composes and imports, which takes seconds
        return Outcome(signum=signals.asked())
    hydra_config = HydraConfig.get()
    shared = search_path(hydra_config.overrides.hydra)
    internal = (f"+{_CELLS}=", f"+{_AGENDA}=")
    shared += [o for o in hydra_config.overrides.task if not o.startswith(internal)]
    name = hydra_config.job.config_name
    loader = GlobalHydra.instance().config_loader()
    configs = compose(loader, name, shared, [shlex.split(cell) for cell in cells])
    with without_collections():
        from study.sweeps.cells import plan
        from study.sweeps.run import train_pack

    return train_pack(plan(configs), agenda)


def _quoted(text: str) -> str:
    """``text`` as a quoted string of Hydra's override grammar.

    Quotes are escaped, and so are backslashes before a quote.
    """
    return '"' + re.sub(r'(\\*)("|$)', lambda m: m[1] * 2 + (m[2] and '\\"'), text) + '"'
