"""The best pair of alpha and learning rate: numbers and tables of docs/alpha.md, and its figures.

A plane joins the studies that vary alpha with those of the same settings that vary the rule.
"""

from collections.abc import Iterator
from dataclasses import replace
from functools import cache

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from research.blocks import RESULTS, mean_text
from study.analysis.fits import mean_interval
from study.analysis.plane import (
    FEWEST_SEEDS,
    best_pairs,
    costs,
    full_losses,
    lowest_losses,
    runs,
    vertex,
)
from study.analysis.text import minus, table_of
from study.analysis.wording import interval_text
from study.figures import plane as figures
from study.store import StudyTables
from study.store.tables import load_measured
from study.vocabulary.quantities import TRAIN

PLANES = {
    "small": ("alpha_small", "horizons_small"),
    "smollm2": ("alpha_smollm2", "horizons_long", "horizons"),
    "gemma3": ("alpha_gemma3",),
    "w64": ("alpha_width",),
    "w256": ("alpha_width",),
}
"""The studies of each plane. They differ in rule, alpha, rate, rank and seed; those of SmolLM2 in
precision too: horizons is in float32, the others are in bf16."""
OF_WIDTH = {"w64": "bases/w64d4", "w256": "bases/w256d4"}
"""The bases of alpha_width, 64 and 256 wide, by plane."""
USUAL = 16.0
"""The alpha that costs are of."""


@cache
def joined(model: str, steps: int) -> StudyTables:
    """The tables of a plane: runs of ``steps`` under AdamW."""
    parts = [load_measured(RESULTS / name) for name in PLANES[model]]
    cells = pd.concat([part.cells for part in parts], ignore_index=True)
    cells = cells[cells["steps"] == steps]
    if model in OF_WIDTH:
        cells = cells[cells["model"] == OF_WIDTH[model]]
    # Two rules may have trained one gamma. The first study's run counts, and bf16 before float32.
    gamma = cells["gamma"].astype(float).map(lambda value: f"{value:.4g}")
    cells = cells[~cells.assign(gamma=gamma).duplicated(["rank", "gamma", "lr", "seed"])]
    cells = cells.assign(study=model, precision="several" if model == "smollm2" else "float32")
    ids = set(cells["cell_id"].astype(str))
    own: list[set[str]] = []  # a cell may be in two studies
    for part in parts:
        own.append((set(part.cells["cell_id"].astype(str)) & ids).difference(*own))

    def kept(name: str) -> pd.DataFrame:
        tables = [(getattr(part, name), of_part) for part, of_part in zip(parts, own, strict=True)]
        rows = [table[table["cell_id"].astype(str).isin(found)] for table, found in tables]
        return pd.concat(rows, ignore_index=True)

    return replace(parts[0], cells=cells, metrics=kept("metrics"), probes=kept("probes"))


@cache
def lowest(model: str, steps: int) -> pd.DataFrame:
    """The lowest loss over the rate by rank, alpha and seed (:mod:`study.analysis.plane`)."""
    tables = joined(model, steps)
    found = runs(tables.cells, tables.metrics, tables.probes)
    return lowest_losses(found.assign(setting=0))


def _spread(row: "pd.Series[float]", name: str, form: str) -> str:
    """``240 [180, 320]`` of a column with its interval; without it for fewer than three seeds."""
    value, low, high = row[name], row[f"{name}_low"], row[f"{name}_high"]
    if row["seeds"] < FEWEST_SEEDS:
        return format(value, form)
    return f"{value:{form}} [{low:{form}}, {high:{form}}]"


def best_pair(model: str, steps: str) -> str:
    """A row per rank: the best alpha and rate, rho there, the loss, and the seeds."""
    rows = []
    for _, row in best_pairs(lowest(model, int(steps))).iterrows():
        texts = {"rank": f"{row['rank']:g}", "best α": _spread(row, "alpha", ".0f")}
        texts |= {
            "best rate": _spread(row, "lr", ".2g"),
            "ρ at the end": _spread(row, "rho", ".2f"),
        }
        texts |= {"lowest loss": f"{row['loss']:.4f}", "seeds": f"{row['seeds']:.0f}"}
        rows.append(texts)
    return table_of(rows)


def usual_costs(model: str, steps: str) -> pd.DataFrame:
    """What alpha 16 costs, by rank (:func:`study.analysis.plane.costs`)."""
    return costs(lowest(model, int(steps)), USUAL).set_index("rank")


def alpha_cost(model: str, steps: str, rank: str) -> str:
    """What alpha 16 costs at a rank, nats: ``0.0084 [0.0070, 0.0098]``."""
    row = usual_costs(model, steps).loc[float(rank)]
    return minus(interval_text(row["cost"], row["ci_low"], row["ci_high"], 4))


def tried_cost(model: str, steps: str, rank: str, alpha: str, seed: str) -> str:
    """The lowest loss tried at alpha 16 less the lowest tried at ``alpha`` in one seed, nats. Where
    an alpha has a single rate it is a lower bound of the cost."""
    tables = joined(model, int(steps))
    found = runs(tables.cells, tables.metrics, tables.probes)
    own = found[(found["rank"] == float(rank)) & (found["seed"] == int(seed))]
    lowest_tried = own.groupby("alpha")["loss"].min()
    return f"{lowest_tried[USUAL] - lowest_tried[float(alpha)]:.3f}"


def lowest_tried(model: str, steps: str, seed: str) -> str:
    """A row per rank and alpha: the tried rate with the lowest loss in one seed, rho there, and the
    loss less that of the rank's best alpha, nats. A rate at an edge of those tried is marked."""
    tables = joined(model, int(steps))
    found = runs(tables.cells, tables.metrics, tables.probes)
    found = found[found["seed"] == int(seed)].dropna(subset="loss")
    above = found["loss"] - found.groupby("rank")["loss"].transform("min")
    rows = []
    for (rank, alpha), own in found.assign(above=above).groupby(["rank", "alpha"]):
        best = own.loc[own["loss"].idxmin()]
        edge = " (edge)" if best["lr"] in (own["lr"].min(), own["lr"].max()) else ""
        row = {"rank": f"{rank:g}", "α": f"{alpha:g}", "best rate tried": f"{best['lr']:.2g}{edge}"}
        row |= {"ρ at the end": f"{best['rho']:.2f}", "loss": f"{best['loss']:.4f}"}
        rows.append(row | {"above the rank's lowest": f"{best['above']:.4f}"})
    return table_of(rows)


def end_loss(study: str, rank: str) -> str:
    """The lowest final held-out loss of a rank in a study, nats."""
    tables = load_measured(RESULTS / study)
    found = runs(tables.cells, tables.metrics, tables.probes)
    return f"{found.loc[found['rank'] == float(rank), 'loss'].min():.3f}"


def rank_gain(model: str, steps: str, rank: str, alpha: str) -> str:
    """How much lower a rank at an alpha ends than rank 4 at alpha 16, each at its best rate, nats,
    by seed: ``0.048 [0.030, 0.066]``."""
    by_seed = lowest(model, int(steps)).pivot(
        index="seed", columns=["rank", "alpha"], values="loss"
    )
    gain = by_seed[4.0, USUAL] - by_seed[float(rank), float(alpha)]
    return mean_text(gain.dropna(), 3)


def alpha_costs(model: str) -> str:
    """A row per rank above 1 and number of steps: what alpha 16 costs against the best alpha
    tried."""
    rows = []
    for steps in (64, 256, 1024):
        for rank, row in usual_costs(model, str(steps)).query("rank > 1").iterrows():
            cost = minus(interval_text(row["cost"], row["ci_low"], row["ci_high"], 4))
            texts = {"steps": str(steps), "rank": f"{rank:g}", "against α": f"{row['against']:g}"}
            rows.append(texts | {"α = 16 costs, nats": cost, "seeds": f"{row['seeds']:.0f}"})
    return table_of(rows)


@cache
def _full(steps: int) -> pd.DataFrame:
    """By seed the best rate and lowest loss of full fine-tuning of the small model."""
    tables = joined("small", steps)
    rows = []
    for seed, own in full_losses(tables.cells, tables.metrics).groupby("seed"):
        curve = own.sort_values("lr")
        best = vertex(np.log(curve["lr"].to_numpy(float)), curve["loss"].to_numpy(float))
        rows.append((seed, np.exp(best.x), best.y))
    return pd.DataFrame(rows, columns=["seed", "lr", "loss"]).set_index("seed").dropna()


def full_rate(steps: str = "256") -> str:
    """The best rate of full fine-tuning of the small model."""
    ends = np.exp(mean_interval(np.log(_full(int(steps))["lr"])))
    return interval_text(*(1e4 * ends), 1) + "e-4"


def _beside_full(steps: int) -> Iterator[tuple[float, pd.DataFrame]]:
    """By alpha, LoRA's best rates and lowest losses at rank 256 beside those of full fine-tuning.
    A row per seed."""
    full, own = _full(steps), lowest("small", steps).dropna(subset="loss")
    own = own[(own["rank"] == 256) & own["alpha"].isin([16, 64, 256, 1024])]
    for alpha, each in own.groupby("alpha"):
        both = each.set_index("seed").join(full, rsuffix="_full", how="inner")
        if len(both) > 1:
            yield float(str(alpha)), both


def _ratio(both: pd.DataFrame) -> str:
    return interval_text(*np.exp(mean_interval(np.log(both["lr"] / both["lr_full"]))), 1)


def full_ratio(alpha: str, steps: str = "256") -> str:
    """LoRA's best rate over that of full fine-tuning, at rank 256 of the small model."""
    return _ratio(dict(_beside_full(int(steps)))[float(alpha)])


def over_full(steps: str = "256") -> str:
    """A row per alpha at rank 256: LoRA's best rate over that of full fine-tuning, and its lowest
    loss less that of full fine-tuning, by seed."""
    rows = []
    for alpha, both in _beside_full(int(steps)):
        row = {"α": f"{alpha:g}", "rank": "256", "rate / rate": _ratio(both)}
        row["loss less that of full fine-tuning"] = mean_text(both["loss"] - both["loss_full"], 4)
        rows.append(row | {"seeds": str(len(both))})
    return table_of(rows)


def why(rank: str) -> str:
    """A row per alpha at a rank: effective ranks of gamma B A, A and B, medians over layers, at the
    first probed step and at the end."""
    tables = load_measured(RESULTS / "alpha_why")
    facts = tables.cells.assign(cell_id=tables.cells["cell_id"].astype(str)).set_index("cell_id")
    rows = tables.probes[tables.probes["batch"] == TRAIN].astype({"cell_id": str, "site": str})
    rows = rows[(rows["layer"].astype(str) != "model") & rows["effective_rank"].notna()]
    rows = rows.join(facts[["rank", "alpha"]].add_prefix("of_"), on="cell_id")
    rows = rows[rows["of_rank"] == float(rank)]
    medians = rows.groupby(["of_alpha", "site", "step"])["effective_rank"].median()
    texts = []
    for alpha, own in medians.groupby("of_alpha"):
        row = {"α": f"{alpha:g}"}
        for site, name in (("delta_w", "γBA"), ("A", "A"), ("B", "B")):
            by_step = own.xs(site, level="site").droplevel("of_alpha")
            row[f"{name}, step {by_step.index[0]}"] = f"{by_step.iloc[0]:.3g}"
            row[f"{name}, step {by_step.index[-1]}"] = f"{by_step.iloc[-1]:.3g}"
        texts.append(row)
    return table_of(texts)


def drawn() -> dict[str, Figure]:
    """The figures of docs/alpha.md, by name."""
    small = joined("small", 256)
    return {
        "alpha_plane": figures.alpha_plane(small),
        "best_pairs": figures.best_pairs_by_rank(small),
        "loss_against_rho": figures.loss_against_rho(small),
    }
