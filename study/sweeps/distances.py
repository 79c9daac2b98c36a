"""The runs behind the table ``distances``: limits of infinite rank, and cells.

A cell's table holds sums, not matrices, so every run is made again: the limit of each group of
cells (:mod:`study.adapters.infinite`), then the cells as they were trained.
:mod:`study.analysis.distances` measures.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import pandas as pd
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from study.adapters import LoraBank, adapted, resolve_targets
from study.adapters.infinite import EPS, STAND_IN, InfiniteRankBank
from study.analysis.distances import FACTS, RunState, compare
from study.config import CellConfig, probe_steps
from study.config.compose import parse
from study.config.values import literal
from study.data.batches import Corpus
from study.errors import StudyError
from study.models import FrozenBase, load_base
from study.store import cell_row, load_cells, load_records
from study.store.records import CONFIG
from study.sweeps.cells import corpus_of, plan
from study.training.devices import choose_device
from study.training.fold import adapter_spec
from study.training.loop import Fold
from study.vocabulary import scaling
from study.vocabulary.inits import INITS
from study.vocabulary.optimizers import LIMIT_P, OPTIMIZERS, of_family


def measure_study(study_dir: Path, say: Callable[[str], None]) -> pd.DataFrame:
    """The distances of every complete cell that has a limit, at its probed steps but 0.

    ``say`` gets a line for each run. Columns: ``cell_id``, :data:`~study.analysis.distances.FACTS`,
    and those of :func:`~study.analysis.distances.compare`. Memory: one limit, ``4 D (O + 2 D)``
    bytes per layer and step.
    """
    cells = load_cells(study_dir)
    complete = cells.loc[cells["status"] == "complete", "cell_id"]
    recorded = {record["cell_id"]: record["config"] for record in load_records(study_dir)}

    def config_of(cell: str) -> CellConfig:
        """Of its own file, which has the paths of data and bases; an archive has none."""
        file = study_dir / "cells" / cell / CONFIG
        if file.exists():
            return parse(DictConfig(OmegaConf.load(file)))
        return parse(DictConfig(literal(recorded[cell])))

    configs = [config_of(cell) for cell in complete]
    groups: dict[str, list[CellConfig]] = {}
    for config in configs:
        if has_limit(config):
            groups.setdefault(repr(limit_of(config)), []).append(config)
    if not groups:
        raise StudyError(
            f"no complete cell in {study_dir} has a limit of infinite rank: train rslora with "
            f"{' or '.join(of_family('linear'))}, or lora with {' or '.join(of_family('sign'))}"
        )
    runs = sum(1 + len(finite) for finite in groups.values())
    steps = max(max(probe_steps(config)) for finite in groups.values() for config in finite)
    say(f"{runs} runs of up to {steps} steps, each from its start: {len(groups)} of them limits")
    numbers = count(1)

    def begins(run: str) -> None:
        say(f"{next(numbers)}/{runs} {run}")

    parts = [table for finite in groups.values() for table in _measure_group(finite, begins)]
    return pd.concat(parts, ignore_index=True)


def has_limit(config: CellConfig) -> bool:
    """Whether the run converges as the rank grows (with eps -> 0) and is measured after a step."""
    adapter = config.adapter
    p = scaling.exponent(adapter.scaling, adapter.exponent)
    return (
        p == LIMIT_P.get(OPTIMIZERS[config.optimizer.name].family)
        and adapter.init in INITS
        and INITS[adapter.init].q == 0
        and math.isfinite(adapter.rank)
        and max(probe_steps(config), default=0) > 0
    )


def limit_of(config: CellConfig) -> CellConfig:
    """The configuration of infinite rank that ``config`` approaches: an eps becomes nearly 0."""
    optimizer = config.optimizer
    if OPTIMIZERS[optimizer.name].has_eps:
        optimizer = replace(optimizer, eps=EPS)
    return replace(at_rank(config, math.inf), optimizer=optimizer)


def at_rank(config: CellConfig, rank: float) -> CellConfig:
    return replace(config, adapter=replace(config.adapter, rank=rank))


def trajectory(
    base: FrozenBase,
    corpus: Corpus,
    config: CellConfig,
    bank_type: type[LoraBank],
    *,
    moments: bool = False,
) -> Iterator[RunState]:
    """Train ``config`` through ``bank_type`` as :func:`study.training.loop.train` does, and yield a
    snapshot at each probed step but 0. ``moments``: with the second moments of the inputs of
    layers."""
    at = [step for step in probe_steps(config) if step > 0]
    layers = resolve_targets(base.card.shapes, config.adapter.targets)
    unprobed = replace(config, probes=replace(config.probes, stats="norm"))
    with adapted(base.model, layers, [adapter_spec(config)], bank_type) as banks:
        fold = Fold(base, corpus, [unprobed], banks)
        for step in range(max(at) + 1):
            inputs: Any = InputMoments(banks) if moments and step in at else None
            [loss] = fold.backward(step, inputs)
            fold.grad_norms()
            if step in at:
                pairs = {bank.layer: bank.pairs[0] for bank in banks}
                deltas = {
                    layer: ((pair.B_OR @ pair.A_RD).detach() * pair.gamma).cpu().numpy()
                    for layer, pair in pairs.items()
                }
                yield RunState(step, float(loss), deltas, inputs.means() if inputs else {})
            fold.update()


class InputMoments:
    """The second moments ``E x x^T`` of the inputs of every bank over the real tokens of a step."""

    def __init__(self, banks: Sequence[LoraBank]) -> None:
        self.banks = banks
        self.sums: dict[str, Tensor] = {}
        self.count = 0

    @contextmanager
    def watch(self, real_BT: Tensor) -> Iterator[None]:
        add = partial(self._add, real_BT)
        with ExitStack() as hooks:
            for bank in self.banks:
                hooks.enter_context(bank.register_forward_pre_hook(add))
            yield
        self.count += int(real_BT.sum())

    def means(self) -> dict[str, Any]:
        """By layer, ``[D, D]`` float64, on the host."""
        return {layer: (total / self.count).cpu().numpy() for layer, total in self.sums.items()}

    def _add(self, real_BT: Tensor, module: LoraBank, args: tuple[Tensor, ...]) -> None:
        x_ND = args[0].detach()[real_BT.bool().to(args[0].device)].double()
        self.sums[module.layer] = self.sums.get(module.layer, 0.0) + x_ND.mT @ x_ND


def _measure_group(
    finite: Sequence[CellConfig], say: Callable[[str], None]
) -> Iterator[pd.DataFrame]:
    """Runs with the same limit, which is trained first and kept at every step."""
    finite = sorted(finite, key=lambda config: config.adapter.rank)
    config = finite[0]
    base = load_base(config.model, choose_device(config.device), config.precision)
    corpus = corpus_of(config.model, config.data)
    say(f"seed {config.seed}: the limit of {config.optimizer.name} {config.adapter.scaling}")
    large: float = math.inf
    bank: type[LoraBank] = InfiniteRankBank
    if OPTIMIZERS[config.optimizer.name].family != "linear":  # its limit has no closed form
        large, bank = STAND_IN * finite[-1].adapter.rank, LoraBank
    infinite = at_rank(limit_of(config), large)
    limits = list(trajectory(base, corpus, infinite, bank, moments=True))
    for cell in plan(finite):
        say(f"seed {config.seed}: rank {cell.config.adapter.rank}")
        row = cell_row(cell.description)
        facts = {"cell_id": cell.id} | {name: row[name] for name in FACTS}
        snapshots = trajectory(base, corpus, cell.config, LoraBank)
        for limit, snapshot in zip(limits, snapshots, strict=True):
            yield compare(limit, snapshot, cell.config.adapter.rank / large).assign(**facts)
