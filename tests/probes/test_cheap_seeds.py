"""Cheap seeds are the seeds of real training: exactly at step 0, to first order in the learning rate at step 1."""

from collections.abc import Callable
from functools import partial

import numpy as np
import pandas as pd
import pytest

from study.adapters import adapted, resolve_targets
from study.analysis import fit_exponents
from study.config import CellConfig
from study.data import Corpus
from study.models import FrozenBase
from study.optimizers import build_optimizer
from study.probes.cheap_seeds import Capture, Captured, cheap_seeds
from study.specs import adapter_spec
from study.training import Fold, train

Build = Callable[..., CellConfig]
KEYS = ["step", "layer", "site"]


def captured(base: FrozenBase, corpus: Corpus, config: CellConfig, steps: int = 2) -> list[list[Captured]]:
    """x and dL/dy of the first steps' batches, at the base: nothing is updated."""
    layers = resolve_targets(base.card.linears, config.adapter.targets)
    with adapted(base.model, layers, [adapter_spec(config)]) as banks:
        fold, capture, found = Fold(base, corpus, [config], banks), Capture(base.model), []
        for step in range(steps):
            fold.backward(step, capture)
            found.append(capture.take())
    return found


def trained(base: FrozenBase, corpus: Corpus, config: CellConfig) -> pd.DataFrame:
    """The probes of steps 0 and 1 as training measures them."""
    tables = [step[0].probes for step in train(base, corpus, [config])]
    rows = pd.concat([table for table in tables if table is not None])
    return rows[(rows["step"] < 2) & (rows["site"] != "layer_out")]


@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "adamw", "signsgd"])
def test_cheap_seeds_are_those_of_training(tiny_base: FrozenBase, corpus: Corpus, cell: Build, optimizer: str) -> None:
    shared = [f"optimizer={optimizer}", "optimizer.lr=1e-6", "train.accumulation=2", "probes.steps=[0,1]"]
    # The captures come from a rank and a seed of their own: while B = 0 they are the base's.
    captures = captured(tiny_base, corpus, cell(*shared, "adapter.rank=2", "seed=0", "data.seed=7"))
    for rank, seed, scaling in ((4, 1, "lora"), (16, 2, "rslora")):
        config = cell(
            *shared, f"adapter.rank={rank}", f"seed={seed}", f"adapter.scaling={scaling}", "data.seed=7",
            "probes.tokens=100000",
        )  # fmt: skip
        real = trained(tiny_base, corpus, config)
        make = partial(build_optimizer, config.optimizer)
        [(_, cheap)] = cheap_seeds(captures, [adapter_spec(config)], make, tokens=100000)
        both = cheap.merge(real, on=KEYS, suffixes=("", "_real"), validate="1:1")
        # adapter_out and adapter_in_grad are of the first micro-batch in training and of all here: left for below.
        assert len(both) == len(cheap) == len(real)
        both = both[~both["site"].isin(["adapter_out", "adapter_in_grad"])]
        exact = both[(both["step"] == 0) | both["site"].isin(["A", "B", "delta_w"])]
        late = both.drop(exact.index)
        for stat in ("norm", "mean_abs", "rms", "m4", "max_abs", "descent"):
            for part, rtol in ((exact, 1e-4), (late, 1e-3)):
                np.testing.assert_allclose(
                    part[stat], part[f"{stat}_real"], rtol=rtol, atol=1e-12, err_msg=f"{stat} of {set(part['site'])}"
                )
        assert (exact.loc[exact["site"] == "B_grad", "norm"] > 0).all()


def test_what_meets_the_tokens_at_step_1(tiny_base: FrozenBase, corpus: Corpus, cell: Build) -> None:
    """One micro-batch, all of its tokens: adapter_out and adapter_in_grad agree too, up to order lr."""
    config = cell("optimizer=sgd", "optimizer.lr=1e-5", "adapter.rank=8", "probes.steps=[0,1]", "probes.tokens=100000")
    real = trained(tiny_base, corpus, config)
    [(_, cheap)] = cheap_seeds(
        captured(tiny_base, corpus, config),
        [adapter_spec(config)],
        partial(build_optimizer, config.optimizer),
        tokens=100000,
    )
    both = cheap.merge(real, on=KEYS, suffixes=("", "_real"), validate="1:1")
    both = both[both["site"].isin(["adapter_out", "adapter_in_grad"])]
    assert (both.loc[both["step"] == 0, "norm"] == 0).all()
    late = both[both["step"] == 1]
    assert (late["norm"] > 0).all()
    np.testing.assert_allclose(late["rms"], late["rms_real"], rtol=1e-3)


def test_forty_seeds_give_the_exponent_of_descent(tiny_base: FrozenBase, corpus: Corpus, cell: Build) -> None:
    """Under SGD at p = 1/2 descent is flat in the rank: 1 - 2p = 0, in the mean over draws of A."""
    config = cell("optimizer=sgd", "optimizer.lr=1e-3")
    captures = captured(tiny_base, corpus, config, steps=1)
    cells, probes = [], []
    specs = [
        adapter_spec(cell(f"adapter.rank={rank}", f"seed={seed}", "adapter.scaling=rslora"))
        for seed in range(40)
        for rank in (4, 16, 64)
    ]
    make = partial(build_optimizer, config.optimizer)
    for number, (spec, table) in enumerate(cheap_seeds(captures, specs, make, sites=("adapter_update",))):
        named = {"cell_id": str(number), "rank": float(spec.rank), "seed": spec.seed, "scaling": "rslora"}
        cells.append(named | {"exponent": np.nan, "status": "complete", "gamma": spec.gamma})
        probes.append(table.assign(cell_id=str(number)))
    fitted = fit_exponents(pd.DataFrame(cells), pd.concat(probes, ignore_index=True), stats=["descent"])
    [row] = fitted[fitted["layer"] == "model"].to_dict("records")
    assert row["seeds"] == 40
    assert abs(row["exponent"]) < 3 * row["se_slope"] + 0.01
    assert row["se_slope"] < 0.02


def test_three_captures_are_refused(cell: Build) -> None:
    with pytest.raises(ValueError, match="3 captures"):
        next(cheap_seeds([[], [], []], [adapter_spec(cell())], lambda A, B: None))  # type: ignore[arg-type,return-value]
