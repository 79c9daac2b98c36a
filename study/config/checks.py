"""What concerns several fields of a cell, and needs neither its model nor its data.

The types and limits of single fields stand in :mod:`study.config.types`.
"""

import math
from importlib.util import find_spec
from typing import Any

from study.config.schedules import probe_steps, truncation_ranks
from study.config.types import MOST_EXPONENT, CellConfig
from study.config.values import LARGEST_FLOAT
from study.errors import StudyError
from study.vocabulary import scaling
from study.vocabulary.extras import install
from study.vocabulary.inits import INITS
from study.vocabulary.optimizers import MOST_USED, OPTIMIZERS, of_family
from study.vocabulary.trackers import TRACKERS


def validate(config: CellConfig) -> None:
    """Raises :class:`StudyError` for the first values that do not go together."""
    for number, expectation in enumerate(config.expects):
        expectation.check(f"expects[{number}].")
    for check in CHECKS:
        check(config)


def _check_scaling(config: CellConfig) -> None:
    if not abs(config.adapter.exponent or 0) <= MOST_EXPONENT:
        raise StudyError(
            f"adapter.exponent={config.adapter.exponent} is out of range: give a number from "
            f"-{MOST_EXPONENT} to {MOST_EXPONENT}"
        )
    try:
        scaling.exponent(config.adapter.scaling, config.adapter.exponent)
    except ValueError as error:
        raise StudyError(str(error)) from None
    if config.adapter.gamma > LARGEST_FLOAT:
        raise StudyError(
            f"adapter.alpha={config.adapter.alpha:g} at adapter.rank={config.adapter.rank} makes "
            f"gamma {config.adapter.gamma:g}, over {LARGEST_FLOAT:g}: lower adapter.alpha or "
            "raise adapter.exponent"
        )


def _check_infinite_rank(config: CellConfig) -> None:
    """Infinite rank is a run only where the finite ranks converge to one that moves."""
    adapter, optimizer = config.adapter, config.optimizer.name
    if adapter.rank != math.inf:
        return
    linear = of_family("linear")
    limited = [name for name, init in INITS.items() if init.q == 0]
    half = scaling.exponent(adapter.scaling, adapter.exponent) == 0.5
    if not half or optimizer not in linear or adapter.init not in limited:
        raise StudyError(
            f"adapter.rank=inf needs adapter.scaling=rslora, optimizer={'|'.join(linear)} and "
            f"adapter.init={'|'.join(limited)}, not {adapter.scaling}, {optimizer} and "
            f"{adapter.init}: finite ranks have no such limit there, so give a positive integer"
        )
    if config.train.save_adapter:
        raise StudyError(
            "train.save_adapter=true at adapter.rank=inf: there are no factors to save"
        )


def _check_contraction(config: CellConfig) -> None:
    adapter = config.adapter
    if adapter.contraction not in ("mixed", "merged"):
        return
    if adapter.dropout or config.precision != "float32":
        dropout = f"adapter.dropout={adapter.dropout}"
        cause = dropout if adapter.dropout else f"precision={config.precision}"
        raise StudyError(
            f"adapter.contraction={adapter.contraction} and {cause}: a merged weight has one input "
            "and is float32, so use adapter.contraction=auto or factored"
        )


def _check_decay(config: CellConfig) -> None:
    optimizer = config.optimizer
    row = OPTIMIZERS[optimizer.name]
    if row.family == "sign" and row.decay == "coupled" and optimizer.weight_decay:
        decoupled = [name for name in of_family("sign") if OPTIMIZERS[name].decay == "decoupled"]
        raise StudyError(
            f"optimizer.weight_decay={optimizer.weight_decay} under {optimizer.name} is added to "
            f"the gradient and replaces A's signal by sign(A): use optimizer={'|'.join(decoupled)} "
            "or optimizer.weight_decay=0"
        )


def _check_answers(config: CellConfig) -> None:
    train = config.train
    if train.answer_tokens and train.eval_every == 0:
        raise StudyError(
            f"train.answer_tokens={train.answer_tokens}, but train.eval_every=0 never evaluates: "
            "set one of them to null"
        )


def _check_shard(config: CellConfig) -> None:
    """``train.shard`` divides factors and batches, so what needs them whole is refused."""
    adapter, train, optimizer = config.adapter, config.train, config.optimizer.name
    whole = [name for name, row in OPTIMIZERS.items() if not row.elementwise]
    needs_whole = {
        f"optimizer={optimizer}": (
            optimizer in whole,
            "an optimizer other than " + ", ".join(whole),
        ),
        "adapter.rank=inf": (adapter.rank == math.inf, "a finite rank"),
        f"adapter.contraction={adapter.contraction}": (
            adapter.contraction not in ("auto", "factored"),
            "adapter.contraction=factored",
        ),
        f"adapter.dropout={adapter.dropout:g}": (adapter.dropout > 0, "adapter.dropout=0"),
        f"model.quant_bits={config.model.quant_bits}": (
            config.model.quant_bits is not None,
            "model.quant_bits=null",
        ),
        f"pack.fold={config.pack.fold}": (config.pack.fold not in ("auto", 1), "pack.fold=1"),
        f"pack.compile={_yaml(config.pack.compile)}": (config.pack.compile, "pack.compile=false"),
        f"train.answer_tokens={train.answer_tokens}": (
            train.answer_tokens is not None,
            "train.answer_tokens=null",
        ),
        "probes.truncations": (
            config.probes.truncations is not None,
            "probes.truncations=null",
        ),
    }
    for key, (is_asked, instead) in needs_whole.items():
        if train.shard and is_asked:
            raise StudyError(
                f"train.shard=true can't train with {key}: use {instead}, or train.shard=false"
            )


def _yaml(flag: Any) -> str:
    """``true``, ``false``, or a word as it is."""
    return str(flag).lower()


def _check_checkpointing(config: CellConfig) -> None:
    if config.train.checkpointing and config.adapter.dropout:
        raise StudyError(
            f"train.checkpointing=true and adapter.dropout={config.adapter.dropout:g}: a block "
            "that is computed again would draw another mask, so set one of them to false or 0"
        )
    if config.train.checkpointing and config.pack.compile:
        raise StudyError(
            f"train.checkpointing=true and pack.compile={_yaml(config.pack.compile)}: a compiled "
            "block chooses itself what it keeps, so set one of them to false"
        )


def _check_schedules(config: CellConfig) -> None:
    probe_steps(config)
    truncation_ranks(config)


def _check_tracker(config: CellConfig) -> None:
    row = TRACKERS.get(config.tracker.name)
    if row is not None and find_spec(row.module) is None:
        raise StudyError(
            f"tracker={config.tracker.name} needs the package {row.module}: {row.install}, or use "
            "tracker=none"
        )


def _check_optimizer(config: CellConfig) -> None:
    name = config.optimizer.name
    library = OPTIMIZERS[name].library
    if library and find_spec(library) is None:
        raise StudyError(
            f"optimizer={name} needs the package {library}: {install('optimizers')}, or use "
            f"optimizer={MOST_USED}"
        )


CHECKS = (
    _check_optimizer,
    _check_scaling,
    _check_infinite_rank,
    _check_contraction,
    _check_decay,
    _check_answers,
    _check_shard,
    _check_checkpointing,
    _check_schedules,
    _check_tracker,
)
