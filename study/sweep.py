"""Cells to packs, packs to results.

:func:`plan` turns configurations into identified cells and catches every user mistake that needs the model's shape or
the data; :func:`packs` decides what shares a process; :func:`run` trains one pack over one loaded base. Where a pack
runs is a Hydra launcher's business.
"""

import math
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from omegaconf import OmegaConf

from study.adapters import features, resolve_targets
from study.config import CellConfig, DataConfig, ModelConfig, Sources, identity
from study.data import build_corpus, fingerprint, load_examples
from study.errors import StudyError
from study.models import FrozenBase, ModelCard, describe, load_base, load_tokenizer
from study.progress import Display
from study.provenance import peak_memory_gb, provenance
from study.store import CellWriter, is_done
from study.training import CellStep, train


@dataclass(frozen=True)
class Cell:
    """One configuration with its identity, the card of its base and the hashes of what it reads."""

    id: str
    config: CellConfig
    card: ModelCard
    sources: Sources

    @property
    def folder(self) -> Path:
        """Where its results are: ``results_dir/name/cells/id``."""
        return Path(self.config.results_dir) / self.config.name / "cells" / self.id

    @property
    def done(self) -> bool:
        """Whether its results are there already."""
        return is_done(self.folder)


def plan(configs: Iterable[CellConfig]) -> list[Cell]:
    """The cell of every config, in order, identified and checked against its base and its data.

    Nothing is written and no weights are loaded. Raises :class:`StudyError` for unknown targets, a sequence longer than
    the model allows, data or weights that can't be read, or a results folder that can't be written.
    """
    cards: dict[str, ModelCard] = {}
    data: dict[str, str] = {}
    cells = []
    for config in configs:
        card = _once(cards, config.model, describe)
        resolve_targets(card.linears, config.adapter.targets)
        if config.data.sequence_length > card.max_length:
            raise StudyError(
                f"data.sequence_length={config.data.sequence_length} is longer than {card.name} allows: "
                f"give at most {card.max_length}"
            )
        examples = _once(data, DataConfig(config.data.name, config.data.path), lambda d: fingerprint(load_examples(d)))
        _check_writable(Path(config.results_dir))
        sources = Sources(card.fingerprint, card.tokenizer_fingerprint, examples)
        cells.append(Cell(identity(config, sources), config, card, sources))
    return cells


def to_train(cells: Sequence[Cell]) -> list[Cell]:
    """The distinct cells whose results are not there yet."""
    return [cell for cell in {cell.id: cell for cell in cells}.values() if not cell.done]


def announce(cells: Sequence[Cell], packs: Sequence[Sequence[Cell]]) -> None:
    """Say on stderr what is about to be trained, and what is not."""
    distinct, left = len({cell.id for cell in cells}), sum(len(pack) for pack in packs)
    names = ", ".join(sorted({cell.config.name for cell in cells}))
    work = f"{left} to train in {len(packs)} pack{'s' * (len(packs) != 1)}" if left else "nothing to train"
    print(f"study {names}: {distinct} cells, {distinct - left} done, {work}", file=sys.stderr, flush=True)


def packs(cells: Sequence[Cell]) -> list[list[Cell]]:
    """Cells grouped by what a process shares: base, data, the shape of a step and the loop; each pack ordered by rank.

    ``pack.max_cells`` bounds a pack, so that a launcher with several workers has several packs to hand out.
    """
    groups: list[list[Cell]] = []
    for _, group in groupby(sorted(cells, key=_shared), key=_shared):
        ordered = sorted(group, key=lambda cell: cell.config.adapter.rank)
        size = ordered[0].config.pack.max_cells or len(ordered)
        # Dealt out like cards: packs cost about the same, where cut ones would put all high ranks in the last.
        count = -(-len(ordered) // size)
        groups += [ordered[start::count] for start in range(count)]
    return groups


def run(pack: Sequence[Cell]) -> None:
    """Train the cells of one pack that are not done, fold after fold, over one loaded base.

    A cell that fails is recorded as ``failed`` and the others go on; afterwards raises :class:`StudyError` naming it.
    """
    todo = to_train(pack)
    if not todo:
        return
    shared = todo[0].config
    device = choose_device(shared.device)
    base = load_base(shared.model, device, shared.precision)
    tokenizer = load_tokenizer(shared.model)
    corpus = build_corpus(shared.data, tokenizer, tokenizer.eos_token_id)
    failures: list[str] = []
    with Display(shared.name, _costs(todo, base), {c.id: _label(c) for c in todo}, shared.train.steps + 1) as display:
        for fold in folds(todo, device):
            writers = [CellWriter(cell.folder, _yaml(cell), _record(cell, device, corpus.fingerprint)) for cell in fold]
            recorder = Recorder(fold, writers, display)
            try:
                for results in train(base, corpus, [cell.config for cell in fold]):
                    recorder.add(results)
            except Exception as error:  # whatever it was, the other folds can still be trained
                failures += recorder.fail(error)
            recorder.close(device)
    if failures:
        raise StudyError(f"{len(failures)} of {len(todo)} cells failed; {failures[0]}")


def folds(pack: Sequence[Cell], device: torch.device) -> Iterator[Sequence[Cell]]:
    """The cells that go through the base in one forward pass: 1 on a CPU, where folding does not pay, else 4.

    A cell of infinite rank goes alone: its adapter is another module.
    """
    size = pack[0].config.pack.fold
    if size == "auto":
        size = 1 if device.type == "cpu" else 4
    finite = [cell for cell in pack if not math.isinf(cell.config.adapter.rank)]
    for start in range(0, len(finite), size):
        yield finite[start : start + size]
    yield from ([cell] for cell in pack if math.isinf(cell.config.adapter.rank))


def choose_device(name: str) -> torch.device:
    """``auto`` is CUDA where there is one. Raises :class:`StudyError` where CUDA is asked for and absent."""
    if name == "cuda" and not torch.cuda.is_available():
        raise StudyError("device=cuda, but torch sees no CUDA device: use device=cpu or device=auto")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


class Recorder:
    """Writes a fold's results as they come, one writer a cell, and tells the display."""

    def __init__(self, fold: Sequence[Cell], writers: Sequence[CellWriter], display: Display) -> None:
        self.fold, self.writers, self.display = fold, writers, display
        self.status = ["complete"] * len(fold)
        self.fields: list[dict[str, Any]] = [{} for _ in fold]
        display.start([cell.id for cell in fold])

    def add(self, results: Sequence[CellStep | None]) -> None:
        """Append the rows of one step."""
        for k, result in enumerate(results):
            if result is None:
                continue
            self.writers[k].append("metrics", pd.DataFrame([result.metrics]))
            if result.probes is not None:
                self.writers[k].append("probes", result.probes)
            if result.truncations is not None:
                self.writers[k].append("truncations", result.truncations)
            step = int(result.metrics["step"])
            self.fields[k] |= {"steps_done": step, "seconds": result.metrics["seconds"]}
            if result.diverged:
                self.status[k] = "diverged"
                self.fields[k]["diverged_step"] = step
        self.display.advance([result.metrics for result in results if result is not None])

    def fail(self, error: Exception) -> list[str]:
        """Mark the cells that had not diverged as failed; a line for each of them."""
        failed = [k for k, status in enumerate(self.status) if status == "complete"]
        for k in failed:
            self.status[k] = "failed"
            self.fields[k]["error"] = _one_line(error)
        return [f"cell {self.fold[k].id} ({_label(self.fold[k])}): {_one_line(error)}" for k in failed]

    def close(self, device: torch.device) -> None:
        """Close every cell with its status."""
        for writer, status, fields in zip(self.writers, self.status, self.fields, strict=True):
            writer.close(status, finished=_now(), peak_memory_gb=peak_memory_gb(device), **fields)
        self.display.finish(dict(zip([cell.id for cell in self.fold], self.status, strict=True)))


def _once(known: dict[str, Any], config: ModelConfig | DataConfig, ask: Any) -> Any:
    """``ask(config)``, asked once per distinct config: a thousand cells share a handful."""
    key = repr(config)
    if key not in known:
        known[key] = ask(config)
    return known[key]


def _check_writable(results_dir: Path) -> None:
    nearest = next(folder for folder in (results_dir.absolute(), *results_dir.absolute().parents) if folder.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        what = "not a folder" if not nearest.is_dir() else "not writable"
        raise StudyError(f"results_dir={results_dir} can't be written ({nearest} is {what}): give another results_dir")


def _shared(cell: Cell) -> str:
    """What cells of one pack have in common, as a sortable key."""
    config = cell.config
    return repr(
        (
            config.name,
            config.results_dir,
            config.device,
            config.precision,
            config.model,
            (config.data.name, config.data.path, config.data.sequence_length, config.data.heldout),
            config.adapter.targets,
            (config.train.steps, config.train.batch_size, config.train.accumulation, config.train.eval_every),
            config.probes,
            config.pack,
        )
    )


def _costs(cells: Sequence[Cell], base: FrozenBase) -> dict[str, float]:
    """FLOPs of a token by cell, forward and backward: 4 a weight of the frozen base, 6 a weight of the adapter.

    The limit of infinite rank costs what rank D does.
    """
    weights = sum(p.numel() for p in base.model.parameters())
    layers = resolve_targets(base.card.linears, cells[0].config.adapter.targets)
    shapes = [features(base.model.get_submodule(layer)) for layer in layers]
    ranks = [cell.config.adapter.rank for cell in cells]
    adapters = [sum((d + o) * (d if math.isinf(rank) else rank) for d, o in shapes) for rank in ranks]
    return {cell.id: 4.0 * weights + 6.0 * size for cell, size in zip(cells, adapters, strict=True)}


def _label(cell: Cell) -> str:
    config = cell.config
    return f"{config.optimizer.name} {config.adapter.scaling} rank {config.adapter.rank} seed {config.seed}"


def _yaml(cell: Cell) -> str:
    return OmegaConf.to_yaml(OmegaConf.create(asdict(cell.config)))


def _record(cell: Cell, device: torch.device, data: str) -> dict[str, Any]:
    return {
        "cell_id": cell.id,
        "study": cell.config.name,
        "model": cell.card.name,
        "model_note": cell.card.note,
        "data": cell.config.data.name if cell.config.data.path is None else cell.config.data.path,
        "gamma": cell.config.adapter.gamma,
        "sources": asdict(cell.sources) | {"data": data},
        "config": asdict(cell.config),
        "started": _now(),
        **provenance(device),
    }


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _one_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"
