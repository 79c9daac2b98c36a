"""The recorded configuration of a cell as overrides of ``study train``."""

from collections.abc import Collection, Mapping
from typing import Any

import pandas as pd
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from study.config.compose import CONF
from study.config.values import written
from study.vocabulary.scaling import POWER

NAMED_GROUPS = ("model", "data", "optimizer")
"""The groups of ``conf/`` with a file per value of ``name``."""
NOT_TOLD = {
    *("name", "results_dir", "plots_dir", "device", "tracker", "checkpoint", "expects", "pack"),
    *("train.shard", "train.checkpointing"),
}
"""Keys and groups that do not change the numbers of a cell, or belong to a machine."""


def overrides_of(config: Mapping[str, Any], study: str, varied: Collection[str]) -> list[str]:
    """The overrides for a cell's recorded ``config``, without the keys ``varied``.

    If ``conf/`` has an experiment of the study's name, they begin with it and set every key that it
    sweeps over. Keys that the files of its data set and optimizer lack are left out.
    """
    is_experiment = (CONF / "experiment" / f"{study}.yaml").is_file()
    said = [f"experiment={study}"] if is_experiment else [f"name={written(study)}"]
    own = {k: v for k, v in leaves(config).items() if NOT_TOLD.isdisjoint((k, k.split(".")[0]))}
    own = {k: v for k, v in own.items() if v is not None or k != "adapter.crossover"}
    if own["adapter.scaling"] == POWER:
        p = own["adapter.exponent"]
        own |= {"adapter.scaling": int(p) if p == int(p) else p, "adapter.exponent": None}
    with initialize_config_dir(str(CONF), version_base=None):
        usual = compose("config", said, return_hydra_config=True)
        swept = {str(key) for key in usual.hydra.sweeper.get("params") or {}}
        for group in NAMED_GROUPS:
            if group in swept or config[group]["name"] != usual[group]["name"]:
                said.append(f"{group}={config[group]['name']}")
        axes = [f"{key}={written(own[key])}" for key in own if key in swept]
        before = leaves(OmegaConf.to_container(compose("config", said + axes), resolve=True))
    return said + [
        f"{key}={written(value)}"
        for key, value in own.items()
        if key not in varied and (key in swept or before.get(key, value) != value)
    ]


def leaves(config: Any) -> dict[str, Any]:
    """Every dotted key of a nested configuration with its value. A list is one value."""
    [flat] = pd.json_normalize(config).to_dict("records")
    return {str(key): value for key, value in flat.items()}
