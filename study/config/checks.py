"""Checks of several fields of a cell that need neither its model nor its data."""

import math
from collections.abc import Iterator
from importlib.util import find_spec

from study.config.expectations import check_entries
from study.config.schedules import probe_steps, truncation_ranks
from study.config.types import CellConfig
from study.errors import StudyError
from study.vocabulary.extras import TRACKERS, install
from study.vocabulary.inits import INITS
from study.vocabulary.optimizers import MOST_USED, OPTIMIZERS, of_family
from study.vocabulary.scaling import FULL, exponent


def validate(config: CellConfig) -> None:
    """Raises :class:`StudyError` for the first values that do not go together."""
    check_entries(config.expects)
    for conflicts in (_in_packages, _in_adapter, _in_training, _in_sharding):
        if line := next(conflicts(config), None):
            raise StudyError(line)
    probe_steps(config)
    truncation_ranks(config)


def _in_packages(config: CellConfig) -> Iterator[str]:
    name, tracker = config.optimizer.name, config.tracker.name
    library = OPTIMIZERS[name].library
    if library and find_spec(library) is None:
        how = f"{install('optimizers')}, or use optimizer={MOST_USED}"
        yield f"optimizer={name} needs the package {library}: {how}"
    if tracker in TRACKERS and find_spec(tracker) is None:
        how = f"pip install {tracker}, or use tracker=none"
        yield f"tracker={tracker} needs the package {tracker}: {how}"


def _in_adapter(config: CellConfig) -> Iterator[str]:
    adapter, optimizer = config.adapter, config.optimizer
    try:
        p = exponent(adapter.scaling, adapter.exponent)
    except ValueError as error:
        yield str(error)
        return
    if adapter.scaling == FULL:
        yield from _in_full(config)
    elif adapter.rank == math.inf:
        linear = of_family("linear")
        limited = [name for name, init in INITS.items() if init.q == 0]
        if p != 0.5 or optimizer.name not in linear or adapter.init not in limited:
            yield (
                f"adapter.rank=inf needs adapter.scaling=rslora, optimizer={'|'.join(linear)} and "
                f"adapter.init={'|'.join(limited)}: finite ranks have no limit without them"
            )
    if adapter.rank == math.inf and config.train.save_adapter:
        rank = "full" if adapter.scaling == FULL else "inf"
        yield f"train.save_adapter=true at adapter.rank={rank}: there are no factors to save"
    if adapter.contraction == "concatenated" and config.bf16_form != "concatenated":
        why = "adapter.contraction=concatenated: it is for bf16 weights"
        yield f"{why}, so use adapter.contraction=auto"
    is_plain = adapter.dropout == 0 and config.precision == "float32"
    if adapter.contraction in ("mixed", "merged") and not is_plain:
        why = f"adapter.contraction={adapter.contraction} needs float32 and adapter.dropout=0"
        yield f"{why}: use adapter.contraction=auto or factored"


def _in_full(config: CellConfig) -> Iterator[str]:
    """Options of an adapter that full fine-tuning does not have."""
    adapter, optimizer = config.adapter, config.optimizer
    if adapter.rank != math.inf:
        yield "adapter.scaling=full: give adapter.rank=full, with any scaling"
    if adapter.dropout:
        yield f"adapter.rank=full has no adapter.dropout={adapter.dropout:g}: use 0"
    if optimizer.loraplus_lr_ratio != 1:
        ratio = optimizer.loraplus_lr_ratio
        yield f"adapter.rank=full has no optimizer.loraplus_lr_ratio={ratio:g}: use 1"
    if optimizer.weight_decay:
        decay = optimizer.weight_decay
        why = "it would decay the change of the weights, not the weights"
        yield f"adapter.rank=full with optimizer.weight_decay={decay:g}: {why}: use 0"


def _in_training(config: CellConfig) -> Iterator[str]:
    train, optimizer, dropout = config.train, config.optimizer, config.adapter.dropout
    row = OPTIMIZERS[optimizer.name]
    if row.family == "sign" and row.decay == "coupled" and optimizer.weight_decay:
        decoupled = [name for name in of_family("sign") if OPTIMIZERS[name].decay == "decoupled"]
        why = f"optimizer.weight_decay under {optimizer.name} replaces A's signal by sign(A)"
        yield f"{why}: use optimizer={'|'.join(decoupled)} or optimizer.weight_decay=0"
    if train.eval_every == 0 and (train.example_losses or train.answer_tokens):
        measured = "train.answer_tokens" if train.answer_tokens else "train.example_losses"
        yield f"{measured} needs train.eval_every=null or above 0: 0 never evaluates"
    if train.checkpointing and dropout:
        why = "train.checkpointing=true and adapter.dropout: a second pass draws other masks"
        yield f"{why}: set one of them to false or 0"
    if config.data.sample_packing and config.pack.compile:
        yield "data.sample_packing=true and pack.compile=true: set one of them to false"
    if train.checkpointing and config.pack.compile:
        yield "train.checkpointing=true and pack.compile=true: set one of them to false"


def _in_sharding(config: CellConfig) -> Iterator[str]:
    """``train.shard`` divides factors and batches. Refuse options that need them whole."""
    adapter, optimizer = config.adapter, config.optimizer.name
    bits, fold = config.model.quant_bits, config.pack.fold
    compiled, answers = str(config.pack.compile).lower(), config.train.answer_tokens
    whole = ", ".join(name for name, row in OPTIMIZERS.items() if not row.elementwise)
    needs_whole = {
        f"optimizer={optimizer}: use one other than {whole}": not OPTIMIZERS[optimizer].elementwise,
        f"adapter.rank={'full' if adapter.scaling == FULL else 'inf'}: use a finite rank": (
            adapter.rank == math.inf
        ),
        f"adapter.contraction={adapter.contraction}: use factored": (
            adapter.contraction in ("mixed", "merged")
        ),
        f"adapter.dropout={adapter.dropout:g}: use 0": adapter.dropout > 0,
        f"model.quant_bits={bits}: use null": bits is not None,
        "data.sample_packing=true: use false": config.data.sample_packing,
        f"pack.fold={fold}: use 1": fold not in ("auto", 1),
        f"pack.compile={compiled}: use false": config.pack.compile,
        f"train.answer_tokens={answers}: use null": answers is not None,
        "train.example_losses=true: use false": config.train.example_losses,
        "probes.truncations: use null": config.probes.truncations is not None,
    }
    for key, is_asked in needs_whole.items():
        if config.train.shard and is_asked:
            yield f"train.shard=true can't train with {key}, or train.shard=false"
