"""Hydra configurations to typed cells; where ``conf/`` is; the resolvers that ``conf/`` uses."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from study.config.checks import checked, typed
from study.config.types import CellConfig
from study.errors import unknown

PACKAGE = Path(__file__).parents[1]
CONF = PACKAGE / "conf" if (PACKAGE / "conf").exists() else PACKAGE.parent / "conf"
"""``conf/``: inside the package in a wheel, beside it in a clone."""


def _by(name: str, table: DictConfig) -> object:
    if name not in table:
        raise unknown("choice", name, [str(key) for key in table])
    return table[name]


OmegaConf.register_new_resolver("by", _by, replace=True)
"""For ``conf/``: ``${by:${optimizer.name},{sgd: 1e-4, adamw: 3e-6}}`` is a value that depends on
another choice."""


def compose(
    loader: ConfigLoader, name: str, shared: Sequence[str], cells: Sequence[Sequence[str]]
) -> list[CellConfig]:
    """The typed configuration of every cell.

    ``name`` is the primary config; ``shared`` are the overrides of all cells; ``cells`` holds each
    cell's own. Composing takes Hydra 50 ms, so it happens once per choice of groups. Plain values
    are set on a copy of the result.
    """
    parser = OverridesParser.create(config_loader=loader)
    parsed = {
        text: parser.parse_override(text) for text in {text for cell in cells for text in cell}
    }
    values = {text: override for text, override in parsed.items() if _sets_value(override, loader)}
    composed: dict[tuple[str, ...], DictConfig] = {}
    configs = []
    for cell in cells:
        choices = tuple(text for text in cell if text not in values)
        if choices not in composed:
            config = loader.load_configuration(name, [*shared, *choices], run_mode=RunMode.RUN)
            composed[choices] = typed(config)
        config = composed[choices].copy()
        for override in (values[text] for text in cell if text in values):
            OmegaConf.update(config, override.key_or_group, override.value(), merge=True)
        configs.append(checked(config))
    return configs


def search_path(hydra_overrides: Iterable[str]) -> list[str]:
    """The overrides of ``hydra.searchpath``: the user's own folders of configuration files.

    Hydra keeps them apart from the overrides of a task, and composing a cell needs both.
    """
    return [override for override in hydra_overrides if override.startswith("hydra.searchpath=")]


def _sets_value(override: Override, loader: ConfigLoader) -> bool:
    """Whether it sets an existing value. Otherwise it chooses a group's option, adds or deletes."""
    plain = not (override.is_add() or override.is_force_add() or override.is_delete())
    return plain and not loader.get_group_options(override.key_or_group)
