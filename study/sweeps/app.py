"""The Hydra application behind ``study train``: composed configs to cells, and Hydra's errors to one line.

A job is a pack: the sweeper hands it to a launcher as Hydra overrides with ``+cells=[...]``, one string of overrides a
cell, and the job composes its cells again from those strings, in whatever process the launcher put it.
"""

import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import hydra
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from study.config import CellConfig, checked, parse, typed
from study.errors import StudyError, unknown

PACKAGE = Path(__file__).parents[1]
CONF = PACKAGE / "conf" if (PACKAGE / "conf").exists() else PACKAGE.parent / "conf"
"""conf/ travels inside the wheel and stands beside the package in a clone."""


def _by(name: str, table: DictConfig) -> object:
    if name not in table:
        raise unknown("choice", name, [str(key) for key in table])
    return table[name]


OmegaConf.register_new_resolver("by", _by, replace=True)
"""For ``conf/``: ``${by:${optimizer.name},{sgd: 1e-4, adamw: 3e-6}}`` is a value that another choice decides."""

PLAN_FLAG, PLAN_KEY = "--plan", "plan_only"
"""Hydra's parser knows no flags but its own: ours travels as a key that no cell has."""


def main(arguments: Sequence[str]) -> None:
    """Run ``study train`` with Hydra's own command line, and ``--plan``: say what it would take, train nothing.

    Raises :class:`StudyError` for whatever a user can get wrong, Hydra's own complaints included.
    """
    os.environ["HYDRA_FULL_ERROR"] = (
        "1"  # exceptions come out as they are: the lines below are made from them
    )
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
    """One job: the cells of a pack, or, without ``cells``, the one cell that the config itself describes.

    Returns what went wrong in a line, or None: Hydra would print an exception with all of the job's overrides.
    """
    try:
        _run(composed)
    except StudyError as error:
        return str(error)
    return None


def _run(composed: DictConfig) -> None:
    from study.sweeps import (
        run as sweep,
    )  # not at import: help, completion and bad overrides need no torch
    from study.sweeps.cells import plan, to_train

    if "cells" not in composed:
        cells = plan([parse(composed)])
        pack = to_train(cells)
        packs = [pack] if pack else []
        if PLAN_KEY in composed:
            return sweep.show_plan(cells, packs)
        sweep.announce(cells, packs)
        with sweep.on_agenda(packs):
            sweep.run(pack)
        return sweep.conclude(cells)
    shared = [o for o in HydraConfig.get().overrides.task if not o.startswith("+cells=")]
    name = HydraConfig.get().job.config_name
    loader = GlobalHydra.instance().config_loader()
    pack = plan(compose(loader, name, shared, [shlex.split(cell) for cell in composed.cells]))
    return sweep.run(pack)


def compose(
    loader: ConfigLoader, name: str, shared: Sequence[str], cells: Sequence[Sequence[str]]
) -> list[CellConfig]:
    """The typed config of every cell: primary config ``name``, overrides ``shared`` by all, then the cell's own.

    Composing costs Hydra 50 ms, so it is done once per choice of groups; plain values are set on a copy of the result.
    """
    parser = OverridesParser.create(config_loader=loader)
    parsed = {
        text: parser.parse_override(text) for text in {text for cell in cells for text in cell}
    }
    values = {
        text: override for text, override in parsed.items() if _is_plain_value(override, loader)
    }
    composed: dict[tuple[str, ...], DictConfig] = {}
    configs = []
    for cell in cells:
        choices = tuple(text for text in cell if text not in values)
        if choices not in composed:
            composed[choices] = typed(
                loader.load_configuration(name, [*shared, *choices], run_mode=RunMode.RUN)
            )
        config = composed[choices].copy()
        for override in (values[text] for text in cell if text in values):
            OmegaConf.update(config, override.key_or_group, override.value(), merge=True)
        configs.append(checked(config))
    return configs


def _is_plain_value(override: Override, loader: ConfigLoader) -> bool:
    """Whether it sets a value that is there, and neither chooses a group's option nor adds or deletes a key."""
    plain = not (override.is_add() or override.is_force_add() or override.is_delete())
    return plain and not loader.get_group_options(override.key_or_group)


def _choices(error: MissingConfigException) -> str:
    """``Could not find 'optimizer/adamx': choose from adamw, sgd``."""
    line = str(error).splitlines()[0]
    found = line.partition(": ")[2] if line.startswith("In '") else line
    return f"{found}: choose from {', '.join(error.options)}" if error.options else found


def _cause(error: BaseException) -> str:
    """The first line of the innermost cause and, for a key that is not there, the keys that are."""
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
