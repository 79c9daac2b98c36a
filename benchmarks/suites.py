"""What is timed: one generator a suite, yielding rows as they are measured.

A row has ``suite``, ``way``, ``rank``, ``scaling``, ``tokens`` and ``micro_batches`` of a step, ``precision``,
``variant`` and ``seconds``: of one optimizer step, or, where ``variant`` says so, of a whole run. Ways take turns, cell
by cell, in an order that rotates, so that a machine that slows down does so for all.
"""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch
from contest import (
    PEERS,
    WAYS,
    Run,
    base_and_corpus,
    cell,
    check_agreement,
    contend,
    contend_apart,
    labelled_rows,
    options_of,
)
from omegaconf import OmegaConf

from study.adapters.contraction import adapter_flops
from study.config import CellConfig
from study.models import tiny
from study.models.card import checkpoint_of
from study.training.devices import choose_device, describe_device, measure_matmul_rate
from study.training.run import Run  # noqa: F811
from study.training.run import Run as TrainingRun

Row = dict[str, Any]


@dataclass(frozen=True)
class Size:
    """How much of everything: the ranks of a sweep, optimizer steps of a run, and the model."""

    model: str
    ranks: Sequence[int]
    steps: int
    device: str = "auto"

    def cell(self, tokens: int, rank: int, *overrides: str) -> CellConfig:
        """A cell of ``tokens`` a step, in sequences of 256 and micro-batches of at most 4096."""
        length = min(256, tokens)
        batch = min(tokens, 4096) // length
        shape = [f"data.sequence_length={length}", f"train.batch_size={batch}"]
        shape += [f"train.accumulation={tokens // (batch * length)}", f"train.steps={self.steps}"]
        return cell(
            f"model={self.model}",
            f"device={self.device}",
            f"adapter.rank={rank}",
            *shape,
            *overrides,
        )


def whole_sweep(size: Size) -> Iterator[Row]:
    """All ranks under both rules at 1024 tokens a step, all four ways."""
    grid = list(product(size.ranks, ("lora", "rslora")))
    yield from _contest(
        "sweep", list(PEERS), [size.cell(1024, r, f"adapter.scaling={s}") for r, s in grid]
    )


def large_steps(size: Size) -> Iterator[Row]:
    """All ranks under one rule at 4096 tokens a step (the rule makes no difference to time), (b) against ours.

    A process a run: at high rank each takes most of a machine of 24 GiB.
    """
    cells = [size.cell(4096, rank) for rank in size.ranks]
    yield from _contest("large-steps", ["loop", "packed"], cells, contend_apart)


def compiled(size: Size) -> Iterator[Row]:
    """All ranks under one rule at 1024 tokens a step, for five steps: (b), ours, and ours with ``pack.compile``."""
    cells = [size.cell(1024, rank, "train.steps=5") for rank in size.ranks]
    yield from _contest("compiled", ["loop", "packed", "compiled"], cells)


def by_tokens(size: Size) -> Iterator[Row]:
    """From 256 to 16384 tokens a step at a low rank, (b) against ours; the last in four micro-batches."""
    cells = [size.cell(tokens, size.ranks[1]) for tokens in (256, 1024, 4096, 16384)]
    yield from _contest("tokens", ["loop", "packed"], cells)


def bf16(size: Size) -> Iterator[Row]:
    """Ours in float32 and in bf16, turn by turn, and (b) in bf16."""
    for rank in (*(r for r in size.ranks if r <= 64), size.ranks[-1]):
        yield from _contest("bf16", ["packed"], [size.cell(1024, rank)])
        yield from _contest("bf16", ["loop", "packed"], [size.cell(1024, rank, "precision=bf16")])


PROBES = {
    "off": ["probes.steps=null"],
    "activations, every step": [
        "probes.every=1",
        "probes.sites=[adapter_in,layer_out,layer_out_grad]",
    ],
    "all sites, every 10 steps": ["probes.every=10"],
    "all sites, every step": ["probes.every=1"],
}


def probes(size: Size) -> Iterator[Row]:
    """Twenty steps at a low rank with probes as in ``PROBES``: the run's seconds, thrice, in turn."""
    for _ in range(3):
        for variant, overrides in PROBES.items():
            config = size.cell(1024, size.ranks[1], "train.steps=20", *overrides)
            run = WAYS["packed"](config)
            yield _row("probes", run.way, config, sum(run.steps), variant=variant)


def layers(size: Size) -> Iterator[Row]:
    """Adapters on the last quarter, the last half and all of the blocks."""
    base, _ = base_and_corpus(size.cell(1024, 4))
    blocks = sorted(
        {int(part) for name in base.card.linears for part in name.split(".") if part.isdigit()}
    )
    for share in (0.25, 0.5, 1.0):
        late = blocks[len(blocks) - max(1, round(share * len(blocks))) :]
        pattern = rf".*\.({'|'.join(map(str, late))})\..*"
        config = size.cell(1024, size.ranks[1], f"adapter.targets='{pattern}'")
        run = WAYS["packed"](config)
        yield from (
            _row("layers", run.way, config, s, variant=f"{len(late)} blocks") for s in run.steps[1:]
        )


def start_up(size: Size) -> Iterator[Row]:
    """From typing to a loaded model: ``study train`` on one cell of one step, and the same as a PEFT script."""
    config = size.cell(256, 4, "train.steps=1")
    for way in ("trainer", "alone"):
        for _ in range(3):
            seconds = _process(way, [config])
            yield _row("start-up", way, config, seconds, variant="a process of one step")


def short_sweep(size: Size) -> Iterator[Row]:
    """Ten steps of 64 tokens a cell, both rules: a process a cell for (a), one process for ours."""
    grid = [
        size.cell(64, rank, f"adapter.scaling={rule}", "train.steps=10")
        for rank, rule in product(size.ranks, ("lora", "rslora"))
    ]
    total = 0.0
    for config in grid:
        total += _process("trainer", [config])
    yield _row("short", "trainer", grid[0], total, variant=f"{len(grid)} cells of 10 steps")
    yield _row(
        "short",
        "packed",
        grid[0],
        _process("packed", grid),
        variant=f"{len(grid)} cells of 10 steps",
    )


SUITES: dict[str, Callable[[Size], Iterator[Row]]] = {
    "sweep": whole_sweep,
    "large-steps": large_steps,
    "compiled": compiled,
    "tokens": by_tokens,
    "short": short_sweep,
    "start-up": start_up,
    "probes": probes,
    "bf16": bf16,
    "layers": layers,
}


def _contest(
    suite: str,
    ways: Sequence[str],
    cells: Sequence[CellConfig],
    train: Callable[[str, CellConfig], Run] = contend,
) -> Iterator[Row]:
    """Every cell in every way, in turn; a row a step and one for the set-up, once all ways agree on the loss."""
    for turn, config in enumerate(cells):
        order = [*ways[turn % len(ways) :], *ways[: turn % len(ways)]]
        runs = [train(way, config) for way in order]
        check_agreement(runs, config.precision)
        counted = step_flops(config)
        for run in runs:
            parts = run.micro_batches
            yield _row(suite, run.way, config, run.setup, variant="set-up", micro_batches=parts)
            for step, seconds in enumerate(run.steps):
                # The first step also pays for the first touch of memory: it counts in a sweep, not in a rate.
                variant = "first step" if step == 0 else "step"
                yield _row(
                    suite, run.way, config, seconds, variant=variant, micro_batches=parts, **counted
                )


def step_flops(config: CellConfig) -> dict[str, float]:
    """FLOPs of a step in products: ``base_flops`` (block linears, head, attention's causal half), ``adapter_flops`` of
    our form and ``factored_flops``, what a LoRA as usually written takes; and the device's matmul rate just now."""
    base, corpus = base_and_corpus(config)
    card, device = base.card, base.device
    run = TrainingRun.of(config, corpus, device)
    tokens, supervised, choice = run.tokens, run.supervised, run.contraction
    rank = int(config.adapter.rank)
    can_merge = config.precision == "float32"
    forms = [
        (choice.choose(d, o, rank) if can_merge else "factored", (d, o)) for d, o in card.shapes
    ]
    text = base.model.config.get_text_config(decoder=True)  # type: ignore[operator, union-attr]
    attention = 7 * tokens * config.data.sequence_length * text.hidden_size * text.num_hidden_layers
    dtype = torch.bfloat16 if config.precision == "bf16" else torch.float32
    return {
        "base_flops": 4.0 * tokens * sum(d * o for d, o in card.shapes)
        + 4.0 * supervised * card.head
        + attention,
        "adapter_flops": float(sum(adapter_flops(f, tokens, d, o, rank) for f, (d, o) in forms)),
        "factored_flops": float(
            sum(adapter_flops("factored", tokens, d, o, rank) for d, o in card.shapes)
        ),
        "peak": measure_matmul_rate(device, dtype),
    }


def _row(
    suite: str,
    way: str,
    config: CellConfig,
    seconds: float,
    *,
    variant: str = "step",
    **more: float,
) -> Row:
    train = config.train
    return {
        "suite": suite,
        "way": way,
        "rank": int(config.adapter.rank),
        "scaling": config.adapter.scaling,
        "tokens": train.batch_size * train.accumulation * config.data.sequence_length,
        "precision": config.precision,
        "variant": variant,
        "seconds": seconds,
        **more,
    }


def _process(way: str, cells: Sequence[CellConfig]) -> float:
    """Seconds of a process of its own that trains ``cells`` one way, from its start to its end.

    For (a) the rows are tokenised beforehand; ours does it, or finds it done, on the clock.
    """
    config = cells[0]
    with tempfile.TemporaryDirectory() as folder:
        if way == "trainer":
            model = checkpoint_of(config.model)
            where = Path(folder, "model") if model is None else model.folder
            if model is None:
                tiny.build().save_pretrained(where)
            torch.save(labelled_rows(config), Path(folder, "rows"))
            options = options_of(config) | {"model": str(where), "rows": str(Path(folder, "rows"))}
            Path(folder, "options").write_text(json.dumps(options))
            command = [
                sys.executable,
                str(Path(__file__).parent / "peft_script.py"),
                str(Path(folder, "options")),
            ]
        else:
            keys = [
                "model.name",
                "device",
                "data.sequence_length",
                "train.batch_size",
                "train.steps",
                "optimizer.lr",
            ]
            tree = OmegaConf.structured(config)
            shared = [f"{key.removesuffix('.name')}={OmegaConf.select(tree, key)}" for key in keys]
            shared += [
                "probes.steps=null",
                "train.eval_every=0",
                "data=xbrl_extract",
                "data.heldout=16",
            ]
            ranks = ",".join(dict.fromkeys(str(c.adapter.rank) for c in cells))
            rules = ",".join(dict.fromkeys(c.adapter.scaling for c in cells))
            command = [
                sys.executable,
                "-c",
                "from study.cli import main; main()",
                "train",
                "-m",
                *shared,
            ]
            command += [
                f"results_dir={folder}",
                f"adapter.rank={ranks}",
                f"adapter.scaling={rules}",
            ]
        began = time.perf_counter()
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        seconds = time.perf_counter() - began
    if done.returncode:
        raise SystemExit(f"{way}: {done.stderr.strip().splitlines()[-1]}")
    return seconds


def rows_of(suite: str, size: Size) -> list[Row]:
    """All rows of a suite, each also told on stderr as it comes."""
    print(
        f"{suite}: {' '.join((SUITES[suite].__doc__ or '').split())}", file=sys.stderr, flush=True
    )
    rows = []
    for row in SUITES[suite](size):
        rows.append(row)
        if row["variant"] != "set-up":
            told = "{way:8} rank {rank:5} {scaling:6} {tokens:6} tokens {precision} {variant}: {seconds:.2f} s"
            print(" ", told.format(**row), file=sys.stderr, flush=True)
    return rows


def device_name(size: Size) -> str:
    """The machine in words, for the table's head."""
    device = choose_device(size.device)
    found = describe_device(device)
    return f"{found['device_name']}, {found['threads']} threads, torch {found['versions']['torch']}"
