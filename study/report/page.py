"""The page in Markdown: what the study says, what to hold against it, the tables, the figures, what was run on what."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from study.analysis import (
    curve_columns,
    first_to_read,
    rank_effects,
    rate_transfer,
    rule_differences,
    side_by_side,
    summary,
    truncated_losses,
    truncation_effects,
)
from study.analysis.stable import STABLE_COLUMNS
from study.analysis.summary import interval_text, measured_from, told_apart
from study.analysis.truncations import KEPT
from study.report.caveats import Record, caveats
from study.report.task import task_section
from study.report.text import (
    bullets,
    commit,
    device,
    listed,
    number,
    plain,
    quantity_name,
    row_list,
    rule_in_words,
    rule_name,
    signed_interval,
    source,
    span,
    table,
    times,
    verb,
    versions,
    word,
)
from study.store import StudyTables
from study.vocabulary.optimizers import label
from study.vocabulary.thresholds import STABLE_RATIO

COMPARED = {
    "fixed": "one learning rate for all",
    "best": "each rank's best learning rate",
    "matched": "rsLoRA's step size",
}


@dataclass(frozen=True)
class Picture:
    """A figure on disk: ``source`` is its path as the Markdown file beside the study says it."""

    name: str
    caption: str
    source: str

    def markdown(self) -> str:
        """The picture over its caption."""
        source = f"<{self.source}>" if " " in self.source else self.source
        return f"![{self.caption}]({source})\n\n{self.caption}"


def page(
    name: str, tables: StudyTables, records: Sequence[Record], pictures: Sequence[Picture]
) -> str:
    """The whole report on the study ``name`` as Markdown, from analysed tables."""
    sections = [
        f"# {name}: how do its adapters' scalings behave as the rank grows?",
        _in_a_sentence(tables),
        _says(tables),
        "## Read with care\n\n"
        + bullets(caveats(tables, records) or ["Nothing in the tables stands out."]),
        _stable(tables),
        _exponents(tables),
        _rates(tables),
        _losses(tables),
        task_section(tables),
        _truncations(tables),
        _figures(pictures),
        _what_was_run(tables, records),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _in_a_sentence(tables: StudyTables) -> str:
    cells = tables.cells
    ranks = sorted(set(cells["rank"]))
    seeds = (
        len(cells[["seed", "data_seed"]].drop_duplicates())
        if "data_seed" in cells
        else cells["seed"].nunique()
    )
    return (
        f"{len(cells)} cells on {listed(cells['model'])} and {listed(cells['data'])}: ranks {plain(ranks)}; "
        f"{', '.join(dict.fromkeys(rule_name(row) for row in row_list(cells)))}; "
        f"{', '.join(label(o) for o in dict.fromkeys(cells['optimizer']))}; "
        f"{plain(sorted(set(cells['steps'])))} steps; {seeds} {'seed' if seeds == 1 else 'seeds'}.\n\n"
        "> LoRA with α√r *is* rsLoRA with α: where alpha and the learning rate are tuned at every rank the rules are "
        "the same. What is tested here is transfer across ranks at fixed hyper-parameters. p\\* depends on the "
        "optimizer, the quantity and the step: read each number with all three."
    )


def _says(tables: StudyTables) -> str:
    """The primary verdicts as sentences, rule by rule."""
    if tables.exponents.empty:
        return "## What it says\n\nNothing yet: no quantity was measured at two ranks."
    exponents, note = _at_lowest_rate(tables.exponents)
    rows = summary(exponents)
    rows = rows[rows["primary"].astype(bool)]
    lines = []
    for (optimizer, rule, curve), part in rows.groupby(
        ["optimizer", "rule", "curve"], sort=False, observed=True
    ):
        verdicts = [
            f"{quantity_name(row.quantity.split()[0])} at step {row.step} {verb(str(row.verdict))} ({row.estimate}"
            + ("" if np.isnan(row.predicted) else f", theory {number(row.predicted)}")
            + ")"
            for row in row_list(part)
        ]
        named = ", ".join(
            filter(None, (label(str(optimizer)), rule_in_words(str(rule)), str(curve)))
        )
        lines.append(f"**{named}**: {'; '.join(verdicts)}.")
    margins = rows[["rank_min", "rank_max", "margin"]].drop_duplicates().itertuples(index=False)
    tests = "; ".join(
        f"±{margin:.3f} from rank {low:g} to {high:g}" for low, high, margin in margins
    )
    return (
        "## What it says\n\n"
        + bullets(lines)
        + "\n\nNumbers are exponents in the rank with 95 % intervals. *Stable* is an equivalence test passed (within "
        f"a factor of {STABLE_RATIO:g}: {tests}), never a failure to find a slope.{note}"
    )


def _stable(tables: StudyTables) -> str:
    stable, note = _at_lowest_rate(first_to_read(tables.stable))
    rows = side_by_side(stable)
    if rows.empty:
        return ""
    apart = told_apart(rows, [name for name in curve_columns(rows) if name not in STABLE_COLUMNS])
    last = rows["step"] == rows.groupby("method")["step"].transform("max")
    rows = rows[(rows["method"] == "linear") | last]
    high = sorted(rows["high_rank_min"].dropna().unique())
    heads = ["optimizer", "quantity", "step", "from", "p\\*, ranks measured", "theory, same ranks"]
    heads += (
        [f"p\\*, ranks from {' or '.join(f'{r:g}' for r in high)}", "theory, same ranks"]
        if high
        else []
    )
    heads += ["p\\*, bend taken off", "theory, r → ∞", "lazy", "seeds"]
    body = []
    for row in rows.to_dict("records"):
        cells = [
            label(row["optimizer"]),
            quantity_name(row["site"]),
            str(row["step"]),
            ", ".join([measured_from(row), *_values(row, apart)]),
            interval_text(row["p_star"], row["ci_low"], row["ci_high"]),
            number(row["predicted"]),
        ]
        if high:
            cells += [
                "" if np.isnan(row["high_p_star"])
                else interval_text(row["high_p_star"], row["high_ci_low"], row["high_ci_high"]),
                number(row["high_predicted"]),
            ]  # fmt: skip
        cells += [
            "" if np.isnan(row["p_star_limit"])
            else interval_text(row["p_star_limit"], row["limit_low"], row["limit_high"]),
            number(row["limit"]),
            {1.0: "yes", 0.0: "no"}.get(row["lazy"], "unknown"),
            str(row["seeds"]),
        ]  # fmt: skip
        body.append(cells)
    return (
        "## p\\*: the exponent of γ = α / r^p at which a quantity is flat\n\n"
        + table(heads, body)
        + "\n\nAt steps 0 and 1 a slope is linear in p with a factor that theory knows, so each rule gives p\\* alone; "
        "later it is where the slopes of several rules cross zero. Over layers: the mean of the log statistic. Where a "
        f"step was not lazy, only what its update has not touched is predicted.{note}"
    )


def _at_lowest_rate(table: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """Where the learning rate is swept, each optimizer's lowest: theory is of that end. And a sentence that says so."""
    if table.empty or table.groupby("optimizer", observed=True)["lr"].nunique().max() < 2:
        return table, ""
    lowest = table.groupby("optimizer", observed=True)["lr"].transform("min")
    rates = ", ".join(f"{rate:g}" for rate in sorted(set(lowest)))
    return table[
        table["lr"] == lowest
    ], f" All at the lowest learning rate ({rates}), the end that theory is about."


def _values(row: Mapping[Any, Any], names: Sequence[str]) -> list[str]:
    return [f"{name}={word(row[name])}" for name in names]


def _exponents(tables: StudyTables) -> str:
    if tables.exponents.empty:
        return ""
    exponents, note = _at_lowest_rate(tables.exponents)
    rows = summary(exponents)
    heads = [
        "optimizer",
        "rule",
        "quantity",
        "step",
        "exponent",
        "theory",
        "layers 5–95 %",
        "verdict",
    ]
    body = [
        [
            label(row.optimizer),
            ", ".join(filter(None, (str(row.rule), str(row.curve)))),
            quantity_name(row.quantity.split()[0]),
            str(row.step),
            row.estimate,
            number(row.predicted),
            ""
            if np.isnan(row.layer_p05)
            else f"{number(row.layer_p05)} to {number(row.layer_p95)}",
            str(row.verdict) + ("" if row.primary else " \\*"),
        ]
        for row in row_list(rows)
    ]
    return (
        "## Exponents in the rank\n\n"
        + table(heads, body)
        + "\n\n\\* corrected for the number of quantities looked at (Holm); the others were fixed beforehand. Theory "
        f"is the slope of the finite-rank curve over the same ranks.{note}"
    )


def _rates(tables: StudyTables) -> str:
    transfer = rate_transfer(tables.rates)
    if transfer.empty:
        return ""
    heads = [
        "optimizer",
        "rule",
        "exponent of the best rate",
        "theory",
        "agrees",
        "ranks",
        "at an edge",
        "ρ",
        "seeds",
    ]
    body = [
        [
            label(row.optimizer),
            rule_name(row),
            "—" if np.isnan(row.exponent) else interval_text(row.exponent, row.ci_low, row.ci_high),
            span(row.predicted_low, row.predicted_high),
            {1.0: "yes", 0.0: "no"}.get(row.agrees, ""),
            str(row.ranks),
            str(row.edges),
            span(row.rho_min, row.rho_max) or "not recorded",
            str(row.seeds),
        ]
        for row in row_list(transfer)
    ]
    by = ["optimizer", "scaling", "exponent_p", "rank"]
    best = tables.rates.groupby(by, observed=True, sort=True)["best_lr"].median().reset_index()
    rows = [
        [label(row.optimizer), rule_name(row), f"{row.rank:g}", f"{row.best_lr:.2g}"]
        for row in row_list(best)
    ]
    return (
        "## Does the best learning rate transfer across ranks?\n\n"
        + table(heads, body)
        + "\n\nThe best rate is the bottom of a parabola in log lr around the best rate tried. Theory is an interval: "
        "its lazy end, −(1 − p), for ρ = |ΔA x| / |A₀ x| far below 1, and −(1 − p)/2 far above.\n\n"
        + table(["optimizer", "rule", "rank", "best learning rate"], rows)
    )


def _losses(tables: StudyTables) -> str:
    effects = rank_effects(tables.losses)
    if effects.empty:
        return ""
    # At one comparison the rules stand one below the other.
    effects = effects.assign(place=effects["how"].map(list(COMPARED).index))
    effects = effects.sort_values(["optimizer", "place", "lr", "exponent_p"], kind="stable")
    body = [
        [
            label(row.optimizer),
            rule_name(row),
            f"{row.alpha:g}",
            COMPARED[row.how] + ("" if pd.isna(row.lr) else f" ({row.lr:g})"),
            signed_interval(row.gain, row.ci_low, row.ci_high),
            f"{row.rank_min:g} to {row.rank_max:g}",
            str(row.seeds),
        ]
        for row in row_list(effects)
    ]
    text = "## Does rank help, or only the step size?\n\n" + table(
        [
            "optimizer",
            "rule",
            "α",
            "compared at",
            "gained per doubling of the rank",
            "ranks",
            "seeds",
        ],
        body,
    )
    text += "\n\nFinal held-out loss in nats per token; positive: a higher rank is better."
    differences = rule_differences(tables.losses)
    if len(differences):
        rows = [
            [
                label(row.optimizer),
                COMPARED[row.how] + ("" if pd.isna(row.lr) else f" ({row.lr:g})"),
                rule_name(row),
                f"{row.rank:g}",
                signed_interval(row.difference, row.ci_low, row.ci_high),
            ]
            for row in row_list(differences)
        ]
        text += "\n\n" + table(
            ["optimizer", "compared at", "rule", "rank", "loss beyond rsLoRA's, equal rank"], rows
        )
        text += (
            "\n\nWhat is left where the step size is matched is the rule; what is not was the step size."
            + f" Between runs the loss is interpolated in the log of the step{_how_far(tables.losses)}."
            if (differences["how"] == "matched").any()
            else "\n\nNo two runs are at a matched step, so this is rule and step size together: sweep `optimizer.lr`."
        )
    flops = tables.losses.dropna(subset=["flops"]).drop_duplicates("rank").sort_values("rank")
    if len(flops) and tables.losses.groupby("rank")["flops"].nunique().max() == 1:
        costs = "; ".join(f"{row.rank:g}: {row.flops / 1e6:,.3g}" for row in row_list(flops))
        text += f"\n\nAdapter cost in MFLOP per trained token by rank (factored): {costs}."
    return text


def _how_far(losses: pd.DataFrame) -> str:
    """How far apart the learning rates are that a matched loss lies between."""
    rates = np.unique(losses.loc[losses["how"] == "matched", "lr"].to_numpy(float))
    return (
        f", here over a factor of up to {np.max(rates[1:] / rates[:-1]):.2g}"
        if len(rates) > 1
        else ""
    )


def _truncations(tables: StudyTables) -> str:
    effects = truncation_effects(truncated_losses(tables.cells, tables.truncations))
    if effects.empty:
        return ""
    several_rates = effects.groupby("optimizer", observed=True)["lr"].nunique().max() > 1
    heads = [
        "optimizer",
        "rule",
        *(["lr"] if several_rates else []),
        "trained rank",
        "held-out loss",
        "gained",
    ]
    heads += [
        f"rank that keeps {KEPT:.0%} of it",
        "cut to the lowest rank",
        "loss beyond the run of that rank",
    ]
    body = [
        [
            label(row.optimizer),
            rule_name(row),
            *([f"{row.lr:g}"] if several_rates else []),
            plain([row.rank]),
            f"{row.loss:.4f}",
            "" if np.isnan(row.gained) else f"{row.gained:+.4f}",
            "" if np.isnan(row.needed) else plain([row.needed]),
            "" if np.isnan(row.cut) else f"{row.cut:.4f} (rank {row.lowest:g})",
            "" if np.isnan(row.beyond) else signed_interval(row.beyond, row.ci_low, row.ci_high),
        ]
        for row in row_list(effects)
    ]
    return (
        "## How much of its rank does a trained adapter need?\n\n"
        + table(heads, body)
        + "\n\nAfter training every layer's γBA is cut to its k largest singular directions, without training on. "
        "*Gained* is against the base; *loss beyond* compares the cut adapter with the run that was trained at the "
        "lowest rank (positive: that run found the better adapter of its rank). Nats per token, means over seeds."
    )


def _figures(pictures: Sequence[Picture]) -> str:
    if not pictures:
        return ""
    return "## Figures\n\n" + "\n\n".join(picture.markdown() for picture in pictures)


def _what_was_run(tables: StudyTables, records: Sequence[Record]) -> str:
    lines = []
    for model in dict.fromkeys(r.get("model") for r in records):
        mine = [r for r in records if r.get("model") == model]
        notes = listed(r.get("model_note") or "as published" for r in mine)
        hashes = listed(str(r.get("sources", {}).get("model", "unknown"))[:12] for r in mine)
        lines.append(f"model: {model} ({notes}; sha256 {hashes})")
    lines.append(f"data: {listed(source(r, 'data') for r in records)}")
    cells = tables.cells
    for key in (
        "targets",
        "init",
        "lr",
        "alpha",
        "batch_size",
        "accumulation",
        "sequence_length",
        "schedule",
        "clip",
    ):
        if key in cells:
            lines.append(f"{key.replace('_', ' ')}: {listed(word(value) for value in cells[key])}")
    lines.append(f"device: {listed(device(r) for r in records)}")
    lines.append(f"precision: {listed(cells['precision'])}" if "precision" in cells else "")
    lines.append(
        "versions: " + "; ".join(f"{name} {version}" for name, version in versions(records).items())
    )
    commits = listed(commit(r.get("git")) for r in records)
    lines.append(f"commit: {commits}")
    seconds = cells["seconds"].astype(float).sum() if "seconds" in cells else np.nan
    if seconds > 0:
        lines.append(f"time of the cells added up: {seconds / 60:.1f} minutes")
    lines.append(f"from {min(times(records, 'started'))} to {max(times(records, 'finished'))}")
    return "## What was run on what\n\n" + bullets([line for line in lines if line])
