"""How much was learned after T steps, ``gamma^2 r T`` under SGD, and how it slows the gradient.

Before anything is learned, the gradient into the inputs is a multiple of
``gamma^2 sqrt(r (r + 1 + d_in)) T`` (``study/theory/curves.py``).
"""

import numpy as np
import pandas as pd

from docs.blocks import study_tables
from docs.evidence import measured_in
from study.analysis.fits import mean_interval
from study.analysis.wording import interval_text
from study.report.text import minus, table
from study.vocabulary.quantities import HELDOUT
from study.vocabulary.scaling import RULES

STUDY, OPTIMIZER, MEASURED, OTHER = "theorem_over_training", "sgd", "lora", "rslora"
FORMS = ("float32", "factored", "concatenated")


def shares() -> pd.DataFrame:
    """The gradient on held-out inputs, as measured and predicted: geometric means over layers.

    ``share``: ``measured / predicted``, over that of the cell that has learned least: ``MEASURED``
    at its highest rank, same seed and step.
    """
    tables = study_tables(STUDY)
    cells = tables.cells[tables.cells["optimizer"] == OPTIMIZER]
    probes = tables.probes
    here = (probes["site"] == "adapter_in_grad") & (probes["batch"] == HELDOUT)
    rows = probes.loc[here & (probes["step"] > 0), ["cell_id", "step", "d_in", "rms"]].merge(
        cells[["cell_id", "scaling", "rank", "seed", "gamma"]], on="cell_id"
    )
    rows["learned"] = rows["gamma"] ** 2 * rows["rank"] * rows["step"]
    rows["predicted"] = rows["learned"] * np.sqrt(1 + (1 + rows["d_in"]) / rows["rank"])
    rows = rows.rename(columns={"rms": "measured"})
    columns = ["measured", "predicted", "learned"]
    rows[columns] = np.log(rows[columns].astype(float))
    means = rows.groupby(["scaling", "rank", "seed", "step"], observed=True)[columns].mean()
    found = means.apply(np.exp).reset_index()
    found["share"] = found["measured"] / found["predicted"]
    least = found[(found["scaling"] == MEASURED) & (found["rank"] == found["rank"].max())]
    same = ["seed", "step"]
    of_least = found[same].merge(least[[*same, "share"]], on=same, how="left")["share"]
    found["share"] /= of_least.to_numpy()
    return found


def compared_shares() -> pd.DataFrame:
    """The shares of ``MEASURED`` at the last step, and of ``OTHER`` at the same rank, seed and
    ``learned``; 1 for the reference, which has learned less than every cell of ``OTHER``."""
    found = shares()
    last = found[(found["scaling"] == MEASURED) & (found["step"] == found["step"].max())].copy()
    highest = last["rank"].max()
    last["other"] = [
        1.0 if rank == highest else _share_at(found, rank, seed, learned)
        for rank, seed, learned in zip(last["rank"], last["seed"], last["learned"], strict=True)
    ]
    return last


def _share_at(found: pd.DataFrame, rank: int, seed: int, learned: float) -> float:
    here = (found["scaling"] == OTHER) & (found["rank"] == rank) & (found["seed"] == seed)
    curve = found[here].sort_values("learned")
    logs = np.log(curve[["learned", "share"]])
    return float(np.exp(np.interp(np.log(learned), logs["learned"], logs["share"])))


def _slopes(rows: pd.DataFrame, values: pd.Series) -> str:
    """The exponent of ``values`` with the rank: its mean over seeds, and the 95 % interval."""
    if (values[rows.index] <= 0).any():
        return "no fall in a seed"
    logs = rows.assign(x=np.log(rows["rank"]), y=np.log(values[rows.index]))
    found = [np.polyfit(one["x"], one["y"], 1)[0] for _, one in logs.groupby("seed")]
    return interval_text(*mean_interval(found))


def learned() -> str:
    """A row per rank of ``MEASURED`` but the reference, and the exponent that shares explain."""
    rows = compared_shares()
    step = rows["step"].iloc[0]
    means = rows[rows["rank"] < rows["rank"].max()].groupby("rank")[["learned", "share", "other"]]
    body = [
        [f"{rank:g}", f"{one['learned']:.0f}", f"{one['share']:.2f}", f"{one['other']:.2f}"]
        for rank, one in means.mean().iterrows()
    ]
    mine, other = RULES[MEASURED].label, RULES[OTHER].label
    heads = ["rank", "γ²rT", f"{mine}, step {step}", f"{other}, at the same γ²rT"]
    exponents = (
        f"Exponent of the gradient with rank under {mine} at step {step}: "
        f"{_slopes(rows, rows['measured'])} measured, "
        f"{_slopes(rows, rows['measured'] / rows['other'])} after division by the last column, "
        f"{_slopes(rows, rows['predicted']).split()[0]} by theory before anything is learned."
    )
    return minus(f"{table(heads, body)}\n\n{exponents}")


def learning(study: str, step: str) -> str:
    """A row per rule and rate that every form has at two ranks: the exponent of the fall of the
    held-out loss, in each form."""
    tables = study_tables(study)
    cells = tables.cells.astype({"contraction": str, "precision": str})
    ends = tables.metrics.pivot(index="cell_id", columns="step", values="eval_loss")[[0, int(step)]]
    cells["fall"] = -ends.diff(axis=1)[int(step)].reindex(cells["cell_id"]).to_numpy()
    cells["form"] = cells["contraction"].where(cells["precision"] == "bf16", "float32")
    body = [
        [RULES[str(rule)].label, f"{lr:g}"]
        + [_slopes(rows[rows["form"] == form], rows["fall"]) for form in FORMS]
        for (rule, lr), rows in cells.groupby(["scaling", "lr"], observed=True)
        if (rows.groupby("rank")["form"].nunique() == len(FORMS)).sum() > 1
    ]
    return minus(table(["rule", "lr", "float32", "bf16, two products", "bf16, one product"], body))


def lost_by_step(study: str) -> str:
    """The share of the output that two products lose, median over layers and seeds, by step."""
    rows = pd.concat(measured_in(study, "adapter_out", step) for step in (1, 10, 40))
    usual = rows[rows["contraction"] == "factored"].astype({"scaling": str})
    shares = usual.groupby(["scaling", "lr", "rank", "step"])["swallowed"].median().unstack()
    body = [
        [RULES[rule].label, f"{lr:g}", f"{rank:g}", *(f"{100 * share:.0f} %" for share in row)]
        for (rule, lr, rank), row in zip(shares.index, shares.to_numpy(), strict=True)
    ]
    return table(["rule", "lr", "rank", *(f"step {step}" for step in shares)], body)
