"""The table of exponents, its modifiers, and the cases without a prediction."""

import pytest

from study import theory
from study.theory import Modifiers, predict, stable_exponent
from study.vocabulary.optimizers import OPTIMIZERS
from study.vocabulary.quantities import SITES
from study.vocabulary.thresholds import LAST_PREDICTED_STEP

P, Q = 0.7, 0.3  # generic: no two rows of the table have the same exponent by accident
FAMILIES = ("linear", "sign", "spectral")
PRODUCT = (1 - 2 * P - Q, 1 - P - Q / 2, 1 / 2 - P - Q / 2)

TABLE = {  # site, stat, first step: (SGD, sign-like, Muon with torch's factor)
    ("adapter_grad", "norm", 0): (1 / 2 - P - Q / 2,) * 3,
    ("B_grad", "norm", 0): (1 / 2 - P - Q / 2,) * 3,
    ("B_update", "norm", 0): (1 / 2 - P - Q / 2, 1 / 2, 0),
    ("A_grad", "norm", 1): (1 / 2 - 2 * P - Q / 2, 1 / 2 - P, -P),
    ("A_update", "norm", 1): (1 / 2 - 2 * P - Q / 2, 1 / 2, 1 / 2),
    ("adapter_update", "descent", 0): PRODUCT,
    ("adapter_out", "norm", 1): PRODUCT,
    ("delta_w", "norm", 1): PRODUCT,
    ("adapter_in_grad", "norm", 1): PRODUCT,
    ("A", "norm", 0): (1 / 2 - Q / 2,) * 3,
    ("B", "norm", 1): (1 / 2 - P - Q / 2, 1 / 2, 0),
    ("layer_out", "norm", 0): (0, 0, 0),
    ("layer_out_grad", "rms", 0): (0, 0, 0),
    ("adapter_in", "m4", 0): (0, 0, 0),
}


@pytest.mark.parametrize(("key", "expected"), TABLE.items(), ids=str)
@pytest.mark.parametrize("optimizer", [*OPTIMIZERS, *FAMILIES])
def test_the_table(key, expected, optimizer):
    site, stat, first = key
    for step in range(LAST_PREDICTED_STEP + 1):
        prediction = predict(site, stat, step=step, optimizer=optimizer, p=P, q=Q)
        if step < first:
            assert prediction.exponent is None
        else:
            assert prediction.exponent == pytest.approx(
                expected[FAMILIES.index(theory.family(optimizer))]
            )


@pytest.mark.parametrize("stat", ["rms", "mean_abs", "m4"])
@pytest.mark.parametrize("optimizer", ["sgd", "sign"])
def test_entrywise_moments_lie_half_below_the_norm_where_entries_grow_with_the_rank(
    stat, optimizer
):
    for site in SITES:
        norm, moment = (
            predict(site, s, step=1, optimizer=optimizer, p=P, q=Q).exponent for s in ("norm", stat)
        )
        grows = site.startswith(("A", "B")) or site in ("adapter_grad", "adapter_update")
        assert moment == pytest.approx(norm - 1 / 2 * grows)


def test_beyond_the_lazy_regime_nothing_is_predicted_but_what_has_not_moved():
    assert predict("adapter_out", "rms", step=4, optimizer="sgd", p=P).exponent is None
    law = {"optimizer": "sgd", "p": P}
    far = Modifiers(lazy=False)
    places = [(site, step) for site in SITES for step in range(4)]
    plain, lazy_or_not = (
        {
            (site, step)
            for site, step in places
            if predict(site, "norm", step=step, **law, **changes).exponent is not None
        }
        for changes in ({}, {"modifiers": far})
    )
    before_any_step = {(site, step) for site, step in plain if step == 0}
    assert lazy_or_not == before_any_step | {("A", 1), ("B", 1), ("delta_w", 1)}


@pytest.mark.parametrize(
    ("site", "stat", "step", "optimizer", "q", "expected"),
    [
        ("adapter_update", "descent", 0, "sgd", 0, 1 / 2),
        ("adapter_out", "rms", 1, "signsgd", 0, 1),
        ("A_grad", "norm", 1, "sgd", 0, 1 / 4),
        ("adapter_update", "descent", 0, "sgd", 1, 0),
        ("B_update", "norm", 0, "adamw", 0, None),
        ("adapter_out", "max_abs", 1, "sgd", 0, None),
    ],
)
def test_stable_exponent(site, stat, step, optimizer, q, expected):
    law = {"step": step, "optimizer": optimizer, "q": q}
    measured = stable_exponent(site, stat, **law)
    assert measured is None if expected is None else measured == pytest.approx(expected)
    if expected is not None:
        assert predict(site, stat, p=expected, **law).exponent == pytest.approx(0)
