"""The typed configuration of a cell. Defaults and meanings are in ``conf/``."""

import math
from collections import ChainMap
from dataclasses import dataclass, field, make_dataclass
from functools import cache
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field

from study.config.expectations import read_entry
from study.config.values import (
    KEY,
    MISSING,
    Count,
    Positive,
    Real,
    Share,
    Whole,
    check_folder_name,
    interval,
    is_whole,
    one_of,
    read,
    some_of,
    whole_or,
)
from study.errors import StudyError, given, short, unknown
from study.vocabulary.extras import NONE, TRACKERS, TrackerRow
from study.vocabulary.inits import INITS
from study.vocabulary.optimizers import OPTIMIZERS, Option
from study.vocabulary.quantities import BATCHES, SITES, STATS
from study.vocabulary.scaling import FULL, RULES, gamma, named_rule, uses_crossover
from study.vocabulary.sources import AUTO, DATASETS, FORMATS, MODELS
from study.vocabulary.thresholds import MOST_RANK, MOST_STEPS

DEVICES = ("auto", "cpu", "cuda")
PRECISIONS = ("float32", "bf16")
QUANT_BITS = (8, 4)
SCHEDULES = ("constant", "linear", "cosine")
CONTRACTIONS = ("auto", "factored", "concatenated", "mixed", "merged")
TRACKER_MODES = ("offline", "online", "disabled")

# A sanity limit.
Few = Annotated[Count, Field(le=10**6)]
"""The most sequences, tokens, or passes over them."""


class Part:
    """A part of the configuration. Unknown keys are refused."""

    __pydantic_config__ = ConfigDict(
        extra="forbid",
        coerce_numbers_to_str=True,
        validate_default=True,
        revalidate_instances="always",
    )


def _check_rule(value: str) -> str:
    """A name of a rule, or a number, which :class:`AdapterConfig` makes the rule ``power``."""
    if named_rule(value)[0] not in RULES:
        choices = [name for name in RULES if name != FULL]  # adapter.rank=full gives it
        raise unknown(KEY, value, [*choices, "or a number: the p of alpha/r**p"])
    return value


def _check_rank(value: Any) -> Any:
    """A positive integer, ``full``, or infinity, which Hydra's command line reads and YAML does
    not."""
    if value == FULL:
        return FULL
    if value in (math.inf, "inf"):
        return math.inf
    if not is_whole(value) or not 1 <= value <= MOST_RANK:
        why = f"rank must be a positive integer up to {MOST_RANK}, full, or inf"
        raise StudyError(f"{KEY}={given(value)}: {why}")
    return value


def _check_modules(value: Any) -> Any:
    names = value if isinstance(value, list) else [value]
    if not names or not all(isinstance(name, str) and name for name in names):
        choices = "all-linear, attention, mlp, a list such as [q_proj,v_proj], or a regex"
        raise StudyError(f"{KEY}={short(value)} names no modules: give {choices}")
    return value


def _check_warmup(value: Any) -> Any:
    is_share = isinstance(value, float) and 0.0 <= value < 1.0
    if not is_share and not (is_whole(value) and 0 <= value <= MOST_STEPS):
        why = f"{KEY}={given(value)} is out of range"
        raise StudyError(f"{why}: give a whole number of steps, or a share from 0 to below 1")
    return value


def _check_interval(value: Any) -> Any:
    if value is not None:
        interval(KEY, value)
    return value


@dataclass
class ModelConfig(Part):
    name: Annotated[str, one_of(MODELS)] = MISSING
    path: str | None = None
    quant_bits: Annotated[int | None, one_of((None, *QUANT_BITS))] = None
    width: Annotated[Whole, Field(ge=8, le=1 << 14)] | None = None


CONTEXT = "{context}"
"""Placeholder in ``data.prompt`` for the question of a row."""


def _check_prompt(prompt: str) -> str:
    if CONTEXT not in prompt:
        raise StudyError(f"{KEY}={short(prompt)} has no {CONTEXT}: add it where the question goes")
    return prompt


@dataclass
class DataConfig(Part):
    name: Annotated[str, one_of(DATASETS)] = MISSING
    path: Any = None
    sequence_length: Annotated[Few, Field(ge=2)] = MISSING
    heldout: Count = MISSING
    seed: Whole = MISSING
    format: Annotated[str, one_of((AUTO, *FORMATS))] = AUTO
    chat_template: str | None = None
    split: str = "train"
    subset: str | None = None
    max_samples: Count | None = None
    prompt: Annotated[str, AfterValidator(_check_prompt)] | None = None
    excess_length_strategy: Annotated[str, one_of(("truncate", "drop"))] = "truncate"
    sample_packing: bool = False


@dataclass
class AdapterConfig(Part):
    """How a cell's adapters are scaled, drawn and computed. A number as the ``scaling`` becomes the
    rule ``power`` with that ``exponent``. Rules that do not use ``crossover`` have none.

    Rank ``full`` becomes rank infinity under the rule ``full``, whatever rule, alpha and init are
    given, so that a sweep over them trains it once."""

    rank: Annotated[Any, AfterValidator(_check_rank)] = MISSING
    alpha: Positive = MISSING
    scaling: Annotated[str, AfterValidator(_check_rule)] = MISSING
    exponent: Real | None = None
    crossover: Annotated[Real, Field(ge=0)] | None = None
    targets: Annotated[Any, AfterValidator(_check_modules)] = MISSING
    init: Annotated[str, one_of(INITS)] = MISSING
    dropout: Share = MISSING
    contraction: Annotated[str, one_of(CONTRACTIONS)] = "auto"
    path: str | None = None

    def __post_init__(self) -> None:
        if self.rank == "inf":  # of a record, which JSON holds
            self.rank = math.inf
        if self.rank == FULL:
            self.rank, self.scaling, self.exponent = math.inf, FULL, None
            self.alpha, self.init = 1.0, "kaiming"
        try:
            self.scaling, self.exponent = named_rule(self.scaling, self.exponent)
        except ValueError as error:
            raise StudyError(str(error)) from None
        if not uses_crossover(self.scaling):
            self.crossover = None
        elif self.crossover is None:
            raise StudyError(f"adapter.scaling={self.scaling} needs adapter.crossover: give 40")

    @property
    def gamma(self) -> float:
        """The full multiplier on ``B A``; at infinite rank 0, its limit; 1 for rank ``full``."""
        c = math.nan if self.crossover is None else self.crossover
        return gamma(self.scaling, self.alpha, self.rank, self.exponent, c)


@dataclass
class OptimizerConfig(Part):
    """Options of every optimizer. ``loraplus_lr_ratio``: B's learning rate over A's (LoRA+)."""

    name: str = MISSING
    lr: Annotated[Positive, Field(le=1e30)] = MISSING
    weight_decay: Annotated[Real, Field(ge=0)] = MISSING
    loraplus_lr_ratio: Annotated[Positive, Field(le=1e7)] = MISSING

    def __reduce__(self) -> tuple[Any, ...]:  # pickle finds no class that is made from a row
        return _made, (vars(self),)


def _option_type(option: Option) -> Any:
    if option.choices:
        return Annotated[option.type, one_of(option.choices)]
    limits = Field(ge=option.least, gt=option.above, lt=option.below, le=option.most)
    kind: Any = Whole if option.type is int else Real
    each: Any = Annotated[kind, limits]
    if option.length is None:
        return each
    return Annotated[list[each], Field(min_length=option.length, max_length=option.length)]


@cache
def optimizer_config(name: str) -> type[OptimizerConfig]:
    """The configuration type of an optimizer: :class:`OptimizerConfig` and its own options."""
    if name not in OPTIMIZERS:  # of another tool
        return OptimizerConfig
    options = [
        (key, _option_type(option), field(default=MISSING))
        for key, option in OPTIMIZERS[name].options.items()
    ]
    return make_dataclass(f"{name.capitalize()}Config", options, bases=(OptimizerConfig,))


def _made(options: dict[str, Any]) -> OptimizerConfig:
    return optimizer_config(options["name"])(**options)


def _read_optimizer(options: Any) -> OptimizerConfig:
    name = options.get("name") if isinstance(options, dict) else options
    if not isinstance(name, str) or name not in OPTIMIZERS:
        raise unknown("optimizer", name, OPTIMIZERS)
    return read(optimizer_config(name), options, "optimizer.")


def _read_expects(entries: Any) -> Any:
    if not isinstance(entries, list):
        return entries
    return [read_entry(entry, f"expects[{number}].") for number, entry in enumerate(entries)]


@dataclass
class TrainConfig(Part):
    steps: Annotated[Count, Field(le=MOST_STEPS)] = MISSING
    batch_size: Few = MISSING
    accumulation: Few = MISSING
    clip: Positive | None = None
    schedule: Annotated[str, one_of(SCHEDULES)] = MISSING
    warmup: Annotated[Any, AfterValidator(_check_warmup)] = MISSING
    eval_every: Annotated[Whole, Field(ge=0)] | None = None
    save_adapter: bool = False
    answer_tokens: Count | None = None
    example_losses: bool = False
    epochs: Annotated[Positive, Field(le=10**6)] | None = None
    shard: bool = False
    checkpointing: bool = False


@dataclass
class ProbesConfig(Part):
    every: Count | None = None
    steps: Any = None
    sites: Annotated[Any, some_of(SITES)] = "all"
    stats: Annotated[Any, some_of(STATS)] = "all"
    batch: Annotated[Any, some_of(BATCHES)] = "train"
    tokens: Few = MISSING
    truncations: Any = None


@dataclass
class PackConfig(Part):
    max_cells: Annotated[Any, whole_or(1, "auto", None)] = None
    devices: Count | None = None
    memory_gb: Annotated[Positive, Field(lt=1e9)] | None = None
    fold: Annotated[Any, whole_or(1, "auto")] = "auto"
    compile: bool = False
    padding_free: Annotated[Any, one_of((True, False, "auto"))] = "auto"


@dataclass
class CheckpointConfig(Part):
    """The work between two checkpoints of a cell (:func:`study.config.interval`)."""

    every: Annotated[Any, AfterValidator(_check_interval)] = "60s"


@dataclass
class TrackerConfig(Part):
    """Where results are sent in addition to the store. It holds no account key."""

    name: Annotated[str, one_of(ChainMap(TRACKERS, {NONE: TrackerRow("none")}))] = NONE
    mode: Annotated[str, one_of(TRACKER_MODES)] = "offline"
    project: str | None = None
    entity: str | None = None
    dir: str | None = None
    alerts: bool = False
    sites: Annotated[Any, some_of(SITES)] = "all"


@dataclass
class CellConfig:
    """One configuration trained once. ``expects``: predictions."""

    __pydantic_config__ = ConfigDict(coerce_numbers_to_str=True, validate_default=True)

    name: Annotated[str, AfterValidator(check_folder_name)] = MISSING
    results_dir: Annotated[str, Field(min_length=1)] = MISSING
    plots_dir: Annotated[str, Field(min_length=1)] = MISSING
    device: Annotated[str, one_of(DEVICES)] = MISSING
    seed: Whole = MISSING
    precision: Annotated[str, one_of(PRECISIONS)] = MISSING
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    adapter: AdapterConfig = field(default_factory=AdapterConfig)
    optimizer: Annotated[Any, BeforeValidator(_read_optimizer)] = MISSING
    train: TrainConfig = field(default_factory=TrainConfig)
    probes: ProbesConfig = field(default_factory=ProbesConfig)
    pack: PackConfig = field(default_factory=PackConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    tracker: TrackerConfig = field(default_factory=TrackerConfig)
    expects: Annotated[list[Any], BeforeValidator(_read_expects)] = field(default_factory=list)

    @property
    def bf16_form(self) -> str | None:
        """How a bf16 cell's products are computed, ``factored`` or ``concatenated``; None in
        float32. Only a dense weight can be concatenated: a quantised linear rounds its own
        output."""
        if self.precision != "bf16":
            return None
        is_factored = self.model.quant_bits or self.adapter.contraction == "factored"
        return "factored" if is_factored else "concatenated"
