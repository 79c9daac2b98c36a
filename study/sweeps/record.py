"""Record a fold while it trains: rows, checkpoints, records, the display, the tracker."""

import os
import secrets
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

import pandas as pd
import torch
from omegaconf import OmegaConf
from torch import nn

from study.adapters import LoraPair
from study.config import interval
from study.config.values import literal
from study.errors import StudyError, one_line
from study.models.sources import find_model
from study.store import (
    ADAPTER,
    CHECKPOINTS,
    CellWriter,
    Damaged,
    StorageError,
    claim,
    now,
    provenance,
    read_record,
    replacing,
    rows_of,
)
from study.store.checkpoints import Checkpoint, load_newest, save
from study.store.files import remove
from study.sweeps.cells import Cell
from study.sweeps.packs import Pack
from study.sweeps.progress import Display
from study.tracking.runs import Tracker
from study.training.devices import describe_device, peak_memory_gb
from study.training.loop import CellStep
from study.training.peft_format import write_adapter
from study.training.stuck import StuckCheck
from study.vocabulary import scaling

COST_SHARE = 20
"""If checkpoints are due by time, the pause after one is this many times its duration."""


@dataclass
class _Held:
    """A cell that this process has claimed. ``fields``: added to its record at its end."""

    cell: Cell
    writer: CellWriter
    status: str = "complete"
    fields: dict[str, Any] = field(default_factory=dict)
    stuck: StuckCheck = field(default_factory=StuckCheck)
    adapter: dict[str, LoraPair] | None = None
    is_open: bool = True


class Recorder:
    """Claims the cells of a fold and writes their results until :meth:`close` or :meth:`fail`. A
    context manager: on exit, cells that have not ended are released with rows and checkpoints.

    ``states``: the checkpoints of the claimed cells, which all continue at ``first_step``.
    ``left``: the cells that do not. ``failures``: a line for each cell that failed, by folder.
    """

    def __init__(
        self, fold: Sequence[Cell], pack: Pack, display: Display, tracked: Tracker
    ) -> None:
        self.pack, self.display, self.tracked = pack, display, tracked
        self.states: list[Checkpoint] = []
        self.left: list[Cell] = []
        self.failures: dict[Path, str] = {}
        self._held: list[_Held] = []
        self._waiting: deque[list[CellStep]] = deque()
        self._last: list[CellStep] = []
        every = pack.config.checkpoint.every
        self._every = None if every is None else interval("checkpoint.every", every)
        shared = {"fold": secrets.token_hex(6), "rows": pack.corpus.rows}
        try:
            for cell in fold:
                self._claim(cell, shared)
        except BaseException:
            for held in self._held:
                held.writer.interrupt()
            raise
        self._checkpointed = self.first_step - 1
        """The last step that a checkpoint holds; it was written at ``_since``, in ``_cost`` s."""
        self._since, self._cost = time.perf_counter(), 0.0
        for held in self._held:
            earlier: list[Any] = rows_of(held.writer.folder, "metrics").to_dict("records")
            for row in earlier:
                held.stuck.add(row)
                held.fields |= {"steps_done": int(row["step"]), "seconds": row["seconds"]}
            tracked.start(held.writer.record, held.cell.label)
        if self._held:
            display.start(self._held[0].cell.label)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.interrupt()

    @property
    def cells(self) -> list[Cell]:
        return [held.cell for held in self._held]

    @property
    def first_step(self) -> int:
        return self.states[0].step if self.states else 0

    def _claim(self, cell: Cell, shared: dict[str, Any]) -> None:
        """Open a cell, unless another process holds it or has trained it since the pack was
        made."""
        if (claimed := claim(cell.folder)) is None:
            return
        if cell.done:
            claimed.release()
            return
        found = load_newest(cell.folder, self.display.say)
        step = found.step if found else 0
        if self._held and step != self.first_step:
            claimed.release()
            self.left.append(cell)
            return
        record = record_of(cell, self.pack.device, self.pack.corpus.fingerprint, step) | shared
        record["parameters"] = self.pack.needs[cell.id].weights
        try:
            text = OmegaConf.to_yaml(OmegaConf.create(literal(asdict(cell.config))))
            writer = CellWriter(claimed, text, record, step)
        except Damaged as error:  # the rows before the checkpoint
            self.display.say(f"cell {cell.id} begins again: {error}")
            remove(cell.folder / CHECKPOINTS)
            self.left.append(cell)
            return
        self._held.append(_Held(cell, writer))
        if found:
            self.states.append(found)

    def add(self, results: Sequence[CellStep | None]) -> None:
        """Take the results of one step, by cell (None: diverged before). Checkpoints if it is
        due."""
        self._last = [result for result in results if result is not None]
        self._waiting.append(self._last)
        while self._waiting and all(result.arrived for result in self._waiting[0]):
            self._write(self._waiting.popleft())
        if self._is_due(self._last[0].step):
            self.checkpoint()

    @property
    def can_stop(self) -> bool:
        """Whether a later step follows. Waits for the last numbers."""
        steps = self.pack.config.train.steps
        return any(not result.diverged and result.step < steps for result in self._last)

    def checkpoint(self) -> None:
        """Checkpoint the cells after the last step. If it can't be written, a line says so."""
        self._write_all()
        alive = [result for result in self._last if not result.diverged]
        if not alive or alive[0].step == self._checkpointed:
            return
        began = time.perf_counter()
        try:
            for result in alive:
                held = self._held[result.cell]
                save(held.cell.folder, result.snapshot(), held.writer.sync)
        except OSError as error:
            cause = os.strerror(error.errno) if error.errno else str(error)
            folder = self._held[0].cell.folder
            self.display.say(f"no checkpoint in {folder} ({cause}): training goes on without")
        self._checkpointed, self._since = alive[0].step, time.perf_counter()
        self._cost = self._since - began

    def _is_due(self, step: int) -> bool:
        """Whether to write a checkpoint after ``step``. After the last step the cells end."""
        if self._every is None or step >= self.pack.config.train.steps:
            return False
        if isinstance(self._every, int):
            return step - self._checkpointed >= self._every
        least = max(self._every, COST_SHARE * self._cost)
        return time.perf_counter() - self._since >= least

    def _write_all(self) -> None:
        while self._waiting:
            self._write(self._waiting.popleft())

    def _write(self, results: Sequence[CellStep]) -> None:
        for result in results:
            held = self._held[result.cell]
            held.fields |= {"steps_done": result.step, "seconds": result.metrics["seconds"]}
            held.stuck.add(result.metrics)
            held.adapter = result.adapter
            if result.diverged:
                held.status = "diverged"
                held.fields["diverged_step"] = result.step
        self.display.advance([result.metrics for result in results])
        for result in results:
            held, probes = self._held[result.cell], result.probes
            held.writer.append("metrics", pd.DataFrame([result.metrics]))
            if probes is not None:
                held.writer.append("probes", probes)
            self.tracked.log(held.cell.id, result.metrics, probes)
            for name, table in result.tables.items():
                held.writer.append(name, table)

    def close(self, model: nn.Module) -> None:
        """Write what is left, and close every cell. ``model``: the base without adapters."""
        self._write_all()
        for held in self._held:
            if held.adapter is None:
                continue
            adapter = held.cell.config.adapter
            with replacing(held.cell.folder / ADAPTER) as draft:  # on disk before the record
                write_adapter(
                    draft,
                    held.adapter,
                    alpha=adapter.alpha,
                    exponent=scaling.exponent(adapter.scaling, adapter.exponent),
                    dropout=adapter.dropout,
                    base=find_model(held.cell.config.model).where,
                    modules=dict(model.named_modules()),
                )
        self._close()

    def fail(self, error: Exception) -> None:
        """Close the cells that have not diverged as failed, with a line in ``failures``."""
        try:
            self._write_all()
        except StorageError:
            raise
        except Exception:  # these rows may have caused the error
            self._waiting.clear()
        for held in self._held:
            if held.status != "complete":
                continue
            line = one_line(error)
            if not isinstance(error, StudyError):
                line += f" (traceback in {held.writer.write_error_log(error)})"
            held.status, held.fields["error"] = "failed", one_line(error)
            self.failures[held.cell.folder] = f"cell {held.cell.id} ({held.cell.label}): {line}"
        self._close()

    def _close(self) -> None:
        for held in self._held:
            if held.status == "complete" and held.stuck.step is not None:
                held.status, held.fields["stuck_step"] = "stuck", held.stuck.step
            about = {"finished": now(), "peak_memory_gb": peak_memory_gb(self.pack.device)}
            held.writer.close(held.status, **about, **held.fields)
            self._end(held)

    def interrupt(self) -> None:
        """Release the cells that have not ended, with rows and checkpoints."""
        for held in self._held:
            if held.is_open:
                held.status = "interrupted"
                held.fields.pop("diverged_step", None)
                held.writer.interrupt(**held.fields)
                self._end(held)

    def _end(self, held: _Held) -> None:
        held.is_open = False
        self.tracked.finish(held.cell.id, held.status, held.fields)
        self.display.finish(held.cell.label, held.status)


def record_of(cell: Cell, device: torch.device, data: str, first_step: int = 0) -> dict[str, Any]:
    """A cell's record as it begins or, with an entry in ``resumed``, continues. ``data``: a
    hash."""
    record = {
        **cell.description,
        "sources": asdict(cell.sources) | {"data": data},
        "started": now(),
        **provenance(),
        **describe_device(device),
    }
    if first_step:
        earlier = read_record(cell.folder) or {}
        times = earlier.get("resumed", [])
        record["resumed"] = [*times, {"step": first_step, "at": record["started"]}]
        record["started"] = earlier.get("started", record["started"])
    return record
