"""The configuration of a cell: its types, its checks and its identity.

- :mod:`~study.config.types`: the typed configuration, each field with its bound;
- :mod:`~study.config.bounds`: what a bound can say;
- :mod:`~study.config.expectations`: the bounds of what an experiment expects;
- :mod:`~study.config.checks`: from a composed Hydra config to a checked cell;
- :mod:`~study.config.schedules`: the steps and ranks that epochs and short words stand for;
- :mod:`~study.config.intervals`: how often something happens, in steps or in time;
- :mod:`~study.config.hashing`: the identity of a cell;
- :mod:`~study.config.compose`: Hydra overrides to cells, and where ``conf/`` is.
"""

from typing import TYPE_CHECKING, Any

from study.config.bounds import chosen
from study.config.hashing import IDENTITY_VERSION, UNKNOWN_STEPS, Sources, identity
from study.config.intervals import Interval, interval
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

if TYPE_CHECKING:
    from study.config.checks import checked, parse, typed, validate

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
    "checked",
    "chosen",
    "eval_steps",
    "identity",
    "interval",
    "optimizer_config",
    "parse",
    "probe_steps",
    "resolved",
    "truncation_ranks",
    "typed",
    "validate",
]


def __getattr__(name: str) -> Any:
    """The functions of :mod:`~study.config.checks`, on first use.

    They need OmegaConf, which the environment of Axolotl cannot import.
    """
    if name not in ("checked", "parse", "typed", "validate"):
        raise AttributeError(f"module 'study.config' has no attribute {name!r}")
    from study.config import checks

    return getattr(checks, name)
