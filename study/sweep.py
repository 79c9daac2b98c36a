"""Cells to packs, packs to results.

:func:`plan` turns configurations into identified cells and catches every user mistake that needs the model's shape or
the data; :func:`packs` decides what shares a process; :func:`run` trains one pack over one loaded base. Where a pack
runs is a Hydra launcher's business.
"""

import math
import os
import sys
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from omegaconf import OmegaConf
from torch import nn

from study import scaling
from study.adapters import LoraPair, resolve_targets
from study.adapters.peft_format import file_hash, read_adapter, shortest_names, write_adapter
from study.agenda import Planned, posted
from study.config import CellConfig, DataConfig, ModelConfig, Sources, identity
from study.data import Corpus, build_corpus, fingerprint, load_examples
from study.errors import StudyError
from study.inits import IMPORTED
from study.models import FrozenBase, ModelCard, describe, load_base, load_tokenizer, where_from
from study.planning import Estimate, PackPlan, budget, check_fits, estimate, fastest_fold, fold_sizes, render_plan
from study.progress import Display
from study.provenance import peak_memory_gb, provenance
from study.status import counts
from study.store import ADAPTER, CellWriter, is_done, load_cells
from study.tracking.runs import Tracker, tracker
from study.training import CellStep, contraction, train, typical_step


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
        return self.study_dir / "cells" / self.id

    @property
    def study_dir(self) -> Path:
        """The folder of its study."""
        return Path(self.config.results_dir) / self.config.name

    @property
    def done(self) -> bool:
        """Whether its results are there already."""
        return is_done(self.folder, with_adapter=self.config.train.save_adapter)


def plan(configs: Iterable[CellConfig]) -> list[Cell]:
    """The cell of every config, in order, identified and checked against its base and its data.

    Nothing is written and no weights of a base are loaded. Raises :class:`StudyError` for unknown targets, a sequence
    longer than the model allows, data, weights or an adapter that can't be read, an adapter for another base, or a
    results folder that can't be written.
    """
    cards: dict[str, ModelCard] = {}
    data: dict[str, str] = {}
    cells = []
    for config in configs:
        card = _once(cards, config.model, describe)
        adapter = None
        if config.adapter.path:
            folder = Path(config.adapter.path)
            config, adapter = going_on(config, card), file_hash(folder)
        resolve_targets(card.linears, config.adapter.targets)
        if config.data.sequence_length > card.max_length:
            raise StudyError(
                f"data.sequence_length={config.data.sequence_length} is longer than {card.name} allows: "
                f"give at most {card.max_length}"
            )
        answer = config.train.answer_tokens or 0
        if config.data.sequence_length + answer > card.max_length:
            raise StudyError(
                f"train.answer_tokens={answer} behind data.sequence_length={config.data.sequence_length} is longer "
                f"than {card.name} allows: together give at most {card.max_length}"
            )
        examples = _once(data, DataConfig(config.data.name, config.data.path), lambda d: fingerprint(load_examples(d)))
        _check_writable(Path(config.results_dir))
        sources = Sources(card.fingerprint, card.tokenizer_fingerprint, examples, adapter)
        cells.append(Cell(identity(config, sources), config, card, sources))
    return cells


def going_on(config: CellConfig, card: ModelCard) -> CellConfig:
    """``config`` with what the PEFT adapter at ``adapter.path`` brings: rank, alpha, rule and targets.

    Raises :class:`StudyError` for one that can't be read or is for another base.
    """
    found = read_adapter(Path(str(config.adapter.path)))
    found.check_fits(dict(zip(card.linears, card.shapes, strict=True)), card.name)
    brought = {"rank": found.config["r"], "alpha": float(found.config["lora_alpha"]), "scaling": found.scaling}
    targets = shortest_names(found.pairs, card.linears)
    own = replace(config.adapter, **brought, exponent=None, targets=targets, init=IMPORTED)
    return replace(config, adapter=own)


def to_train(cells: Sequence[Cell]) -> list[Cell]:
    """The distinct cells whose results are not there yet."""
    return [cell for cell in {cell.id: cell for cell in cells}.values() if not cell.done]


def announce(cells: Sequence[Cell], packs: Sequence[Sequence[Cell]]) -> None:
    """Say on stderr what is about to be trained, and what is not."""
    distinct, left = len({cell.id for cell in cells}), sum(len(pack) for pack in packs)
    names = ", ".join(sorted({cell.config.name for cell in cells}))
    work = f"{left} to train in {len(packs)} pack{'s' * (len(packs) != 1)}" if left else "nothing to train"
    print(f"study {names}: {distinct} cells, {distinct - left} done, {work}", file=sys.stderr, flush=True)


def show_plan(cells: Sequence[Cell], packs: Sequence[Sequence[Cell]]) -> None:
    """Print on stdout what the packs are about to take: cells, folds, FLOPs, memory, time. Trains nothing."""
    announce(cells, packs)
    rows = []
    for pack in packs:
        config = pack[0].config
        device, corpus = choose_device(config.device), corpus_of(config)
        needs = [need(cell, corpus, device) for cell in pack]
        rows.append(PackPlan([cell.config.adapter.rank for cell in pack], needs, budget(config, device), device))
    print(render_plan(rows))


@contextmanager
def on_agenda(packs: Sequence[Sequence[Cell]]) -> Iterator[None]:
    """While inside, whoever looks at a study's folder sees what is still to be trained (:mod:`study.agenda`)."""
    planned: dict[Path, list[Planned]] = {}
    for pack in packs:
        cells = planned.setdefault(pack[0].study_dir, [])
        number = cells[-1].pack + 1 if cells else 1
        cells += [Planned(_description(cell), number, _cost(cell)) for cell in pack]
    with ExitStack() as stack:
        for study_dir, of_study in planned.items():
            stack.enter_context(posted(study_dir, of_study))
        yield


def conclude(cells: Sequence[Cell]) -> None:
    """Say on stderr how the cells' studies stand, and the command that comes next."""
    for study_dir in sorted({cell.study_dir for cell in cells}):
        print(f"study {study_dir.name}: {counts(load_cells(study_dir)['status'])}", file=sys.stderr)
        print(f"next: study analyze {study_dir}", file=sys.stderr, flush=True)


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
    corpus = corpus_of(shared)
    needs = {cell.id: need(cell, corpus, device) for cell in todo}
    base = loaded_base(shared, device)
    failures: list[str] = []
    with (
        Display(todo[0].study_dir, {cell.id: _label(cell) for cell in todo}, shared.train.steps) as display,
        tracker(shared.tracker, display.pack, display.say) as tracked,
    ):
        waiting = deque(folds(todo, needs, base, corpus))
        while waiting:
            fold = waiting.popleft()
            writers = [CellWriter(cell.folder, _yaml(cell), _record(cell, device, corpus.fingerprint)) for cell in fold]
            recorder = Recorder(fold, writers, display, tracked)
            try:
                for results in train(base, corpus, [cell.config for cell in fold]):
                    recorder.add(results)
                recorder.save_adapters(base.model)
            except Exception as error:  # whatever it was, the other folds can still be trained
                failed = recorder.fail(error)
                if len(fold) > 1 and is_out_of_memory(error):
                    half = len(fold) // 2
                    display.say(f"out of memory with {len(fold)} cells at once: going on with {half}")
                    waiting.extendleft([fold[half:], fold[:half]])
                else:
                    failures += failed
            recorder.close(device)
            release_memory(device)
    if failures:
        raise StudyError(f"{len(failures)} of {len(todo)} cells failed; {failures[0]}")


def folds(
    pack: Sequence[Cell], needs: Mapping[str, Estimate], base: FrozenBase, corpus: Corpus
) -> Iterator[Sequence[Cell]]:
    """The cells that go through the base in one forward pass: as many as fit, up to ``pack.fold``.

    ``auto`` is 1 on a CPU, where folding does not pay, and on CUDA what a short trial finds fastest. A cell of infinite
    rank goes alone: its adapter is another module. So do one that goes on with an adapter, whose layers may differ in
    rank, and one over an 8-bit base on CUDA, whose products depend on the whole batch (:mod:`study.models.quantised`).
    """
    alone = {cell.id for cell in pack if math.isinf(cell.config.adapter.rank) or cell.config.adapter.path}
    together = [cell for cell in pack if cell.id not in alone]
    if together:
        config, device = together[0].config, base.device
        most = config.pack.fold
        if most == "auto":
            most = 1 if device.type == "cpu" else fastest_fold([cell.config for cell in together], base, corpus)
        if device.type == "cuda" and config.model.quant_bits == 8:
            most = 1
        start = 0
        for size in fold_sizes([needs[cell.id] for cell in together], most, budget(config, device)):
            yield together[start : start + size]
            start += size
    yield from ([cell] for cell in pack if cell.id in alone)


def need(cell: Cell, corpus: Corpus, device: torch.device) -> Estimate:
    """What a cell will take. Raises :class:`StudyError` where ``pack.memory_gb`` is too little for it alone."""
    tokens, supervised = typical_step(cell.config, corpus, device)
    found = estimate(cell.config, cell.card, tokens, supervised, contraction(cell.config, corpus, device))
    check_fits(cell.config, found, _label(cell))
    return found


def choose_device(name: str) -> torch.device:
    """``auto`` is CUDA where there is one. Raises :class:`StudyError` where CUDA is asked for and absent."""
    if name == "cuda" and not torch.cuda.is_available():
        raise StudyError("device=cuda, but torch sees no CUDA device: use device=cpu or device=auto")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def is_out_of_memory(error: Exception) -> bool:
    """CUDA has an exception of its own for it; a CPU's allocator raises a RuntimeError, and Python a MemoryError."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)


def release_memory(device: torch.device) -> None:
    """Give what the last fold held back to the device, so that the next one's is counted from nothing."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


class Recorder:
    """Writes a fold's results as they come, one writer a cell, and tells the display and the tracker."""

    def __init__(self, fold: Sequence[Cell], writers: Sequence[CellWriter], display: Display, tracked: Tracker) -> None:
        self.fold, self.writers, self.display, self.tracked = fold, writers, display, tracked
        self.status = ["complete"] * len(fold)
        self.fields: list[dict[str, Any]] = [{} for _ in fold]
        self.adapters: dict[int, dict[str, LoraPair]] = {}
        display.start([cell.id for cell in fold])
        for cell, writer in zip(fold, writers, strict=True):
            tracked.start(writer.record, _label(cell))

    def add(self, results: Sequence[CellStep | None]) -> None:
        """Append the rows of one step."""
        for k, result in enumerate(results):
            if result is None:
                continue
            self.writers[k].append("metrics", pd.DataFrame([result.metrics]))
            if result.probes is not None:
                self.writers[k].append("probes", result.probes)
            self.tracked.log(self.fold[k].id, result.metrics, result.probes)
            if result.adapter is not None:
                self.adapters[k] = result.adapter
            if result.truncations is not None:
                self.writers[k].append("truncations", result.truncations)
            step = int(result.metrics["step"])
            self.fields[k] |= {"steps_done": step, "seconds": result.metrics["seconds"]}
            if result.diverged:
                self.status[k] = "diverged"
                self.fields[k]["diverged_step"] = step
        self.display.advance([result.metrics for result in results if result is not None])

    def save_adapters(self, model: nn.Module) -> None:
        """Write the adapters that were kept, in PEFT's format; ``model`` is the base, without adapters again."""
        for k, pairs in self.adapters.items():
            adapter = self.fold[k].config.adapter
            write_adapter(
                self.fold[k].folder / ADAPTER,
                pairs,
                alpha=adapter.alpha,
                exponent=scaling.exponent(adapter.scaling, adapter.exponent),
                dropout=adapter.dropout,
                base=where_from(self.fold[k].config.model),
                modules=dict(model.named_modules()),
            )

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
            self.tracked.finish(writer.record["cell_id"], status, fields)
        self.display.finish(dict(zip([cell.id for cell in self.fold], self.status, strict=True)))


def loaded_base(config: CellConfig, device: torch.device) -> FrozenBase:
    """The base of a pack: the one of the pack before it in this process, if it is the same."""
    wanted = repr((config.model, device, config.precision))
    if wanted not in _BASE:
        forget_base()  # before the next one is loaded: there may be no room for two
        _BASE[wanted] = load_base(config.model, device, config.precision)
    return _BASE[wanted]


def forget_base() -> None:
    """Let go of the base that this process holds."""
    _BASE.clear()


_BASE: dict[str, FrozenBase] = {}


def corpus_of(config: CellConfig) -> Corpus:
    """The tokenised data of a cell."""
    tokenizer = load_tokenizer(config.model)
    return build_corpus(config.data, tokenizer, tokenizer.eos_token_id)


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
            (config.train.steps, config.train.batch_size, config.train.accumulation),
            (config.train.eval_every, config.train.answer_tokens),
            config.probes,
            config.pack,
            config.tracker,
        )
    )


def _cost(cell: Cell) -> float:
    """FLOPs of all its steps, forward and backward: for a token 4 a weight of the base and 6 a weight of its adapters.

    The limit of infinite rank costs what rank D does.
    """
    config, card = cell.config, cell.card
    rank, targets = config.adapter.rank, set(resolve_targets(card.linears, config.adapter.targets))
    shapes = [shape for layer, shape in zip(card.linears, card.shapes, strict=True) if layer in targets]
    adapters = sum((d + o) * (d if math.isinf(rank) else rank) for d, o in shapes)
    tokens = config.train.batch_size * config.train.accumulation * config.data.sequence_length
    return (4.0 * card.parameters + 6.0 * adapters) * tokens * (config.train.steps + 1)


def _label(cell: Cell) -> str:
    config = cell.config
    return f"{config.optimizer.name} {config.adapter.scaling} rank {config.adapter.rank} seed {config.seed}"


def _yaml(cell: Cell) -> str:
    return OmegaConf.to_yaml(OmegaConf.create(asdict(cell.config)))


def _description(cell: Cell) -> dict[str, Any]:
    """What a cell's record says of it before it runs."""
    return {
        "cell_id": cell.id,
        "study": cell.config.name,
        "model": cell.card.name,
        "model_note": cell.card.note,
        "data": cell.config.data.name if cell.config.data.path is None else cell.config.data.path,
        "gamma": cell.config.adapter.gamma,
        "config": asdict(cell.config),
    }


def _record(cell: Cell, device: torch.device, data: str) -> dict[str, Any]:
    return {
        **_description(cell),
        "sources": asdict(cell.sources) | {"data": data},
        "started": _now(),
        **provenance(device),
    }


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _one_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"
