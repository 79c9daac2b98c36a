"""The ways to train one cell that are timed against each other, on the same base, data, steps and precision.

(a) ``trainer``: PEFT and transformers' Trainer, the model loaded for every cell, as most people run a sweep;
(b) ``loop``: PEFT in a bare loop tuned as far as it goes: fused AdamW, logits on targets only, one loaded model;
(c) ``alone``: this project, the base loaded for every cell;
(d) ``packed``: this project as a sweep runs it; ``compiled``: the same with ``pack.compile``, for runs long enough.

All begin at the same A (ours is copied into PEFT's, off the clock) and must end at the same loss. A step that does
not fit in the machine's memory is made of more and smaller micro-batches, as its user would make it.
"""

import contextlib
import gc
import io
import math
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import peft_script
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.nn.functional import cross_entropy

from study.adapters.bank import AdapterSpec, initial_pair
from study.config import CellConfig, parse
from study.config.compose import CONF
from study.data import IGNORED, Corpus, TokenBatch
from study.models import FrozenBase, hf, tiny
from study.models.card import checkpoint_of
from study.store import load_tables
from study.sweeps import run as sweep
from study.sweeps.cells import plan
from study.sweeps.prepare import build_pack_corpus
from study.training.devices import choose_device

AGREE = 1e-3
"""Relative, of the losses after the last step, in float32; bf16's own rounding is 30 times as much."""


@dataclass
class Run:
    """One cell trained one way: seconds of set-up and of each optimizer step, and the loss before each step;
    ``micro_batches`` to a step."""

    way: str
    setup: float = 0.0
    steps: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    micro_batches: int = 1

    @property
    def wall(self) -> float:
        """From nothing to a trained cell."""
        return self.setup + sum(self.steps)


def cell(*overrides: str) -> CellConfig:
    """A cell of the contest: no probes and no held-out loss, which the others do not have."""
    GlobalHydra.instance().clear()
    plain = [
        "probes.steps=null",
        "train.eval_every=0",
        "optimizer.lr=1e-4",
        "data=xbrl_extract",
        "data.heldout=16",
    ]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return parse(compose("config", overrides=[*plain, *overrides]))


def base_and_corpus(config: CellConfig) -> tuple[FrozenBase, Corpus]:
    """What every way starts from; kept loaded from one call to the next."""
    return sweep.loaded_base(config, choose_device(config.device)), build_pack_corpus(config)


def trainer(config: CellConfig) -> Run:
    """PEFT and transformers' Trainer."""
    run, rows = Run("trainer"), labelled_rows(config)
    began = time.perf_counter()
    model = _fresh_model(config)

    def prepare(peft_model: nn.Module) -> None:
        with _off_the_clock(run):
            _copy_init(peft_model, config)

    with contextlib.redirect_stdout(io.StringIO()):
        run.steps, run.losses = peft_script.finetune(model, rows, options_of(config), prepare)
    run.setup += time.perf_counter() - began - sum(run.steps)
    del model
    gc.collect()
    return run


def options_of(config: CellConfig) -> dict[str, Any]:
    """The cell as ``peft_script.py`` reads it."""
    return {
        "rank": config.adapter.rank,
        "alpha": config.adapter.alpha,
        "rslora": config.adapter.scaling == "rslora",
        "targets": config.adapter.targets,
        "lr": config.optimizer.lr,
        "steps": config.train.steps,
        "batch_size": config.train.batch_size,
        "accumulation": config.train.accumulation,
        "bf16": config.precision == "bf16",
        "cpu": choose_device(config.device).type == "cpu",
    }


def labelled_rows(config: CellConfig) -> list[dict[str, torch.Tensor]]:
    """The run's examples in their order as transformers takes them: labels unshifted, with a mask."""
    rows = []
    for batch in _batches(config, build_pack_corpus(config)):
        labels_BT = torch.full_like(batch.targets_BT, IGNORED)
        labels_BT[:, 1:] = batch.targets_BT[:, :-1]
        for ids_T, real_T, labels_T in zip(
            batch.input_ids_BT, batch.real_BT, labels_BT, strict=True
        ):
            rows.append({"input_ids": ids_T, "attention_mask": real_T.long(), "labels": labels_T})
    return rows


def loop(config: CellConfig) -> Run:
    """PEFT in a bare loop, tuned."""
    run = Run("loop")
    base, corpus = base_and_corpus(config)
    batches = list(_batches(config, corpus))
    began = time.perf_counter()
    with _peft(base.model, config, run) as model:
        weights = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(weights, lr=config.optimizer.lr, weight_decay=0.0, fused=True)
        trunk, head, device = base.model.base_model, base.model.get_output_embeddings(), base.device  # type: ignore[operator]
        for step in range(config.train.steps):
            step_began, loss = time.perf_counter(), 0.0
            accumulation = config.train.accumulation
            micro = batches[step * accumulation : (step + 1) * accumulation]
            supervised = sum(batch.supervised for batch in micro)
            optimizer.zero_grad(set_to_none=True)
            for batch in micro:
                rows = (batch.targets_BT != IGNORED).to(device)
                with torch.autocast(
                    device.type, torch.bfloat16, enabled=config.precision == "bf16"
                ):
                    hidden = trunk(
                        input_ids=batch.input_ids_BT.to(device), use_cache=False
                    ).last_hidden_state
                    logits = head(hidden[rows])
                part = (
                    cross_entropy(
                        logits.float(), batch.targets_BT.to(device)[rows], reduction="sum"
                    )
                    / supervised
                )
                part.backward()
                loss += float(part.detach())
            optimizer.step()
            _synchronize(model)
            run.steps.append(time.perf_counter() - step_began)
            run.losses.append(loss)
    run.setup += time.perf_counter() - began - sum(run.steps)
    return run


def alone(config: CellConfig) -> Run:
    """Ours, with a base loaded for this cell."""
    sweep.forget_base()
    return _ours("alone", config)


def packed(config: CellConfig) -> Run:
    """Ours, as one more cell of a pack whose base is loaded."""
    base_and_corpus(config)
    return _ours("packed", config)


def compiled(config: CellConfig) -> Run:
    """Ours, packed, plain steps compiled: the first pays for it."""
    base_and_corpus(config)
    return _ours("compiled", replace(config, pack=replace(config.pack, compile=True)))


PEERS: dict[str, Callable[[CellConfig], Run]] = {
    "trainer": trainer,
    "loop": loop,
    "alone": alone,
    "packed": packed,
}
WAYS = {**PEERS, "compiled": compiled}


def contend(way: str, config: CellConfig) -> Run:
    """``config`` trained that way, in this process."""
    run = WAYS[way](config)
    run.micro_batches = config.train.accumulation
    return run


def contend_apart(way: str, config: CellConfig) -> Run:
    """``config`` trained that way in a process of its own, which finds the machine's memory free."""
    return apart(partial(contend, way), config)


def apart(train: Callable[[CellConfig], Run], config: CellConfig) -> Run:
    """``train(config)`` in a process of its own.

    Where the system ends that process, as it does when memory runs out, the same step is tried again in twice as many
    micro-batches. Raises ``SystemExit`` where not even one sequence at a time fits.
    """
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        try:
            return pool.submit(train, config).result()
        except BrokenProcessPool:
            size = config.train.batch_size
            if size == 1:
                raise SystemExit(
                    f"rank {config.adapter.rank} does not fit in this machine's memory"
                ) from None
    halves = replace(config.train, batch_size=size // 2, accumulation=2 * config.train.accumulation)
    return apart(train, replace(config, train=halves))


def _ours(way: str, config: CellConfig) -> Run:
    """``study train``'s own path, records on disk and all."""
    folder = Path(tempfile.mkdtemp())
    try:
        began = time.perf_counter()
        with contextlib.redirect_stderr(io.StringIO()):
            sweep.run(plan([replace(config, results_dir=str(folder))]))
        wall = time.perf_counter() - began
        metrics = load_tables(folder / config.name).metrics.sort_values("step")
    finally:
        shutil.rmtree(folder)
    seconds = metrics["seconds"].to_numpy()
    steps = [float(b - a) for a, b in zip([0.0, *seconds], seconds, strict=False)][
        : config.train.steps
    ]
    gc.collect()
    return Run(way, wall - sum(steps), steps, metrics["loss"].to_list()[: config.train.steps])


def check_agreement(runs: list[Run], precision: str) -> None:
    """Raises ``SystemExit`` unless all ways have the same loss before their last step."""
    last = {run.way: run.losses[-1] for run in runs}
    least, most = min(last.values()), max(last.values())
    if (
        not math.isfinite(most)
        or most - least > (AGREE if precision == "float32" else 30 * AGREE) * most
    ):
        raise SystemExit(f"the ways do not agree, so their times can't be compared: {last}")


@contextlib.contextmanager
def _peft(model: nn.Module, config: CellConfig, run: Run) -> Iterator[nn.Module]:
    """``model`` under PEFT, A as ours; the plain model again on leaving."""
    adapter = config.adapter
    lora = LoraConfig(
        r=adapter.rank,
        lora_alpha=adapter.alpha,
        use_rslora=adapter.scaling == "rslora",
        target_modules=adapter.targets,
    )
    peft_model = get_peft_model(model, lora)  # type: ignore[arg-type]
    try:
        with _off_the_clock(run):
            _copy_init(peft_model, config)
        yield peft_model
    finally:
        peft_model.unload()
        gc.collect()


@torch.no_grad()
def _copy_init(peft_model: nn.Module, config: CellConfig) -> None:
    for name, module in peft_model.named_modules():
        if hasattr(module, "lora_A"):
            A, B = module.lora_A["default"].weight, module.lora_B["default"].weight
            spec = AdapterSpec(config.adapter.rank, config.adapter.gamma, config.seed)
            A.copy_(
                initial_pair(spec, name.removeprefix("base_model.model."), A.shape[1], B.shape[0])[
                    0
                ]
            )


@contextlib.contextmanager
def _off_the_clock(run: Run) -> Iterator[None]:
    began = time.perf_counter()
    yield
    run.setup -= time.perf_counter() - began


def _fresh_model(config: CellConfig) -> Any:
    """Loaded as ``from_pretrained`` gives it to a user."""
    checkpoint, device = checkpoint_of(config.model), choose_device(config.device)
    dtype = torch.bfloat16 if config.precision == "bf16" else torch.float32
    model = (
        tiny.build().to(device, dtype)
        if checkpoint is None
        else hf.load_model(checkpoint, device, dtype, None)
    )
    return model.requires_grad_(False)


def _batches(config: CellConfig, corpus: Corpus) -> Iterator[TokenBatch]:
    train = config.train
    for position in range(train.steps * train.accumulation):
        yield corpus.train.batch(config.data.seed, position, train.batch_size).trimmed()


def _synchronize(model: nn.Module) -> None:
    if next(model.parameters()).device.type == "cuda":
        torch.cuda.synchronize()
