"""What an adapter reads of the frozen linear below it. Letters: ``D`` in, ``O`` out features."""

from typing import Any

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D


def features(linear: nn.Module) -> tuple[int, int]:
    """``(D, O)`` of a frozen linear: ``nn.Linear``, a subclass of it, or transformers' ``Conv1D``.

    Also correct for a quantised linear, whose packed weight has another shape.
    """
    if hasattr(linear, "in_features"):
        return int(linear.in_features), int(linear.out_features)  # type: ignore[arg-type]
    conv1d: Any = linear
    d, o = conv1d.weight.shape  # stored as [D, O]
    return int(d), int(o)


def dense_weight(linear: nn.Module) -> Tensor | None:
    """The weight of a frozen linear, a view ``[O, D]``; None if quantised or of another class.

    A packed weight can only be used through its linear. Subclasses are excluded: their product need
    not be ``x W^T + b``.
    """
    if type(linear) is nn.Linear:
        return linear.weight
    if type(linear) is Conv1D:
        conv1d: Any = linear
        return conv1d.weight.mT  # stored as [D, O]
    return None
