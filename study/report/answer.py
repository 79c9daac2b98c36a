"""The answer: a few sentences on the findings of a study.

The terminal, the report and the README print the same sentences. All numbers and verdicts come from
tables; a sentence without data is left out.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from study.analysis import rank_effects, rate_transfer
from study.analysis.grouping import RULE, curve_columns, curve_labels, distinguishing
from study.analysis.losses import NOT_A_SETTING, OF_A_RULE
from study.analysis.summary import CONDITION, FAILS, HOLDS, LATE, LOST, OPEN, condition_rows
from study.analysis.verdicts import rows_of
from study.analysis.wording import interval_text, setting_labels
from study.errors import count_noun
from study.report.sections import answer_of
from study.report.text import broken_list, cell_list, interval, joined, number_list, row_list
from study.store import StudyTables
from study.vocabulary.optimizers import label
from study.vocabulary.quantities import DESCENT, FORWARD_OUT, GRADIENT_NORM, TRAIN
from study.vocabulary.scaling import rule_formula, rule_label
from study.vocabulary.statuses import BROKEN, DONE
from study.vocabulary.thresholds import SEEDS_FOR_VERDICT, STABLE_RATIO
from study.vocabulary.verdicts import COLLAPSES, EXPLODES, FALLS, ONE_SEED, RISES, UNCLEAR, VERDICTS


@dataclass(frozen=True)
class Curve:
    """One rule in one setting, at one learning rate.

    - ``beside``: the settings that differ between the curves of the study, such as the optimizer.
      ``rule``: ``rsLoRA``, or ``rsLoRA (AdamW)``. ``name``: ``rsLoRA (AdamW, γ = α/√r)``;
    - ``setting``: equal for curves that differ in the rule only;
    - ``condition``: its rows of :func:`~study.analysis.summary.condition_rows`;
    - ``descent``: the row of ``exponents`` with the descent of the first update;
    - ``losses``: by rank, the final held-out loss, the mean over seeds. A rank at which a run broke
      has none. ``best``: at the best rate of each rank, if several were tried;
    - ``gain``: its row of :func:`~study.analysis.losses.rank_effects`.
    """

    beside: str
    label: str
    name: str
    setting: str
    lr: float
    steps: float
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


def curves(tables: StudyTables) -> list[Curve]:
    """Every curve with a fitted quantity or a final loss, in the order of the cells.

    If a setting has several learning rates, the best one at its lowest rank counts: tuning a small
    adapter would find it. Without final losses, the lowest rate counts.
    """
    cells = curve_labels(tables.cells)
    columns = [str(name) for name in cells]
    cells["cell_id"] = tables.cells["cell_id"].astype(str)
    exponents, losses, effects = tables.exponents, tables.losses, rank_effects(tables.losses)
    best_losses = losses[losses["how"] == "best"] if len(losses) else losses
    losses = losses[losses["how"] == "fixed"] if len(losses) else losses
    condition = condition_rows(exponents) if len(exponents) else exponents
    if len(exponents):
        exponents = exponents[rows_of(DESCENT, exponents) & (exponents["step"] == 0)]

    of_setting = [name for name in columns if name not in NOT_A_SETTING]
    rate = cells["lr"].groupby(_key(cells, of_setting)).transform("min")
    if len(losses):
        best = losses["lr"].groupby(_key(losses, of_setting)).first()
        rate = _key(cells, of_setting).map(best).fillna(rate)
    cells = cells[cells["lr"] == rate]
    several = cells["optimizer"].nunique() > 1
    cells["named"] = setting_labels(cells, distinguishing(cells, columns))
    keys = [_key(table, columns) for table in (condition, exponents, losses)]
    of_rule = [name for name in columns if name != "lr"]
    rule_keys = _key(best_losses, of_rule)
    beside_rule = [name for name in columns if name not in RULE]
    found = []
    for key, of_curve in cells.groupby(_key(cells, columns), sort=False):
        own_condition, own_descent, own_losses = (
            table[of == key] for table, of in zip((condition, exponents, losses), keys, strict=True)
        )
        if not len(own_condition) and not len(own_losses):
            continue
        row = of_curve.iloc[0]
        words = label(str(row["optimizer"])) if several else "", str(row["named"])
        beside = list(filter(None, words))
        rule = rule_label(*row[list(RULE)])
        found.append(
            Curve(
                beside=", ".join(beside),
                label=rule,
                name=f"{rule} ({', '.join([*beside, rule_formula(*row[list(RULE)])])})",
                setting=str(_key(of_curve.head(1), beside_rule).iloc[0]),
                lr=float(row["lr"]),
                steps=float(row.get("steps", math.nan)),
                condition=row_list(own_condition),
                descent=next(iter(row_list(own_descent)), None),
                losses=_by_rank(own_losses),
                base=_first_loss(tables.metrics, set(of_curve["cell_id"])),
                gain=_gain(own_losses, effects),
                best=_by_rank(best_losses[rule_keys == _key(of_curve.head(1), of_rule).iloc[0]]),
            )
        )
    return found


def _key(table: pd.DataFrame, columns: Sequence[str]) -> "pd.Series[str]":
    """A text per row, equal for rows that agree in ``columns``. Numbers are compared as floats,
    because one table may hold them as integers.
    """
    if table.empty:
        return pd.Series([], dtype=object)
    is_number = pd.api.types.is_numeric_dtype
    texts = [
        map(str, table[name].astype(float if is_number(table[name]) else object))
        for name in columns
    ]
    return pd.Series(["\n".join(row) for row in zip(*texts, strict=True)], table.index)


def _by_rank(losses: pd.DataFrame) -> dict[float, float]:
    if losses.empty:
        return {}
    broken = losses["loss"].isna().groupby(losses["rank"]).any()
    means = losses.groupby("rank")["loss"].mean()[~broken]
    return dict(zip(means.index.astype(float), means.astype(float), strict=True))


def _first_loss(metrics: pd.DataFrame, ids: set[str]) -> float:
    """The held-out loss of some cells at step 0, where an adapter adds nothing."""
    if "eval_loss" not in metrics:
        return math.nan
    here = (metrics["step"] == 0) & metrics["cell_id"].astype(str).isin(ids)
    return float(metrics.loc[here, "eval_loss"].mean())


def _gain(losses: pd.DataFrame, effects: pd.DataFrame) -> Any | None:
    if losses.empty or effects.empty:
        return None
    by = ["how", *OF_A_RULE, "lr"]
    return next(iter(row_list(effects.merge(losses[by].head(1), on=by))), None)


MOST_CURVES = 4
"""Curves with a sentence each. If there are more, each setting has a sentence on its extremes."""
MOST_SETTINGS = 3
"""Settings with a sentence on their extremes."""
GROWS = (EXPLODES, RISES)
CHANGES = (COLLAPSES, EXPLODES, FALLS, RISES)
PLACE = {quantity: place for place, quantity in enumerate(CONDITION)}
"""The column ``place`` of the rows of a quantity."""


def answer(tables: StudyTables) -> list[str]:
    """What the study found, in sentences: loss and gradients against rank, and why.

    ``tables`` are those of :func:`study.analysis.load_tables`. Names are as in the
    tables: the caller makes them printable.
    """
    cells, found, said = tables.cells, curves(tables), []
    ended = cells["status"].isin(DONE)
    if not ended.all():
        said.append(f"So far {ended.sum()} of {len(cells)} cells are done.")
    ranks = sorted(set(cells["rank"].dropna()))
    if sum(map(math.isfinite, ranks)) < 2:
        said.append(
            f"Every cell has rank {number_list(ranks)}, so the study can't say how anything "
            "changes with the rank: sweep adapter.rank."
        )
    said += [*_of_rules(found), *_in_bf16(tables)]
    for status in BROKEN:
        own = cells[cells["status"] == status]
        verb = {"diverged": "diverged", "stuck": "got stuck"}[status]
        if len(own):
            said.append(f"{len(own)} of {len(cells)} cells {verb} ({broken_list(own)}).")
    several = cells["lr"].nunique() > 1
    return [*said, *_why(found, several), *_best_rates(tables.rates), *_together(found)]


def _of_rules(found: Sequence[Curve]) -> Iterator[str]:
    """A sentence per curve; on the extremes of each setting if there are many curves."""
    if len(found) <= MOST_CURVES:
        yield from map(_of_rule, found)
        return
    settings: dict[str, list[Curve]] = {}
    for curve in found:
        settings.setdefault(curve.setting, []).append(curve)
    shown = list(settings.values())[:MOST_SETTINGS]
    for of_setting in shown:
        yield _extremes(of_setting) if len(of_setting) > 1 else _of_rule(of_setting[0])
    if more := len(settings) - len(shown):
        yield f"The report's tables show {count_noun(more, 'more setting')}."


def _extremes(found: Sequence[Curve]) -> str:
    """For each quantity, the rules of a setting with the least and the largest change with rank."""
    parts = []
    for place, quantity in enumerate(CONDITION):
        rows = [(c.label, r) for c in found for r in c.last if r.place == place and r.factor > 0]
        if rows:
            rows.sort(key=lambda pair: abs(math.log(pair[1].factor)))
            (least, first), (most, last) = rows[0], rows[-1]
            parts.append(
                f"at step {first.step} the {quantity.noun} changes least under {least} "
                f"({size_text(first.factor)}) and most under {most} ({size_text(last.factor)})"
            )
    ends = [(c.losses[max(c.losses)], max(c.losses), c.label) for c in found if c.losses]
    if ends:
        loss, rank, rule = min(ends)
        parts.append(
            f"the lowest perplexity at rank {rank:.0f}{_at_rate(found[0])} is that of {rule} "
            f"({perplexities(loss)[0]})"
        )
    ranks = [row for curve in found for row in curve.last]
    over = f", rank {ranks[0].rank_max:.0f} against rank {ranks[0].rank_min:.0f}" if ranks else ""
    beside = f"{found[0].beside}, " if found[0].beside else ""
    return f"{beside}{count_noun(len(found), 'rule')}{over}: {'; '.join(parts)}."


def _of_rule(curve: Curve) -> str:
    """``rsLoRA (γ = α/√r), rank 256 against rank 4: at step 0 the gradient norm is ...``

    Describes the last step, after the first one if its verdict differs.
    """
    loss = _loss_text(curve) if curve.losses else ""
    if not curve.condition:
        return f"{curve.name}: {loss}."
    last = {row.place: row for row in curve.last}
    first = [
        row
        for row in curve.condition
        if row.place == PLACE[GRADIENT_NORM] and row.is_first and not row.is_last
        if row.place not in last or row.verdict != last[row.place].verdict
    ]
    parts = []
    for rows, when in ((first, "at"), (curve.last, "by" if first else "at")):
        for step in sorted({row.step for row in rows}):
            said = _clauses([row for row in rows if row.step == step])
            parts.append(f"{when} step {step}{',' if said[0].isdigit() else ''} {said}")
    low, high = curve.condition[0].rank_min, curve.condition[0].rank_max
    text = f"{curve.name}, rank {high:.0f} against rank {low:.0f}: {'; '.join(parts)}."
    return f"{text} {loss[0].upper()}{loss[1:]}." if loss else text


def _clauses(rows: Sequence[Any]) -> str:
    """``the output falls to 71 %; 3 seeds cannot say whether the norm (81 %) is stable``."""
    unclear = [row for row in rows if row.verdict == UNCLEAR]
    clear = [_clause(row) for row in rows if row.verdict != UNCLEAR]
    said = joined(clear) if clear else ""
    if not unclear:
        return said
    nouns = joined([f"the {CONDITION[r.place].noun} ({size_text(r.factor)})" for r in unclear])
    verb = "is" if len(unclear) == 1 else "are"
    doubt = f"{unclear[0].seeds:g} seeds cannot say whether {nouns} {verb} stable"
    return "; ".join(filter(None, (said, doubt)))


def _clause(row: Any) -> str:
    """``the gradient norm collapses to 13 %``."""
    noun, size = CONDITION[row.place].noun, size_text(row.factor)
    if row.verdict == ONE_SEED:
        return f"the {noun} is at {size}"
    predicate = VERDICTS[row.verdict].predicate
    how = f"to {size}" if row.verdict in CHANGES else f"({size})"
    return f"the {noun} {predicate} {how}"


def size_text(factor: float) -> str:
    """``13 %``, ``101 %``, ``4.2 times``: a factor between two ranks, for a sentence."""
    if factor >= 9.95:
        return f"{factor:,.0f} times"
    if factor >= 2:
        return f"{factor:.1f} times"
    return f"{100 * factor:.0f} %" if factor >= 0.1 else f"{100 * factor:.2g} %"


def _at_rate(curve: Curve) -> str:
    """`` at learning rate 0.001`` if several were trained."""
    return f" at learning rate {curve.lr:g}" if curve.best else ""


def _loss_text(curve: Curve) -> str:
    """``held-out perplexity falls from 26.5 at rank 4 to 18.0 at rank 256 (38.9 before training)``,
    with its learning rate if there are several, and then also at the best one of each rank."""
    text = f"held-out perplexity{_at_rate(curve)} {_change_of_loss(curve)}"
    if len(curve.best) > 1:
        ends = perplexities(curve.best[min(curve.best)], curve.best[max(curve.best)])
        text += f"; at the best rate tried of each rank it is {' and '.join(ends)}"
    return text


def _change_of_loss(curve: Curve) -> str:
    """``falls from 26.5 at rank 4 to 18.0 at rank 256 (38.9 before training)``.

    It counts as a change if the interval of the slope over seeds and the two ends show it.
    """
    low, high = min(curve.losses), max(curve.losses)
    at_low, at_high, *base = perplexities(
        curve.losses[low], curve.losses[high], *([curve.base] if math.isfinite(curve.base) else [])
    )
    before = f" ({base[0]} before training)" if base else ""
    if low == high:
        return f"is {at_low} after training{before}"
    ends = f"{at_low} at rank {low:.0f}", f"{at_high} at rank {high:.0f}"
    direction = gain_sign(curve) if at_low != at_high else 0
    if direction and (curve.losses[low] > curve.losses[high]) == (direction > 0):
        verb = "falls" if direction > 0 else "rises"
        return f"{verb} from {ends[0]} to {ends[1]}{before}"
    if curve.gain is None or curve.gain.seeds < SEEDS_FOR_VERDICT:
        return f"is {ends[0]} and {ends[1]}{before}"
    return f"shows no steady change with the rank: {ends[0]}, {ends[1]}{before}"


def gain_sign(curve: Curve) -> int:
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


def _in_bf16(tables: StudyTables) -> Iterator[str]:
    """What rounding took from the outputs of the cells that lost most, and how many steps their
    training is behind float32."""
    probes = tables.probes[(tables.probes["batch"] == TRAIN) & tables.probes["swallowed"].notna()]
    by_cell = probes.astype({"cell_id": str}).groupby(["cell_id", "step"])["swallowed"]
    lost = by_cell.median().unstack()
    if lost.empty or np.nanmax(lost) <= 0.5:
        return
    cells = tables.cells.astype({"cell_id": str}).set_index("cell_id")
    how = cells.reindex(columns=["contraction", "precision"]).astype(object)
    cells["form"] = how["contraction"].fillna(how["precision"]).fillna("as recorded")
    same = [name for name in ("scaling", "exponent", "alpha", "rank", "lr") if name in cells]
    cells = cells.fillna(dict.fromkeys(same, -1))
    worst = cells.loc[[str(lost.mean(axis=1).idxmax())]].iloc[0]
    cells = cells[(cells[same] == worst[same]).all(axis=1)]
    here = cells[cells["form"] == worst["form"]]
    shares = lost.loc[lost.index.intersection(here.index)].median().items()
    yield (
        f"Rounding to bf16 ({worst['form']}) took most from {cell_list(here)} at learning rate "
        f"{worst['lr']:g}: of the adapter's output, in the median layer, "
        f"{joined([f'{100 * share:.0f} % at step {step}' for step, share in shares])} "
        "(docs/bf16.md has the remedy)."
    )
    losses = tables.metrics.astype({"cell_id": str}).merge(cells[["form"]], on="cell_id")
    curves = losses.pivot_table("eval_loss", "step", "form").dropna()
    if len(curves) > 1 and "float32" in curves:
        last, exact = curves.index[-1], -curves.pop("float32").cummin()
        delays = last - np.interp(-curves.loc[last], exact, exact.index)
        said = [f"{steps:.1f} ({form})" for steps, form in zip(delays, curves, strict=True)]
        yield f"There the held-out loss of step {last} is behind float32 by {joined(said)} steps."


def _best_rates(rates: pd.DataFrame) -> Iterator[str]:
    transfer = rate_transfer(rates)
    fitted = transfer[transfer["exponent"].notna()] if len(transfer) else transfer
    if len(fitted) > MOST_CURVES or fitted.empty:
        return
    several = fitted["optimizer"].nunique() > 1
    settings = setting_labels(fitted, distinguishing(fitted, curve_columns(fitted)))
    laws = []
    for row, setting in zip(fitted.to_dict("records"), settings, strict=True):
        names = [label(str(row["optimizer"]))] if several else []
        names += [rule_label(*(row[name] for name in RULE))]
        numbers = [row["exponent"], row["ci_low"], row["ci_high"]]
        low, high = row["rank_min"], row["rank_max"]
        law = f"as r^{interval(*numbers)}"
        if row["ranks"] == 2:  # no law: see the caveat
            value, least, most = ((high / low) ** one for one in numbers)
            times = interval_text(value, least, most, places=3)
            law = f"by ×{times} between ranks {low:.0f} and {high:.0f}"
        laws.append(f"{law} under {' with '.join(filter(None, (*names, setting)))}")
    yield f"The best learning rate changes with the rank r {joined(laws)}."


def _why(found: Sequence[Curve], several: bool) -> Iterator[str]:
    """Why a larger output comes with a lower loss, for the first curve that shows both.

    ``several``: whether the study has several learning rates.
    """
    for curve in found:
        grown = [r for r in curve.last if r.place == PLACE[FORWARD_OUT] and r.verdict in GROWS]
        if not grown or gain_sign(curve) <= 0:
            continue
        row, first = curve.descent, "one update changes the model more at a higher rank"
        if row is not None and row.verdict in GROWS and row.factor >= 2:
            first = (
                f"the first update lowers the loss {size_text(row.factor)} as much at rank "
                f"{row.rank_max:.0f} as at rank {row.rank_min:.0f} (to first order)"
            )
        steps = "time" if math.isnan(curve.steps) else f"{curve.steps:g} steps"
        yield (
            f"A larger output means a larger step: under {curve.rule} {first}. At learning rate "
            f"{curve.lr:g} the larger steps learned more in the same {steps}."
            + ("" if several else " To tell a better rank from a larger step, sweep optimizer.lr.")
        )
        return


def _together(found: Sequence[Curve]) -> Iterator[str]:
    """Which rules keep every quantity stable, from the first step measured to the last."""
    measured = [curve for curve in found if curve.condition]
    rows = [row for curve in measured for row in curve.condition]
    if not rows:
        return
    if max(row.seeds for row in rows) < SEEDS_FOR_VERDICT:
        yield (
            f"A verdict needs {SEEDS_FOR_VERDICT} seeds, so these are measurements only: train "
            f"seeds {joined(list(map(str, range(SEEDS_FOR_VERDICT))))}."
        )
        return
    nouns = [f"the {CONDITION[place].noun}" for place in sorted({row.place for row in rows})]
    stable = (
        f"{joined(nouns)} stable (within a factor of {STABLE_RATIO:g}) from the first step to the "
        "last"
    )
    kept, lost, rest = (
        [curve.rule for curve in measured if answer_of(curve.condition) in words]
        for words in ({HOLDS}, {FAILS, LOST}, {LATE, OPEN})
    )
    undecided = f"; for {joined(rest)} it is not decided" if rest else ""
    if len(measured) > MOST_CURVES:
        yield f"{len(kept)} of {len(measured)} keep {stable}; {len(lost)} do not."
    elif kept:
        verb = "keeps" if len(kept) == 1 else "keep"
        others = f"; {joined(lost)} does not" if lost else ""
        yield f"{joined(kept)} {verb} {stable}{others}{undecided}."
    elif len(lost) == 2:
        yield f"Neither {lost[0]} nor {lost[1]} keeps {stable}{undecided}."
    elif lost:
        none = f"None of {joined(lost)} keeps" if lost[1:] else f"{lost[0]} does not keep"
        yield f"{none} {stable}{undecided}."
    else:
        yield f"These seeds do not decide whether {joined(rest)} keeps {stable}."
