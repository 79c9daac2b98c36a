"""What a cell is: its typed configuration (:mod:`~study.config.types`), the checks that a user's choices pass
(:mod:`~study.config.checks`) and its identity (:mod:`~study.config.hashing`)."""

from study.config.checks import checked, parse, typed, validate
from study.config.hashing import IDENTITY_VERSION, Sources, identity
from study.config.schedules import chosen, eval_steps, probe_steps, truncation_ranks
from study.config.types import (
    DATASETS,
    DEVICES,
    LINEAR,
    MODELS,
    OPTIMIZERS,
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
)

__all__ = [
    "DATASETS",
    "DEVICES",
    "IDENTITY_VERSION",
    "LINEAR",
    "MODELS",
    "OPTIMIZERS",
    "PRECISIONS",
    "QUANT_BITS",
    "AdapterConfig",
    "CellConfig",
    "DataConfig",
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
    "parse",
    "probe_steps",
    "truncation_ranks",
    "typed",
    "validate",
]
