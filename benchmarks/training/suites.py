"""How each suite is timed: one generator for each, which yields rows as they are measured.

A row has ``suite``, ``way``, ``rank``, ``scaling``, ``precision``, ``variant``, the ``tokens`` and
``micro_batches`` of a step, and ``seconds``: of one optimizer step, or of what ``variant`` says.
Ways take turns, cell by cell, in a rotating order, so that a slower moment of the machine affects
all of them.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any

import torch

from study.config import CellConfig
from study.training.devices import choose_device, describe_device

from .flops import step_limits
from .listing import SUITES
from .probed import probed_steps
from .processes import apart, here, time_command, train
from .ways import (
    TimedRun,
    base_and_corpus,
    cell,
    check_agreement,
    packed,
    whole_pack,
)

RULES = ("lora", "rslora")
Row = dict[str, Any]


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
    yield from _compare("large-steps", ["loop", "packed"], cells, apart)


def compiled_steps(size: Size) -> Iterator[Row]:
    """The suite ``compiled``."""
    cells = [size.cell(1024, rank, "train.steps=5") for rank in size.ranks]
    yield from _compare("compiled", ["loop", "packed", "compiled"], cells)


def by_tokens(size: Size) -> Iterator[Row]:
    """The suite ``tokens``."""
    cells = [size.cell(tokens, size.ranks[1]) for tokens in (256, 1024, 4096, 16384)]
    yield from _compare("tokens", ["loop", "packed"], cells)


def short_sweep(size: Size) -> Iterator[Row]:
    """The suite ``short``. Its last row is the time of our products alone, a limit of ours."""
    grid = [
        size.cell(64, rank, f"adapter.scaling={rule}", "train.steps=10")
        for rank, rule in product(size.ranks, RULES)
    ]
    variant = f"{len(grid)} cells of 10 steps"
    theirs = sum(time_command("trainer", [config]) for config in grid)
    yield _row("short", "trainer", grid[0], theirs, variant=variant)
    yield _row("short", "packed", grid[0], time_command("packed", grid), variant=variant)
    products = sum(step_limits(config)["products"] * config.train.steps for config in grid)
    yield _row("short", "products", grid[0], products, variant=variant)


def start_up(size: Size) -> Iterator[Row]:
    """The suite ``start-up``."""
    config = size.cell(256, 4, "train.steps=1")
    for way in ("trainer", "alone"):
        for _ in range(3):
            seconds = time_command(way, [config])
            yield _row("start-up", way, config, seconds, variant="a process of one step")


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


def layers(size: Size) -> Iterator[Row]:
    """The suite ``layers``."""
    base, _ = base_and_corpus(size.cell(1024, 4))
    blocks = sorted(
        {int(part) for name in base.card.linears for part in name.split(".") if part.isdigit()}
    )
    for share in (0.25, 0.5, 1.0):
        late = blocks[len(blocks) - max(1, round(share * len(blocks))) :]
        pattern = rf".*\.({'|'.join(map(str, late))})\..*"
        config = size.cell(1024, size.ranks[1], f"adapter.targets='{pattern}'")
        run = packed(config)
        for seconds in run.steps[1:]:
            yield _row("layers", run.way, config, seconds, variant=f"{len(late)} blocks")


RUNS: dict[str, Callable[[Size], Iterator[Row]]] = {
    "sweep": whole_sweep,
    "large-steps": large_steps,
    "compiled": compiled_steps,
    "tokens": by_tokens,
    "short": short_sweep,
    "start-up": start_up,
    "probes": probes,
    "bf16": bf16,
    "folds": folds,
    "layers": layers,
}
"""The generator of each of :data:`benchmarks.training.listing.SUITES`."""


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
    measured: Callable[[Callable[[CellConfig], Any], CellConfig], Any] = here,
) -> Iterator[Row]:
    """Every cell in every way: a row for each step and one for the set-up.

    ``measured``: in which process, :func:`here` or :func:`apart`.

    Raises ``SystemExit`` if the ways reach different losses.
    """
    for turn, config in enumerate(cells):
        order = [*ways[turn % len(ways) :], *ways[: turn % len(ways)]]
        runs: list[TimedRun] = [measured(partial(train, way), config) for way in order]
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
