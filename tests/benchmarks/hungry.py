"""A training run that runs out of memory. It imports no torch, so its processes start at once."""

import os
import signal

from study.config import CellConfig


def hungry(config: CellConfig) -> int:
    """Stands for a training run that the system kills if a micro-batch has over two sequences."""
    if config.train.batch_size > 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return config.train.accumulation
