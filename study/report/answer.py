"""The answer: a few sentences that say what a study found.

The terminal, the report and the README print the same sentences. Every number and every word in
them is of a table; a sentence without its data is left out.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from study.analysis import rank_effects, rate_transfer
from study.analysis.grouping import curve_labels, distinguishing, firsts, numbered
from study.analysis.losses import NOT_A_SETTING
from study.analysis.summary import CONDITION, FAILS, HOLDS, LATE, LOST, OPEN, condition_rows
from study.analysis.verdicts import rows_of
from study.analysis.wording import batch_words, setting_text
from study.report.sections import answer_of
from study.report.text import cell_list, count_noun, interval, joined, number_list, row_list
from study.store import StudyTables
from study.vocabulary.optimizers import label
from study.vocabulary.quantities import DESCENT, FORWARD_OUT, GRADIENT_NORM
from study.vocabulary.scaling import formula, rule_label
from study.vocabulary.statuses import BROKEN, DONE
from study.vocabulary.thresholds import SEEDS_FOR_VERDICT, STABLE_RATIO
from study.vocabulary.verdicts import COLLAPSES, EXPLODES, FALLS, ONE_SEED, RISES, VERDICTS


@dataclass(frozen=True)
class Curve:
    """One rule in one setting, at one learning rate.

    - ``beside``: what separates its setting from the others of the study, such as the optimizer;
      empty if there is one. ``rule``: ``rsLoRA``, or ``rsLoRA (AdamW)``. ``name``: with the
      formula, ``rsLoRA (AdamW, γ = α/√r)``;
    - ``setting``: equal for curves that differ in the rule only;
    - ``condition``: its rows of :func:`~study.analysis.summary.condition_rows`;
    - ``descent``: the row of ``exponents`` with the descent of the first update, or None;
    - ``losses``: by rank, the final held-out loss in nats per token, the mean over seeds. A rank at
      which a run diverged or got stuck has none. ``base``: that before training, or NaN;
    - ``gain``: its row of :func:`~study.analysis.losses`; None without two such ranks.
    """

    beside: str
    rule: str
    name: str
    setting: str
    lr: float
    steps: float
    condition: list[Any]
    descent: Any | None
    losses: dict[float, float]
    base: float
    gain: Any | None

    @property
    def last(self) -> list[Any]:
        """The rows of the condition at the last step measured."""
        return [row for row in self.condition if row.is_last]


def curves(tables: StudyTables) -> list[Curve]:
    """Every curve with a fitted quantity or a final loss, in the order of the cells.

    Of several learning rates, a setting is read at the one that is best at its lowest rank, as
    tuning a small adapter would choose it; without final losses, at the lowest.
    """
    labels = curve_labels(tables.cells).assign(cell_id=tables.cells["cell_id"].astype(str))
    columns = [str(name) for name in labels if name != "cell_id"]
    losses = _fixed(tables.losses)
    labels = _at_one_rate(labels, losses, columns)
    exponents = _with_key(tables.exponents, columns)
    exponents = exponents[exponents["key"].isin(_with_key(labels, columns)["key"])]
    condition = condition_rows(exponents.drop(columns="key")) if len(exponents) else exponents
    first = exponents[rows_of(DESCENT, exponents)] if len(exponents) else exponents
    parts = {
        "condition": _with_key(condition, columns),
        "descent": first[first["step"] == 0] if len(first) else first,
        "losses": _with_key(losses, columns),
    }
    effects = _fixed(rank_effects(tables.losses))
    found = []
    for _, cells in _with_key(labels, columns).groupby("key", sort=False):
        own = {name: part[part["key"] == cells["key"].iloc[0]] for name, part in parts.items()}
        if len(own["condition"]) or len(own["losses"]):
            found.append(_curve(cells, columns, labels, own, effects, tables.metrics))
    return found


def _curve(
    cells: pd.DataFrame,
    columns: Sequence[str],
    labels: pd.DataFrame,
    own: dict[str, pd.DataFrame],
    effects: pd.DataFrame,
    metrics: pd.DataFrame,
) -> Curve:
    row = cells.iloc[0]
    beside = [label(str(row["optimizer"]))] if labels["optimizer"].nunique() > 1 else []
    beside += [f"{name}={setting_text(row[name])}" for name in distinguishing(labels, columns)]
    rule = rule_label(str(row["scaling"]), row["exponent_p"])
    return Curve(
        beside=", ".join(beside),
        rule=f"{rule} ({', '.join(beside)})" if beside else rule,
        name=f"{rule} ({', '.join([*beside, formula(row['exponent_p'])])})",
        setting=str(_key(cells.head(1), _beside_rule(columns)).iloc[0]),
        lr=float(row["lr"]),
        steps=float(row.get("steps", math.nan)),
        condition=row_list(own["condition"]),
        descent=next(iter(row_list(own["descent"])), None),
        losses=_by_rank(own["losses"]),
        base=_first_loss(metrics, set(cells["cell_id"])),
        gain=_gain(own["losses"], effects),
    )


def _beside_rule(columns: Sequence[str]) -> list[str]:
    return [name for name in columns if name not in ("scaling", "exponent_p")]


def _fixed(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of ``losses`` or of ``rank_effects`` that compare ranks at one learning rate."""
    return table[table["how"] == "fixed"] if len(table) else table


def _at_one_rate(
    labels: pd.DataFrame, losses: pd.DataFrame, columns: Sequence[str]
) -> pd.DataFrame:
    """The rows of ``labels`` at the learning rate of each setting."""
    setting = [name for name in columns if name not in NOT_A_SETTING]
    own, of_losses = _key(labels, setting), _key(losses, setting)
    rate = labels["lr"].groupby(own).transform("min")
    if len(losses):
        rate = own.map(losses["lr"].groupby(of_losses).first()).fillna(rate)
    return labels[labels["lr"] == rate]


def _with_key(table: pd.DataFrame, columns: Sequence[str]) -> pd.DataFrame:
    return table.assign(key=_key(table, columns))


def _key(table: pd.DataFrame, columns: Sequence[str]) -> "pd.Series[str]":
    """A text per row, equal for rows that agree in ``columns``."""
    if table.empty:
        return pd.Series([], dtype=object)
    number = numbered(table, columns)
    first = table.iloc[firsts(number)]
    texts = [map(str, _comparable(first[name])) for name in columns]
    keys = np.array(["\n".join(row) for row in zip(*texts, strict=True)], object)
    return pd.Series(keys[number], table.index)


def _comparable(values: "pd.Series[Any]") -> Iterable[Any]:
    """Numbers as floats, because one table may hold them as integers."""
    return values.astype(float) if pd.api.types.is_numeric_dtype(values) else values.astype(object)


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
    row = losses.iloc[0]
    here = np.ones(len(effects), bool)
    for name in ("setting", "scaling", "exponent_p", "alpha", "lr"):
        here &= (effects[name] == row[name]).to_numpy()
    return next(iter(row_list(effects[here])), None)


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
    found = curves(tables)
    return [
        *_unfinished(tables.cells),
        *_too_few_ranks(tables.cells),
        *_of_rules(found),
        *_on_batches(found, tables.exponents),
        *_broken(tables.cells),
        *_why(found, tables.cells),
        *_best_rates(tables.rates),
        *_together(found),
    ]


def _unfinished(cells: pd.DataFrame) -> Iterator[str]:
    ended = cells["status"].isin(DONE)
    if not ended.all():
        yield f"So far {ended.sum()} of {len(cells)} cells are done."


def _too_few_ranks(cells: pd.DataFrame) -> Iterator[str]:
    ranks = sorted(set(cells["rank"].dropna()))
    if sum(map(math.isfinite, ranks)) < 2:
        yield (
            f"Every cell has rank {number_list(ranks)}, so the study can't say how anything "
            "changes with the rank: sweep adapter.rank."
        )


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
    """The rules of a setting under which each quantity changes least and most with the rank."""
    parts = []
    for place, quantity in enumerate(CONDITION):
        rows = [(c.rule, r) for c in found for r in c.last if r.place == place and r.factor > 0]
        if rows:
            rows.sort(key=lambda pair: abs(math.log(pair[1].factor)))
            (least, first), (most, last) = rows[0], rows[-1]
            parts.append(
                f"at step {first.step} the {quantity.noun} changes least under {least} "
                f"({size_text(first.factor)}) and most under {most} ({size_text(last.factor)})"
            )
    ends = [(c.losses[max(c.losses)], max(c.losses), c.rule) for c in found if c.losses]
    if ends:
        loss, rank, rule = min(ends)
        parts.append(
            f"the lowest perplexity at rank {rank:g} is that of {rule} ({perplexities(loss)[0]})"
        )
    ranks = [row for curve in found for row in curve.last]
    over = f", rank {ranks[0].rank_max:g} against rank {ranks[0].rank_min:g}" if ranks else ""
    beside = f"{found[0].beside}, " if found[0].beside else ""
    return f"{beside}{count_noun(len(found), 'rule')}{over}: {'; '.join(parts)}."


def _of_rule(curve: Curve) -> str:
    """``rsLoRA (γ = α/√r), rank 256 against rank 4: at step 0 the gradient norm is ...``"""
    texts = []
    if curve.condition:
        low, high = curve.condition[0].rank_min, curve.condition[0].rank_max
        texts.append(f"rank {high:g} against rank {low:g}: {'; '.join(_by_step(curve))}")
    if curve.losses:
        texts.append(_loss_text(curve))
    head = f"{curve.name}{', ' if curve.condition else ': '}"
    return head + ". ".join([texts[0], *(text[0].upper() + text[1:] for text in texts[1:])]) + "."


def _by_step(curve: Curve) -> list[str]:
    """The last step, after the first one where its word is another."""
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
            clauses = [_clause(row) for row in rows if row.step == step]
            parts.append(f"{when} step {step} {joined(clauses)}")
    return parts


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


def _loss_text(curve: Curve) -> str:
    """``held-out perplexity falls from 26.5 at rank 4 to 18.0 at rank 256 (38.9 before training)``.

    A change is one that the interval of the slope over seeds shows and that its ends agree with.
    """
    low, high = min(curve.losses), max(curve.losses)
    at_low, at_high, *base = perplexities(
        curve.losses[low], curve.losses[high], *([curve.base] if math.isfinite(curve.base) else [])
    )
    before = f" ({base[0]} before training)" if base else ""
    text = "held-out perplexity "
    if low == high:
        return f"{text}is {at_low} after training{before}"
    ends = f"{at_low} at rank {low:g}", f"{at_high} at rank {high:g}"
    direction = gain_sign(curve) if at_low != at_high else 0
    if direction and (curve.losses[low] > curve.losses[high]) == (direction > 0):
        verb = "falls" if direction > 0 else "rises"
        return f"{text}{verb} from {ends[0]} to {ends[1]}{before}"
    if curve.gain is None or curve.gain.seeds < SEEDS_FOR_VERDICT:
        return f"{text}is {ends[0]} and {ends[1]}{before}"
    return f"{text}shows no steady change with the rank: {ends[0]}, {ends[1]}{before}"


def gain_sign(curve: Curve) -> int:
    """1 if a higher rank was shown to lower the final loss, -1 if to raise it, 0 if neither."""
    if curve.gain is None or curve.gain.seeds < SEEDS_FOR_VERDICT:
        return 0
    return int(curve.gain.ci_low > 0) - int(curve.gain.ci_high < 0)


def perplexities(*losses: float) -> list[str]:
    """exp of some losses, with as many digits as tell them apart, three at least."""
    values = [float(np.exp(min(loss, 700.0))) for loss in losses]
    for digits in (3, 4, 5):
        texts = [f"{value:#.{digits}g}".removesuffix(".") for value in values]
        if len(set(texts)) == len(set(values)):
            break
    return texts


def _on_batches(found: Sequence[Curve], exponents: pd.DataFrame) -> Iterator[str]:
    """The batches that the sentences on rules are about, if the study has several."""
    on = batch_words(exponents["batch"].unique()) if len(exponents) else {}
    places = {(row.place, on[str(row.batch)]) for curve in found for row in curve.condition}
    nouns: dict[str, list[str]] = {}
    for place, batch in sorted(places):
        nouns.setdefault(batch, []).append(f"the {CONDITION[place].noun}")
    nouns.pop("", None)
    if nouns:
        yield " ".join(f"Read on the {batch}: {joined(nouns[batch])}." for batch in nouns)


def _best_rates(rates: pd.DataFrame) -> Iterator[str]:
    transfer = rate_transfer(rates)
    fitted = transfer[transfer["exponent"].notna()] if len(transfer) else transfer
    if 0 < len(fitted) <= MOST_CURVES:
        several = fitted["optimizer"].nunique() > 1
        laws = []
        for row in row_list(fitted):
            rule = rule_label(str(row.scaling), row.exponent_p)
            names = [label(str(row.optimizer)), rule] if several else [rule]
            laws.append(
                f"r^{interval(row.exponent, row.ci_low, row.ci_high)} under {' with '.join(names)}"
            )
        yield f"The best learning rate changes with the rank r as {joined(laws)}."


def _broken(cells: pd.DataFrame) -> Iterator[str]:
    for status in BROKEN:
        own = cells[cells["status"] == status]
        if len(own):
            verb = {"diverged": "diverged", "stuck": "got stuck"}[status]
            yield f"{len(own)} of {len(cells)} cells {verb} ({cell_list(own)})."


def _why(found: Sequence[Curve], cells: pd.DataFrame) -> Iterator[str]:
    """Why an output that grows and a lower loss go together, where both were shown."""
    for curve in found:
        grown = [r for r in curve.last if r.place == PLACE[FORWARD_OUT] and r.verdict in GROWS]
        if not grown or gain_sign(curve) <= 0:
            continue
        yield _on_larger_steps(curve, grown[0].verdict, several=cells["lr"].nunique() > 1)
        return


def _on_larger_steps(curve: Curve, word: str, several: bool) -> str:
    """``several``: whether the study has several learning rates."""
    row = curve.descent
    if row is not None and row.verdict in GROWS and row.factor >= 2:
        first = (
            f"the first update lowers the loss {size_text(row.factor)} as much at rank "
            f"{row.rank_max:g} as at rank {row.rank_min:g} (to first order)"
        )
    else:
        first = "one update changes the model more at a higher rank"
    steps = "time" if math.isnan(curve.steps) else f"{curve.steps:g} steps"
    text = (
        f'Why an output that "{word}" and a lower perplexity go together: a larger output is a '
        f"larger step. Under {curve.rule} {first}, and at learning rate {curve.lr:g} the larger "
        f"steps learned more in the same {steps}."
    )
    if several:
        return text
    return f"{text} To tell a better rank from a larger step, sweep optimizer.lr."


def _together(found: Sequence[Curve]) -> Iterator[str]:
    """Which rules keep every quantity stable, from the first step measured to the last."""
    measured = [curve for curve in found if curve.condition]
    if not measured:
        return
    if max(row.seeds for curve in measured for row in curve.condition) < SEEDS_FOR_VERDICT:
        yield (
            f"A verdict needs {SEEDS_FOR_VERDICT} seeds, so these are measurements only: train "
            f"seeds {joined(list(map(str, range(SEEDS_FOR_VERDICT))))}."
        )
        return
    places = sorted({row.place for curve in measured for row in curve.condition})
    nouns = joined([f"the {CONDITION[place].noun}" for place in places])
    stable = f"{nouns} stable (within a factor of {STABLE_RATIO:g}) from the first step to the last"
    kept, lost, rest = (
        [curve.rule for curve in measured if answer_of(curve.condition) in words]
        for words in ({HOLDS}, {FAILS, LOST}, {LATE, OPEN})
    )
    if len(measured) > MOST_CURVES:
        yield f"{len(kept)} of {len(measured)} keep {stable}; {len(lost)} do not."
    elif kept:
        others = [f"{joined(lost)} does not" if lost else ""]
        others += [f"for {joined(rest)} it is not decided" if rest else ""]
        verb = "keeps" if len(kept) == 1 else "keep"
        yield "; ".join(filter(None, [f"{joined(kept)} {verb} {stable}", *others])) + "."
    elif lost:
        open_too = f"; for {joined(rest)} it is not decided" if rest else ""
        neither = f"Neither {lost[0]} nor {lost[1]} keeps" if len(lost) == 2 else ""
        none = f"{lost[0]} does not keep" if len(lost) == 1 else f"None of {joined(lost)} keeps"
        yield f"{neither or none} {stable}{open_too}."
    else:
        yield f"These seeds do not decide whether {joined(rest)} keeps {stable}."
