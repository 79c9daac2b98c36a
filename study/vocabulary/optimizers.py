"""The optimizers: the facts that configuration, theory, estimates and figures need."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Family = Literal["linear", "sign", "spectral"]
"""How an update scales with its gradients.

- ``linear``: proportional to them. Momentum is linear too: its buffer is a linear function of past
  gradients;
- ``sign``: independent of their scale, as eps goes to 0: every entry moves equally far;
- ``spectral``: independent of their scale too: every singular value of the update is the same."""

Decay = Literal["coupled", "decoupled"]
"""Weight decay is added to the gradient (``coupled``) or to the weights (``decoupled``)."""


@dataclass(frozen=True)
class Option:
    """One option of an optimizer: its type, and its limits. A list has ``length`` elements.
    ``choices``: the only values; torch's None is the first."""

    type: Any = float
    least: float | None = 0.0
    above: float | None = None
    below: float | None = None
    most: float | None = None
    length: int | None = None
    choices: tuple[Any, ...] = ()


ADJUSTMENTS = ("original", "match_rms_adamw")
"""Muon's factor on the update of a matrix with ``a`` rows and ``b`` columns: sqrt(max(1, a / b)),
or 0.2 sqrt(max(a, b)), which gives it the rms of an update of AdamW."""

BETAS, EPS, MOMENTUM = Option(list[float], below=1.0, length=2), Option(), Option()


@dataclass(frozen=True)
class Optimizer:
    """- ``states``: numbers of optimizer state per weight;
    - ``options``: its keys apart from those that every optimizer has;
    - ``library``: the optional package that it comes from; empty: torch or transformers;
    - ``elementwise``: whether the update of a weight depends on its own gradient only. If not, it
      needs whole matrices;
    - ``built_from``: for an optimizer that shares another one's class, (torch class name in lower
      case, required flags). The Trainer's optimizers are recognised by it.
    """

    label: str
    family: Family
    decay: Decay
    states: int = 0
    options: Mapping[str, Option] = field(default_factory=dict)
    built_from: tuple[str, ...] = ()
    library: str = ""
    elementwise: bool = True

    @property
    def has_eps(self) -> bool:
        return "eps" in self.options


OPTIMIZERS: dict[str, Optimizer] = {
    "sgd": Optimizer("SGD", "linear", "coupled", 0, {"momentum": MOMENTUM}),
    "momentum": Optimizer(
        *("SGD with momentum", "linear", "coupled", 1, {"momentum": MOMENTUM}),
        built_from=("sgd", "momentum"),
    ),
    "nesterov": Optimizer(
        *("Nesterov SGD", "linear", "coupled", 1, {"momentum": Option(least=None, above=0.0)}),
        built_from=("sgd", "momentum", "nesterov"),
    ),
    "adamw": Optimizer("AdamW", "sign", "decoupled", 2, {"betas": BETAS, "eps": EPS}),
    "adam": Optimizer("Adam", "sign", "coupled", 2, {"betas": BETAS, "eps": EPS}),
    "rmsprop": Optimizer("RMSprop", "sign", "coupled", 1, {"alpha": Option(most=1.0), "eps": EPS}),
    "signsgd": Optimizer(
        "SignSGD",
        "sign",
        "decoupled",
        options={"momentum": Option(below=1.0)},
        library="pytorch_optimizer",
    ),
    "lion": Optimizer(
        "Lion", "sign", "decoupled", states=1, options={"betas": BETAS}, library="pytorch_optimizer"
    ),
    # Its state is a mean per row and per column: less than a twentieth of a number per weight.
    "adafactor": Optimizer(
        "Adafactor",
        "sign",
        "decoupled",
        0,
        {
            "clip_threshold": Option(least=None, above=0.0),
            "decay_rate": Option(least=None, most=0.0),
        },
        elementwise=False,
    ),
    "muon": Optimizer(
        "Muon",
        "spectral",
        "decoupled",
        1,
        {
            "momentum": Option(below=1.0),
            "nesterov": Option(bool, choices=(True, False)),
            "ns_steps": Option(int, least=1, most=99),
            "adjust_lr_fn": Option(str, choices=ADJUSTMENTS),
        },
        elementwise=False,
    ),
}

LIMIT_P: dict[Family, float] = {"linear": 0.5, "sign": 1.0}
"""The p at which runs have a limit of infinite rank, by the family of the optimizer. That of
sign-like rules is for eps -> 0."""

MOST_USED = "adamw"
"""The optimizer of a run that does not name its own: the default of PEFT's users and tools."""


def of_family(family: Family) -> tuple[str, ...]:
    return tuple(name for name, row in OPTIMIZERS.items() if row.family == family)


def decay_of(name: str, weight_decay: float) -> str:
    """``none``, ``coupled`` or ``decoupled``: how an optimizer's weight decay acts."""
    return OPTIMIZERS[name].decay if weight_decay else "none"


def label(name: str) -> str:
    return OPTIMIZERS[name].label if name in OPTIMIZERS else name
