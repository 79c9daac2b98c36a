"""How far a study's runs are from the run of infinite rank, step by step: the table ``distances``.

A cell's table holds sums, not matrices, so the runs are made once more: the limit of each (:mod:`study.adapters.infinite`), then
the cell itself, explicitly, as it was trained; and, where ranks are asked for that nothing could hold, rank-free runs
of those and, so that the two can be compared, of the cells' own ranks. Measured with the weights after s updates:

==================  =================================================================  ================================
measure             per layer, E = delta_w - its limit                                 after the first step
==================  =================================================================  ================================
``input_weighted``  sqrt(E|E x|^2 / E|limit x|^2), x the limit's inputs at step s      sqrt((1 + r_align) / r)
``frobenius``       |E| / |limit|                                                      sqrt((D + 1) / r)
``loss``            |loss - the limit's|, in nats, on the batch of step s: the model   of order r^-1/2
==================  =================================================================  ================================

What counts for a model is the first: a layer's inputs have few directions. The law r^-1/2 is for few lazy steps;
motion of A, of order 1/r a step, bends it later.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from omegaconf import OmegaConf
from torch import Tensor, nn

from study.adapters import LoraBank, adapted, resolve_targets
from study.adapters.infinite import InfiniteRankBank
from study.adapters.rank_free import RankFreeBank
from study.analysis import fit_exponents
from study.config import CellConfig, parse, probe_steps
from study.data import Corpus, build_corpus
from study.errors import StudyError
from study.models import FrozenBase, load_base, load_tokenizer
from study.store import load_cells
from study.sweeps.cells import plan
from study.training.devices import choose_device
from study.training.loop import Fold
from study.training.run import adapter_spec
from study.vocabulary import scaling
from study.vocabulary.inits import INITS
from study.vocabulary.optimizers import of_family
from study.vocabulary.quantities import MODEL_WIDE, TRAIN

MEASURES = ("input_weighted", "frobenius", "loss")
EXPLICIT, RANK_FREE = "explicit", "rank-free"
"""``run``: with factors of that rank, or at a cost that does not depend on it (:mod:`study.adapters.rank_free`)."""


@dataclass(frozen=True)
class Snapshot:
    """A run after ``step`` updates: its loss on that step's batch, each layer's ``delta_w``, ``[O, D]`` float32, and
    the second moments of each layer's inputs, ``[D, D]`` float64, where they were asked for."""

    step: int
    loss: float
    deltas: dict[str, Tensor]
    moments: dict[str, Tensor]


def measure_study(
    study_dir: Path, rank_free: Sequence[int] = (), say: Callable[[str], None] = lambda line: None
) -> pd.DataFrame:
    """The distances of every complete cell that has a limit, at the steps it was probed at; and, where ``rank_free``
    has ranks, of rank-free runs of them and of the cells' ranks beside those, one per seed.

    Columns: ``cell_id`` (a rank-free run's begins with ``free``, so that it is no cell's), ``run``, what else tells
    runs apart, ``step``, ``layer``, ``kind``, ``measure``, ``distance``; and ``d_in``, ``d_out``, ``r_align``,
    ``r_diag`` of the limit's layer, which theory asks for. Holds one limit at a time: ``4 D (O + 2 D)`` bytes a layer
    and step. ``say`` gets a line for each run. Raises :class:`StudyError` where no cell has a limit.
    """
    cells = load_cells(study_dir)
    folders = [
        study_dir / "cells" / cell for cell in cells.loc[cells["status"] == "complete", "cell_id"]
    ]
    configs = [parse(OmegaConf.load(folder / "config.yaml")) for folder in folders]  # type: ignore[arg-type]
    groups: dict[str, list[CellConfig]] = {}
    for config in configs:
        if has_limit(config):
            groups.setdefault(repr(at_rank(config, math.inf)), []).append(config)
    if not groups:
        raise StudyError(
            f"no complete cell in {study_dir} has a limit of infinite rank: train some with adapter.scaling=rslora "
            f"optimizer={'|'.join(of_family('linear'))} and probes.steps"
        )
    tables = []
    for finite in groups.values():
        finite.sort(key=lambda config: config.adapter.rank)
        free = (
            sorted({*rank_free, *(config.adapter.rank for config in finite)}) if rank_free else []
        )
        tables += _measure_group(finite, [at_rank(finite[0], rank) for rank in free], say)
    return pd.concat(tables, ignore_index=True)


def has_limit(config: CellConfig) -> bool:
    """Whether a finite rank's run converges as the rank grows, and is measured after some step."""
    adapter = config.adapter
    half = scaling.exponent(adapter.scaling, adapter.exponent) == 0.5
    lazy = (
        config.optimizer.name in of_family("linear")
        and adapter.init in INITS
        and INITS[adapter.init].q == 0
    )
    return half and lazy and math.isfinite(adapter.rank) and max(probe_steps(config), default=0) > 0


def at_rank(config: CellConfig, rank: float) -> CellConfig:
    """The same cell at another rank."""
    return replace(config, adapter=replace(config.adapter, rank=rank))


def trajectory(
    base: FrozenBase,
    corpus: Corpus,
    config: CellConfig,
    bank_type: type[LoraBank],
    *,
    moments: bool = False,
) -> Iterator[Snapshot]:
    """Train ``config`` through ``bank_type`` as :func:`study.training.loop.train` does; show its probed steps but 0.

    ``moments``: with those of the layers' inputs over the step's real tokens.
    """
    at = [step for step in probe_steps(config) if step > 0]
    layers = resolve_targets(base.card.linears, config.adapter.targets)
    unprobed = replace(config, probes=replace(config.probes, stats="norm"))
    with adapted(base.model, layers, [adapter_spec(config)], bank_type) as banks:
        fold = Fold(base, corpus, [unprobed], banks)
        for step in range(max(at) + 1):
            inputs = InputMoments(banks) if moments and step in at else None
            [loss] = fold.backward(step, inputs)
            fold.grad_norms()
            if step in at:
                pairs = {bank.layer: bank.pairs[0] for bank in banks}
                deltas = {
                    layer: (pair.B_OR @ pair.A_RD).detach() * pair.gamma
                    for layer, pair in pairs.items()
                }
                yield Snapshot(step, loss, deltas, inputs.means() if inputs else {})
            fold.update()


class InputMoments:
    """The second moments ``E x x^T`` of every bank's inputs over real tokens, all micro-batches together."""

    def __init__(self, banks: Sequence[LoraBank]) -> None:
        self.banks = banks
        self.sums: dict[str, Tensor] = {}
        self.count = 0

    @contextmanager
    def watch(self, real_BT: Tensor | None = None) -> Iterator[None]:
        """Add the inputs of the passes inside."""
        hooks = [bank.register_forward_pre_hook(partial(self._add, real_BT)) for bank in self.banks]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
        self.count += int(real_BT.sum()) if real_BT is not None else 0

    def means(self) -> dict[str, Tensor]:
        """By layer, ``[D, D]``."""
        return {layer: total / self.count for layer, total in self.sums.items()}

    def _add(self, real_BT: Tensor | None, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        assert isinstance(module, LoraBank)
        assert real_BT is not None
        x_ND = args[0].detach()[real_BT.bool().to(args[0].device)].double()
        self.sums[module.layer] = self.sums.get(module.layer, 0.0) + x_ND.mT @ x_ND


def compare(limit: Snapshot, run: Snapshot) -> pd.DataFrame:
    """The rows of one run at one step: layer, kind, measure, distance, and what theory asks of the limit's layer."""
    rows = [
        {
            "layer": MODEL_WIDE,
            "kind": MODEL_WIDE,
            "measure": "loss",
            "distance": abs(run.loss - limit.loss),
        }
    ]
    for layer, limit_OD in limit.deltas.items():
        limit_OD, M_DD = limit_OD.double(), limit.moments[layer]
        error_OD = run.deltas[layer].double() - limit_OD
        energy, out_energy = float(limit_OD.square().sum()), _weighted(limit_OD, M_DD)
        facts = {
            "layer": layer,
            "kind": layer.rpartition(".")[2],
            "d_in": limit_OD.shape[1],
            "d_out": limit_OD.shape[0],
            "r_align": _over(energy * float(M_DD.trace()), out_energy),
            "r_diag": _over(float(limit_OD.square().sum(0) @ M_DD.diagonal()), out_energy),
        }
        for measure, square in (
            ("input_weighted", _over(_weighted(error_OD, M_DD), out_energy)),
            ("frobenius", _over(float(error_OD.square().sum()), energy)),
        ):
            rows.append(facts | {"measure": measure, "distance": math.sqrt(square)})
    return pd.DataFrame(rows).assign(step=limit.step)


def exponents(distances: pd.DataFrame) -> pd.DataFrame:
    """The fits of :func:`study.analysis.fit_exponents` for distances in the place of a probed statistic: ``site`` is
    the measure."""
    cells = distances[["cell_id", *FACTS]].drop_duplicates("cell_id").assign(status="complete")
    probes = distances[["cell_id", "step", "layer", "kind", "distance"]].assign(
        site=distances["measure"],
        batch=TRAIN,
        block=np.where(distances["layer"] == MODEL_WIDE, -1, 0),
    )
    return fit_exponents(cells.reset_index(drop=True), probes, stats=["distance"])


def laws(distances: pd.DataFrame) -> list[str]:
    """A line for each measure, step and kind of run: the exponent of the mean over layers of the log, its interval."""
    fits = exponents(distances)
    pooled = fits[
        (fits["layer"] == "mean_log") & (fits["kind"] == "all") | (fits["site"] == "loss")
    ]
    lines = []
    for row in pooled.sort_values(["run", "site", "step"]).to_dict("records"):
        interval = (
            f" [{row['ci_low']:.3f}, {row['ci_high']:.3f}]" if math.isfinite(row["ci_low"]) else ""
        )
        ranks = f"ranks {row['rank_min']:.0f} to {row['rank_max']:.0f}"
        lines.append(
            f"{row['run']} {row['site']}, step {row['step']}: exponent {row['exponent']:.3f}{interval}, {ranks}"
        )
    return lines


FACTS = (
    "run",
    "study",
    "model",
    "data",
    "optimizer",
    "lr",
    "alpha",
    "init",
    "scaling",
    "exponent",
    "rank",
    "seed",
)
"""What a row says of its run, as the ``cells`` table does."""


def _measure_group(
    finite: Sequence[CellConfig], free: Sequence[CellConfig], say: Callable[[str], None]
) -> list[pd.DataFrame]:
    """Runs that share a limit: it is trained first and kept at every step."""
    config = finite[0]
    base = load_base(config.model, choose_device(config.device), config.precision)
    tokenizer = load_tokenizer(config.model)
    corpus = build_corpus(config.data, tokenizer, tokenizer.eos_token_id)
    say(f"seed {config.seed}: the limit of {config.optimizer.name} {config.adapter.scaling}")
    limits = list(
        trajectory(base, corpus, at_rank(config, math.inf), InfiniteRankBank, moments=True)
    )
    tables = []
    runs = [(EXPLICIT, LoraBank, cell) for cell in plan(finite)] + [
        (RANK_FREE, RankFreeBank, c) for c in plan(free)
    ]
    for run, bank_type, cell in runs:
        say(f"seed {config.seed}: rank {cell.config.adapter.rank}, {run}")
        adapter = cell.config.adapter
        facts = {
            "cell_id": cell.id if run == EXPLICIT else f"free {cell.id}",
            "run": run,
            "study": cell.config.name,
            "model": cell.card.name,
            "data": cell.config.data.name
            if cell.config.data.path is None
            else cell.config.data.path,
            "optimizer": cell.config.optimizer.name,
            "lr": cell.config.optimizer.lr,
            "exponent": math.nan if adapter.exponent is None else adapter.exponent,
            "rank": float(adapter.rank),
            "seed": cell.config.seed,
            **{name: getattr(adapter, name) for name in ("alpha", "init", "scaling")},
        }
        snapshots = trajectory(base, corpus, cell.config, bank_type)
        tables += [
            compare(limit, snapshot).assign(**facts)
            for limit, snapshot in zip(limits, snapshots, strict=True)
        ]
    return tables


def _weighted(delta_OD: Tensor, M_DD: Tensor) -> float:
    """``E|delta x|^2``."""
    return float(((delta_OD @ M_DD) * delta_OD).sum().clamp_min(0.0))


def _over(part: float, whole: float) -> float:
    """NaN where the limit has not moved: the first rate of a warmup is 0."""
    return part / whole if whole > 0 else math.nan
