"""One optimizer and one schedule per cell. transformers and pytorch_optimizer are imported late:
they take a second.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib import import_module
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from study.adapters import LoraBank
from study.config import CellConfig, OptimizerConfig, TrainConfig
from study.errors import StudyError
from study.training.sharding import DIVIDED

Groups = list[dict[str, Any]]
Constructor = Callable[..., Optimizer]
"""Builds an optimizer from parameter groups and the options of its configuration."""


def _adafactor(groups: Groups, **options: Any) -> Optimizer:
    """transformers' Adafactor without parameter scaling, with which B = 0 would hardly move."""
    from transformers.optimization import Adafactor

    fixed = {"relative_step": False, "scale_parameter": False, "warmup_init": False}
    return Adafactor(groups, **fixed, **options)


def _muon(groups: Groups, **options: Any) -> Optimizer:
    """torch's Muon, on each A and each B alone."""
    if not hasattr(torch.optim, "Muon"):
        raise StudyError(f"torch {torch.__version__} has no Muon: install torch 2.9 or later")
    if any(weight.dim() != 2 for group in groups for weight in group["params"]):
        why = "optimizer=muon takes matrices, and adapters of experts are stacks of them"
        raise StudyError(f"{why}: leave the experts out of adapter.targets")
    return torch.optim.Muon(groups, **options)


def _outside(name: str) -> Constructor:
    return lambda *given, **options: getattr(import_module("pytorch_optimizer"), name)(
        *given, **options
    )


# Adam's fused step is one pass over memory, also on a CPU. At rank 1024 the unfused steps take as
# long as the model.
CONSTRUCTORS: dict[str, Constructor] = {
    "sgd": torch.optim.SGD,
    "momentum": torch.optim.SGD,
    "nesterov": partial(torch.optim.SGD, nesterov=True),
    "adamw": partial(torch.optim.AdamW, fused=True),
    "adam": partial(torch.optim.Adam, fused=True),
    "rmsprop": torch.optim.RMSprop,
    "signsgd": _outside("SignSGD"),
    "lion": _outside("Lion"),
    "adafactor": _adafactor,
    "muon": _muon,
}
"""The constructor of every optimizer of :data:`study.vocabulary.optimizers.OPTIMIZERS`, by name."""


def build_optimizer(
    config: OptimizerConfig, A_weights: Sequence[Tensor], B_weights: Sequence[Tensor]
) -> Optimizer:
    """The optimizer of ``config`` over one cell's adapters. B has LoRA+'s rate ``lr *
    loraplus_lr_ratio`` (Hayou et al. 2024, arXiv 2402.12354)."""
    shared = ("name", "loraplus_lr_ratio")
    options = {key: value for key, value in vars(config).items() if key not in shared}
    groups: Groups = [
        {"params": list(A_weights)},
        {"params": list(B_weights), "lr": config.lr * config.loraplus_lr_ratio},
    ]
    return CONSTRUCTORS[config.name](groups, **options)


def build_schedule(config: TrainConfig, optimizer: Optimizer) -> LRScheduler:
    """A constant, linear or cosine schedule with linear warm-up, as in transformers."""
    if config.schedule == "constant" and not config.warmup:
        return LambdaLR(optimizer, lambda step: 1.0)
    from transformers.optimization import get_scheduler

    name = "constant_with_warmup" if config.schedule == "constant" else config.schedule
    return get_scheduler(name, optimizer, config.warmup, config.steps)


class Learner:
    """One cell's optimizer, schedule and clipping over its own slice of every bank."""

    def __init__(self, config: CellConfig, cell: int, banks: Sequence[LoraBank]) -> None:
        pairs = [bank.pairs[cell] for bank in banks]
        self.weights = [weight for pair in pairs for weight in pair[:2]]
        self.dims = [dim for dim in DIVIDED for _ in pairs]
        """Of each weight, in the optimizer's order, the dimension in which it is divided."""
        self.optimizer = build_optimizer(
            config.optimizer, [p.A_RD for p in pairs], [p.B_OR for p in pairs]
        )
        self.schedule = build_schedule(config.train, self.optimizer)
        self.clip = config.train.clip

    def state(
        self, whole: Callable[[Tensor, int], Tensor]
    ) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """What steps have changed apart from the weights: tensors by number and name, and values
        for JSON. ``whole`` joins divided ones."""
        packed = self.optimizer.state_dict()
        tensors: dict[str, Tensor] = {}
        scalars: dict[str, Any] = {}
        for weight, of_weight in packed["state"].items():
            for name, value in of_weight.items():
                if isinstance(value, Tensor):
                    tensors[f"{weight}/{name}"] = whole(value, self.dims[weight])
                else:
                    scalars[f"{weight}/{name}"] = value
        return tensors, {
            "optimizer": type(self.optimizer).__name__,
            "of_weights": scalars,
            "groups": packed["param_groups"],
            "schedule": self.schedule.state_dict(),
        }

    def restore(
        self,
        tensors: Mapping[str, Tensor],
        state: Mapping[str, Any],
        part: Callable[[Tensor, int], Tensor],
    ) -> None:
        """Continue from a :meth:`state` of the same configuration; ``part`` undoes ``whole``."""
        if state["optimizer"] != type(self.optimizer).__name__:
            raise ValueError(f"{type(self.optimizer).__name__} is not {state['optimizer']}")
        restored: dict[int, dict[str, Any]] = {}
        stepped = [w for group in self.optimizer.param_groups for w in group["params"]]
        for key, value in {**state["of_weights"], **tensors}.items():
            number, _, name = key.partition("/")
            if isinstance(value, Tensor):
                own = part(value, self.dims[int(number)])
                weight = stepped[int(number)]
                # A fused step needs the strides of the weight.
                like = weight if own.shape == weight.shape else own
                value = torch.empty_like(like, dtype=own.dtype, device=own.device).copy_(own)
            restored.setdefault(int(number), {})[name] = value
        now = self.optimizer.state_dict()["param_groups"]
        groups = [
            new | {key: tuple(v) if isinstance(new.get(key), tuple) else v for key, v in of.items()}
            for new, of in zip(now, state["groups"], strict=True)
        ]
        self.optimizer.load_state_dict({"state": restored, "param_groups": groups})
        self.schedule.load_state_dict(dict(state["schedule"]))

    def grad_norm(self) -> Tensor:
        """The norm of this process's gradients, a scalar on the device."""
        return get_total_norm([w.grad for w in self.weights if w.grad is not None])

    def update(self, alive: Tensor, norm: Tensor) -> Tensor:
        """Clip as torch's ``clip_grad_norm_`` does, then step; no weight changes unless ``alive``.

        ``alive``: a boolean scalar on the device. ``norm``: of all gradients. Does not wait for the
        device. Returns the factor by which clipping multiplied the gradient, a float64 scalar; 1
        for a cell that has diverged.
        """
        unclipped = alive.new_ones((), dtype=torch.float64)
        if alive.device.type == "cpu" and not alive:  # reading it costs nothing there
            return unclipped
        factor = unclipped
        if self.clip is not None:
            clip_grads_with_norm_(self.weights, self.clip, norm)
            factor = (self.clip / (norm.double() + 1e-6)).clamp(max=1.0)
        if alive.device.type == "cpu":
            self.optimizer.step()
        else:
            step_if(alive, self.optimizer, self.weights)
        self.schedule.step()
        return factor.where(alive, unclipped)


@torch.no_grad()
def step_if(alive: Tensor, optimizer: Any, weights: Sequence[Tensor]) -> None:
    """One step that leaves the weights as they are unless ``alive``: by the flag of fused
    optimizers (``found_inf``), or by a copy of the weights."""
    if getattr(optimizer, "_step_supports_amp_scaling", False):
        optimizer.found_inf = (~alive).float()
        optimizer.step()
        del optimizer.found_inf
        return
    before = [weight.clone() for weight in weights]
    optimizer.step()
    for weight, old in zip(weights, before, strict=True):
        torch.where(alive, weight, old, out=weight)
