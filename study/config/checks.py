"""From a composed Hydra config to a checked cell: every user mistake that can be seen without a model or data."""

import math
from dataclasses import fields
from importlib.util import find_spec
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from study.config.schedules import chosen, probe_steps, truncation_ranks
from study.config.types import (
    CONTRACTIONS,
    COUPLED_SIGN,
    DATASETS,
    DEVICES,
    LINEAR,
    MODELS,
    OPTIMIZERS,
    PRECISIONS,
    QUANT_BITS,
    SCHEDULES,
    TRACKER_MODES,
    TRACKERS,
    AdapterConfig,
    CellConfig,
    TrackerConfig,
)
from study.errors import StudyError, unknown
from study.vocabulary import scaling
from study.vocabulary.inits import INITS
from study.vocabulary.quantities import BATCHES, SITES, STATS, USUAL


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
        ("adapter.contraction", adapter.contraction, CONTRACTIONS),
        ("train.schedule", train.schedule, SCHEDULES),
        ("tracker", config.tracker.name, TRACKERS),
        ("tracker.mode", config.tracker.mode, TRACKER_MODES),
    ):
        if value not in choices:
            raise unknown(what, value, choices)
    if config.model.quant_bits not in (None, *QUANT_BITS):
        raise unknown("model.quant_bits", config.model.quant_bits, ("null", *QUANT_BITS))

    whole = (
        isinstance(adapter.rank, int) and not isinstance(adapter.rank, bool) and adapter.rank >= 1
    )
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
        if train.save_adapter:
            raise StudyError(
                "train.save_adapter=true at adapter.rank=inf: there are no factors to save"
            )
    if not 0.0 <= adapter.dropout < 1.0:
        raise StudyError(f"adapter.dropout={adapter.dropout} is no probability: give one in [0, 1)")
    if adapter.contraction in ("mixed", "merged") and (
        adapter.dropout or config.precision != "float32"
    ):
        cause = (
            f"adapter.dropout={adapter.dropout}"
            if adapter.dropout
            else f"precision={config.precision}"
        )
        raise StudyError(
            f"adapter.contraction={adapter.contraction} and {cause}: a merged weight has one input and is float32; "
            "use adapter.contraction=auto or factored"
        )

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
    _at_least("train.answer_tokens", train.answer_tokens, 1)
    if train.answer_tokens and train.eval_every == 0:
        raise StudyError(
            f"train.answer_tokens={train.answer_tokens}, but train.eval_every=0 never evaluates: set one to null"
        )
    _at_least("probes.every", probes.every, 1)
    _at_least("pack.max_cells", config.pack.max_cells, 1)
    if train.clip is not None:
        _finite("train.clip", train.clip, above=0.0)
    if config.pack.memory_gb is not None:
        _finite("pack.memory_gb", config.pack.memory_gb, above=0.0)
    if config.pack.fold != "auto":
        _at_least("pack.fold", config.pack.fold, 1)

    probe_steps(config)
    truncation_ranks(config)
    chosen("probes.sites", probes.sites, SITES)
    chosen("probes.stats", probes.stats, STATS, USUAL)
    chosen("probes.batch", probes.batch, BATCHES)
    _check_tracker(config.tracker)


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


def _check_tracker(tracker: TrackerConfig) -> None:
    chosen("tracker.sites", tracker.sites, SITES)
    if tracker.name == "wandb" and find_spec("wandb") is None:
        raise StudyError(
            "tracker=wandb needs Weights & Biases: pip install 'study[wandb]', or use tracker=none"
        )


def _finite(
    key: str, value: float, *, above: float | None = None, least: float | None = None
) -> None:
    if (
        not math.isfinite(value)
        or (above is not None and value <= above)
        or (least is not None and value < least)
    ):
        bound = f"above {above:g}" if above is not None else f"of at least {least:g}"
        raise StudyError(f"{key}={value} is out of range: give a finite number {bound}")


def _at_least(key: str, value: Any, least: int) -> None:
    if value is not None and (
        isinstance(value, bool) or not isinstance(value, int) or value < least
    ):
        raise StudyError(f"{key}={value} is out of range: give a whole number of at least {least}")
