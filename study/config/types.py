"""The typed configuration of a cell: each field with its type and its bound.

The defaults are in ``conf/``, where users read them.
"""

import math
from dataclasses import dataclass, field, make_dataclass
from functools import cache
from typing import Any

from study.config.bounds import (
    MISSING,
    Bound,
    Each,
    FilePath,
    Flag,
    Modules,
    Number,
    OneOf,
    PathPart,
    Rank,
    SomeOf,
    StepsOrShare,
    Whole,
    bounded,
)
from study.config.intervals import Every
from study.errors import StudyError
from study.vocabulary import scaling
from study.vocabulary.expectations import Expectation
from study.vocabulary.inits import INITS
from study.vocabulary.optimizers import OPTIMIZERS, Option
from study.vocabulary.quantities import BATCHES, SITES, STATS
from study.vocabulary.sources import AUTO, DATASETS, FORMATS, MODELS
from study.vocabulary.trackers import NONE, TRACKERS

DEVICES = ("auto", "cpu", "cuda")
PRECISIONS = ("float32", "bf16")
QUANT_BITS = (8, 4)
SCHEDULES = ("constant", "linear", "cosine")
CONTRACTIONS = ("auto", "factored", "mixed", "merged")
AUTO_COMPILE = "auto"
TRACKER_MODES = ("offline", "online", "disabled")

POSITIVE = Number(above=0.0)
SEED = Whole(-(2**63))
A_FILE = FilePath()

# Far above any run. Beyond them, memory or time ends before a check of either is reached.
MOST_RANK = 1 << 24
MOST_WIDTH = 1 << 14
MOST_STEPS = 10**8
MOST_SEQUENCES, MOST_ACCUMULATION = 10**6, 10**5
MOST_TOKENS = 10**7
MOST_EPOCHS = 10**6


@dataclass
class ModelConfig:
    """The frozen base.

    - ``path``: a folder or a hub name; ``smollm2`` and ``tiny`` need none;
    - ``quant_bits``: 8 or 4, the bits that hold the weights of its block linears
      (:mod:`study.models.quantised`); null: as loaded;
    - ``width``: of ``tiny`` only, the features of its hidden states (:mod:`study.models.tiny`).
    """

    name: str = bounded(OneOf(MODELS))
    path: str | None = bounded(A_FILE, None)
    quant_bits: int | None = bounded(OneOf((None, *QUANT_BITS)), None)
    width: int | None = bounded(Whole(8, most=MOST_WIDTH), None)


@dataclass
class DataConfig:
    """What is read, and how a row of it becomes text and tokens.

    - ``path``: a file, or ``org/name``, a data set of the hub, of which ``split`` and ``subset``
      are read;
    - ``format``: what a row holds (:data:`study.vocabulary.sources.FORMATS`);
    - ``chat_template``: of conversations; null: the tokenizer's own; ``chatml``, or a Jinja file;
    - ``heldout``: the most examples held out;
    - ``seed``: orders the batches and follows the cell's ``seed``.
    """

    name: str = bounded(OneOf(DATASETS))
    path: str | None = bounded(A_FILE, None)
    sequence_length: int = bounded(Whole(2, most=MOST_TOKENS))
    heldout: int = bounded(Whole(1))
    seed: int = bounded(SEED)
    format: str = bounded(OneOf((AUTO, *FORMATS)), AUTO)
    chat_template: str | None = bounded(A_FILE, None)
    split: str = "train"
    subset: str | None = None


@dataclass
class AdapterConfig:
    """How a cell's adapters are scaled, drawn and computed.

    - ``rank``: a positive integer or ``math.inf``, the limit of SGD at p = 1/2
      (:mod:`study.adapters.infinite`);
    - ``scaling``: a rule of :data:`study.vocabulary.scaling.RULES`; a number, the p of the power
      rule, becomes ``power`` with that ``exponent``;
    - ``exponent``: p, for ``scaling=power``;
    - ``targets``: all-linear, attention, mlp, a list, or a regex;
    - ``contraction``: how products are computed (:mod:`study.adapters.contraction`). It changes
      rounding only;
    - ``path``: a PEFT adapter to continue with. Everything but ``dropout`` is then the adapter's.
    """

    rank: Any = bounded(Rank(MOST_RANK))
    alpha: float = bounded(POSITIVE)
    scaling: str = bounded(OneOf(scaling.RULES, or_else="a number: the p of alpha/r**p"))
    exponent: float | None = bounded(Number(least=-16.0, most=16.0), None)
    targets: Any = bounded(Modules())
    init: str = bounded(OneOf(INITS))
    dropout: float = bounded(Number(least=0.0, below=1.0))
    contraction: str = bounded(OneOf(CONTRACTIONS), "auto")
    path: str | None = bounded(A_FILE, None)

    def __post_init__(self) -> None:
        if self.rank == "inf":  # a string in a yaml file; Hydra's command line makes it a float
            self.rank = math.inf
        try:
            self.scaling, self.exponent = scaling.named_rule(self.scaling, self.exponent)
        except ValueError as error:
            raise StudyError(str(error)) from None

    @property
    def gamma(self) -> float:
        """The full multiplier on ``B A``; at infinite rank 0, its limit."""
        return scaling.gamma(self.scaling, self.alpha, self.rank, self.exponent)


@dataclass
class OptimizerConfig:
    """What every optimizer has. ``loraplus_lr_ratio``: B's learning rate over A's (LoRA+).

    Within their bounds, B's learning rate is finite in float32.
    """

    name: str = MISSING
    lr: float = bounded(Number(above=0.0, most=1e30))
    weight_decay: float = bounded(Number(least=0.0))
    loraplus_lr_ratio: float = bounded(Number(above=0.0, most=1e7))


def _option_bound(option: Option) -> Bound:
    if option.choices:
        return OneOf(option.choices)
    if option.type is int:
        return Whole(int(option.least or 0), most=int(option.most or MOST_STEPS))
    each = Number(option.above, option.least, option.below, option.most)
    return each if option.length is None else Each(each, option.length)


@cache
def optimizer_config(name: str) -> type[OptimizerConfig]:
    """The configuration type of an optimizer: :class:`OptimizerConfig` and its own options.

    Raises ``KeyError`` for a name that is not in :data:`study.vocabulary.optimizers.OPTIMIZERS`.
    """
    options = [
        (key, option.type, bounded(_option_bound(option)))
        for key, option in OPTIMIZERS[name].options.items()
    ]
    made = make_dataclass(f"{name.capitalize()}Config", options, bases=(OptimizerConfig,))
    made.__module__ = __name__
    globals()[made.__name__] = made  # pickle finds a class by its module and name
    return made


for _name in OPTIMIZERS:
    optimizer_config(_name)


@dataclass
class TrainConfig:
    """- ``epochs``: passes over the training rows, which decide ``steps``
      (:func:`study.config.schedules.resolved`);
    - ``clip``: the global gradient norm to clip at; null: no clipping;
    - ``warmup``: steps, or a share of all steps below 1;
    - ``eval_every``: null evaluates at the first and the last step, 0 never;
    - ``answer_tokens``: the most tokens of an answer to a held-out question; null: none is asked;
    - ``shard``: whether the processes of torchrun train each cell together
      (:mod:`study.training.sharding`);
    - ``checkpointing``: whether the backward pass computes each block again
      (:mod:`study.models.blocks`). Neither of the two changes a number beyond rounding.
    """

    steps: int = bounded(Whole(1, most=MOST_STEPS))
    batch_size: int = bounded(Whole(1, most=MOST_SEQUENCES))
    accumulation: int = bounded(Whole(1, most=MOST_ACCUMULATION))
    clip: float | None = bounded(POSITIVE, None)
    schedule: str = bounded(OneOf(SCHEDULES))
    warmup: Any = bounded(StepsOrShare(MOST_STEPS))
    eval_every: int | None = bounded(Whole(0), None)
    save_adapter: bool = False
    answer_tokens: int | None = bounded(Whole(1), None)
    epochs: float | None = bounded(Number(above=0.0, most=MOST_EPOCHS), None)
    shard: bool = False
    checkpointing: bool = False


@dataclass
class ProbesConfig:
    """What probes measure, when, and on which batch.

    - ``every`` n steps, or ``steps``: a list or ``log``. Both null: never;
    - ``truncations``: the lower ranks at which the trained adapters' held-out loss is measured:
      ``log``, a list, or null for none.
    """

    every: int | None = bounded(Whole(1), None)
    steps: Any = None
    sites: Any = bounded(SomeOf(SITES), "all")
    stats: Any = bounded(SomeOf(STATS), "all")
    batch: Any = bounded(SomeOf(BATCHES), "train")
    tokens: int = bounded(Whole(1, most=MOST_TOKENS))
    truncations: Any = None


@dataclass
class PackConfig:
    """How cells share a process and a forward pass.

    - ``max_cells``: the most cells in one pack; null: no limit; ``auto``: one pack per device;
    - ``devices``: how many packs are trained at the same time; null: what the launcher says;
    - ``fold``: cells in one forward pass, a number or ``auto``;
    - ``memory_gb``: GiB that a process may use; null: most of the free memory;
    - ``compile``: whether plain steps run compiled; ``auto``: where a short trial says that it pays
      (:mod:`study.models.compiled`). It changes rounding only.
    """

    max_cells: Any = bounded(Whole(1, "auto"), None)
    devices: int | None = bounded(Whole(1), None)
    memory_gb: float | None = bounded(Number(above=0.0, below=1e9), None)
    fold: Any = bounded(Whole(1, "auto"), "auto")
    compile: Any = bounded(Flag(AUTO_COMPILE), False)


@dataclass
class CheckpointConfig:
    """``every``: the work between two checkpoints of a cell, such as ``60s``, ``10m``, ``1h`` or a
    number of steps; null: no checkpoints.
    """

    every: Any = bounded(Every(), "60s")


@dataclass
class TrackerConfig:
    """Where results are sent beside the store. ``sites``: the sites whose per-layer norms are sent.

    It holds no account key: trackers have settings of their own, so no record contains one.
    """

    name: str = bounded(OneOf((NONE, *TRACKERS)), NONE)
    mode: str = bounded(OneOf(TRACKER_MODES), "offline")
    project: str | None = None
    entity: str | None = None
    dir: str | None = bounded(A_FILE, None)
    sites: Any = bounded(SomeOf(SITES), "all")


@dataclass
class CellConfig:
    """One configuration trained once. ``expects``: what its experiment predicts."""

    name: str = bounded(PathPart())
    results_dir: str = bounded(A_FILE)
    plots_dir: str = bounded(A_FILE)
    device: str = bounded(OneOf(DEVICES))
    seed: int = bounded(SEED)
    precision: str = bounded(OneOf(PRECISIONS))
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    adapter: AdapterConfig = field(default_factory=AdapterConfig)
    optimizer: Any = MISSING
    train: TrainConfig = field(default_factory=TrainConfig)
    probes: ProbesConfig = field(default_factory=ProbesConfig)
    pack: PackConfig = field(default_factory=PackConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    tracker: TrackerConfig = field(default_factory=TrackerConfig)
    expects: list[Expectation] = field(default_factory=list)
