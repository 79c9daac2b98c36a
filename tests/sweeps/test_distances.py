"""The distances of real runs follow their law, through the command line."""

import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from study import load
from study.adapters import LoraBank
from study.adapters.infinite import EPS
from study.analysis.distances import compare, laws
from study.sweeps.distances import at_rank, limit_of, trajectory
from study.theory import Layer, distance_to_infinite_rank, slope
from study.vocabulary.quantities import MODEL_WIDE
from tests.trained import series, trained

LAZY = (
    *("adapter.scaling=rslora", "optimizer=sgd", "optimizer.lr=1e-3"),
    *("train.steps=2", "probes.steps=[1,2]"),
)


def test_a_trajectory_is_the_cell(tiny_base, corpus, cell):
    """Losses are those of the training loop."""
    config = cell("adapter.rank=256", *LAZY, "optimizer.momentum=0.9", "train.clip=0.1")
    [steps] = trained(tiny_base, corpus, config)
    snapshots = list(trajectory(tiny_base, corpus, config, LoraBank))
    assert [snapshot.step for snapshot in snapshots] == [1, 2]
    assert [s.loss for s in snapshots] == pytest.approx(series(steps, "loss")[1:], rel=1e-6)


def test_the_command_measures_cells(works, tmp_path, jsonl):
    """``experiment=infinite_rank`` at a few ranks: distances fall as r^(-1/2)."""
    small = ["experiment=infinite_rank", f"results_dir={tmp_path}", "data=file", "train.steps=2"]
    small += [f"data.path={jsonl}", "data.heldout=6", "adapter.rank=4,64,1024"]
    small += ["seed=0"]
    ran = works("train", *small, "probes.stats=[norm]")
    folder = tmp_path / "infinite_rank"
    ran = works("distances", str(folder))
    [[runs, limits]] = re.findall(
        r"^(\d+) runs of up to 2 steps.*: (\d) of them limits", ran.err, re.M
    )
    said = re.findall(rf"^(\d+)/{runs} seed \d: (.*)", ran.err, re.M)
    assert [int(number) for number, _ in said] == [*range(1, int(runs) + 1)]
    assert sum(run.startswith("the limit of sgd") for _, run in said) == int(limits)
    assert said[1][1] == "rank 4"
    assert "frobenius, step 1: exponent -0." in ran.out
    tables = load(folder)
    distances = tables.distances
    assert sorted(distances["rank"].unique()) == [4, 64, 1024]
    assert set(distances["cell_id"]) < set(tables.cells["cell_id"])
    for measure in ("frobenius", "input_weighted"):
        of_layers = distances[(distances["measure"] == measure) & (distances["step"] == 2)]
        mean_log = np.log(of_layers["distance"]).groupby(of_layers["rank"]).mean()
        assert slope(np.exp(mean_log), mean_log.index) == pytest.approx(-0.5, abs=0.05), measure
    assert len(laws(distances)) == 3 * 2


def test_a_study_without_a_limit_is_said_in_a_line(works, refused, tmp_path, short):
    works("train", *short, f"results_dir={tmp_path}", "name=adam", "adapter.scaling=rslora")
    line = refused("distances", tmp_path / "adam")
    assert "has a limit of infinite rank: train rslora with sgd or" in line
    assert "or lora with adamw or adam" in line


def test_adam_approaches_a_run_of_large_rank(tiny_base, corpus, cell):
    """At p = 1, the first step is as far from the limit as theory says, and a step with a moved A
    as r^(-1/2). An eps far above the gradients keeps a run away from the limit.
    """
    steps = ("train.steps=2", "probes.steps=[1,2]", "optimizer.lr=1e-2")
    adam = cell("adapter.rank=8", "adapter.scaling=lora", "optimizer=adamw", *steps)
    large = 2**11
    infinite = at_rank(limit_of(adam), large)
    assert infinite.optimizer.eps == EPS
    limits = list(trajectory(tiny_base, corpus, infinite, LoraBank, moments=True))

    def squares(config, rank, seeds):
        """By step and measure: the mean of the squared distance over that after the first step."""
        tables = []
        for seed in range(1, 1 + seeds):  # of the init; the data are those of the limit
            run = replace(at_rank(config, rank), seed=seed)
            both = zip(limits, trajectory(tiny_base, corpus, run, LoraBank), strict=True)
            tables += [compare(limit, snapshot, rank / large) for limit, snapshot in both]
        rows = pd.concat(tables, ignore_index=True)
        rows = rows[rows["layer"] != MODEL_WIDE]
        told = []
        for row in rows.to_dict("records"):
            layer = Layer(d_in=row["d_in"], r_sign=row["r_sign"])
            weighting = "frobenius" if row["measure"] == "frobenius" else "inputs"
            known = distance_to_infinite_rank(rank, layer, weighting=weighting, kind="sign")
            told.append(float(known))
        expected = pd.Series(told, rows.index) ** 2
        longer = 1 + expected * rank / large  # the squared norm of the stand-in, over the limit's
        ratio = rows["distance"] ** 2 / expected * longer
        return ratio.groupby([rows["step"], rows["measure"]]).mean()

    low, high = squares(limit_of(adam), 8, 5), squares(limit_of(adam), 128, 5)
    for found in (low, high):
        assert found[1, "frobenius"] == pytest.approx(1.0, abs=0.05)
        assert found[1, "input_weighted"] == pytest.approx(1.0, abs=0.3)
    # As a ratio to r^(-1/2) at both ranks.
    assert high[2, "frobenius"] / low[2, "frobenius"] == pytest.approx(1.0, abs=0.1)
    far = replace(adam, optimizer=replace(adam.optimizer, eps=1.0))
    assert squares(far, 128, 1)[1, "input_weighted"] > 3 * high[1, "input_weighted"]
