"""Record a fold while it trains: rows and records on disk, the display, the tracker's runs."""

import contextlib
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from omegaconf import OmegaConf
from torch import nn

from study.adapters import LoraPair
from study.config.values import literal
from study.errors import StudyError, one_line
from study.models import where_from
from study.store import (
    ADAPTER,
    CellWriter,
    ClaimLost,
    StorageError,
    provenance,
    read_record,
    replacing,
    rows_of,
)
from study.sweeps.cells import Cell
from study.sweeps.checkpointing import Checkpoints
from study.sweeps.progress import Display
from study.tracking.runs import Tracker
from study.training.devices import describe_device, peak_memory_gb
from study.training.loop import CellStep
from study.training.peft_format import write_adapter
from study.training.stuck import StuckCheck
from study.vocabulary import scaling


class Recorder:
    """Writes a fold's results as they arrive and passes them to the display and the tracker.

    ``writers``: one for each cell of ``fold``, in order. It ends with :meth:`close`, or with
    :meth:`interrupt` if the cells are to be continued.
    """

    def __init__(
        self,
        fold: Sequence[Cell],
        writers: Sequence[CellWriter],
        display: Display,
        tracked: Tracker,
    ) -> None:
        self.fold, self.writers, self.display, self.tracked = fold, writers, display, tracked
        self.status = ["complete"] * len(fold)
        self.fields: list[dict[str, Any]] = [{} for _ in fold]
        self.adapters: dict[int, dict[str, LoraPair]] = {}
        self.stuck = [StuckCheck() for _ in fold]
        self.checkpoints = Checkpoints(fold, writers, display.say)
        self._open = set(range(len(fold)))
        self._waiting: deque[list[CellStep]] = deque()
        self._last: Sequence[CellStep | None] = ()
        tokens = sum(self._read_earlier(k) for k in range(len(fold)))
        display.start([cell.id for cell in fold], tokens)
        for cell, writer in zip(fold, writers, strict=True):
            tracked.start(writer.record, cell.run_name)

    def _read_earlier(self, cell: int) -> float:
        """Take in the rows of the steps that a cell had before. Returns the tokens it has seen."""
        tokens = 0.0
        rows: list[Any] = rows_of(self.writers[cell].folder, "metrics").to_dict("records")
        for row in rows:
            self.stuck[cell].add(row)
            tokens = row["tokens"]
            self.fields[cell] |= {"steps_done": int(row["step"]), "seconds": row["seconds"]}
        return tokens

    def add(self, results: Sequence[CellStep | None]) -> None:
        """Take the results of one step, by cell; None for a cell that had diverged before.

        They are read and written when their numbers have left the device, and by :meth:`close` at
        the latest. Checkpoints are written when they are due.
        """
        alive = [result for result in results if result is not None]
        self._last = results
        self._waiting.append(alive)
        while self._waiting and all(result.arrived for result in self._waiting[0]):
            self._write(self._waiting.popleft())
        if self.checkpoints.due(alive[0].step):
            self._write_all()
            self.checkpoints.write(results)

    @property
    def has_begun(self) -> bool:
        """Whether a step was added."""
        return bool(self._last)

    @property
    def can_stop(self) -> bool:
        """Whether a later step is to come, for which a checkpoint is of use. Waits for the numbers
        of the last step.
        """
        return any(
            result is not None
            and not result.diverged
            and result.step < self.fold[result.cell].config.train.steps
            for result in self._last
        )

    def checkpoint(self) -> None:
        """Checkpoint the cells after the last step that was added, and wait until it is on disk."""
        self._write_all()
        self.checkpoints.write(self._last)

    def _write_all(self) -> None:
        """Write the rows that are left. Waits for their numbers."""
        while self._waiting:
            self._write(self._waiting.popleft())

    def _write(self, results: Sequence[CellStep]) -> None:
        """Read and write the results of one step. Waits for their numbers."""
        for result in results:
            self._read(result)
        self.display.advance([result.metrics for result in results])
        for result in results:
            writer, probes = self.writers[result.cell], result.probes
            writer.append("metrics", pd.DataFrame([result.metrics]))
            if probes is not None:
                writer.append("probes", probes)
            self.tracked.log(self.fold[result.cell].id, result.metrics, probes)
            if result.truncations is not None:
                writer.append("truncations", result.truncations)

    def _read(self, result: CellStep) -> None:
        fields = self.fields[result.cell]
        fields |= {"steps_done": result.step, "seconds": result.metrics["seconds"]}
        self.stuck[result.cell].add(result.metrics)
        if result.adapter is not None:
            self.adapters[result.cell] = result.adapter
        if result.diverged:
            self.status[result.cell] = "diverged"
            fields["diverged_step"] = result.step

    def save_adapters(self, model: nn.Module) -> None:
        """Write the trained adapters of cells with ``train.save_adapter``, in PEFT's format.

        ``model``: the base after its adapters were removed.
        """
        self._write_all()
        for k, pairs in self.adapters.items():
            adapter = self.fold[k].config.adapter
            with replacing(self.fold[k].folder / ADAPTER) as draft:  # on disk before the record
                write_adapter(
                    draft,
                    pairs,
                    alpha=adapter.alpha,
                    exponent=scaling.exponent(adapter.scaling, adapter.exponent),
                    dropout=adapter.dropout,
                    base=where_from(self.fold[k].config.model),
                    modules=dict(model.named_modules()),
                )

    def fail(self, error: Exception, device: torch.device) -> dict[Path, str]:
        """Close the cells that have not diverged as failed. Returns a line for each, by folder.

        The traceback goes to ``error.log`` in the cell's folder, unless the error is a user's
        mistake.
        """
        try:
            self._write_all()
        except (StorageError, ClaimLost):
            raise
        except Exception:  # it may be the error itself: these rows can't be had
            self._waiting.clear()
        failed = [k for k, status in enumerate(self.status) if status == "complete"]
        lines = {}
        for k in failed:
            line = one_line(error)
            if not isinstance(error, StudyError):
                line += f" (traceback in {self.writers[k].write_error_log(error)})"
            self.status[k], self.fields[k]["error"] = "failed", one_line(error)
            lines[self.fold[k].folder] = f"cell {self.fold[k].id} ({self.fold[k].label}): {line}"
        self.close(device)
        return lines

    def _mark_stuck(self) -> None:
        """Mark the complete cells whose run was stuck at its end."""
        for k, check in enumerate(self.stuck):
            if self.status[k] == "complete" and check.step is not None:
                self.status[k] = "stuck"
                self.fields[k]["stuck_step"] = check.step

    def close(self, device: torch.device) -> None:
        """Write the results that are left, and close every cell with its status."""
        self._write_all()
        self._mark_stuck()
        for k in sorted(self._open):
            self._close(k, finished=_now(), peak_memory_gb=peak_memory_gb(device))
        self._show_end()

    def _close(self, cell: int, **about: Any) -> None:
        writer, status, fields = self.writers[cell], self.status[cell], self.fields[cell]
        writer.close(status, **about, **fields)
        self._open.discard(cell)
        self.tracked.finish(writer.record["cell_id"], status, fields)

    def interrupt(self, device: torch.device) -> None:
        """Release every cell with its rows and checkpoints. One that has diverged is closed.

        It also works after an error of the disk.
        """
        if not self._open:
            return
        for k in sorted(self._open):
            if self.status[k] == "diverged":
                with contextlib.suppress(Exception):
                    self._write_all()
                    self._close(k, finished=_now(), peak_memory_gb=peak_memory_gb(device))
                    continue
            self.status[k] = "interrupted"
            self.writers[k].interrupt(**self.fields[k])
            self._open.discard(k)
            self.tracked.finish(self.fold[k].id, "interrupted", self.fields[k])
        self._show_end()

    def _show_end(self) -> None:
        self.display.finish(dict(zip([cell.id for cell in self.fold], self.status, strict=True)))


def config_yaml(cell: Cell) -> str:
    """The text of ``config.yaml`` in a cell's folder."""
    return OmegaConf.to_yaml(OmegaConf.create(literal(asdict(cell.config))))


def record_of(cell: Cell, device: torch.device, data: str, first_step: int = 0) -> dict[str, Any]:
    """A cell's record as it begins: configuration, sources, versions, commit and device.

    ``data``: the hash of the examples. A cell that continues at ``first_step`` keeps the time at
    which it began, and gets an entry in ``resumed``.
    """
    now = _now()
    record = {
        **cell.description,
        "sources": asdict(cell.sources) | {"data": data},
        "started": now,
        **provenance(),
        **describe_device(device),
    }
    if first_step:
        earlier = read_record(cell.folder) or {}
        record["started"] = earlier.get("started", now)
        times = earlier.get("resumed", [])
        record["resumed"] = [
            *(times if isinstance(times, list) else []),
            {"step": first_step, "at": now},
        ]
    return record


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
