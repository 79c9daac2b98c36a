"""The configuration of a cell: its types, its checks and its identity.

Only :mod:`study.config.compose` and :mod:`study.config.hints` import Hydra and OmegaConf, which the
environment of Axolotl cannot import.
"""

from study.config.checks import validate
from study.config.hashing import UNKNOWN_STEPS, Sources, identity
from study.config.schedules import eval_steps, probe_steps, resolved, truncation_ranks
from study.config.types import (
    AUTO_COMPILE,
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
from study.config.values import Interval, chosen, interval
