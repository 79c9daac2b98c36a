"""The Hydra application behind ``study train``: composed configs to cells, Hydra errors to a line.

A job is a pack. The sweeper hands it to a launcher as Hydra overrides with ``+cells=[...]``, one
string of overrides per cell. The job composes its cells again from those strings, in whatever
process the launcher starts.
"""

import os
import shlex
import sys
from collections.abc import Sequence

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from study.config import parse
from study.config.compose import CONF, compose, search_path
from study.errors import StudyError

PLAN_FLAG, PLAN_KEY = "--plan", "plan_only"
"""Hydra's parser accepts no flags but its own, so ours travels as a key that no cell has."""


def main(arguments: Sequence[str]) -> None:
    """Run ``study train`` with Hydra's command line, and ``--plan``, which trains nothing.

    Raises :class:`StudyError` for every mistake of the user, including those that Hydra reports.
    """
    os.environ["HYDRA_FULL_ERROR"] = "1"  # exceptions arrive unchanged; they become lines below
    plan_only = PLAN_FLAG in arguments
    overrides = [argument for argument in arguments if argument != PLAN_FLAG]
    sys.argv = [sys.argv[0], *overrides, *([f"+{PLAN_KEY}=true"] if plan_only else [])]
    mistakes: list[str | None] = []

    def task(composed: DictConfig) -> str | None:
        mistakes.append(job(composed))
        return mistakes[-1]

    app = hydra.main(config_path=str(CONF), config_name="config", version_base="1.3")(task)
    try:
        app()
    except MissingConfigException as error:
        raise StudyError(_choices(error)) from error
    except OverrideParseException as error:
        line = str(error).splitlines()[0]
        raise StudyError(
            f"can't read {error.override} ({line}): write key=value, with quotes around odd values"
        ) from error
    except (HydraException, OmegaConfBaseException) as error:
        raise StudyError(_cause(error)) from error
    for mistake in filter(None, mistakes):
        raise StudyError(mistake)


def job(composed: DictConfig) -> str | None:
    """One job: the cells of a pack or, without ``cells``, the one cell of the config itself.

    Returns the user's mistake in one line, or None. Hydra would print an exception together with
    all overrides of the job.
    """
    try:
        _run(composed)
    except StudyError as error:
        return str(error)
    return None


def _run(composed: DictConfig) -> None:
    # Imported here: help, completion and bad overrides need no torch.
    from study.sweeps import launch
    from study.sweeps.cells import plan, to_train
    from study.sweeps.plan import show_plan
    from study.sweeps.run import run

    if "cells" not in composed:
        cells = plan([parse(composed)])
        pack = to_train(cells)
        packs = [pack] if pack else []
        if PLAN_KEY in composed:
            return show_plan(cells, packs)
        launch.announce(cells, packs)
        with launch.on_agenda(packs):
            run(pack)
        return launch.conclude(cells)
    hydra_config = HydraConfig.get()
    shared = search_path(hydra_config.overrides.hydra)
    shared += [o for o in hydra_config.overrides.task if not o.startswith("+cells=")]
    name = hydra_config.job.config_name
    loader = GlobalHydra.instance().config_loader()
    return run(plan(compose(loader, name, shared, [shlex.split(cell) for cell in composed.cells])))


def _choices(error: MissingConfigException) -> str:
    """``Could not find 'optimizer/adamx': choose from adamw, sgd``."""
    line = str(error).splitlines()[0]
    found = line.partition(": ")[2] if line.startswith("In '") else line
    return f"{found}: choose from {', '.join(error.options)}" if error.options else found


def _cause(error: BaseException) -> str:
    """The first line of the innermost cause and, for an unknown key, the keys that exist."""
    while error.__cause__ is not None:
        error = error.__cause__
    line = str(error).splitlines()[0] if str(error) else type(error).__name__
    key, parent = getattr(error, "full_key", None), getattr(error, "parent_node", None)
    if key and isinstance(parent, DictConfig) and line.startswith("Key "):
        siblings = [str(name) for name in parent if name != "hydra"]
        return f"unknown key {key}: choose from {', '.join(siblings)}"
    if line.startswith("Ambiguous value"):
        return f"{line}: add -m to sweep over it, or write key=[a,b] for one list"
    return f"{key}: {line}" if key and key not in line else line
