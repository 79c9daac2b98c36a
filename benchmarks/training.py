"""How training is timed: the suites, and the ways to train one cell. README.md describes both.

Base, data, steps, precision and A are the same each time; for PEFT, A is copied from ours, which is
not timed. All ways must reach the same loss.

A suite yields rows as they are measured: ``way``, ``rank``, ``scaling``, ``precision``,
``variant``, the ``tokens`` and ``micro_batches`` of a step, and ``seconds``: of one optimizer step,
or of what ``variant`` says.
"""

import contextlib
import gc
import io
import math
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field, replace
from functools import cache, partial
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.nn.functional import cross_entropy
from transformers import DataCollatorWithFlattening, Trainer, TrainerCallback, TrainingArguments

from study.adapters.bank import AdapterSpec, initial_pair
from study.config import CellConfig
from study.config.compose import CONF, parse
from study.data.batches import IGNORED, Corpus, TokenBatch
from study.models import FrozenBase
from study.models.sources import find_model
from study.store import load_measured
from study.sweeps import run as sweep
from study.sweeps.cells import corpus_of, plan
from study.training.devices import choose_device, describe_device
from study.vocabulary.quantities import GRADIENTS, NOISE_SITES, SITES, SPECTRA, UPDATES, USUAL
from study.vocabulary.sources import MODELS

from .commands import FULL
from .summary import PLAIN

TOLERANCE = {"float32": 1e-3, "bf16": 3e-2}
"""How far the losses of the ways may differ, relative, by precision."""


@dataclass
class TimedRun:
    """One cell trained one way. ``setup``, ``steps``: seconds before training and of each optimizer
    step. ``losses``: before each step. ``micro_batches``: their number in a step."""

    way: str
    setup: float = 0.0
    steps: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    micro_batches: int = 1


@cache
def worker() -> sweep.Worker:
    """What keeps the base of all runs of this process."""
    return sweep.Worker()


def base_and_corpus(config: CellConfig) -> tuple[FrozenBase, Corpus]:
    """The base and the data of a cell. The base stays loaded for the next call."""
    [cell] = plan([config])
    return worker().base(cell, choose_device(config.device)), corpus_of(config.model, config.data)


def trainer(config: CellConfig, way: str = "trainer") -> TimedRun:
    """PEFT with transformers' Trainer: its defaults, without clipping, as the other ways."""
    train, given = config.train, dict[str, Any]()
    run = TimedRun(way, micro_batches=train.accumulation)
    rows = labelled_rows(config)
    if way == "flattened":
        real = [(row, row.pop("attention_mask").bool()) for row in rows]
        rows = [{name: x_T[real_T] for name, x_T in row.items()} for row, real_T in real]
        given["data_collator"] = DataCollatorWithFlattening()
    device, is_bf16 = choose_device(config.device), config.precision == "bf16"
    began = time.perf_counter()
    dtype = torch.bfloat16 if is_bf16 else torch.float32
    model = find_model(config.model).load(device, dtype, None).requires_grad_(False)
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder, _peft(model, config, run) as peft_model:
        arguments = TrainingArguments(
            output_dir=folder,
            max_steps=train.steps,
            per_device_train_batch_size=train.batch_size,
            gradient_accumulation_steps=train.accumulation,
            learning_rate=config.optimizer.lr,
            lr_scheduler_type="constant",
            max_grad_norm=0.0,
            bf16=is_bf16,
            use_cpu=device.type == "cpu",
            logging_steps=1,
            report_to="none",
            disable_tqdm=True,
            save_strategy="no",
        )
        given |= {"train_dataset": rows, "callbacks": [clock]}
        timed = InOrder(model=peft_model, args=arguments, **given)
        with contextlib.redirect_stdout(io.StringIO()):
            timed.train()
    run.steps = clock.seconds
    run.losses = [float(row["loss"]) for row in timed.state.log_history if "loss" in row]
    run.setup += time.perf_counter() - began - sum(run.steps)
    return run


class InOrder(Trainer):
    """A Trainer that does not shuffle."""

    def _get_train_sampler(self, *_: Any) -> Any:
        return torch.utils.data.SequentialSampler(self.train_dataset)


class Clock(TrainerCallback):
    """Records the seconds of every optimizer step."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self.began = time.perf_counter()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.seconds.append(time.perf_counter() - self.began)


def labelled_rows(config: CellConfig) -> list[dict[str, torch.Tensor]]:
    """The run's examples in order, as transformers takes them: unshifted labels and a mask."""
    rows = []
    for batch in _batches(config, corpus_of(config.model, config.data)):
        labels_BT = torch.full_like(batch.targets_BT, IGNORED)
        labels_BT[:, 1:] = batch.targets_BT[:, :-1]
        columns = batch.input_ids_BT, batch.real_BT.long(), labels_BT
        names = "input_ids", "attention_mask", "labels"
        rows += [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]
    return rows


def loop(config: CellConfig) -> TimedRun:
    """PEFT in a tuned bare loop."""
    run = TimedRun("loop", micro_batches=config.train.accumulation)
    base, corpus = base_and_corpus(config)
    batches = list(_batches(config, corpus))
    accumulation = config.train.accumulation
    began = time.perf_counter()
    with _peft(base.model, config, run) as model:
        weights = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(weights, lr=config.optimizer.lr, weight_decay=0.0, fused=True)
        for step in range(config.train.steps):
            step_began, loss = time.perf_counter(), 0.0
            micro = batches[step * accumulation : (step + 1) * accumulation]
            supervised = sum(batch.supervised for batch in micro)
            optimizer.zero_grad(set_to_none=True)
            for batch in micro:
                part = _summed_loss(base, batch, config.precision) / supervised
                part.backward()
                loss += float(part.detach())
            optimizer.step()
            if base.device.type == "cuda":
                torch.cuda.synchronize()
            run.steps.append(time.perf_counter() - step_began)
            run.losses.append(loss)
    run.setup += time.perf_counter() - began - sum(run.steps)
    return run


def _summed_loss(base: FrozenBase, batch: TokenBatch, precision: str) -> torch.Tensor:
    """The loss summed over target tokens, with logits for those alone."""
    model: Any = base.model
    device = base.device
    rows = (batch.targets_BT != IGNORED).to(device)
    ids_BT = batch.input_ids_BT.to(device)
    with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
        hidden = model.base_model(input_ids=ids_BT, use_cache=False).last_hidden_state
        logits = model.get_output_embeddings()(hidden[rows])
    return cross_entropy(logits.float(), batch.targets_BT.to(device)[rows], reduction="sum")


def packed(config: CellConfig, way: str = "packed") -> TimedRun:
    """Ours, as one more cell of a pack whose base is loaded; ``alone`` has to load it. The first
    step of ``compiled`` pays for compiling."""
    if way == "compiled":
        config = replace(config, pack=replace(config.pack, compile=True))
    if way == "alone":
        worker().close()
    else:
        base_and_corpus(config)
    wall, metrics = whole_pack([config])
    metrics = metrics.sort_values("step").head(config.train.steps)
    steps = np.diff(metrics["seconds"], prepend=0.0).tolist()
    gc.collect()
    losses = metrics["loss"].to_list()
    return TimedRun(way, wall - sum(steps), steps, losses, config.train.accumulation)


WAYS: dict[str, Callable[[CellConfig], TimedRun]] = {
    "trainer": trainer,
    "flattened": partial(trainer, way="flattened"),
    "loop": loop,
    **{way: partial(packed, way=way) for way in ("alone", "packed", "compiled")},
}


def whole_pack(cells: Sequence[CellConfig]) -> tuple[float, pd.DataFrame]:
    """What ``study train`` does with a pack, records on disk included: its seconds, its metrics."""
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        with contextlib.redirect_stderr(io.StringIO()):
            sweep.run(plan([replace(each, results_dir=folder) for each in cells]), worker())
        wall = time.perf_counter() - began
        return wall, load_measured(Path(folder, cells[0].name)).metrics


def check_agreement(runs: list[TimedRun], precision: str) -> None:
    """Raises ``SystemExit`` unless all runs have the same loss before their last step; in bf16
    before the first one, because later PEFT's updates are partly lost in the rounded output."""
    at = 0 if precision == "bf16" else -1
    found = {run.way: run.losses[at] for run in runs}
    least, most = min(found.values()), max(found.values())
    if not math.isfinite(most) or most - least > TOLERANCE[precision] * most:
        raise SystemExit(f"losses differ, so times cannot be compared: {found}")


@contextlib.contextmanager
def _peft(model: nn.Module, config: CellConfig, run: TimedRun) -> Iterator[nn.Module]:
    """``model`` under PEFT, with our A, which is not timed; on exit the plain model again."""
    adapter = config.adapter
    lora = LoraConfig(
        r=adapter.rank,
        lora_alpha=adapter.alpha,
        use_rslora=adapter.scaling == "rslora",
        target_modules=adapter.targets,
    )
    peft_model = get_peft_model(model, lora)
    began = time.perf_counter()
    spec = AdapterSpec(adapter.rank, adapter.gamma, config.seed)
    for name, module in peft_model.named_modules():
        if hasattr(module, "lora_A"):
            A, B = module.lora_A["default"].weight, module.lora_B["default"].weight
            layer = name.removeprefix("base_model.model.")
            A.data.copy_(initial_pair(spec, layer, A.shape[1], B.shape[0])[0])
    run.setup -= time.perf_counter() - began
    try:
        yield peft_model
    finally:
        peft_model.unload()
        gc.collect()


def _batches(config: CellConfig, corpus: Corpus) -> Iterator[TokenBatch]:
    train = config.train
    for position in range(train.steps * train.accumulation):
        yield corpus.train.batch(config.data.seed, position, train.batch_size).trimmed()


Row = dict[str, Any]


@dataclass(frozen=True)
class Size:
    """What all suites have in common: ``ranks`` of a sweep, optimizer ``steps`` of a run.

    ``model``: smollm2, tiny, a folder or a hub name. ``data``: a name of ``conf/data``, or a file.
    """

    model: str
    ranks: Sequence[int]
    steps: int
    device: str = "auto"
    precision: str = "float32"
    tokens: int = 1024
    data: str = FULL

    def cell(self, tokens: int, rank: int, *overrides: str) -> CellConfig:
        """A cell of ``tokens`` in a step: sequences of 256, micro-batches of at most 4096. It has
        no probes and no held-out loss, as PEFT.

        Of other data than :data:`~benchmarks.commands.FULL`: ``tokens / 128`` rows of their own
        lengths, up to 512 tokens.
        """
        length = min(256, tokens)
        batch = min(tokens, 4096) // length
        if self.data != FULL:
            length, batch = 512, tokens // 128
            tokens = length * batch
        file = Path(self.data)
        own = ["data=file", f"data.path={file.resolve()}"] if file.suffix else [f"data={self.data}"]
        is_known = self.model in MODELS and not MODELS[self.model].reads_path
        own += [f"model={self.model}"] if is_known else ["model=hf", f"model.path={self.model}"]
        text = (
            f"device={self.device} precision={self.precision} "
            f"adapter.rank={rank} data.sequence_length={length} train.batch_size={batch} "
            f"train.accumulation={tokens // (batch * length)} train.steps={self.steps} "
            "data.heldout=16 train.eval_every=0 probes.steps=null optimizer.lr=1e-4"
        )
        GlobalHydra.instance().clear()
        with initialize_config_dir(str(CONF), version_base="1.3"):
            return parse(compose("config", overrides=[*own, *text.split(), *overrides]))


def whole_sweep(size: Size) -> Iterator[Row]:
    """The suite ``sweep``. Rows of real lengths also train as one pack in folds, twice."""
    settings = product(size.ranks, ("lora", "rslora"))
    cells = [size.cell(size.tokens, r, f"adapter.scaling={rule}") for r, rule in settings]
    if size.data == FULL:
        yield from _compare(["trainer", "loop", "alone", "packed"], cells)
        return
    for part in (cells[: len(cells) // 2], cells[len(cells) // 2 :]):
        yield from _compare(["trainer", "loop", "flattened", "packed"], part)
        base_and_corpus(cells[0])
        yield _row("folded", cells[0], whole_pack(cells)[0], "whole sweep")


def large_steps(size: Size) -> Iterator[Row]:
    """The suite ``large-steps``. One rule is enough: it does not change the time. Each run has a
    process of its own, because at high rank it takes most of a machine with 24 GiB."""
    return _compare(["loop", "packed"], [size.cell(4096, rank) for rank in size.ranks], apart=True)


def compiled_steps(size: Size) -> Iterator[Row]:
    """The suite ``compiled``."""
    cells = [size.cell(1024, rank, "train.steps=5") for rank in size.ranks]
    return _compare(["loop", "packed", "compiled"], cells)


TURNS = 3
ACTIVATIONS = ("adapter_in", "layer_out", "layer_out_grad")
PROBES: dict[str, list[str]] = {
    "off": ["probes.steps=null"],
    "activations, every step": ["probes.every=1", f"probes.sites=[{','.join(ACTIVATIONS)}]"],
    "all sites, every 10 steps": ["probes.every=10"],
    "all sites, every step": ["probes.every=1"],
}
"""The runs of the suite ``probes``."""
PROBED: dict[str, Sequence[str]] = {
    PLAIN: (),
    "all sites": tuple(SITES),
    "activations": ACTIVATIONS,
    "sampled tokens": NOISE_SITES,
    "delta_w": ("delta_w",),
    "A and B": ("A", "B"),
    "gradients": GRADIENTS,
    "updates": (*UPDATES, "adapter_update"),
}
"""By name, the sites that the steps of a short run measure, without spectra."""


def probes(size: Size) -> Iterator[Row]:
    """The suite ``probes``: whole runs, then single steps by the sites that are measured in them.

    Rows of single steps have the way ``fold``.
    """
    for _ in range(TURNS):
        for variant, overrides in PROBES.items():
            config = size.cell(1024, 16, "train.steps=20", *overrides)
            yield _row("packed", config, sum(packed(config).steps), variant)
    stats = f"probes.stats=[{','.join(stat for stat in USUAL if stat not in SPECTRA)}]"
    for rank, tokens, _ in product((16, 1024), (192, 1024), range(TURNS)):
        for variant, sites in PROBED.items():
            where = ["probes.every=1", f"probes.sites=[{','.join(sites)}]", stats] if sites else []
            config = size.cell(tokens, rank, "train.steps=3", *where)
            # The first step also touches memory for the first time.
            seconds = min(packed(config).steps[1:])
            yield _row("fold", config, seconds, variant)


def forms(size: Size) -> Iterator[Row]:
    """The suite ``bf16``. The way is the form of the adapters; runs of the two take turns."""
    for rank, _, way in product(size.ranks, range(TURNS), ("factored", "concatenated")):
        config = size.cell(1024, rank, "precision=bf16", f"adapter.contraction={way}")
        for seconds in packed(config).steps[1:]:
            yield _row(way, config, seconds, "step")


RUNS: dict[str, Callable[[Size], Iterator[Row]]] = {
    "sweep": whole_sweep,
    "large-steps": large_steps,
    "compiled": compiled_steps,
    "probes": probes,
    "bf16": forms,
}
"""The generator of each of :data:`benchmarks.commands.SUITES`."""


def measure(run: Callable[[Size], Iterator[Row]], size: Size) -> pd.DataFrame:
    """All rows of a suite. Each is also printed to stderr when it is measured."""
    rows = []
    for row in run(size):
        rows.append(row)
        print("  ", *row.values(), file=sys.stderr, flush=True)
    machine, torch_ = describe_device(choose_device(size.device)), torch.__version__
    name = f"{machine['device_name']}, {machine['threads']} threads, torch {torch_}"
    return pd.DataFrame(rows).assign(device=name, model=size.model, data=size.data, torch=torch_)


def _compare(
    ways: Sequence[str], cells: Sequence[CellConfig], apart: bool = False
) -> Iterator[Row]:
    """Every cell in every way: a row for each step and one for the set-up. ``apart``: each run has
    a process of its own. Raises ``SystemExit`` if the ways reach different losses."""
    for turn, config in enumerate(cells):
        order = [*ways[turn % len(ways) :], *ways[: turn % len(ways)]]
        runs = [in_own_process(WAYS[way], config) if apart else WAYS[way](config) for way in order]
        check_agreement(runs, config.precision)
        for run in runs:
            # The first step also touches memory for the first time. It counts in the time of a
            # sweep, not in the median of a step.
            variants = ["set-up", "first step", *["step"] * (len(run.steps) - 1)]
            for variant, seconds in zip(variants, [run.setup, *run.steps], strict=True):
                yield _row(run.way, config, seconds, variant, micro_batches=run.micro_batches)


def _row(way: str, config: CellConfig, seconds: float, variant: str, **more: int) -> Row:
    step, adapter = config.train, config.adapter
    tokens = step.batch_size * step.accumulation * config.data.sequence_length
    row = {"way": way, "rank": int(adapter.rank), "scaling": adapter.scaling, "tokens": tokens}
    return row | {"precision": config.precision, "variant": variant, "seconds": seconds} | more


def in_own_process(measure: Callable[[CellConfig], TimedRun], config: CellConfig) -> TimedRun:
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
