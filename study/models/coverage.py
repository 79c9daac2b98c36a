"""What share of a model's block weights the adapters are on, and which weights have none.

An adapter is a product of two factors beside a linear layer, or beside each expert. Some families
hold other weights in their blocks: routers, state-space matrices, convolutions. Whoever asks for
``all-linear`` must read that these stay as they are.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from study.models.anatomy import Anatomy, in_block

_NAMED = 6
"""Names in a line."""

WITH_EXPERTS = "+experts"
"""Ends the model's fingerprint in the record of a cell that adapts experts. Earlier cells with the
same targets did not adapt them, so they are other cells."""


@dataclass(frozen=True)
class Coverage:
    """Which block weights have adapters. Vectors (norms, biases) do not count.

    - ``share``: of the block weights, from 0 to 1;
    - ``without``: the names of the weights without an adapter, the largest first
      (:func:`study.models.anatomy.in_block`);
    - ``out_of_reach``: whether some of them can have none, so that no targets select them;
    - ``experts``: the paths of the weights of experts that have adapters.
    """

    share: float
    without: tuple[str, ...]
    out_of_reach: bool
    experts: tuple[str, ...] = ()

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
    """The coverage of adapters on ``layers``, which are among ``model.targets``."""
    without = Counter(dict(model.others))
    adapted, chosen = 0, set(layers)
    for path, shape in model.shapes_by_path.items():
        if path in chosen:
            adapted += math.prod(shape)
        else:
            without[in_block(path)] += math.prod(shape)
    return Coverage(
        share=adapted / (adapted + without.total()),
        without=tuple(name for name, _ in without.most_common()),
        out_of_reach=bool(model.others),
        experts=tuple(path for path in model.experts if path in chosen),
    )
