"""What a cell is: the typed configuration, its validation and its identity.

The defaults live in ``conf/``, where users read them; the types live here. A composed Hydra config becomes a
:class:`CellConfig` by :func:`parse`, and every user mistake that can be seen without a model or data is caught there.
"""

import hashlib
import json
import math
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from study import scaling
from study.errors import StudyError, unknown
from study.inits import INITS
from study.sites import BATCHES, SITES, STATS, USUAL

IDENTITY_VERSION = 1

MODELS = ("smollm2", "hf", "tiny")
DATASETS = ("pydoc", "xbrl_extract", "jsonl")
DEVICES = ("auto", "cpu", "cuda")
PRECISIONS = ("float32", "bf16")
SCHEDULES = ("constant", "linear", "cosine")


@dataclass
class ModelConfig:
    """The frozen base. ``path`` is a folder or hub name; ``smollm2`` and ``tiny`` do without."""

    name: str = MISSING
    path: str | None = None


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

    ``rank`` is a whole number, or ``math.inf``: the limit that SGD at p = 1/2 has (:mod:`study.limits`).
    """

    rank: Any = MISSING
    alpha: float = MISSING
    scaling: str = MISSING
    exponent: float | None = None
    targets: Any = MISSING
    init: str = MISSING
    dropout: float = MISSING

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
"""Optimizers linear in weights and gradients: they converge as rsLoRA's rank grows (:mod:`study.limits`)."""
COUPLED_SIGN = ("adam", "rmsprop")
"""Sign-like optimizers whose weight decay is added to the gradient: it would replace A's signal by sign(A)."""


@dataclass
class TrainConfig:
    """``clip`` is a global gradient norm (null: none); ``eval_every`` null evaluates first and last, 0 never."""

    steps: int = MISSING
    batch_size: int = MISSING
    accumulation: int = MISSING
    clip: float | None = None
    schedule: str = MISSING
    warmup: int = MISSING
    eval_every: int | None = None


@dataclass
class ProbesConfig:
    """When to measure (``every`` n steps, or ``steps``: a list or ``log``; both null: never), what, on which batch."""

    every: int | None = None
    steps: Any = None
    sites: Any = "all"
    stats: Any = "all"
    batch: Any = "train"
    tokens: int = MISSING


@dataclass
class PackConfig:
    """How cells share a process (``max_cells``) and a forward pass (``fold``: an int or ``auto``)."""

    max_cells: int | None = None
    fold: Any = "auto"


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


def parse(composed: DictConfig) -> CellConfig:
    """A composed Hydra config as a checked cell: :func:`typed`, then :func:`checked`."""
    return checked(typed(composed))


def typed(composed: DictConfig) -> DictConfig:
    """A composed Hydra config under our types: whatever is set in it from now on is converted or refused.

    Raises :class:`StudyError`, one line, for a value of the wrong type.
    """
    known = {f.name for f in fields(CellConfig)}
    plain = OmegaConf.masked_copy(composed, [str(key) for key in composed if str(key) in known])
    try:
        optimizer = OmegaConf.select(plain, "optimizer.name")
        if optimizer not in OPTIMIZERS:
            raise unknown("optimizer", optimizer, OPTIMIZERS)
        schema = OmegaConf.structured(CellConfig)
        schema.optimizer = OmegaConf.structured(OPTIMIZERS[optimizer])
        return OmegaConf.merge(schema, plain)  # type: ignore[return-value]
    except OmegaConfBaseException as error:
        raise StudyError(_first_line(error)) from error


def checked(config: DictConfig) -> CellConfig:
    """The cell of a typed config. Raises :class:`StudyError`, one line, for a value that is missing or out of range."""
    if missing := sorted(OmegaConf.missing_keys(config)):
        raise StudyError(f"{missing[0]} is not set: give {missing[0]}=... on the command line")
    try:
        cell: CellConfig = OmegaConf.to_object(config)  # type: ignore[assignment]
    except OmegaConfBaseException as error:
        raise StudyError(_first_line(error)) from error
    validate(cell)
    return cell


def _first_line(error: OmegaConfBaseException) -> str:
    """OmegaConf's own first line, led by the key it is about."""
    line = str(error).splitlines()[0]
    key = error.full_key
    return f"{key}: {line}" if key and key not in line else line


def validate(config: CellConfig) -> None:
    """Check every value that needs neither a model nor data; raises :class:`StudyError` at the first bad one."""
    adapter, train, probes = config.adapter, config.train, config.probes
    for what, value, choices in (
        ("model", config.model.name, MODELS),
        ("data", config.data.name, DATASETS),
        ("device", config.device, DEVICES),
        ("precision", config.precision, PRECISIONS),
        ("adapter.init", adapter.init, INITS),
        ("train.schedule", train.schedule, SCHEDULES),
    ):
        if value not in choices:
            raise unknown(what, value, choices)

    whole = isinstance(adapter.rank, int) and not isinstance(adapter.rank, bool) and adapter.rank >= 1
    if not whole and adapter.rank != math.inf:
        raise StudyError(
            f"adapter.rank={adapter.rank} is no rank: give a whole number from 1 up, such as adapter.rank=16, or inf"
        )
    _finite("adapter.alpha", adapter.alpha, above=0.0)
    try:
        scaling.exponent(adapter.scaling, adapter.exponent)
    except ValueError as error:
        raise StudyError(str(error)) from None
    if adapter.rank == math.inf:
        _check_has_limit(adapter, config.optimizer.name)
    if not 0.0 <= adapter.dropout < 1.0:
        raise StudyError(f"adapter.dropout={adapter.dropout} is no probability: give one in [0, 1)")

    _finite("optimizer.lr", config.optimizer.lr, above=0.0)
    _finite("optimizer.loraplus_lr_ratio", config.optimizer.loraplus_lr_ratio, above=0.0)
    if config.optimizer.name in COUPLED_SIGN and config.optimizer.weight_decay:
        raise StudyError(
            f"optimizer.weight_decay={config.optimizer.weight_decay} under {config.optimizer.name} is added to the "
            "gradient and replaces A's signal by sign(A): use optimizer=adamw or optimizer.weight_decay=0"
        )
    for f in fields(config.optimizer):
        value = getattr(config.optimizer, f.name)
        if f.name not in ("name", "lr", "decay_rate"):
            for number in value if isinstance(value, list) else [value]:
                if isinstance(number, float):
                    _finite(f"optimizer.{f.name}", number, least=0.0)

    for key, least in (("steps", 1), ("batch_size", 1), ("accumulation", 1), ("warmup", 0)):
        _at_least(f"train.{key}", getattr(train, key), least)
    _at_least("data.sequence_length", config.data.sequence_length, 2)
    _at_least("data.heldout", config.data.heldout, 1)
    _at_least("probes.tokens", probes.tokens, 1)
    _at_least("train.eval_every", train.eval_every, 0)
    _at_least("probes.every", probes.every, 1)
    _at_least("pack.max_cells", config.pack.max_cells, 1)
    if train.clip is not None:
        _finite("train.clip", train.clip, above=0.0)
    if config.pack.fold != "auto":
        _at_least("pack.fold", config.pack.fold, 1)

    probe_steps(config)
    chosen("probes.sites", probes.sites, SITES)
    chosen("probes.stats", probes.stats, STATS, USUAL)
    chosen("probes.batch", probes.batch, BATCHES)


def _check_has_limit(adapter: AdapterConfig, optimizer: str) -> None:
    """Infinite rank is a run only where the finite ranks converge to one that moves."""
    limited = [name for name, init in INITS.items() if init.q == 0]
    half = scaling.exponent(adapter.scaling, adapter.exponent) == 0.5
    if not half or optimizer not in LINEAR or adapter.init not in limited:
        raise StudyError(
            f"adapter.rank=inf needs adapter.scaling=rslora, optimizer={'|'.join(LINEAR)} and "
            f"adapter.init={'|'.join(limited)}, not {adapter.scaling}, {optimizer} and {adapter.init}: "
            "finite ranks have no such limit there, give a whole number as adapter.rank"
        )


def _finite(key: str, value: float, *, above: float | None = None, least: float | None = None) -> None:
    if not math.isfinite(value) or (above is not None and value <= above) or (least is not None and value < least):
        bound = f"above {above:g}" if above is not None else f"of at least {least:g}"
        raise StudyError(f"{key}={value} is out of range: give a finite number {bound}")


def _at_least(key: str, value: Any, least: int) -> None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < least):
        raise StudyError(f"{key}={value} is out of range: give a whole number of at least {least}")


def chosen(key: str, value: Any, choices: tuple[str, ...], usual: tuple[str, ...] | None = None) -> tuple[str, ...]:
    """The members of ``choices`` that ``value`` (``all``, one name or a list) asks for, in the order of ``choices``.

    ``all`` may stand in a list beside other names and means ``usual``, by default every choice.
    """
    wanted = [value] if isinstance(value, str) else list(value)
    for name in wanted:
        if name not in ("all", *choices):
            raise unknown(key, name, ("all", *choices))
    everything = (choices if usual is None else usual) if "all" in wanted else ()
    return tuple(name for name in choices if name in wanted or name in everything)


def probe_steps(config: CellConfig) -> tuple[int, ...]:
    """The steps that are measured, ascending; listed steps beyond the end of the run are left out."""
    probes, last = config.probes, config.train.steps
    if probes.every is not None and probes.steps is not None:
        raise StudyError(f"probes.every={probes.every} and probes.steps={probes.steps} are both set: set one to null")
    if probes.every is not None:
        return tuple(sorted({*range(0, last + 1, probes.every), last}))
    if probes.steps is None:
        return ()
    if probes.steps == "log":
        return tuple(sorted({0, last, *(2**i for i in range(last.bit_length()) if 2**i <= last)}))
    listed = [probes.steps] if isinstance(probes.steps, int) else probes.steps
    if isinstance(listed, str) or not all(isinstance(s, int) and not isinstance(s, bool) and s >= 0 for s in listed):
        raise StudyError(f"probes.steps={probes.steps} is no schedule: give 'log' or a list of steps such as [0,1,2,4]")
    return tuple(sorted({s for s in listed if s <= last}))


def eval_steps(config: CellConfig) -> frozenset[int]:
    """The steps at which the held-out loss is taken: the first, the last and every ``train.eval_every``-th; 0: none."""
    last, every = config.train.steps, config.train.eval_every
    if every == 0:
        return frozenset()
    return frozenset({0, last} | (set(range(0, last + 1, every)) if every else set()))


@dataclass(frozen=True)
class Sources:
    """Hashes of what a cell reads: the base's weights, its tokenizer and the examples (sha256, hex)."""

    model: str
    tokenizer: str
    data: str


def identity(config: CellConfig, sources: Sources) -> str:
    """The cell's id: 12 hex digits over everything that moves its trajectory or its tables, and over nothing else.

    Device, packing, launcher and paths are left out: the same identity means the same result within rounding.
    """
    adapter = asdict(config.adapter)
    if config.adapter.rank == math.inf:
        adapter["rank"] = "inf"  # JSON has no infinity
    if not isinstance(config.adapter.targets, str):
        adapter["targets"] = sorted(config.adapter.targets)
    matters = {
        "identity_version": IDENTITY_VERSION,
        "sources": asdict(sources),
        "sequence_length": config.data.sequence_length,
        "heldout": config.data.heldout,
        "adapter": adapter,
        "optimizer": asdict(config.optimizer),
        "train": {k: v for k, v in asdict(config.train).items() if k != "eval_every"},
        "eval_steps": sorted(eval_steps(config)),
        "seed": config.seed,
        "data_seed": config.data.seed,
        "precision": config.precision,
        "probes": {
            "steps": probe_steps(config),
            "sites": chosen("probes.sites", config.probes.sites, SITES),
            "stats": chosen("probes.stats", config.probes.stats, STATS, USUAL),
            "batch": chosen("probes.batch", config.probes.batch, BATCHES),
            "tokens": config.probes.tokens,
        },
    }
    canonical = json.dumps(matters, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:12]
