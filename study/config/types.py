"""The typed configuration of a cell. The defaults live in ``conf/``, where users read them; the types live here."""

import math
from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from study.vocabulary import scaling

MODELS = ("smollm2", "hf", "tiny")
DATASETS = ("pydoc", "xbrl_extract", "jsonl")
DEVICES = ("auto", "cpu", "cuda")
PRECISIONS = ("float32", "bf16")
QUANT_BITS = (8, 4)
SCHEDULES = ("constant", "linear", "cosine")
CONTRACTIONS = ("auto", "factored", "mixed", "merged")
TRACKERS = ("none", "wandb")
TRACKER_MODES = ("offline", "online", "disabled")


@dataclass
class ModelConfig:
    """The frozen base. ``path`` is a folder or hub name; ``smollm2`` and ``tiny`` do without.

    ``quant_bits``: 8 or 4 to hold the weights of its block linears in (:mod:`study.models.quantised`); null: as loaded.
    """

    name: str = MISSING
    path: str | None = None
    quant_bits: int | None = None


@dataclass
class DataConfig:
    """``heldout`` is the most examples held out; ``seed`` orders the batches and follows the cell's ``seed``."""

    name: str = MISSING
    path: str | None = None
    sequence_length: int = MISSING
    heldout: int = MISSING
    seed: int = MISSING


@dataclass
class AdapterConfig:
    """``exponent`` belongs to ``scaling=power``; ``targets`` is all-linear, attention, mlp, a list, or a regex.

    ``path`` is a PEFT adapter to go on with: all but ``dropout`` is then its own.

    ``rank`` is a whole number, or ``math.inf``: the limit that SGD at p = 1/2 has (:mod:`study.adapters.infinite`).
    ``contraction`` is how products are multiplied out (:mod:`study.adapters.contraction`); it moves rounding alone.
    """

    rank: Any = MISSING
    alpha: float = MISSING
    scaling: str = MISSING
    exponent: float | None = None
    targets: Any = MISSING
    init: str = MISSING
    dropout: float = MISSING
    contraction: str = "auto"
    path: str | None = None

    def __post_init__(self) -> None:
        if self.rank == "inf":  # as a yaml file has it; Hydra's command line makes it a float
            self.rank = math.inf

    @property
    def gamma(self) -> float:
        """The full multiplier on ``B A``; 0, its limit, at infinite rank."""
        return scaling.gamma(self.scaling, self.alpha, self.rank, self.exponent)


@dataclass
class OptimizerConfig:
    """What every optimizer has; ``loraplus_lr_ratio`` is B's learning rate over A's (LoRA+)."""

    name: str = MISSING
    lr: float = MISSING
    weight_decay: float = MISSING
    loraplus_lr_ratio: float = MISSING


@dataclass
class AdamConfig(OptimizerConfig):
    """Adam and AdamW."""

    betas: list[float] = MISSING
    eps: float = MISSING


@dataclass
class SGDConfig(OptimizerConfig):
    """torch's SGD in its three guises, and SignSGD."""

    momentum: float = MISSING


@dataclass
class RMSpropConfig(OptimizerConfig):
    """torch's RMSprop, uncentred."""

    alpha: float = MISSING
    eps: float = MISSING


@dataclass
class LionConfig(OptimizerConfig):
    """Lion."""

    betas: list[float] = MISSING


@dataclass
class AdafactorConfig(OptimizerConfig):
    """transformers' Adafactor without relative step and parameter scaling."""

    clip_threshold: float = MISSING
    decay_rate: float = MISSING


OPTIMIZERS: dict[str, type[OptimizerConfig]] = {
    "sgd": SGDConfig,
    "momentum": SGDConfig,
    "nesterov": SGDConfig,
    "adamw": AdamConfig,
    "adam": AdamConfig,
    "rmsprop": RMSpropConfig,
    "signsgd": SGDConfig,
    "lion": LionConfig,
    "adafactor": AdafactorConfig,
}
LINEAR = ("sgd", "momentum", "nesterov")
"""Optimizers linear in weights and gradients: they converge as rsLoRA's rank grows (:mod:`study.adapters.infinite`)."""
COUPLED_SIGN = ("adam", "rmsprop")
"""Sign-like optimizers whose weight decay is added to the gradient: it would replace A's signal by sign(A)."""


@dataclass
class TrainConfig:
    """``clip`` is a global gradient norm (null: none); ``eval_every`` null evaluates first and last, 0 never;
    ``answer_tokens`` lets every evaluation answer the held-out questions, in so many tokens (null: none are asked)."""

    steps: int = MISSING
    batch_size: int = MISSING
    accumulation: int = MISSING
    clip: float | None = None
    schedule: str = MISSING
    warmup: int = MISSING
    eval_every: int | None = None
    save_adapter: bool = False
    answer_tokens: int | None = None


@dataclass
class ProbesConfig:
    """When to measure (``every`` n steps, or ``steps``: a list or ``log``; both null: never), what, on which batch.

    ``truncations``: to which lower ranks the trained adapters are cut, for a held-out loss each: ``log``, a list, or
    null for none.
    """

    every: int | None = None
    steps: Any = None
    sites: Any = "all"
    stats: Any = "all"
    batch: Any = "train"
    tokens: int = MISSING
    truncations: Any = None


@dataclass
class PackConfig:
    """How cells share a process (``max_cells``) and a forward pass (``fold``: an int or ``auto``).

    ``memory_gb``: GiB that a process may use; None: most of what is free. ``compile``: whether plain steps run compiled
    (:mod:`study.models.compiled`); it moves rounding alone.
    """

    max_cells: int | None = None
    memory_gb: float | None = None
    fold: Any = "auto"
    compile: bool = False


@dataclass
class TrackerConfig:
    """Who else is told of results, beside the store. ``sites``: where per-layer norms are sent from.

    It holds no key to any account: those are W&B's own settings, and so they reach no record.
    """

    name: str = "none"
    mode: str = "offline"
    project: str | None = None
    entity: str | None = None
    dir: str | None = None
    sites: Any = "all"


@dataclass
class CellConfig:
    """One configuration trained once."""

    name: str = MISSING
    results_dir: str = MISSING
    plots_dir: str = MISSING
    device: str = MISSING
    seed: int = MISSING
    precision: str = MISSING
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    adapter: AdapterConfig = field(default_factory=AdapterConfig)
    optimizer: Any = MISSING
    train: TrainConfig = field(default_factory=TrainConfig)
    probes: ProbesConfig = field(default_factory=ProbesConfig)
    pack: PackConfig = field(default_factory=PackConfig)
    tracker: TrackerConfig = field(default_factory=TrackerConfig)
