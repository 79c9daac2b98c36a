"""What this project needs to know of Hydra's launchers. Imports torch only where it is asked."""

import os
from collections.abc import Mapping
from typing import Any

_JOBS = ("n_jobs", "array_parallelism")
"""The settings of joblib and of submitit that bound how many jobs run at the same time."""


def parallel_jobs(launcher: Mapping[str, Any]) -> int:
    """How many jobs a launcher runs at the same time, by its settings; 1 if they don't say.

    joblib takes -1 for a process per core.
    """
    said = next((launcher[key] for key in _JOBS if launcher.get(key)), 1)
    return int(said) if said > 0 else max(1, (os.cpu_count() or 1) + 1 + int(said))


def visible_gpus() -> int:
    """The number of GPUs that torch sees, and 1 where there is none."""
    import torch  # takes seconds

    return max(1, torch.cuda.device_count())
