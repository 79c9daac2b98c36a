"""Hydra configurations to typed cells; where ``conf/`` is; the resolvers that ``conf/`` uses."""

import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from study.config import near_best  # noqa: F401  (registers its resolver)
from study.config.checks import checked, typed, validate
from study.config.types import CellConfig
from study.errors import StudyError, unknown

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
    cell's own. Hydra takes 50 ms to compose a cell. So it composes one of the cells that set the
    same keys and are alike in all but plain values; the others follow from it in 0.2 ms each
    (:class:`_LastCell`).
    """
    parser = OverridesParser.create(config_loader=loader)
    texts = {text for cell in cells for text in cell}
    parsed = {text: parser.parse_override(text) for text in texts}
    groups = {
        key
        for key in {override.key_or_group for override in parsed.values()}
        if loader.get_group_options(key)
    }
    # Hydra chooses a group's option before it sets any value.
    options = {
        text
        for text, override in parsed.items()
        if override.key_or_group in groups and not isinstance(override.value(), dict)
    }
    values = {
        text: (override.key_or_group, override.value())
        for text, override in parsed.items()
        if text not in options and _sets_plain_value(override)
    }
    found: dict[Any, _LastCell] = {}
    configs = []
    for cell in cells:
        own = dict(values[text] for text in cell if text in values)
        others = tuple(text for text in cell if text not in values)
        alike = others, tuple(own)
        if alike in found:
            # After a mistake Hydra composes the cell as a whole: all cells get the same messages.
            with suppress(StudyError, OmegaConfBaseException, OverflowError):
                configs.append(found[alike].changed(own))
                continue
        config = typed(loader.load_configuration(name, [*shared, *cell], run_mode=RunMode.RUN))
        last = _LastCell(config, own, checked(config))
        if last.allows_changes([parsed[text] for text in others if text not in options]):
            found[alike] = last
        configs.append(last.cell)
    return configs


class _LastCell:
    """The last cell of those that are alike: its config, and the values of the keys that it sets.

    The next one is made from it: the keys that changed are set on the config, and these and the
    interpolations are read again. Both cells share the parts that are the same.
    """

    def __init__(self, config: DictConfig, values: dict[str, Any], cell: CellConfig) -> None:
        self.config, self.values, self.cell = config, values, cell
        self.following = _following(config, list(_paths(cell))) | dict.fromkeys(_REWRITTEN)

    def allows_changes(self, others: Sequence[Override]) -> bool:
        """Whether the keys that it sets are fields, and ``others`` change none of them: the order
        of such overrides matters.
        """
        changed = [f"{other.key_or_group}." for other in others]
        overlap = any(
            f"{key}.".startswith(other) or other.startswith(f"{key}.")
            for key in self.values
            for other in changed
        )
        return not overlap and set(self.values) <= set(_paths(self.cell))

    def changed(self, values: dict[str, Any]) -> CellConfig:
        """The checked cell with other values of the same keys."""
        # 1, 1.0 and True are equal, and are not the same value of a field of any type.
        changed = [key for key in values if repr(values[key]) != repr(self.values[key])]
        for key in changed:
            OmegaConf.update(self.config, key, values[key], merge=True)
        fields_of: dict[str, dict[str, Any]] = {"": {}}
        following = [path for path, key in self.following.items() if key in (None, *changed)]
        for path in (*changed, *following):
            part, _, name = path.rpartition(".")
            fields_of.setdefault(part, {})[name] = _read(self.config, path)
        whole = fields_of.pop("")
        parts = {name: replace(getattr(self.cell, name), **own) for name, own in fields_of.items()}
        self.cell, self.values = replace(self.cell, **whole, **parts), values
        validate(self.cell)
        return self.cell


_REWRITTEN = ("adapter.scaling", "adapter.exponent")
"""Fields that the types write anew (:class:`AdapterConfig`): a cell may hold other values than its
config, so both are read again."""


def _paths(cell: CellConfig) -> Iterator[str]:
    """The dotted keys of every field of a cell that is not itself a group of fields."""
    for part in fields(cell):
        value = getattr(cell, part.name)
        if is_dataclass(value):
            yield from (f"{part.name}.{field.name}" for field in fields(value))
        else:
            yield part.name


def _following(config: DictConfig, paths: Collection[str]) -> dict[str, str | None]:
    """Those of ``paths`` that follow other keys, each with the key that it follows.

    None for more than one key, or one that may itself follow others. Reading an interpolation is
    slow: OmegaConf parses it every time.
    """
    unresolved = OmegaConf.to_container(config, resolve=False)
    texts = {path: _text_of(unresolved, path) for path in paths}
    found = {path: _REFERENCE.fullmatch(text) for path, text in texts.items() if "${" in text}
    return {
        path: one[1] if one and one[1] in paths and one[1] not in found else None
        for path, one in found.items()
    }


def _text_of(unresolved: Any, path: str) -> str:
    """The value at ``path``, or the interpolation that the group is which it is in, as text."""
    found = unresolved
    for key in path.split("."):
        found = found[key] if isinstance(found, dict) else found
    return str(found)


_REFERENCE = re.compile(r"\$\{([\w.]+)\}")
"""An interpolation of one key and no resolver."""


def _read(config: DictConfig, path: str) -> Any:
    """The value at ``path`` as in an object of the cell."""
    found = OmegaConf.select(config, path)
    return OmegaConf.to_object(found) if OmegaConf.is_config(found) else found


def search_path(hydra_overrides: Iterable[str]) -> list[str]:
    """The overrides of ``hydra.searchpath``: the user's own folders of configuration files.

    Hydra keeps them apart from the overrides of a task, and composing a cell needs both.
    """
    return [override for override in hydra_overrides if override.startswith("hydra.searchpath=")]


def _sets_plain_value(override: Override) -> bool:
    """Whether it sets an existing key, and its value replaces whatever was there.

    Otherwise it adds or deletes a key, merges a dictionary into one, or sets an interpolation or a
    missing value.
    """
    if override.is_add() or override.is_force_add() or override.is_delete():
        return False
    value = override.value()
    return not isinstance(value, dict) and "${" not in repr(value) and "???" not in repr(value)
