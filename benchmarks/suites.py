"""How each suite is timed: one generator for each, which yields rows as they are measured.

A row has ``suite``, ``way``, ``rank``, ``scaling``, ``precision``, ``variant``, the ``tokens`` and
``micro_batches`` of a step, and ``seconds``: of one optimizer step, or of what ``variant`` says.
Ways take turns, cell by cell, in a rotating order, so that a slower moment of the machine affects
all of them.
"""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from itertools import product
from multiprocessing import get_context
from typing import Any, TypeVar

import torch

from study.adapters import adapted, resolve_targets
from study.adapters.contraction import adapter_flops
from study.config import CellConfig
from study.probes import NormProbe
from study.training.devices import (
    choose_device,
    describe_device,
    keep_freed_memory,
    measure_matmul_rate,
)
from study.training.loop import Fold
from study.training.run import Run
from study.vocabulary.quantities import GRADIENTS, NOISE_SITES, SITES, SPECTRA, UPDATES, USUAL

from .commands import SUITES
from .products import Products
from .summary import PLAIN
from .ways import WAYS, TimedRun, base_and_corpus, cell, check_agreement, packed, whole_pack

RULES = ("lora", "rslora")
Row = dict[str, Any]
T = TypeVar("T")
PEAK_SIDE = {"cpu": 2048, "cuda": 8192}
"""Of the square product, by device: large enough that a larger one is no faster."""


@dataclass(frozen=True)
class Size:
    """The model, the ranks of a sweep, the optimizer steps of a run, the device and the precision.

    The suite ``bf16`` has precisions of its own.
    """

    model: str
    ranks: Sequence[int]
    steps: int
    device: str = "auto"
    precision: str = "float32"

    def cell(self, tokens: int, rank: int, *overrides: str) -> CellConfig:
        """A cell of ``tokens`` in a step: sequences of 256, micro-batches of at most 4096."""
        length = min(256, tokens)
        batch = min(tokens, 4096) // length
        return cell(
            f"model={self.model}",
            f"device={self.device}",
            f"precision={self.precision}",
            f"adapter.rank={rank}",
            f"data.sequence_length={length}",
            f"train.batch_size={batch}",
            f"train.accumulation={tokens // (batch * length)}",
            f"train.steps={self.steps}",
            *overrides,
        )


def whole_sweep(size: Size) -> Iterator[Row]:
    """The suite ``sweep``."""
    grid = product(size.ranks, RULES)
    cells = [size.cell(1024, rank, f"adapter.scaling={rule}") for rank, rule in grid]
    yield from _compare("sweep", ["trainer", "loop", "alone", "packed"], cells)


def large_steps(size: Size) -> Iterator[Row]:
    """The suite ``large-steps``.

    One rule is enough: it does not change the time. Each run has a process of its own, because at
    high rank it takes most of a machine with 24 GiB.
    """
    cells = [size.cell(4096, rank) for rank in size.ranks]
    yield from _compare("large-steps", ["loop", "packed"], cells, apart=True)


def compiled_steps(size: Size) -> Iterator[Row]:
    """The suite ``compiled``."""
    cells = [size.cell(1024, rank, "train.steps=5") for rank in size.ranks]
    yield from _compare("compiled", ["loop", "packed", "compiled"], cells)


WITHOUT_SPECTRA = tuple(stat for stat in USUAL if stat not in SPECTRA)
ASKED: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    PLAIN: ((), ()),
    "all sites": (tuple(SITES), WITHOUT_SPECTRA),
    "all sites and spectra": (tuple(SITES), USUAL),
    "activations": (("adapter_in", "layer_out", "layer_out_grad"), WITHOUT_SPECTRA),
    "sampled tokens": (NOISE_SITES, WITHOUT_SPECTRA),
    "delta_w": (("delta_w",), WITHOUT_SPECTRA),
    "A and B": (("A", "B"), WITHOUT_SPECTRA),
    "gradients": (GRADIENTS, WITHOUT_SPECTRA),
    "updates": ((*UPDATES, "adapter_update"), WITHOUT_SPECTRA),
}
"""The sites and stats of each kind of step, by name."""


def probed_steps(config: CellConfig, turns: int) -> Iterator[tuple[str, float]]:
    """Names of :data:`ASKED` with the seconds of a step, in turn.

    The first step of all, which also gets the memory, is not timed.
    """
    keep_freed_memory()
    base, corpus = base_and_corpus(config)
    run = Run.of(config, corpus, base.device)
    layers = resolve_targets(base.card.targets, config.adapter.targets)
    with adapted(base.model, layers, [run.adapter], contraction=run.contraction) as banks:
        fold = Fold(base, corpus, [config], banks)
        _seconds(fold, "all sites and spectra")
        for _ in range(turns):
            for name in ASKED:
                yield name, _seconds(fold, name)


def _seconds(fold: Fold, name: str) -> float:
    """Of a step as :func:`study.training.loop.train` does it. The numbers are not read."""
    sites, stats = ASKED[name]
    began = time.perf_counter()
    probe = NormProbe(fold.base.model, sites=sites, stats=stats) if sites else None
    fold.mark_diverged(fold.backward(0, probe), fold.grad_norms())
    if probe:
        probe.before_update()
    factor_K = fold.update()
    if probe:
        probe.after_update(factor_K.float())
        probe.send(0)
    if fold.base.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


PROBES: dict[str, list[str]] = {
    "off": ["probes.steps=null"],
    "activations, every step": [
        "probes.every=1",
        "probes.sites=[adapter_in,layer_out,layer_out_grad]",
    ],
    "all sites, every 10 steps": ["probes.every=10"],
    "all sites, every step": ["probes.every=1"],
}
"""The runs of the suite ``probes``."""
PROBED_RANKS, PROBED_TOKENS, TURNS = (16, 1024), (192, 1024), 3
"""The single steps of the suite ``probes``."""


def probes(size: Size) -> Iterator[Row]:
    """The suite ``probes``: whole runs, then single steps by what is measured in them.

    Rows of steps have the way ``fold``: a step without what else a run does.
    """
    for _ in range(TURNS):
        for variant, overrides in PROBES.items():
            config = size.cell(1024, size.ranks[1], "train.steps=20", *overrides)
            run = packed(config)
            yield _row("probes", run.way, config, sum(run.steps), variant=variant)
    for rank, tokens in product(PROBED_RANKS, PROBED_TOKENS):
        config = size.cell(tokens, rank)
        for asked, seconds in probed_steps(config, TURNS):
            yield _row("probes", "fold", config, seconds, variant=asked)


def bf16(size: Size) -> Iterator[Row]:
    """The suite ``bf16``."""
    for rank in (*(r for r in size.ranks if r <= 64), size.ranks[-1]):
        yield from _compare("bf16", ["packed"], [size.cell(1024, rank, "precision=float32")])
        yield from _compare("bf16", ["loop", "packed"], [size.cell(1024, rank, "precision=bf16")])


def folds(size: Size) -> Iterator[Row]:
    """The suite ``folds``."""
    grid = [
        size.cell(1024, rank, f"adapter.scaling={rule}")
        for rank, rule in product(size.ranks, RULES)
    ]
    for _ in range(3):
        for way, fold in (("packed", 1), ("folded", "auto")):
            seconds = whole_pack(grid, fold)
            yield _row("folds", way, grid[0], seconds, variant=f"{len(grid)} cells")


RUNS: dict[str, Callable[[Size], Iterator[Row]]] = {
    "sweep": whole_sweep,
    "large-steps": large_steps,
    "compiled": compiled_steps,
    "probes": probes,
    "bf16": bf16,
    "folds": folds,
}
"""The generator of each of :data:`benchmarks.commands.SUITES`."""


def rows_of(suite: str, size: Size) -> list[Row]:
    """All rows of a suite. Each is also printed to stderr when it is measured."""
    print(f"{suite}: {SUITES[suite]}", file=sys.stderr, flush=True)
    rows = []
    for row in RUNS[suite](size):
        rows.append(row)
        if row["variant"] != "set-up":
            line = (
                "  {way:8} rank {rank:5} {scaling:6} {tokens:6} tokens {precision} {variant}: "
                "{seconds:.2f} s"
            )
            print(line.format(**row), file=sys.stderr, flush=True)
    return rows


def device_name(size: Size) -> str:
    """The machine's name, for the head of the table."""
    found = describe_device(choose_device(size.device))
    return f"{found['device_name']}, {found['threads']} threads, torch {torch.__version__}"


def _compare(
    suite: str,
    ways: Sequence[str],
    cells: Sequence[CellConfig],
    apart: bool = False,
) -> Iterator[Row]:
    """Every cell in every way: a row for each step and one for the set-up.

    ``apart``: each run has a process of its own.

    Raises ``SystemExit`` if the ways reach different losses.
    """
    for turn, config in enumerate(cells):
        order = [*ways[turn % len(ways) :], *ways[: turn % len(ways)]]
        measured = in_own_process if apart else _call
        runs: list[TimedRun] = [measured(WAYS[way], config) for way in order]
        check_agreement(runs, config.precision)
        limits = measured(step_limits, config)
        for run in runs:
            shared = {"micro_batches": run.micro_batches}
            yield _row(suite, run.way, config, run.setup, variant="set-up", **shared)
            for step, seconds in enumerate(run.steps):
                # The first step also touches memory for the first time. It counts in the time of a
                # sweep, not in the median of a step.
                variant = "first step" if step == 0 else "step"
                yield _row(suite, run.way, config, seconds, variant=variant, **shared, **limits)


def _row(
    suite: str, way: str, config: CellConfig, seconds: float, *, variant: str, **more: float
) -> Row:
    step = config.train
    return {
        "suite": suite,
        "way": way,
        "rank": int(config.adapter.rank),
        "scaling": config.adapter.scaling,
        "tokens": step.batch_size * step.accumulation * config.data.sequence_length,
        "precision": config.precision,
        "variant": variant,
        "seconds": seconds,
        **more,
    }


def _call(measure: Callable[[CellConfig], T], config: CellConfig) -> T:
    return measure(config)


def in_own_process(measure: Callable[[CellConfig], T], config: CellConfig) -> T:
    """``measure(config)`` in a process of its own, with the machine's whole memory.

    If the system kills that process, as it does when memory runs out, the same step is tried again
    with twice as many micro-batches. Raises ``SystemExit`` if one sequence at a time does not fit.
    """
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        try:
            return pool.submit(measure, config).result()
        except BrokenProcessPool:
            size = config.train.batch_size
            if size == 1:
                raise SystemExit(
                    f"rank {config.adapter.rank} does not fit in this machine's memory"
                ) from None
    halves = replace(config.train, batch_size=size // 2, accumulation=2 * config.train.accumulation)
    return in_own_process(measure, replace(config, train=halves))


def step_limits(config: CellConfig) -> dict[str, float]:
    """The FLOPs of a step, and two limits of its speed, measured now.

    - ``base_flops``: frozen linears, the head on targets, attention's causal half;
    - ``adapter_flops``: the adapters in the form that we choose;
    - ``factored_flops``: the adapters as LoRA is usually computed;
    - ``products``: seconds of our step's products alone (:mod:`benchmarks.products`);
    - ``peak``: FLOP/s of the device's square matrix product.
    """
    base, corpus = base_and_corpus(config)
    card, device = base.card, base.device
    run = Run.of(config, corpus, device)
    rank, tokens = int(config.adapter.rank), run.tokens
    can_merge = config.precision == "float32"
    forms = [
        run.contraction.choose(d, o, rank) if can_merge else "factored" for d, o in card.shapes
    ]
    text = base.model.config.get_text_config(decoder=True)  # type: ignore[operator, union-attr]
    attention = 7 * tokens * config.data.sequence_length * text.hidden_size * text.num_hidden_layers
    linears = 4.0 * tokens * sum(d * o for d, o in card.shapes)
    ours = sum(
        adapter_flops(form, tokens, d, o, rank)
        for form, (d, o) in zip(forms, card.shapes, strict=True)
    )
    factored = sum(adapter_flops("factored", tokens, d, o, rank) for d, o in card.shapes)
    dtype = torch.bfloat16 if config.precision == "bf16" else torch.float32
    return {
        "base_flops": linears + 4.0 * run.supervised * card.head + attention,
        "adapter_flops": float(ours),
        "factored_flops": float(factored),
        "products": Products.of_step(config, base, corpus).seconds(device),
        "peak": measure_matmul_rate(device, dtype, PEAK_SIDE[device.type]),
    }
