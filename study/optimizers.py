"""One torch optimizer and one learning-rate schedule per cell."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from transformers import get_scheduler

from study.config import OptimizerConfig, TrainConfig


def build_optimizer(config: OptimizerConfig, weights: Sequence[Tensor]) -> Optimizer:
    """The optimizer that ``config`` names, over one cell's adapter weights."""
    options = {key: value for key, value in vars(config).items() if key != "name"}
    match config.name:
        case "adamw":
            # The fused step is one pass over memory, on a CPU too: at rank 1024 the others take as long as the model.
            return torch.optim.AdamW(weights, fused=True, **options)
        case "sgd":
            return torch.optim.SGD(weights, **options)
    raise ValueError(f"no optimizer {config.name!r}")


def build_schedule(config: TrainConfig, optimizer: Optimizer) -> LRScheduler:
    """transformers' constant, linear or cosine schedule, with linear warm-up from 0 over ``warmup`` steps."""
    name = "constant_with_warmup" if config.schedule == "constant" else config.schedule
    return get_scheduler(name, optimizer, num_warmup_steps=config.warmup, num_training_steps=config.steps)
