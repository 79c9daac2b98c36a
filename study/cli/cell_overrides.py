"""The overrides of ``study train`` that give the configuration of a recorded cell."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from study.config.compose import CONF, without_hydra
from study.integrations.overrides import written

NAMED_GROUPS = ("model", "data", "optimizer")
"""The groups of ``conf/`` with a file per value of ``name``."""
NOT_TOLD = ("name", "results_dir", "plots_dir", "device", "tracker", "checkpoint", "expects")
"""Keys that do not change the numbers of a cell. The caller names the study and its folder."""


def overrides_of(config: Mapping[str, Any], study: str, varied: Collection[str]) -> list[str]:
    """The overrides for a cell's recorded ``config``, without the keys ``varied``.

    They begin with the experiment of the study's name, if ``conf/`` has one, and then also give
    every key that it sweeps over.
    """
    is_experiment = (CONF / "experiment" / f"{study}.yaml").is_file()
    said = [f"experiment={study}"] if is_experiment else [f"name={written(study)}"]
    with initialize_config_dir(str(CONF), version_base=None):
        usual, swept = _composed(said)
        said += [
            f"{group}={config[group]['name']}"
            for group in NAMED_GROUPS
            if group in swept or config[group]["name"] != usual[group]["name"]
        ]
        usual, swept = _composed(said)
    before = dict(_leaves(usual))
    return said + [
        f"{key}={written(value)}"
        for key, value in _leaves(config)
        if key.split(".")[0] not in NOT_TOLD
        and key not in varied
        and (key in swept or before.get(key) != value)
    ]


def _composed(overrides: Sequence[str]) -> tuple[dict[str, Any], set[str]]:
    """The configuration of ``study train`` with these overrides, and the keys that it sweeps."""
    found: DictConfig = compose("config", list(overrides), return_hydra_config=True)
    swept = {str(key) for key in found.hydra.sweeper.get("params") or {}}
    plain = OmegaConf.to_container(without_hydra(found), resolve=True)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}, swept


def _leaves(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every dotted key of a nested configuration with its value. A list is one value."""
    for name, value in config.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
