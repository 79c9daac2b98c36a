"""The block ``learned`` of FINDINGS.md, on gradients whose law is known."""

from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from docs import learned

STEPS = (1, 2, 5, 10, 20, 40)
Law = Callable[[float, int], float]
"""``law(learned, step)`` is the share of the predicted gradient that is left."""


def tables(law: Law) -> SimpleNamespace:
    """Ranks 4, 32 and 256 under both rules, two seeds, two layers, and a second optimizer."""
    cells, probes = [], []
    for scaling, p in (("lora", 1.0), ("rslora", 0.5)):
        for rank in (4, 32, 256):
            for seed in (0, 1):
                gamma, name = 16 * rank**-p, f"{scaling}-{rank}-{seed}"
                cells.append((name, "sgd", scaling, rank, seed, gamma))
                cells.append((f"{name}-adamw", "adamw", scaling, rank, seed, gamma))
                for step in STEPS:
                    share = law(gamma**2 * rank * step, step) * (1 + seed)
                    for d_in in (100, 900):
                        rms = share * gamma**2 * np.sqrt(rank * (rank + 1 + d_in)) * step
                        probes.append((name, step, d_in, "adapter_in_grad", "heldout", rms))
                        probes.append((name, step, d_in, "adapter_in_grad", "train", 1))
    names = ["cell_id", "optimizer", "scaling", "rank", "seed", "gamma"]
    columns = ["cell_id", "step", "d_in", "site", "batch", "rms"]
    return SimpleNamespace(
        cells=pd.DataFrame(cells, columns=names), probes=pd.DataFrame(probes, columns=columns)
    )


@pytest.mark.parametrize(
    ("law", "explained"),
    [
        (lambda learned, step: (1 + learned / 500) ** -0.5 * step**-0.2, True),
        (lambda learned, step: 1.0 if learned < 1000 or step < 40 else 0.5, False),
        (lambda *_: 1.0, None),
    ],
)
def test_shares_explain_the_exponent_only_if_the_other_rule_loses_as_much(
    monkeypatch: pytest.MonkeyPatch, law: Law, explained: bool | None
) -> None:
    monkeypatch.setattr(learned, "study_tables", lambda _: tables(law))
    rows = learned.compared_shares()
    lowest = rows[rows["rank"] == 4]
    assert (lowest["learned"] == 2560).all()
    if explained is None:  # a gradient as predicted has all of its growth left
        assert "| 4 | 2560 | 1.00 | 1.00 |" in learned.learned()
        return
    assert (lowest["share"] < 0.6).all()
    assert np.allclose(lowest["share"], lowest["other"], rtol=0.05) == explained
    assert (rows.loc[rows["rank"] == 256, ["share", "other"]] == 1).all(axis=None)
