"""What ``study distances`` measures: how far a run of finite rank is from infinite rank."""

from study.vocabulary.optimizers import Family

LIMIT_P: dict[Family, float] = {"linear": 0.5, "sign": 1.0}
"""The p at which runs have a limit of infinite rank, by the family of the optimizer. That of
sign-like rules is for eps -> 0."""

LOSS = "loss"
MEASURES: dict[str, str] = {
    "input_weighted": "input-weighted",
    "frobenius": "Frobenius",
    LOSS: "loss",
}
"""The measures with their labels. :mod:`study.analysis.distances` defines them."""
