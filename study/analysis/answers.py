"""The answer: a study's question, its sentences and its table.

Terminal, report, dashboard and documents show the same. All numbers and verdicts come from tables;
a sentence without data is left out.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import pandas as pd

from study.analysis.capacity import FULL, best_stored, capacity, setting_columns
from study.analysis.fits import mean_interval
from study.analysis.grouping import (
    CURVE_ID,
    RULE,
    curve_columns,
    curve_labels,
    distinguishing,
    groups,
    numbered,
    rule_columns,
)
from study.analysis.losses import (
    HIGHEST,
    INSIDE,
    LOWEST,
    NOT_A_SETTING,
    OF_A_RULE,
    base_losses,
    rank_effects,
)
from study.analysis.rates import rate_transfer
from study.analysis.text import (
    Table,
    cell_list,
    filled,
    first_of,
    interval,
    joined,
    number_list,
    row_list,
    rule_of_row,
    signed_interval,
    span,
)
from study.analysis.verdicts import CONDITION, condition_rows, rows_of
from study.analysis.wording import (
    STEEP_MARK,
    TESTED,
    curve_settings,
    factor_text,
    interval_text,
    rate_notes,
    rule_names,
    setting_labels,
    settings,
)
from study.errors import count_noun
from study.theory.rounding import BF16_REMEDY
from study.vocabulary.optimizers import label
from study.vocabulary.quantities import DESCENT, FORWARD_OUT, GRADIENT_NORM, TRAIN
from study.vocabulary.scaling import RULES, rule_formula, rule_label
from study.vocabulary.statuses import BROKEN, DONE
from study.vocabulary.thresholds import SEEDS_FOR_VERDICT, STABLE_RATIO
from study.vocabulary.verdicts import FALLS, GROWS, RISES, SHRINKS, STABLE, UNCLEAR

if TYPE_CHECKING:
    from study.store import StudyTables

MOST_CURVES = 4
"""Curves with a sentence each. If there are more, each setting has a sentence on its extremes."""
MOST_SETTINGS = 3
"""Settings with a sentence on their extremes."""
UP = GROWS, RISES
CHANGES = *UP, SHRINKS, FALLS
"""The verdicts that a quantity changes with the rank."""


class Question(NamedTuple):
    """A question, and the view that answers it.

    - ``varies``: columns of ``cells``. A study that varies one of them asks this question. ``*`` is
      any other column. Empty: every study asks it if it has the data;
    - ``kind``: its sentences and its table;
    - ``figures``: the first one that the study has data for is shown.
    """

    asks: str
    varies: tuple[str, ...]
    kind: Literal["rounding", "capacity", "rates", "sizes"]
    figures: tuple[str, ...]


FORMS, ROUNDED = ("precision", "contraction"), ("loss_in_bf16",)
BASINS = ("loss_against_alpha", "learning_rate_basins", "rate_exponent_vs_rho")
SIZES = ("exponents_over_training", "conditions", "grad_norm_vs_rank", "descent_vs_rank")
LIMIT, LOSSES = "distance_to_infinite_rank", ("truncated_losses", "loss_curves")
RANK = " as the rank grows?"
QUESTIONS = (
    Question("What does rounding to bf16 take from the adapter?", FORMS, "rounding", ROUNDED),
    Question("How many bits does an adapter store?", (), "capacity", ("bits_stored",)),
    Question("Which learning rate is best at which rank?", ("lr", "alpha"), "rates", BASINS),
    Question(f"What does the optimizer change{RANK}", ("optimizer", "betas"), "sizes", SIZES),
    Question(f"What does the number of steps change{RANK}", ("steps",), "sizes", SIZES),
    Question(
        f"What does the setting change{RANK}", ("*",), "sizes", ("exponents_by_setting", *SIZES)
    ),
    Question(
        f"Do outputs and gradients keep their size{RANK}", (), "sizes", (LIMIT, *SIZES, *LOSSES)
    ),
)
"""In this order: a study asks the first one whose columns vary and that it has the data for."""


def questions_of(varying: Collection[str]) -> list[Question]:
    """The questions of a study in which these columns vary, beside ranks, rules and seeds."""
    found = {*varying, "*"} if varying else set()
    return [one for one in QUESTIONS if not one.varies or found & {*one.varies}]


@dataclass(frozen=True)
class CurveFacts:
    """One rule in one setting, at one learning rate.

    - ``label``: ``rsLoRA``. ``formula``: ``γ = α/√r``. ``cells``: of all ranks and seeds;
    - ``named``: keys that differ between settings. ``beside``: these, and the optimizer if it does;
    - ``setting``: equal for curves that differ in the rule only;
    - ``condition``: its rows of :func:`~study.analysis.verdicts.condition_rows`;
    - ``descent``: the row of ``exponents`` with the descent of the first update;
    - ``losses``: by rank, the final held-out loss, the mean over seeds. A rank at which a run broke
      has none. ``best``: at the best rate of each rank, if several were tried;
    - ``gain``: its row of :func:`~study.analysis.losses.rank_effects`.
    """

    label: str
    named: str
    beside: str
    formula: str
    setting: int
    cells: pd.DataFrame
    condition: list[Any]
    descent: Any | None
    losses: dict[float, float]
    base: float
    gain: Any | None
    best: dict[float, float]

    @property
    def rule(self) -> str:
        return f"{self.label} ({self.beside})" if self.beside else self.label

    @property
    def last(self) -> list[Any]:
        return [row for row in self.condition if row.is_last]


def asked(tables: StudyTables) -> Question:
    """The question of a study: the first one whose columns vary and that it has the data for."""
    cells = tables.cells
    labels = curve_labels(cells)
    optimizers = ["optimizer"] if cells["optimizer"].nunique() > 1 else []
    found = questions_of([*optimizers, *distinguishing(labels, curve_columns(labels))])
    return next(one for one in found if one.kind == "sizes" or TABLES[one.kind](tables).rows)


def answer(tables: StudyTables) -> list[str]:
    """What the study found, in sentences of which the first answer its question. Names are as in
    the tables."""
    cells, said = tables.cells, list[str]()
    ended = cells["status"].isin(DONE)
    if not ended.all():
        said.append(f"So far {ended.sum()} of {len(cells)} cells are done.")
    broken = cells["status"].isin(BROKEN).sum()
    if 2 * broken >= len(cells):
        said.append(f"{broken} of {len(cells)} cells diverged or got stuck: see the caveats.")
    ranks = sorted(set(cells["rank"].dropna()))
    if sum(map(math.isfinite, ranks)) < 2:
        said.append(
            f"Every cell has rank {number_list(ranks)}, so the study can't say how anything "
            "changes with the rank: sweep adapter.rank."
        )
    kind = asked(tables).kind
    if kind == "rounding":
        return [*said, *_in_bf16(tables)]
    if kind == "capacity":
        return [*said, *_of_capacity(tables)]
    found = curves(tables)
    said += _best_rates(tables) if kind == "rates" else _of_settings(found)
    return [*said, *_perplexity(found), *_why(found, cells["lr"].nunique() > 1)]


def answer_table(tables: StudyTables) -> Table:
    """The numbers of :func:`answer`; empty without data."""
    kind = asked(tables).kind
    return size_table(curves(tables)) if kind == "sizes" else TABLES[kind](tables)


def curves(tables: StudyTables) -> list[CurveFacts]:
    """Every curve with a fitted quantity or a final loss, at its setting's best learning rate at
    the lowest rank or, without losses, at the lowest rate."""
    cells = curve_labels(tables.cells)
    columns = curve_columns(cells)
    of_setting, of_rule, beside_rule = (
        numbered(cells, [name for name in columns if name not in apart])
        for apart in (NOT_A_SETTING, ("lr",), rule_columns(cells))
    )
    cells = cells.assign(tried=of_setting, rule=of_rule, beside=beside_rule)
    exponents, losses, base = tables.exponents, tables.losses, base_losses(tables.metrics)
    if len(losses):
        numbers = cells.drop_duplicates(CURVE_ID)[[CURVE_ID, "tried", "rule"]]
        losses = losses.merge(numbers, on=CURVE_ID, how="left")
    best_losses = losses[losses["how"] == "best"] if len(losses) else losses
    losses = losses[losses["how"] == "fixed"] if len(losses) else losses
    effects = rank_effects(losses)
    condition = condition_rows(exponents) if len(exponents) else exponents
    if len(exponents):
        exponents = exponents[rows_of(DESCENT, exponents) & (exponents["step"] == 0)]

    rate = cells.groupby("tried")["lr"].transform("min")
    if len(losses):
        rate = cells["tried"].map(losses.groupby("tried")["lr"].first()).fillna(rate)
    cells = cells[cells["lr"] == rate]
    several = cells["optimizer"].nunique() > 1
    differing = [name for name in distinguishing(cells, columns) if name != "lr"]
    cells["named"] = setting_labels(cells, differing)
    found = []
    for key, of_curve in cells.groupby(CURVE_ID, sort=False, observed=True):
        own_condition, own_descent, own_losses, own_effects = (
            _rows(table, CURVE_ID, key) for table in (condition, exponents, losses, effects)
        )
        if not len(own_condition) and not len(own_losses):
            continue
        row, own_cells = of_curve.iloc[0], tables.cells.loc[of_curve.index]
        named, optimizer = str(row["named"]), label(str(row["optimizer"])) if several else ""
        found.append(
            CurveFacts(
                label=rule_label(*row[list(RULE)]),
                named=named,
                beside=", ".join(filter(None, (optimizer, named))),
                formula=rule_formula(*row[list(RULE)]),
                setting=int(row["beside"]),
                cells=own_cells,
                condition=row_list(own_condition),
                descent=next(iter(row_list(own_descent)), None),
                losses=_by_rank(own_losses),
                base=float(base.reindex(own_cells["cell_id"].astype(str)).mean()),
                gain=next(iter(row_list(own_effects)), None),
                best=_by_rank(_rows(best_losses, "rule", row["rule"])),
            )
        )
    return found


def _rows(table: pd.DataFrame, column: str, value: object) -> pd.DataFrame:
    return table[table[column] == value] if len(table) else table


def _by_rank(losses: pd.DataFrame) -> dict[float, float]:
    if losses.empty:
        return {}
    broken = losses["loss"].isna().groupby(losses["rank"]).any()
    means = losses.groupby("rank")["loss"].mean()[~broken]
    return dict(zip(means.index.astype(float), means.astype(float), strict=True))


# ---- sizes


def change_text(verdict: str, factor: float) -> str:
    """``changes by ×0.16``, ``changes by less than 1.5 times (×1.02)``, ``is at ×0.81``."""
    if verdict in CHANGES:
        return f"changes by {factor_text(factor)}"
    within = f"changes by less than {STABLE_RATIO:g} times ({factor_text(factor)})"
    return within if verdict == STABLE else f"is at {factor_text(factor)}"


def _of_settings(found: Sequence[CurveFacts]) -> Iterator[str]:
    """A sentence per setting: on each of its rules, or on their extremes if there are many. A
    setting whose sentence is that of an earlier one is equal to it."""
    settings_: dict[int, list[CurveFacts]] = {}
    for curve in found:
        if curve.last:
            settings_.setdefault(curve.setting, []).append(curve)
    said: dict[str, list[list[CurveFacts]]] = {}
    for own in settings_.values():
        rules = "under " + ". Under ".join(map(_of_rule, own))
        text = _extremes(own) if len(own) > MOST_CURVES else rules
        said.setdefault(text, []).append(own)
    for text, (first, *equal) in [*said.items()][:MOST_SETTINGS]:
        verb = "is" if len(equal) == 1 else "are"
        same = f" {joined([one[0].beside for one in equal])} {verb} equal." if equal else ""
        yield f"{_setting(first)}: {text}.{same}"
    yield from _more_settings(len(said) - MOST_SETTINGS)


def _more_settings(left_out: int, of: str = "") -> Iterator[str]:
    if left_out > 0:
        yield f"The table shows {count_noun(left_out, 'more setting')}{of}."


def _setting(found: Sequence[CurveFacts]) -> str:
    """``Rank 256 against rank 4 (4 ranks; SmolLM2, AdamW, learning rate 0.0001, ...), step 10``."""
    last, cells = found[0].last, pd.concat([curve.cells for curve in found])
    low, high = last[0].rank_min, last[0].rank_max
    ranks = count_noun(max(int(row.ranks) for row in last), "rank")
    where = "; ".join(filter(None, (ranks, settings(cells), found[0].named)))
    steps = number_list(sorted({row.step for row in last}))
    return f"Rank {high:.0f} against rank {low:.0f} ({where}), step {steps}"


def _of_rule(curve: CurveFacts) -> str:
    """``rsLoRA the adapter output changes by ×4.10; 3 seeds cannot tell whether ...``."""
    unclear = [row for row in curve.last if row.verdict == UNCLEAR]
    clear = [f"the {r.noun} {change_text(r.verdict, r.factor)}" for r in curve.last]
    clear = [said for said, r in zip(clear, curve.last, strict=True) if r.verdict != UNCLEAR]
    parts = [joined(clear)] if clear else []
    if unclear:
        nouns = joined([f"the {row.noun} ({factor_text(row.factor)})" for row in unclear])
        verb = "changes" if len(unclear) == 1 else "change"
        parts.append(f"{unclear[0].seeds:g} seeds cannot tell whether {nouns} {verb}")
    verdicts = {row.noun: row.verdict for row in curve.last}
    parts += [
        f"at step {row.step} the {row.noun} {change_text(row.verdict, row.factor)}"
        for row in curve.condition
        if row.noun == GRADIENT_NORM.noun and row.is_first and row.verdict != UNCLEAR
        if row.verdict != verdicts[row.noun]
    ]
    return f"{curve.label} {'; '.join(parts)}"


def _extremes(found: Sequence[CurveFacts]) -> str:
    """For each quantity, the rules of a setting with the least and the largest change with rank."""
    parts = []
    for noun in [quantity.noun for quantity in CONDITION]:
        rows = [(c.label, r) for c in found for r in c.last if r.noun == noun and r.factor > 0]
        if rows:
            rows.sort(key=lambda pair: abs(math.log(pair[1].factor)))
            (least, first), (most, last) = rows[0], rows[-1]
            parts.append(
                f"the {noun} changes least under {least} ({factor_text(first.factor)}) and "
                f"most under {most} ({factor_text(last.factor)})"
            )
    return f"of {len(found)} rules, {'; '.join(parts)}"


def size_table(found: Sequence[CurveFacts]) -> Table:
    """A row per curve at the last step, and at the first one if there are few curves."""
    rows, body = [row for curve in found for row in curve.condition], []
    for curve in found:
        ends = {"last": curve.last}
        if len(found) <= MOST_CURVES and any(row.step > 1 for row in curve.last):
            ends = {"first": [row for row in curve.condition if row.is_first], **ends}
        for which, own in ends.items():
            steps = " or ".join(map(str, sorted({row.step for row in own})))
            texts = {row.noun: _bold(row) for row in own}
            losses = curve.losses if which == "last" else {}
            body.append(
                {
                    "rule": f"{curve.rule}, {curve.formula}",
                    "step": f"{which} ({steps})" if steps else which,
                    **{q.noun: texts.get(q.noun, "") for q in CONDITION},
                    "held-out perplexity": " to ".join(
                        perplexities(*(losses[end(losses)] for end in (min, max))) if losses else []
                    ),
                }
            )
    if not rows:
        return Table(filled(body))
    low, high = min(row.rank_min for row in rows), max(row.rank_max for row in rows)
    return Table(
        filled(body),
        f"Factors from rank {low:.0f} to rank {high:.0f}. Bold: a change is shown. ~: none is "
        f"shown. {TESTED}",
    )


def _bold(row: Any) -> str:
    """``**×0.16**`` if a change is shown, else ``~×0.81``: a terminal shows no bold."""
    text = factor_text(row.factor)
    return f"**{text}**" if row.verdict in CHANGES else f"~{text}"


# ---- losses


def _perplexity(found: Sequence[CurveFacts]) -> Iterator[str]:
    """The held-out perplexity at both ends of the ranks, at a rate that several have and at the
    best ones, after the longest runs."""
    own = [curve for curve in found if curve.losses]
    if not own:
        return
    longest = max(curve.cells["steps"].max() for curve in own)
    own = [curve for curve in own if curve.cells["steps"].max() == longest]
    if len(own) > MOST_CURVES:
        rank = max(max(curve.losses) for curve in own)
        best = min(own, key=lambda curve: curve.losses.get(rank, math.inf))
        yield (
            f"The lowest held-out perplexity at rank {rank:.0f}{_at_rate(best)} is that of "
            f"{best.rule} ({perplexities(best.losses[rank])[0]})."
        )
        return
    fixed = [curve for curve in own if len(curve.losses) > 1 or len(curve.best) < 2]
    bases, rates = [_before(curve) for curve in fixed], [_at_rate(curve) for curve in fixed]
    base, rate = (each[0] if len(set(each)) == 1 else "" for each in (bases, rates))
    said = [
        f"under {curve.rule}{'' if rate else r} it {_change_of_loss(curve)}{'' if base else b}"
        for curve, b, r in zip(fixed, bases, rates, strict=True)
    ]
    if said:
        yield f"Held-out perplexity{base}{rate}: {'; '.join(said)}."
    tuned: dict[tuple[float, float], list[str]] = {}
    for curve in (curve for curve in own if len(curve.best) > 1):
        low, high = min(curve.best), max(curve.best)
        ends = perplexities(curve.best[low], curve.best[high])
        tuned.setdefault((low, high), []).append(f"{joined(ends)} under {curve.rule}")
    for (low, high), texts in tuned.items():
        ranks = f"rank {low:.0f} and rank {high:.0f}"
        what = "" if said else "held-out perplexities of "
        yield f"At the best of the tried rates, {ranks} have {what}{joined(texts)}."


def _before(curve: CurveFacts) -> str:
    """`` (30.5 before training)`` if that is known."""
    known = math.isfinite(curve.base)
    return f" ({perplexities(curve.base)[0]} before training)" if known else ""


def _at_rate(curve: CurveFacts) -> str:
    """`` at learning rate 0.001`` if several were trained."""
    return f" at learning rate {curve.cells['lr'].iloc[0]:g}" if curve.best else ""


def _change_of_loss(curve: CurveFacts) -> str:
    """``falls from 26.5 at rank 4 to 18.0 at rank 256``, if the slope over seeds and both ends show
    it."""
    low, high = min(curve.losses), max(curve.losses)
    at_low, at_high = perplexities(curve.losses[low], curve.losses[high])
    if low == high:
        return f"is {at_low} after training"
    ends = f"{at_low} at rank {low:.0f}", f"{at_high} at rank {high:.0f}"
    direction = gain_sign(curve) if at_low != at_high else 0
    if direction and (curve.losses[low] > curve.losses[high]) == (direction > 0):
        return f"{'falls' if direction > 0 else 'rises'} from {ends[0]} to {ends[1]}"
    if curve.gain is None or curve.gain.seeds < SEEDS_FOR_VERDICT:
        return f"is {ends[0]} and {ends[1]}"
    return f"shows no steady change with the rank ({ends[0]}, {ends[1]})"


def gain_sign(curve: CurveFacts) -> int:
    """1 if a higher rank was shown to lower the final loss, -1 if to raise it, 0 if neither."""
    if curve.gain is None or curve.gain.seeds < SEEDS_FOR_VERDICT:
        return 0
    return int(curve.gain.ci_low > 0) - int(curve.gain.ci_high < 0)


def perplexities(*losses: float) -> list[str]:
    """exp of some losses, with at least three digits, and enough to distinguish them."""
    values = [float(np.exp(min(loss, 700.0))) for loss in losses]
    for digits in (3, 4, 5):
        texts = [f"{value:#.{digits}g}".removesuffix(".") for value in values]
        if len(set(texts)) == len(set(values)):
            break
    return texts


def _why(found: Sequence[CurveFacts], several: bool) -> Iterator[str]:
    """Why a larger output comes with a lower loss, for the first curve that shows both."""
    for curve in found:
        grown = [r for r in curve.last if r.noun == FORWARD_OUT.noun and r.verdict in UP]
        if not grown or gain_sign(curve) <= 0:
            continue
        row, first = curve.descent, "one update changes the model more at a higher rank"
        if row is not None and row.verdict in UP and row.factor >= 2:
            first = (
                f"the first update lowers the loss {row.factor:.2g} times as much at rank "
                f"{row.rank_max:.0f} as at rank {row.rank_min:.0f} (to first order)"
            )
        yield (
            f"A larger output means a larger step: under {curve.rule} {first}."
            + ("" if several else " To tell a better rank from a larger step, sweep optimizer.lr.")
        )
        return


# ---- learning rates


def _best_rates(tables: StudyTables) -> Iterator[str]:
    """How the best learning rate changes with the rank after the longest runs, by rule. If there
    are many, the extremes."""
    every = rate_transfer(tables.rates)
    if every.empty:
        return
    longest = every["steps"].max()
    transfer = every[every["steps"] == longest]
    transfer = transfer.assign(name=_rule_names(transfer))
    transfer = transfer.sort_values("scaling", key=_place, kind="stable")
    is_known = transfer["exponent"].notna()
    if is_known.any():
        cells = tables.cells[tables.cells["steps"] == longest]
        yield _rate_changes(cells, transfer[is_known])
    if not is_known.all():
        names = first_of(transfer.loc[~is_known, "name"].tolist(), ", ")
        yield (
            f"Under {names}, how the best learning rate changes with the rank is not known: fewer "
            "than two ranks have theirs inside the rates that were tried (study rates --refine "
            "prints more)."
        )
    yield from _more_settings(len(every) - len(transfer), " with fewer steps")


def _place(scaling: pd.Series[str]) -> pd.Series[int]:
    """The places of rules in :data:`RULES`: LoRA first, then rsLoRA."""
    return scaling.astype(object).map(list(RULES).index)


def _rate_changes(cells: pd.DataFrame, fitted: pd.DataFrame) -> str:
    rows = fitted.to_dict("records")
    low, high = min(row["rank_min"] for row in rows), max(row["rank_max"] for row in rows)
    whole = sum(map(math.isfinite, set(cells["rank"]))), cells["seed"].nunique()
    where = f"{count_noun(whole[0], 'rank')}; {settings(cells.drop(columns='lr'))}"
    head = f"Rank {high:.0f} against rank {low:.0f} ({where}): the best learning rate"
    if len(rows) > MOST_CURVES:
        ends = [min(rows, key=lambda row: row["exponent"]), max(rows, key=lambda r: r["exponent"])]
        least, most = (f"{_law(row)} under {row['name']}" for row in ends)
        return f"{head} goes as {least} to as {most}, of {len(rows)} rules and settings."
    laws = []
    for row in rows:
        name, numbers = row["name"], [row["exponent"], row["ci_low"], row["ci_high"]]
        factors = [(row["rank_max"] / row["rank_min"]) ** one for one in numbers]
        law = "" if row["ranks"] == 2 else f" ({_law(row)})"
        if (row["ranks"], row["seeds"]) != whole:
            ranks, seeds = count_noun(row["ranks"], "rank"), count_noun(row["seeds"], "seed")
            name += f" ({ranks} from {row['rank_min']:.0f} to {row['rank_max']:.0f}, {seeds})"
        name += STEEP_MARK if row["steep"] else ""
        verdict = _verdict(*factors) if row["seeds"] >= SEEDS_FOR_VERDICT else UNCLEAR
        laws.append(f"{RATE_VERBS[verdict]} ×{interval_text(*factors)}{law} under {name}")
    return f"{head} {joined(laws)}."


RATE_VERBS = {RISES: "rises to", FALLS: "falls to", STABLE: "stays the same at", UNCLEAR: "is"}
"""What a verdict says of the best rate of the highest rank, over that of the lowest."""


def _law(row: Any) -> str:
    return f"r^{interval_text(row['exponent'], row['ci_low'], row['ci_high'], 3)}"


def _verdict(factor: float, low: float, high: float) -> str:
    """The verdict on a factor with its interval; none of another kind than those of sizes."""
    if low > 1 or high < 1:
        return RISES if low > 1 else FALLS
    return STABLE if low >= 1 / STABLE_RATIO and high <= STABLE_RATIO else UNCLEAR


def _rule_names(rows: pd.DataFrame) -> list[str]:
    """By row its rule, with the optimizer and the settings that differ between rows."""
    several = rows["optimizer"].nunique() > 1
    optimizers = rows["optimizer"].map(lambda name: label(str(name)) if several else "")
    parts = zip(optimizers, rule_names(rows), curve_settings(rows), strict=True)
    return [" with ".join(filter(None, part)) for part in parts]


def rate_table(tables: StudyTables) -> Table:
    """The best rate of each rank, and how it changes with the rank; empty if none were swept."""
    transfer = rate_transfer(tables.rates)
    if transfer.empty:
        return Table()
    logs = tables.rates.assign(log_lr=np.log(tables.rates["best_lr"].astype(float)))
    transfer = transfer.assign(named=curve_settings(transfer), place=_place(transfer["scaling"]))
    ranks, body = sorted(logs["rank"].unique()), []
    pairs = zip(row_list(transfer), groups(logs, OF_A_RULE), strict=True)
    for row, own in sorted(pairs, key=lambda pair: (pair[0].place, pair[0].steps)):
        of_rank = dict(iter(own.groupby("rank")))
        exponent = interval_text(row.exponent, row.ci_low, row.ci_high, 3)
        exponent += STEEP_MARK if row.steep else ""
        body.append(
            {
                "optimizer, rule": f"{label(str(row.optimizer))}, {rule_of_row(row, row.named)}",
                **{
                    f"rank {r:.0f}": _marked_rate(of_rank[r]) if r in of_rank else "" for r in ranks
                },
                "change": factor_text((row.rank_max / row.rank_min) ** row.exponent),
                "exponent": "none" if math.isnan(row.exponent) else exponent,
                "theory": span(row.predicted_low, row.predicted_high) or "none",
                "ρ": span(row.rho_min, row.rho_max),
            }
        )
    notes = " ".join([RATE_NOTES, *rate_notes(transfer[transfer["exponent"].notna()])])
    return Table(filled(body), notes)


def _marked_rate(runs: pd.DataFrame) -> str:
    """``>0.016``: the best rate of a rank; marked if it is at an edge for some seed."""
    marks = {"<": LOWEST, ">": HIGHEST}
    edges = "".join(mark for mark, edge in marks.items() if (runs["edge"] == edge).any())
    return f"{edges}{np.exp(runs['log_lr'].mean()):.2g}"


RATE_NOTES = (
    "The best learning rate of each rank: the minimum of a parabola in log lr around the best of "
    "the rates that every seed was run at, as a geometric mean over seeds. Intervals contain the "
    "error that the grid of rates makes. < or >: at an edge of the rates tried for some seed. "
    "*Change*: by the fitted line, from the lowest to the highest rank inside the rates tried. "
    "*Theory* is the range between two rules: at every rank a step lowers the loss equally, or "
    "moves the adapter output equally. Under Adam and its kin it reaches from the exponent while A "
    "hardly moves (ρ = |ΔA x| / |A₀ x| far below 1) to half of it."
)


# ---- capacity


def _of_capacity(tables: StudyTables) -> Iterator[str]:
    """The bits a parameter that adapters stored, and how the bits go with the parameters, by
    setting."""
    found, where = capacity(tables), settings(tables.cells)
    names = setting_columns(found) if len(found) else []
    if found.empty:
        yield (
            "How the bits stored go with the parameters is not known: two ranks must store more "
            f"than nothing and less than {100 * FULL:.0f} % of the bits offered (raise "
            "data.max_samples, or lower the ranks)."
        )
    for row in row_list(found)[:MOST_CURVES]:
        words = [f"{name}={getattr(row, name)}" for name in names if name != "passes"]
        words += [f"{row.passes:g} passes over {row.offered:,.0f} bits"]
        seeds = count_noun(row.seeds, "seed")
        own = "" if f" {seeds}" in where else seeds
        about = "; ".join(filter(None, (", ".join(words), own, where)))
        bits = interval_text(row.per_parameter, row.bits_low, row.bits_high)
        yield (
            f"Adapters of rank {row.rank_min:.0f} to {row.rank_max:.0f} store {bits} bits a "
            f"parameter. The bits go with the parameters to the power "
            f"{interval(row.exponent, row.ci_low, row.ci_high)} ({about})."
        )
        where = ""
    yield from _more_settings(len(found) - MOST_CURVES)


def capacity_table(tables: StudyTables) -> Table:
    """What the adapters of each setting and rank stored; empty without random strings."""
    table, body = best_stored(tables), []
    if table.empty:
        return Table()
    names = setting_columns(table)
    for _, own in table.groupby([*names, "offered", "rank"], observed=True):
        row = row_list(own)[0]
        share = max(0.0, own["bits"].mean() / row.offered)
        each = interval_text(*mean_interval(own["bits"] / row.parameters))
        body.append(
            {
                **{name: str(getattr(row, name)).removesuffix(".0") for name in names},
                "bits of all strings": f"{row.offered:,.0f}",
                "rank": f"{row.rank:g}",
                "learning rate": f"{row.lr:g}" + ("" if row.edge == INSIDE else " (edge)"),
                "parameters": f"{row.parameters:,.0f}",
                "stored": f"{100 * share:.0f} %" + (" (nearly all)" if share > FULL else ""),
                "bits a parameter": each if share > 0 else "none",
            }
        )
    return Table(
        filled(body),
        "Each rank has the learning rate at which it stored most, of the rates with the most "
        "seeds. *Edge*: the lowest, the highest or the only rate tried. Means over seeds, with "
        "95 % intervals. *Nearly all*: it might have stored more strings, so it is in no slope.",
    )


# ---- rounding


def _rounding(tables: StudyTables) -> tuple[pd.DataFrame, pd.DataFrame, Any]:
    """The cells of the rule and rank that lost most to rounding, by ``form`` and rate; the share of
    the output that each cell lost, median over layers, by step; and the cell that lost most. No
    cells if little is lost."""
    probes = tables.probes[(tables.probes["batch"] == TRAIN) & tables.probes["swallowed"].notna()]
    by_cell = probes.astype({"cell_id": str}).groupby(["cell_id", "step"])["swallowed"]
    lost = by_cell.median().unstack()
    if lost.empty or np.nanmax(lost) <= 0.5:
        return tables.cells.iloc[:0], lost, None
    cells = tables.cells.astype({"cell_id": str}).set_index("cell_id")
    how = cells.reindex(columns=["contraction", "precision"]).astype(object)
    cells["form"] = how["contraction"].fillna(how["precision"]).fillna("as recorded")
    same = [name for name in ("scaling", "exponent", "alpha", "rank") if name in cells]
    cells = cells.fillna(dict.fromkeys(same, -1))
    worst = cells.loc[[str(lost.mean(axis=1).idxmax())]].iloc[0]
    return cells[(cells[same] == worst[same]).all(axis=1)], lost, worst


def _in_bf16(tables: StudyTables) -> Iterator[str]:
    """What rounding took from the outputs of the cells that lost most, and how many steps their
    training is behind float32."""
    cells, lost, worst = _rounding(tables)
    if cells.empty:
        return
    cells = cells[cells["lr"] == worst["lr"]]
    here = cells[cells["form"] == worst["form"]]
    steps = lost.loc[lost.index.intersection(here.index)].median().items()
    yield (
        f"Rounding to bf16 ({worst['form']}) took most from {cell_list(here)} at learning rate "
        f"{worst['lr']:g}: of the adapter's output, in the median layer, "
        f"{joined([f'{100 * share:.0f} % at step {step}' for step, share in steps])} "
        f"({settings(here)}; remedy: {BF16_REMEDY})."
    )
    losses = tables.metrics.astype({"cell_id": str}).merge(cells[["form"]], on="cell_id")
    eval_curves = losses.pivot_table("eval_loss", "step", "form").dropna()
    if len(eval_curves) > 1 and "float32" in eval_curves:
        last, exact = eval_curves.index[-1], -eval_curves.pop("float32").cummin()
        delays = last - np.interp(-eval_curves.loc[last], exact, exact.index)
        said = [f"{steps:.1f} ({form})" for steps, form in zip(delays, eval_curves, strict=True)]
        yield f"There the held-out loss of step {last} is behind float32 by {joined(said)} steps."


def rounding_table(tables: StudyTables) -> Table:
    """By learning rate: the share of the output that rounding took, and what the loss lost."""
    cells, lost, worst = _rounding(tables)
    if cells.empty:
        return Table()
    usual = worst["form"]
    ends = tables.metrics.astype({"cell_id": str}).dropna(subset="eval_loss").groupby("cell_id")
    cells = cells.assign(loss=ends["eval_loss"].last())
    body = []
    for lr, own in cells.groupby("lr"):
        shares = lost.loc[lost.index.intersection(own.index[own["form"] == usual])].median()
        seeds = own.pivot_table("loss", "seed", "form")
        body.append(
            {
                "learning rate": f"{lr:g}",
                **{f"lost, step {step}": f"{100 * s:.0f} %" for step, s in shares.items()},
                **{
                    f"loss minus float32's ({form})": signed_interval(
                        *mean_interval((seeds[form] - seeds["float32"]).dropna())
                    )
                    for form in seeds
                    if form != "float32" and "float32" in seeds
                },
            }
        )
    return Table(
        filled(body),
        f"Rows are of {cell_list(cells[cells['form'] == usual])}, which loses most. *Lost*: the "
        f"share of the adapter's output that rounding takes ({usual}), median over layers and "
        "seeds. Losses are held-out ones after the last step, in nats.",
    )


TABLES = {"rounding": rounding_table, "capacity": capacity_table, "rates": rate_table}
"""The table of each kind of question but ``sizes``; it has no rows if the study lacks the data."""
