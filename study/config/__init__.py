"""The configuration of a cell: its types, its checks and its identity.

- :mod:`~study.config.types`: the typed configuration, each field with its limits;
- :mod:`~study.config.values`: the kinds of values, and the line about a wrong one;
- :mod:`~study.config.expectations`: what an experiment expects;
- :mod:`~study.config.checks`: what concerns several fields;
- :mod:`~study.config.schedules`: the steps and ranks that epochs and short words stand for;
- :mod:`~study.config.hashing`: the identity of a cell;
- :mod:`~study.config.compose`: Hydra overrides to cells, and where ``conf/`` is;
- :mod:`~study.config.hints`: what a user probably meant, help and completion.

This package imports neither Hydra nor OmegaConf, which the environment of Axolotl cannot import.
The last two modules need them.
"""

from study.config.checks import validate
from study.config.hashing import IDENTITY_VERSION, UNKNOWN_STEPS, Sources, identity
from study.config.schedules import eval_steps, probe_steps, resolved, truncation_ranks
from study.config.types import (
    AUTO_COMPILE,
    DEVICES,
    PRECISIONS,
    QUANT_BITS,
    AdapterConfig,
    CellConfig,
    DataConfig,
    ModelConfig,
    OptimizerConfig,
    ProbesConfig,
    TrackerConfig,
    TrainConfig,
    optimizer_config,
)
from study.config.values import Interval, chosen, interval

__all__ = [
    "AUTO_COMPILE",
    "DEVICES",
    "IDENTITY_VERSION",
    "PRECISIONS",
    "QUANT_BITS",
    "UNKNOWN_STEPS",
    "AdapterConfig",
    "CellConfig",
    "DataConfig",
    "Interval",
    "ModelConfig",
    "OptimizerConfig",
    "ProbesConfig",
    "Sources",
    "TrackerConfig",
    "TrainConfig",
    "chosen",
    "eval_steps",
    "identity",
    "interval",
    "optimizer_config",
    "probe_steps",
    "resolved",
    "truncation_ranks",
    "validate",
]
