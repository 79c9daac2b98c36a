"""Axolotl's sweep files: a list of values for each key.

``axolotl train --sweep`` trains all combinations.
"""

from pathlib import Path
from typing import Any

from study.errors import StudyError, given, short
from study.integrations.configs.documents import load
from study.integrations.configs.experiment import Experiment
from study.integrations.configs.files import read_file

MOST_VALUES = 100
"""Of one key. The configuration is read again with each."""


def from_sweep_file(
    sweep: Path, config: Path, entry: str | None = None, base: str | None = None
) -> dict[str, list[Any]]:
    """The values to sweep, by our keys.

    Each value is put into ``config``, which is then read as usual. Raises :class:`StudyError` for a
    value that is not a list, for a key that changes none or several of our keys, and for ``_``:
    its pairs of values are not a product of lists.
    """
    lists = load(sweep)
    if "_" in lists:
        raise StudyError(
            f"{sweep.name}: '_' pairs values, but a Hydra sweep is a product of lists: "
            "write two sweeps"
        )
    found: dict[str, list[Any]] = {}
    for key, values in lists.items():
        if not isinstance(values, list) or not values:
            raise StudyError(
                f"{sweep.name}: {given(key)}={short(values)} is not a list of values: "
                "write key: [...]"
            )
        if len(values) > MOST_VALUES:
            raise StudyError(
                f"{sweep.name}: {given(key)} has {len(values)} values: give at most {MOST_VALUES}"
            )
        experiments = [read_file(config, entry, {key: value}, base) for value in values]
        changed = _changed([read_file(config, entry, base=base), *experiments])
        if len(changed) != 1:
            what = (
                f"changes {' and '.join(changed)} together"
                if changed
                else "changes nothing that is trained here"
            )
            raise StudyError(
                f"{sweep.name}: {given(key)} {what}: leave it out and sweep on the command line"
            )
        found[changed[0]] = [experiment.settings().get(changed[0]) for experiment in experiments]
    return found


def _changed(experiments: list[Experiment]) -> list[str]:
    """The keys with different values."""
    settings = [experiment.settings() for experiment in experiments]
    keys = dict.fromkeys(key for each in settings for key in each)
    return [key for key in keys if any(each.get(key) != settings[0].get(key) for each in settings)]
