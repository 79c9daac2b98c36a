"""The answer: a few sentences that say what a study found.

The terminal, the report and the README print the same sentences. Every number and every word in
them is of a table; a sentence without its data is left out.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd

from study.analysis import rate_transfer
from study.analysis.rank_stabilized import CONDITION, FAILS, HOLDS, LATE, LOST, OPEN
from study.analysis.wording import batch_words
from study.report.condition import answer_of
from study.report.curves import Curve, curves
from study.report.formatting import (
    cell_list,
    count_noun,
    interval,
    joined,
    number_list,
    row_list,
)
from study.store import StudyTables
from study.vocabulary.optimizers import label
from study.vocabulary.quantities import FORWARD_OUT, GRADIENT_NORM
from study.vocabulary.scaling import rule_label
from study.vocabulary.statuses import BROKEN, DONE
from study.vocabulary.thresholds import SEEDS_FOR_VERDICT, STABLE_RATIO
from study.vocabulary.verdicts import COLLAPSES, EXPLODES, FALLS, ONE_SEED, RISES, VERDICTS

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
