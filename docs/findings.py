"""The blocks of FINDINGS.md: the answer, the claims, the studies, what failed, and the cost.

A study without committed tables is *not run* in every block.
"""

import subprocess
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from typing import Any

import pandas as pd

from docs.answer import answer, in_one_sentence
from docs.blocks import PLOTS, ROOT, Block, NoTables, minus, study_tables
from docs.claims import CLAIMS, LOWER, UNTESTED, Claim
from docs.coverage import coverage
from docs.evidence import compared, matching, records
from docs.learned import learned
from docs.studies import STUDIES, Committed
from study.analysis.distances import exponents
from study.analysis.expectations import Compared, compare
from study.analysis.wording import interval_text
from study.config.expectations import NOT_MEASURED
from study.figures.captions import settings
from study.report.answer import answer as what_was_found
from study.report.expected import compared_line, expected_text, measured_text, verdict_counts
from study.report.provenance import total_seconds
from study.report.text import bullets, count_noun, distinct, joined, row_list, table
from study.vocabulary.quantities import ALL_KINDS, DISTANCES, LOSS, MEAN_LOG
from study.vocabulary.verdicts import AGREES, DIFFERS

NOT_RUN = "not run"
MOST_SENTENCES = 5
"""Of a study's answer; its report has all."""


@cache
def is_run(study: str) -> bool:
    """Whether the tables of a study are committed."""
    try:
        study_tables(study)
    except NoTables:
        return False
    return True


def claims() -> str:
    """A row per claim: source, regime, what was expected and measured, and the verdict."""
    heads = ["claim", "source", "regime", "expected", "measured", "so the claim"]
    return minus(table(heads, [claim_row(one) for one in CLAIMS]))


def claim_row(one: Claim) -> list[str]:
    """A row of the table: claim, source, regime, expected, measured, verdict."""
    row = [one.claim, one.source, f"{one.regime} ({_link(one.study)})" if one.study else one.regime]
    if not one.study or not is_run(one.study):
        return [*row, "", "", NOT_RUN if one.study else "not studied"]
    if one.unstated:
        found = compare([one.unstated], study_tables(one.study))
        note = ", not stated beforehand"
    else:
        found, note = matching(one.study, one.where), ""
    if not found:
        return [*row, "", "", UNTESTED[NOT_MEASURED]]
    expected = _distinct(f"{expected_text(row.expectation)}{note}" for row in found)
    return [*row, expected, *_verdict(one, found)]


def _verdict(one: Claim, found: Sequence[Compared]) -> list[str]:
    """What was measured, and what it says of the claim."""
    words = Counter(_word(one, row) for row in found)
    verdict = ", ".join(word if len(found) == 1 else f"{word}: {n}" for word, n in words.items())
    texts = [measured_text(row) if len(found) == 1 else _named(row) for row in found]
    return ["; ".join(filter(None, texts)), verdict]


def _word(one: Claim, row: Compared) -> str:
    """What one verdict says of the claim."""
    is_above = row.verdict == DIFFERS and row.measured > row.expectation.predicted
    if one.reads is LOWER and is_above:
        return LOWER[AGREES]
    return {**UNTESTED, **one.reads}[row.verdict]


def _named(row: Compared) -> str:
    """A measured value with what separates it from others of its claim."""
    beside = row.curve or ("" if row.step is None else f"step {row.step}")
    return f"{measured_text(row)} ({beside})" if beside else measured_text(row)


def _distinct(texts: Iterator[str]) -> str:
    return "; ".join(dict.fromkeys(filter(None, texts)))


def _link(study: str) -> str:
    anchor = STUDIES[study].title.replace("\\", "").lower()
    kept = "".join(c for c in anchor if c.isalnum() or c in " -_")
    return f"[{study}](#{kept.strip().replace(' ', '-')})"


def study_block(study: Committed) -> str:
    """A study: its figure, its size, its expectations, and what was found."""
    if not is_run(study.name):
        return f"{study.asks} **{NOT_RUN.capitalize()}.**"
    tables = study_tables(study.name)
    ran = settings(tables.cells)
    parts = [study.asks, f"{ran[:1].upper()}{ran[1:]}. {_size(study.name)}."]
    if rows := compared(study.name):
        parts.append(_counts(rows))
    text = " ".join(parts)
    picture = PLOTS / study.name / f"{study.figure}.png"
    shown = [f"![{study.title}]({picture.relative_to(ROOT)})"] if picture.exists() else []
    found = what_was_found(tables) if study.in_sentences else []
    sentences = [bullets(found[:MOST_SENTENCES])] if found else []
    if len(tables.distances):
        sentences.append(distance_table(tables.distances))
    report = f"[All comparisons, figures and settings](plots/reference/{study.name}/report.md)"
    return minus("\n\n".join([text, *shown, *sentences, report]))


def distance_table(distances: pd.DataFrame) -> str:
    """How the distance to infinite rank goes with the rank, at the last step."""
    fits = exponents(distances)
    pooled = (fits["layer"] == MEAN_LOG) & (fits["kind"] == ALL_KINDS)
    rows = fits[(pooled | (fits["site"] == LOSS)) & (fits["step"] == fits["step"].max())]
    has_several_eps = "eps" in rows and rows["eps"].nunique() > 1
    order = ["site", *(["eps"] if has_several_eps else []), "run"]
    body = [
        [
            DISTANCES[str(row.site)],
            f"{row.run}, ranks {row.rank_min:.0f} to {row.rank_max:.0f}"
            + (f", eps {row.eps:g}" if has_several_eps else ""),
            interval_text(row.exponent, row.ci_low, row.ci_high, places=3),
        ]
        for row in row_list(rows.sort_values(order))
    ]
    return table(["distance", "run", f"exponent at step {rows['step'].max():.0f}"], body)


def _size(study: str) -> str:
    cells = study_tables(study).cells
    seconds = total_seconds(cells, records(study))
    ranks = sorted(set(cells["rank"]))
    span = f"ranks {ranks[0]:g} to {ranks[-1]:g}" if len(ranks) > 1 else f"rank {ranks[0]:g}"
    seeds = count_noun(cells["seed"].nunique(), "seed")
    return f"{count_noun(len(cells), 'cell')}, {span}, {seeds}, {_time(seconds)}"


def _time(seconds: float) -> str:
    if seconds >= 5400:
        return f"{seconds / 3600:.1f} hours"
    return count_noun(round(seconds / 60), "minute")


def _counts(rows: Sequence[Compared]) -> str:
    number = count_noun(len(rows), "comparison")
    return f"Of {number} with what was expected: {verdict_counts(rows)}."


def failed() -> str:
    """Every expectation that was shown to be wrong."""
    heads = ["study", "optimizer, rule", "quantity", "what", "step", "expected", "measured"]
    body = [
        [_link(name), *compared_line(row)[: len(heads) - 1]]
        for name in STUDIES
        if is_run(name)
        for row in compared(name)
        if row.verdict == DIFFERS
    ]
    return minus(table(heads, body)) if body else "None."


def still_open() -> str:
    """The expectations that were not decided, by study, and the studies that were not run."""
    lines = []
    for name in STUDIES:
        if not is_run(name):
            lines.append(f"`{name}`: {NOT_RUN}")
            continue
        words = Counter(row.verdict for row in compared(name))
        undecided = {w: n for w, n in words.items() if w not in (AGREES, DIFFERS)}
        if undecided:
            counts = joined([f"{n} {word}" for word, n in undecided.items()])
            lines.append(f"{_link(name)}: {counts} of {sum(words.values())} expectations")
    return bullets(lines) if lines else "None."


def cost() -> str:
    """Cells, time and hardware of every study."""
    heads, body, whole = ["study", "cells", "model", "time", "processor", "commit"], [], 0.0
    for name in filter(is_run, STUDIES):
        cells, found = study_tables(name).cells, records(name)
        seconds = total_seconds(cells, found)
        whole += seconds
        devices = [f"{r.get('device_name')}, {_threads(r)}" for r in found]
        ran = [f"`{commit[:7]}`" for commit in commits(name)]
        row = [_link(name), str(len(cells)), distinct(cells["model"])]
        body.append([*row, _time(seconds), distinct(devices), ", ".join(ran) or "unknown"])
    body.append(["all", str(sum(int(row[1]) for row in body)), "", _time(whole), "", ""])
    return table(heads, body)


def _threads(record: Any) -> str:
    threads = record.get("threads")
    return count_noun(threads, "thread") if isinstance(threads, int) else "threads not recorded"


def commits(study: str) -> list[str]:
    """The commits that its cells ran at."""
    found = (record.get("git") or {} for record in records(study))
    return list(dict.fromkeys(str(git["commit"]) for git in found if git.get("commit")))


def order() -> str:
    """For each study: when its expectations were committed, and whether its cells ran later."""
    heads = ["study", "expectations committed", "cells ran at", "expectations first"]
    body = []
    for name in filter(is_run, STUDIES):
        file = f"conf/experiment/{name}.yaml"
        added = first_commit(file)
        ran = [(commit, is_ancestor(added, commit)) for commit in commits(name)]
        places = ", ".join(f"`{commit[:7]}`" for commit, _ in ran)
        first = "yes" if ran and all(earlier for _, earlier in ran) else "**no**"
        body.append([_link(name), f"`{added[:7]}`", places, first])
    return table(heads, body)


def first_commit(file: str) -> str:
    """The commit that wrote ``expects:`` into a file. Raises :class:`NoTables` without history."""
    found = _git("log", "--reverse", "--format=%H", "--no-renames", "-Sexpects:", "--", file)
    if not found or _git("rev-parse", "--is-shallow-repository") == "true":
        raise NoTables(f"no git history of {file}")
    return found.splitlines()[0]


def is_ancestor(first: str, then: str) -> bool:
    """Whether one commit is the other, or came before it."""
    return _git("merge-base", first, then) == first


def _git(*words: str) -> str:
    """What git prints; empty if it fails, as it does where there is no repository."""
    ran = subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True)
    return ran.stdout.strip() if ran.returncode == 0 else ""


def _block(name: str) -> Callable[[], str]:
    return partial(study_block, STUDIES[name])


BLOCKS: dict[str, Block] = {
    "findings-answer": answer,
    "in-one-sentence": in_one_sentence,
    "claims": claims,
    "coverage": coverage,
    "failed": failed,
    "learned": learned,
    "open": still_open,
    "cost": cost,
    "order": order,
    **{f"study-{name}": _block(name) for name in STUDIES},
}
"""By the name in FINDINGS.md."""
