"""What one rate for all ranks costs."""

import numpy as np
import pandas as pd
import pytest

from docs import horizons


def test_a_loss_between_rates_is_that_of_the_parabola_whose_vertex_is_the_best_rate():
    """PCHIP has no minimum between the rates tried, so a rank would lose nothing by a rate that is
    near its best one."""
    log_lr = np.log([0.001, 0.002, 0.004, 0.008])
    best = log_lr[1] + 0.2
    runs = pd.DataFrame({"lr": np.exp(log_lr), "loss": 2.0 + 0.1 * (log_lr - best) ** 2})
    loss_of = horizons.read_losses(runs)
    assert loss_of(best) == pytest.approx(2.0)
    assert loss_of(log_lr[1]) == pytest.approx(2.0 + 0.1 * 0.2**2)
    assert loss_of(log_lr[3]) == pytest.approx(runs["loss"].iloc[3])


def test_every_rank_is_the_kept_one_and_every_other_rank_loses_something():
    found = horizons.kept("1024").query("rule != 'power'")
    assert sorted(found["kept"].unique()) == [1, 4, 16, 64, 256]
    assert (found["regret"] > 0).all()
    means = found.groupby(["kept", "rule"])["regret"].mean().unstack()
    assert (means.idxmax(axis=1) == "rslora").all()
