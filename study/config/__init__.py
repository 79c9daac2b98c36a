"""The configuration of a cell. Hydra, which Axolotl can't import, is in ``compose`` and
``hints``."""

from study.config.checks import validate
from study.config.hashing import UNKNOWN_STEPS, Sources, identity
from study.config.schedules import eval_steps, probe_steps, resolved, truncation_ranks
from study.config.types import (
    CONTEXT,
    PRECISIONS,
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
from study.config.values import chosen, interval
