"""A fold of two cells that probes are tested on."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from study.adapters import AdapterSpec, Contraction, LoraBank, adapted
from study.config import CellConfig
from study.data import Corpus
from study.models import FrozenBase
from study.training.loop import Fold

SPECS = [AdapterSpec(4, 2.0, seed=0), AdapterSpec(90, 0.5, seed=1)]
"""delta_w has more elements than the factors of the first, and fewer than those of the second."""
TOKENS = 10


@contextmanager
def trained(
    base: FrozenBase, corpus: Corpus, cell: Callable[..., CellConfig], form: str
) -> Iterator[Fold]:
    """Two cells of different rank after two steps, so that no weight is zero."""
    cells = [
        cell(f"adapter.rank={s.rank}", f"seed={s.seed}", "train.accumulation=2", "train.clip=0.5")
        for s in SPECS
    ]
    with adapted(base.model, base.card.linears, SPECS, LoraBank, Contraction(form)) as banks:
        fold = Fold(base, corpus, cells, banks)
        for step in range(2):
            fold.backward(step, None)
            fold.grad_norms()
            fold.update()
        yield fold
