"""Record a fold while it trains: rows and records on disk, the display, the tracker's runs."""

from collections import deque
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

import pandas as pd
import torch
from omegaconf import OmegaConf
from torch import nn

from study.adapters import LoraPair
from study.adapters.peft_format import write_adapter
from study.errors import StudyError, one_line
from study.models import where_from
from study.store import ADAPTER, CellWriter
from study.store.provenance import provenance
from study.sweeps.cells import Cell
from study.sweeps.progress import Display
from study.tracking.runs import Tracker
from study.training.devices import describe_device, peak_memory_gb
from study.training.loop import CellStep
from study.training.stuck import StuckCheck
from study.vocabulary import scaling


class Recorder:
    """Writes a fold's results as they arrive and passes them to the display and the tracker.

    ``writers``: one for each cell of ``fold``, in order.
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
        self._waiting: deque[list[CellStep]] = deque()
        display.start([cell.id for cell in fold])
        for cell, writer in zip(fold, writers, strict=True):
            tracked.start(writer.record, cell.label)

    def add(self, results: Sequence[CellStep | None]) -> None:
        """Take the results of one step, by cell; None for a cell that had diverged before.

        They are written when their numbers have left the device, and by :meth:`close` at the
        latest.
        """
        alive = [result for result in results if result is not None]
        for result in alive:
            fields, step = self.fields[result.cell], int(result.metrics["step"])
            fields |= {"steps_done": step, "seconds": result.metrics["seconds"]}
            self.stuck[result.cell].add(result.metrics)
            if result.adapter is not None:
                self.adapters[result.cell] = result.adapter
            if result.diverged:
                self.status[result.cell] = "diverged"
                fields["diverged_step"] = step
        self.display.advance([result.metrics for result in alive])
        self._waiting.append(alive)
        while self._waiting and all(result.arrived for result in self._waiting[0]):
            self._write(self._waiting.popleft())

    def _write(self, results: Sequence[CellStep]) -> None:
        for result in results:
            writer, probes = self.writers[result.cell], result.probes
            writer.append("metrics", pd.DataFrame([result.metrics]))
            if probes is not None:
                writer.append("probes", probes)
            self.tracked.log(self.fold[result.cell].id, result.metrics, probes)
            if result.truncations is not None:
                writer.append("truncations", result.truncations)

    def save_adapters(self, model: nn.Module) -> None:
        """Write the trained adapters of cells with ``train.save_adapter``, in PEFT's format.

        ``model``: the base after its adapters were removed.
        """
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
        """Mark the cells that have not diverged as failed. Returns a line for each of them.

        The traceback goes to ``error.log`` in the cell's folder, unless the error is a user's
        mistake.
        """
        failed = [k for k, status in enumerate(self.status) if status == "complete"]
        lines = []
        for k in failed:
            line = one_line(error)
            if not isinstance(error, StudyError):
                line += f" (traceback in {self.writers[k].write_error_log(error)})"
            self.status[k], self.fields[k]["error"] = "failed", one_line(error)
            lines.append(f"cell {self.fold[k].id} ({self.fold[k].label}): {line}")
        return lines

    def _mark_stuck(self) -> None:
        """Mark the complete cells whose run was stuck at its end."""
        for k, check in enumerate(self.stuck):
            if self.status[k] == "complete" and check.step is not None:
                self.status[k] = "stuck"
                self.fields[k]["stuck_step"] = check.step

    def close(self, device: torch.device) -> None:
        """Write the results that are left, and close every cell with its status."""
        while self._waiting:
            self._write(self._waiting.popleft())
        self._mark_stuck()
        for writer, status, fields in zip(self.writers, self.status, self.fields, strict=True):
            writer.close(status, finished=_now(), peak_memory_gb=peak_memory_gb(device), **fields)
            self.tracked.finish(writer.record["cell_id"], status, fields)
        self.display.finish(dict(zip([cell.id for cell in self.fold], self.status, strict=True)))


def config_yaml(cell: Cell) -> str:
    """The text of ``config.yaml`` in a cell's folder."""
    return OmegaConf.to_yaml(OmegaConf.create(asdict(cell.config)))


def record_of(cell: Cell, device: torch.device, data: str) -> dict[str, Any]:
    """A cell's record as it begins: configuration, sources, versions, commit and device.

    ``data``: the hash of the examples.
    """
    return {
        **cell.description,
        "sources": asdict(cell.sources) | {"data": data},
        "started": _now(),
        **provenance(),
        **describe_device(device),
    }


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
