"""``study train --plan``: the cost of a sweep. Trains nothing.

``--plan`` alone plans for this machine: it reads the data and measures the speed of products.
``--plan=h100`` estimates the cost on a GPU that you need not have. It assumes full sequences in
which every token is a target, an upper bound for shorter rows.
"""

from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta

from rich.table import Table

from study.errors import count_noun, unknown
from study.sweeps.cells import Cell, data_name
from study.sweeps.estimate import (
    ACHIEVED_SHARE,
    LAUNCH,
    MEMORY_SHARE,
    Estimate,
    fold_bytes,
    full_estimate,
    memory_budget,
)
from study.sweeps.launch import announce
from study.sweeps.packs import Pack, folds, prepare
from study.sweeps.progress import table_lines
from study.training.devices import matmul_rate
from study.vocabulary.sources import DEVICES, MATMUL_SHARE

GIB = 2**30


def show_plan(cells: Sequence[Cell], packs: Sequence[Sequence[Cell]], name: str = "") -> None:
    """Print FLOPs, folds, memory and time, on a device of :data:`DEVICES` or this machine."""
    if name and name not in DEVICES:
        raise unknown("device of --plan", name, DEVICES)
    announce(cells, packs)
    todo = [cell for pack in packs for cell in pack]
    if not todo:
        return
    if name:
        row = DEVICES[name]
        memory = MEMORY_SHARE["cuda"] * row.gib * GIB
        rates = {p: MATMUL_SHARE * 1e12 * getattr(row, p) for p in ("bf16", "float32")}
        needs = [(cell, full_estimate(cell.config, cell.card)) for cell in todo]
        notes = [
            f"assumed: {row.label} with {row.gib:g} GiB; {MATMUL_SHARE:.0%} of the data sheet's "
            f"peak ({row.bf16:g} TFLOP/s in bf16, {row.float32:g} in float32) in large products, "
            f"and {ACHIEVED_SHARE:.0%} of that in a step, or {LAUNCH * 1e6:.0f} us an operation; "
            "every sequence is full; loading is not counted"
        ]
    else:
        prepared = [prepare(pack) for pack in packs]
        device, name = prepared[0].device, prepared[0].device.type
        memory = memory_budget(todo[0].config, device)
        rates = {p: matmul_rate(device, p) for p in sorted({c.config.precision for c in todo})}
        speeds = (f"{rate / 1e9:.0f} GFLOP/s in large {p} products" for p, rate in rates.items())
        estimates = {id_: need for pack in prepared for id_, need in pack.needs.items()}
        divided = [fold for pack in prepared for fold in folds(pack)]
        needs = [(cell, estimates[cell.id].in_fold(len(fold))) for fold in divided for cell in fold]
        most = max(fold_bytes([estimates[cell.id] for cell in fold]) for fold in divided) / GIB
        notes = [
            f"{count_noun(len(divided), 'fold')} of up to {max(map(len, divided))} cells in a "
            f"forward pass, which takes up to {most:.3g} GiB",
            f"a process may use {memory / GIB:.3g} GiB; measured: {', '.join(speeds)}; "
            f"{ACHIEVED_SHARE:.0%} of that is taken for a step",
            *dict.fromkeys(line for pack in prepared for line in _data_lines(pack)),
        ]
    print("\n".join([*_price_lines(needs, name, memory, rates), *notes]))


def _price_lines(
    needs: Sequence[tuple[Cell, Estimate]], name: str, memory: float, rates: Mapping[str, float]
) -> Iterator[str]:
    """A table with a line for each rank. ``rates``: FLOP/s in large products, by precision."""
    columns = ("rank", "cells", "PFLOP a cell", "base GiB", "adapter GiB", "activations GiB")
    table = Table(*columns, "all GiB", "time a cell", box=None)
    fit: list[float] = []
    for rank in sorted({cell.config.adapter.rank for cell, _ in needs}):
        own = [(cell, need) for cell, need in needs if cell.config.adapter.rank == rank]
        seconds = [need.seconds(rates[cell.config.precision]) for cell, need in own]
        sizes = [fold_bytes([need]) for _, need in own]
        fit += [each for each, size in zip(seconds, sizes, strict=True) if size <= memory]
        need = own[sizes.index(max(sizes))][1]
        adapters = need.own_bytes - need.activation_bytes
        parts = (need.base_bytes, adapters, need.activation_bytes, max(sizes))
        numbers = [f"{need.flops / 1e15:.3g}", *(f"{size / GIB:.3g}" for size in parts)]
        table.add_row(f"{rank:.0f}", str(len(own)), *numbers, _duration(max(seconds)))
    yield from table_lines(table)
    yield f"{len(fit)} of {count_noun(len(needs), 'cell')} fit one {name}: {_duration(sum(fit))}"
    if len(fit) < len(needs):
        yield (
            "others are too large: train.shard=true divides a cell over devices; "
            "train.checkpointing=true keeps fewer activations, and computes each block again"
        )


def _data_lines(pack: Pack) -> Iterator[str]:
    """The data of a pack: its rows, those that don't fit, and the steps of its epochs."""
    rows, data, train = pack.corpus.rows, pack.config.data, pack.config.train
    form = f" of data.format={rows['format']}" if rows["format"] else ""
    packed = f", packed into {rows['packed']} rows," if "packed" in rows else ""
    yield (
        f"data {data_name(data)}: {rows['train']} rows{form}{packed} to train on and "
        f"{rows['heldout']} held out; {rows['cut']} are cut to {data.sequence_length} tokens, "
        f"{rows['dropped']} are skipped without target tokens"
    )
    if train.epochs is not None:
        yield (
            f"train.epochs={train.epochs:g}: {train.steps} steps of "
            f"{train.batch_size * train.accumulation} rows; train.steps is ignored"
        )


def _duration(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
