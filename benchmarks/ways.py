"""The ways to train one cell: the same base, data, steps and precision each time.

- ``trainer``: PEFT with transformers' Trainer, the model loaded for every cell. Most people run a
  sweep like this;
- ``loop``: PEFT in a tuned bare loop: fused AdamW, logits on targets only, one loaded model;
- ``alone``: this project, the base loaded for every cell;
- ``packed``: this project as a sweep runs it;
- ``compiled``: ``packed`` with ``pack.compile``.

All start from the same A. For PEFT it is copied from ours, which is not timed. All must reach the
same loss.
"""

import contextlib
import gc
import io
import math
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.nn.functional import cross_entropy

from study.adapters.bank import AdapterSpec, initial_pair
from study.config import CellConfig
from study.config.compose import CONF, parse
from study.data import IGNORED, Corpus, TokenBatch
from study.models import FrozenBase
from study.models.sources import find_model
from study.store import load_measured
from study.sweeps import run as sweep
from study.sweeps.cells import plan
from study.sweeps.packs import build_pack_corpus
from study.training.devices import choose_device

from . import peft_script

TOLERANCE = {"float32": 1e-3, "bf16": 3e-2}
"""How far the losses before the last step may differ, relative, by precision."""


@dataclass
class TimedRun:
    """One cell trained one way.

    ``setup`` and ``steps`` are seconds: before training and of each optimizer step. ``losses`` are
    those before each step. ``micro_batches`` is their number in a step.
    """

    way: str
    setup: float = 0.0
    steps: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    micro_batches: int = 1


def cell(*overrides: str) -> CellConfig:
    """A cell without probes and held-out loss, which PEFT does not have."""
    return composed(
        "probes.steps=null",
        "train.eval_every=0",
        "optimizer.lr=1e-4",
        "data=xbrl_extract",
        "data.heldout=16",
        *overrides,
    )


def composed(*overrides: str) -> CellConfig:
    """The cell that ``study train`` makes of ``overrides``."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return parse(compose("config", overrides=list(overrides)))


def base_and_corpus(config: CellConfig) -> tuple[FrozenBase, Corpus]:
    """The base and the data of a cell. The base stays loaded for the next call."""
    [cell] = plan([config])
    return worker().base(cell, choose_device(config.device)), build_pack_corpus(config)


@cache
def worker() -> sweep.Worker:
    """What keeps the base of all runs of this process."""
    return sweep.Worker()


def trainer(config: CellConfig) -> TimedRun:
    """PEFT with transformers' Trainer."""
    run = TimedRun("trainer", micro_batches=config.train.accumulation)
    rows = labelled_rows(config)
    began = time.perf_counter()
    model = _fresh_model(config)

    def prepare(peft_model: nn.Module) -> None:
        with _not_timed(run):
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
    """The run's examples in order, as transformers takes them: unshifted labels and a mask."""
    rows = []
    for batch in _batches(config, build_pack_corpus(config)):
        labels_BT = torch.full_like(batch.targets_BT, IGNORED)
        labels_BT[:, 1:] = batch.targets_BT[:, :-1]
        for ids_T, real_T, labels_T in zip(
            batch.input_ids_BT, batch.real_BT, labels_BT, strict=True
        ):
            rows.append({"input_ids": ids_T, "attention_mask": real_T.long(), "labels": labels_T})
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


def alone(config: CellConfig) -> TimedRun:
    """Ours, with a base loaded for this cell."""
    worker().close()
    return _ours("alone", config)


def packed(config: CellConfig) -> TimedRun:
    """Ours, as one more cell of a pack whose base is loaded."""
    base_and_corpus(config)
    return _ours("packed", config)


def compiled(config: CellConfig) -> TimedRun:
    """Ours, packed, with plain steps compiled. The first step pays for compiling."""
    base_and_corpus(config)
    return _ours("compiled", replace(config, pack=replace(config.pack, compile=True)))


WAYS: dict[str, Callable[[CellConfig], TimedRun]] = {
    "trainer": trainer,
    "loop": loop,
    "alone": alone,
    "packed": packed,
    "compiled": compiled,
}


def whole_pack(cells: Sequence[CellConfig], fold: int | str = 1) -> float:
    """Seconds that ours takes for a pack of cells whose base is loaded, with ``pack.fold=fold``."""
    base_and_corpus(cells[0])
    wall, _ = _trained([replace(each, pack=replace(each.pack, fold=fold)) for each in cells])
    return wall


def _trained(cells: Sequence[CellConfig]) -> tuple[float, pd.DataFrame]:
    """What ``study train`` does with a pack, records on disk included: its seconds, its metrics."""
    folder = Path(tempfile.mkdtemp())
    try:
        began = time.perf_counter()
        with contextlib.redirect_stderr(io.StringIO()):
            pack = plan([replace(each, results_dir=str(folder)) for each in cells])
            sweep.run(pack, worker())
        wall = time.perf_counter() - began
        return wall, load_measured(folder / cells[0].name).metrics
    finally:
        shutil.rmtree(folder)


def _ours(way: str, config: CellConfig) -> TimedRun:
    wall, metrics = _trained([config])
    metrics = metrics.sort_values("step")
    seconds, count = metrics["seconds"].to_numpy(), config.train.steps
    steps = [float(b - a) for a, b in zip([0.0, *seconds], seconds, strict=False)][:count]
    gc.collect()
    losses = metrics["loss"].to_list()[:count]
    return TimedRun(way, wall - sum(steps), steps, losses, config.train.accumulation)


def check_agreement(runs: list[TimedRun], precision: str) -> None:
    """Raises ``SystemExit`` unless all runs have the same loss before their last step."""
    last = {run.way: run.losses[-1] for run in runs}
    least, most = min(last.values()), max(last.values())
    if not math.isfinite(most) or most - least > TOLERANCE[precision] * most:
        raise SystemExit(f"losses differ, so times cannot be compared: {last}")


@contextlib.contextmanager
def _peft(model: nn.Module, config: CellConfig, run: TimedRun) -> Iterator[nn.Module]:
    """``model`` under PEFT, with our A; on exit the plain model again."""
    adapter = config.adapter
    lora = LoraConfig(
        r=adapter.rank,
        lora_alpha=adapter.alpha,
        use_rslora=adapter.scaling == "rslora",
        target_modules=adapter.targets,
    )
    peft_model = get_peft_model(model, lora)
    try:
        with _not_timed(run):
            _copy_init(peft_model, config)
        yield peft_model
    finally:
        peft_model.unload()
        gc.collect()


@torch.no_grad()
def _copy_init(peft_model: nn.Module, config: CellConfig) -> None:
    spec = AdapterSpec(config.adapter.rank, config.adapter.gamma, config.seed)
    for name, module in peft_model.named_modules():
        if hasattr(module, "lora_A"):
            A, B = module.lora_A["default"].weight, module.lora_B["default"].weight
            layer = name.removeprefix("base_model.model.")
            A.copy_(initial_pair(spec, layer, A.shape[1], B.shape[0])[0])


@contextlib.contextmanager
def _not_timed(run: TimedRun) -> Iterator[None]:
    """Subtract the time of the block from the set-up."""
    began = time.perf_counter()
    yield
    run.setup -= time.perf_counter() - began


def _fresh_model(config: CellConfig) -> Any:
    """The model as ``from_pretrained`` loads it."""
    dtype = torch.bfloat16 if config.precision == "bf16" else torch.float32
    model = find_model(config.model).load(choose_device(config.device), dtype, None)
    return model.requires_grad_(False)


def _batches(config: CellConfig, corpus: Corpus) -> Iterator[TokenBatch]:
    train = config.train
    for position in range(train.steps * train.accumulation):
        yield corpus.train.batch(config.data.seed, position, train.batch_size).trimmed()
