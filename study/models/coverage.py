"""What share of a model's block weights the adapters are on, and which weights have none.

An adapter is a product of two factors beside a linear layer. Some families hold weights in their
blocks that are no linear layer: routers, state-space matrices, convolutions. Whoever asks for
``all-linear`` must read that these stay as they are.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from study.models.anatomy import Anatomy, in_block

_NAMED = 6
"""Names in a line."""


@dataclass(frozen=True)
class Coverage:
    """Which block weights have adapters. Vectors (norms, biases) do not count.

    - ``share``: of the block weights, from 0 to 1;
    - ``without``: the names of the weights without an adapter, the largest first
      (:func:`study.models.anatomy.in_block`);
    - ``out_of_reach``: whether some of them are no linear layers, so that no targets select them.
    """

    share: float
    without: tuple[str, ...]
    out_of_reach: bool

    @property
    def notice(self) -> str | None:
        """One line for the user; None if targets could select every weight.

        Then the user has chosen what is left out.
        """
        if not self.out_of_reach:
            return None
        percent = math.floor(1000 * self.share) / 10  # rounding down: 100 % would be wrong
        names = ", ".join(self.without[:_NAMED])
        more = len(self.without) - _NAMED
        return (
            f"adapters on {percent:g} % of the block weights; not on: {names}"
            f"{f' and {more} more' if more > 0 else ''}"
        )


def coverage(model: Anatomy, layers: Sequence[str]) -> Coverage:
    """The coverage of adapters on ``layers``, module paths of ``model``'s linear layers."""
    without = Counter(dict(model.others))
    adapted, chosen = 0, set(layers)
    for path, (d, o) in zip(model.linears, model.shapes, strict=True):
        if path in chosen:
            adapted += d * o
        else:
            without[in_block(path)] += d * o
    return Coverage(
        share=adapted / (adapted + without.total()),
        without=tuple(name for name, _ in without.most_common()),
        out_of_reach=bool(model.others),
    )
