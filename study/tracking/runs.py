"""The tracker of a pack: one run per cell, or none."""

from collections.abc import Callable, Mapping
from typing import Any, Self

import pandas as pd

from study.config import TrackerConfig
from study.tracking.writing import Runs
from study.vocabulary.trackers import NONE, WANDB


class Untracked:
    """``tracker=none``: does nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None: ...

    def start(self, record: Mapping[str, Any], name: str) -> None:
        """A cell starts."""

    def log(self, cell_id: str, metrics: Mapping[str, float], probes: pd.DataFrame | None) -> None:
        """A cell has finished a step."""

    def finish(self, cell_id: str, status: str, fields: Mapping[str, Any]) -> None:
        """A cell has ended."""


Tracker = Runs | Untracked


def tracker(config: TrackerConfig, notify: Callable[[str], None]) -> Tracker:
    """The tracker of a pack. Its library is imported when the first cell starts."""
    if config.name == NONE or Runs.given_up:
        return Untracked()
    if config.name == WANDB:
        from study.tracking.wandb_runs import WandbRuns

        return WandbRuns(config, notify)
    from study.tracking.accelerated import AcceleratedRuns

    return AcceleratedRuns(config, notify)
