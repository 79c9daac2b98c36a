"""The blocks of FINDINGS.md and of docs/evidence, from the committed studies.

``studies.yaml`` lists the studies, ``claims.yaml`` the claims and the expectations that test each.
"""

import re
import subprocess
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cache
from typing import Any

import numpy as np
import pandas as pd
import yaml

from research.blocks import PLOTS, QUICK, RESULTS, ROOT, STUDIES, NoTables, bullets, study_tables
from study.analysis.answers import answer as what_was_found
from study.analysis.answers import answer_table, asked
from study.analysis.expectations import Answer, Compared, compare
from study.analysis.text import distinct, joined, minus, number_list, table, table_of
from study.analysis.wording import interval_text
from study.config.expectations import (
    EXPONENTS,
    FACTOR,
    NOT_MEASURED,
    NOT_MET,
    Entry,
    Expectation,
    read_entries,
)
from study.errors import count_noun
from study.report.expected import (
    compared_row,
    counts_apart,
    expected_text,
    held_expectations,
    measured_text,
    primary_answers,
    primary_text,
    verdict_counts,
)
from study.report.provenance import total_seconds
from study.store import load_records
from study.vocabulary.optimizers import label
from study.vocabulary.quantities import MODEL_WIDE, POOLINGS, TRAIN
from study.vocabulary.sources import model_label
from study.vocabulary.thresholds import STABLE_RATIO
from study.vocabulary.verdicts import AGREES, DIFFERS, ONE_SEED, UNCLEAR

CLAIMS: list[dict[str, Any]] = yaml.safe_load((ROOT / "research/claims.yaml").read_text())
NOT_REPRODUCED = "not reproduced here"
READS = {
    "open": {AGREES: "open", DIFFERS: "open"},
    "holds": {AGREES: "holds", DIFFERS: "**fails**"},
    "fails": {AGREES: "**fails**", DIFFERS: "open"},
    "below": {AGREES: "**fails**", DIFFERS: "holds"},
    "figure": {AGREES: "holds", DIFFERS: NOT_REPRODUCED},
}
"""What a verdict on an expectation says of the claim, by ``reads``."""
SAID = ("holds", "**fails**", "open")
"""The columns of :func:`claims`."""
ALIKE = {UNCLEAR: "open", ONE_SEED: "one seed", NOT_MEASURED: NOT_MEASURED, NOT_MET: "open"}
"""The verdicts that say the same of every claim."""
KINDS = {
    True: "Identities (first steps: they follow from B = 0, a random A and measured alignments)",
    False: "Predictions about training",
}
"""By :attr:`study.config.expectations.Expectation.is_identity`."""
SECOND_MODEL = "_gemma3"
"""The end of the names of studies that repeat one of SmolLM2 on Gemma 3."""
READING = "[How to read this table](index.md#how-to-read-the-table-of-a-study)"
"""The line under the table of a study: one section explains the columns of all tables."""


@cache
def records(study: str) -> list[dict[str, Any]]:
    """The records of a committed study."""
    return load_records(RESULTS / study)


@cache
def compared(study: str) -> list[Compared]:
    """Every expectation that the cells of a study hold, with what was measured."""
    held = [one for one, _ in held_expectations(records(study))]
    return list(compare(held, study_tables(study)))


def entries(study: str) -> list[Entry]:
    """The entries of an experiment's file as it is now."""
    return read_entries(yaml.safe_load((ROOT / _file_of(study)).read_text()).get("expects", []))


def _file_of(study: str) -> str:
    """The file of a study's experiment. One on a second model may have that of the first."""
    own = f"conf/experiment/{study}.yaml"
    return own if (ROOT / own).exists() else own.replace(SECOND_MODEL, "")


@cache
def primaries(study: str) -> list[tuple[Answer, bool]]:
    """The result of the primary test of a study, and whether it was stated after its cells ran."""
    return primary_answers(study_tables(study), records(study), entries(study))


def matching(study: str, where: Mapping[str, Any]) -> list[Compared]:
    """Those of :func:`compared` whose expectation has these fields. ``p``: that of its rule."""
    return [
        row
        for row in compared(study)
        if all(getattr(row.expectation, name) == value for name, value in where.items())
    ]


def measured(study: str, *fields: str) -> str:
    """The measured values of the expectations with these fields, each written ``name=value``."""
    return minus(distinct(map(measured_text, matching(study, _fields(fields)))) or NOT_MEASURED)


def ran(study: str) -> str:
    """``SmolLM2, AdamW, 20 steps, ranks 4 to 256, 3 seeds``: what a finding was measured on."""
    cells = study_tables(study).cells
    optimizers = joined(label(str(one)) for one in cells["optimizer"].unique())
    steps = number_list(sorted(set(cells["steps"])))
    model, seeds = model_label(str(cells["model"].iloc[0])), cells["seed"].nunique()
    return f"{model}, {optimizers}, {steps} steps, {_span(cells)}, {count_noun(seeds, 'seed')}"


def _span(cells: pd.DataFrame) -> str:
    """``ranks 4 to 256``; ``ranks 4 and 256`` if there are no others."""
    low, *others = sorted(set(cells["rank"]))
    between = "and" if len(others) == 1 else "to"
    return f"ranks {low:g} {between} {others[-1]:g}" if others else f"rank {low:g}"


def _fields(fields: Sequence[str]) -> dict[str, Any]:
    return {name: yaml.safe_load(value) for name, value in (one.split("=") for one in fields)}


def marks() -> str:
    """A row per claim: how many results say that it holds, that it fails, or neither."""
    body = []
    for claim in CLAIMS:
        said = Counter(word for test in claim["tests"] for _, word in tested(test))
        counts = {word: said[word] for word in SAID[:2]}
        counts[SAID[2]] = said.total() - sum(counts.values())
        body.append([claim["claim"], claim["by"], *(str(count or "") for count in counts.values())])
    return table(["claim", "by", *SAID], body)


def claims() -> str:
    """A row per claim: the regimes in which it holds, fails or is open."""
    body = []
    for claim in CLAIMS:
        regimes: dict[str, list[str]] = {word: [] for word in SAID}
        for test in claim["tests"]:
            words = Counter(word for _, word in tested(test))
            for word, count in words.items():
                some = f" ({count} of {words.total()})" if len(words) > 1 else ""
                note = f", {word}" if word == NOT_REPRODUCED else ""
                said = _regime_of(test) + _shown(test) + note + some
                regimes[word if word in SAID else "open"].append(said)
        body.append([claim["claim"], claim["by"], *map(_merged, regimes.values())])
    return table(["claim", "by", *SAID], body)


def _shown(test: Mapping[str, Any]) -> str:
    """``: r^−0.03 [−0.04, −0.01]``: the measured exponent, if the table of claims shows it."""
    texts = [interval_text(row.measured, row.low, row.high, 3) for row, _ in tested(test)]
    return minus(f": r^{distinct(texts)}") if "shows" in test else ""


def _merged(regimes: Sequence[str]) -> str:
    """``SmolLM2 and Gemma 3, SGD, 1 step``: regimes that differ in the first word only."""
    firsts: dict[str, list[str]] = {}
    for regime in regimes:
        first, comma, rest = regime.partition(", ")
        firsts.setdefault(comma + rest, []).append(first)
    return "; ".join(joined(own) + rest for rest, own in firsts.items())


def tests() -> str:
    """A row per test of a claim: regime, what was expected and measured, the verdict."""
    heads = ["claim", "by", "regime", "expected", "measured", "so the claim"]
    body = [
        [one["claim"], ": ".join(filter(None, [one["by"], test.get("part")])), *entries_of(test)]
        for one in CLAIMS
        for test in one["tests"]
    ]
    return minus(table(heads, body))


def tested(test: Mapping[str, Any]) -> list[tuple[Compared, str]]:
    """The comparisons of a test, and what each says of the claim."""
    if "unstated" in test:
        rows = list(compare([unstated(**test["unstated"])], study_tables(test["study"])))
    else:
        rows = matching(test["study"], test["where"])
    return [(row, _word(test.get("reads", "holds"), row)) for row in rows]


def _regime_of(test: Mapping[str, Any]) -> str:
    """``SmolLM2, SGD, 1 step, identity``: the last word if the test is about identities alone."""
    rows = tested(test)
    is_identity = bool(rows) and all(row.expectation.is_identity for row, _ in rows)
    return test["regime"] + (", identity" if is_identity else "")


def entries_of(test: Mapping[str, Any]) -> list[str]:
    """The regime of a test, what was expected and measured, and what that says of the claim."""
    found, note = tested(test), ", not stated beforehand" if "unstated" in test else ""
    several = len(found) > 1
    expected = dict.fromkeys(f"{expected_text(row.expectation)}{note}" for row, _ in found)
    texts = [_named(row) if several else measured_text(row) for row, _ in found]
    words = Counter(word for _, word in found)
    verdict = [f"{word}: {n}" if several else word for word, n in words.items()]
    return [
        f"{_regime_of(test)} ({_link(test['study'])})",
        "; ".join(expected),
        "; ".join(filter(None, texts)),
        ", ".join(verdict) or NOT_MEASURED,
    ]


def unstated(**fields: Any) -> Expectation:
    """A comparison at the last step, by this project's margin: no change with the rank.

    A factor by which a quantity changes over the ranks is 1 to a factor of 1.5, as for the verdict
    *stable*; a loss changes by less than 0.05 nats.
    """
    predicted, tolerance = (1, STABLE_RATIO) if fields["what"] == FACTOR else (0, 0.05)
    said = {"predicted": predicted, "tolerance": tolerance, "step": "last"}
    return Expectation(**said | {"source": ""} | fields)


def seen(study: str, *fields: str) -> str:
    """The measured values of a comparison that no experiment stated."""
    found = compare([unstated(**_fields(fields))], study_tables(study))
    return minus(distinct(map(measured_text, found)))


def _word(reads: str, row: Compared) -> str:
    """What one verdict says of the claim."""
    if reads == "below" and row.verdict == DIFFERS and row.measured > row.expectation.predicted:
        return "**fails**"
    return {**ALIKE, **READS[reads]}[row.verdict]


def _named(row: Compared) -> str:
    """A measured value with what separates it from others of its claim."""
    beside = row.curve or ("" if row.step is None else f"step {row.step}")
    return f"{measured_text(row)} ({beside})" if beside else measured_text(row)


def _link(study: str) -> str:
    return f"[{study}]({study}.md)"


def study(name: str) -> str:
    """A study: what it asks, its answer as its report begins, its size and its expectations."""
    about, tables = STUDIES[name], study_tables(name)
    plots, found = f"../../{PLOTS.relative_to(ROOT)}/{name}", answer_table(tables)
    hours = _time(total_seconds(tables.cells, records(name)))
    text = f"{count_noun(len(tables.cells), 'cell')}, {_span(tables.cells)}, {hours}."
    if rows := compared(name):
        number = count_noun(len(rows), "comparison")
        text += f" {number[0].upper()}{number[1:]} with what was expected: {counts_apart(rows)}."
    said = filter(None, (primary_text(*one) for one in primaries(name)))
    tests = [f"{one} {about.get('aside', '')}".strip() for one in said]
    parts = [
        about["asks"],
        bullets([*what_was_found(tables), *tests]),
        f"![{about['title']}]({plots}/{_first_figure(name)}.png)",
        *([table_of(found.rows), READING] if found.rows else []),
        text,
        f"[Caveats, all comparisons, figures and settings]({plots}/report.md)",
    ]
    return minus("\n\n".join(parts))


def _first_figure(name: str) -> str:
    """The figure of a study's answer: of those that are committed, the one of its question."""
    own = STUDIES[name]["figures"]
    return next((one for one in asked(study_tables(name)).figures if one in own), own[0])


def _time(seconds: float) -> str:
    if seconds >= 5400:
        return f"{seconds / 3600:.1f} hours"
    return count_noun(max(1, round(seconds / 60)), "minute")


def two_models() -> str:
    """Every exponent that a study measured on SmolLM2 and its repetition on Gemma 3. *Apart*: the
    intervals do not overlap."""
    body = []
    for name in (name for name in STUDIES if name + SECOND_MODEL in STUDIES):
        again = {_about(row): row for row in compared(name + SECOND_MODEL)}
        for row in compared(name):
            other = again.get(_about(row))
            if row.expectation.what in EXPONENTS and other and measured_text(row):
                about = [*compared_row(row).values()][:4]
                is_apart = row.low > other.high or other.low > row.high
                ends = [measured_text(row), measured_text(other), "apart" if is_apart else ""]
                body.append([_link(name), *about, *ends])
    heads = ["study", "optimizer, rule", "quantity", "what", "step", "SmolLM2", "Gemma 3", ""]
    return minus(table(heads, body))


def _about(row: Compared) -> tuple[Any, ...]:
    """What an expectation is about, without its numbers and its learning rate."""
    one = row.expectation
    named = one.what, one.optimizer, one.rule, one.alpha, one.eps, one.step, one.measure
    return *named, row.curve, repr(one.place)


def failed() -> str:
    """Every expectation that was shown to be wrong."""
    heads = ["study", "optimizer, rule", "quantity", "what", "step", "expected", "measured"]
    body = [
        [_link(name), *list(compared_row(row).values())[: len(heads) - 1]]
        for name in STUDIES
        for row in compared(name)
        if row.verdict == DIFFERS
    ]
    return minus(table(heads, body)) if body else "None."


def decided() -> str:
    """How many identities and predictions were decided, alone and in primary tests."""
    answers = [one for name in STUDIES for one in primaries(name)]
    singles = [row for name in STUDIES for row in compared(name)]
    lines = []
    for is_identity, name in KINDS.items():
        own = [row for row in singles if row.expectation.is_identity == is_identity]
        joint = [one for one in answers if one[0].is_identity == is_identity]
        late = f"{sum(is_late for _, is_late in joint)} of them stated after their cells had run"
        tests = f"Primary tests, one a study ({late}): {verdict_counts(a for a, _ in joint)}."
        lines.append(f"**{name}**: {verdict_counts(own)}. {tests}")
    return bullets(lines)


def studies() -> str:
    """A row per study: its question, what was found, and its size."""
    heads = ["study", "question", "primary test", "identities", "predictions", "cells", "time"]
    body, whole, cells = [], 0.0, 0
    for name, study in STUDIES.items():
        tables = study_tables(name)
        seconds = total_seconds(tables.cells, records(name))
        whole, cells = whole + seconds, cells + len(tables.cells)
        about = ", beside the question" if "aside" in study else ""
        primary = ", ".join(
            answer.verdict + (f" (identities{about})" if answer.is_identity else "")
            for answer, _ in primaries(name)
        )
        singles = [
            verdict_counts([r for r in compared(name) if r.expectation.is_identity == kind])
            for kind in KINDS
        ]
        size = [str(len(tables.cells)), _time(seconds)]
        body.append([_link(name), study["asks"], primary or NOT_MEASURED, *singles, *size])
    body.append(["all", *[""] * 4, str(cells), _time(whole)])
    return table(heads, body)


@cache
def history(study: str) -> list[tuple[datetime, list[Entry]]]:
    """The entries of an experiment at each commit of its file, with the date, oldest first. Raises
    :class:`NoTables` without history."""
    file = _file_of(study)
    found = _git("log", "--reverse", "--format=%H %aI", "--no-renames", "--", file)
    if not found or _git("rev-parse", "--is-shallow-repository") == "true":
        raise NoTables(f"no git history of {file}")
    dated = [line.split() for line in found.splitlines()]
    texts = [yaml.safe_load(_git("show", f"{commit}:{file}")) for commit, _ in dated]
    return [
        (datetime.fromisoformat(date), read_entries(text.get("expects") or []))
        for (_, date), text in zip(dated, texts, strict=True)
    ]


def stated(study: str, entry: Entry) -> datetime | None:
    """When an entry was first committed as it is; None if its file never had it."""
    return next((date for date, entries in history(study) if entry in entries), None)


def order() -> str:
    """The studies with looks: cells that were trained after results of others had been seen."""
    history(QUICK)  # there is none in a shallow clone
    rows = [[_link(name), "; ".join(said)] for name in STUDIES if (said := looks(name))]
    return table(["study", "looks"], rows)


def looks(study: str) -> list[str]:
    """Seeds with cells that began after other cells of the study had been committed, and seeds that
    no version of its file names."""
    log = _git("log", "--reverse", "--format=%aI", "--", f"results/reference/{study}")
    seeds = [record["config"]["seed"] for record in records(study)]
    began = pd.Series([datetime.fromisoformat(record["started"]) for record in records(study)])
    dates = map(datetime.fromisoformat, log.splitlines())
    first = next((date for date in dates if date > began.min()), began.max())
    last = began.groupby(seeds).max()
    said = []
    if (last > first).any():
        later = number_list(last.index[last > first])
        said.append(f"results were committed before the last cells of seeds {later}")
    named = _git("log", "-p", "--format=", "--", _file_of(study))
    lists = re.findall(r"^[ +]+seed: ([\d,]+)$", named, re.MULTILINE)
    known = {int(seed) for seeds in lists for seed in seeds.split(",")}
    if lists and (others := sorted(set(seeds) - known)):
        said.append(f"its sweep lists no seed {number_list(others)}")
    return said


def _git(*words: str) -> str:
    """What git prints; empty if it fails, as it does where there is no repository."""
    ran = subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True)
    return ran.stdout.strip() if ran.returncode == 0 else ""


FIRST = {
    ("adapter_grad", "norm", 0): "gradient norm, step 0",
    ("adapter_update", "descent", 0): "descent, step 0",
    ("adapter_out", "rms", 1): "adapter output, step 1",
    ("delta_w", "norm", 1): "γBA, Frobenius norm, step 1",
}
"""By site, statistic and the first step at which it is not zero: its name."""


def coverage() -> str:
    """How often the 95 % interval of a single layer, over seeds, holds its predicted slope.

    A row per study and optimizer. An entry is the share of layers and their number. A statistic
    that is the same for every seed, as the norm of a sign, has no interval.
    """
    rows = []
    for study in ("stable_exponent", "optimizer_history"):
        fits = study_tables(study).exponents
        single = ~fits["layer"].astype(str).isin([MODEL_WIDE, *POOLINGS])
        is_random = fits["ci_high"] > fits["ci_low"]
        fits = fits[single & is_random & (fits["batch"] == TRAIN) & np.isfinite(fits["predicted"])]
        holds = (fits["ci_low"] <= fits["predicted"]) & (fits["predicted"] <= fits["ci_high"])
        for optimizer, own in fits.groupby("optimizer", sort=False, observed=True):
            row = {"study": study, "optimizer": label(str(optimizer))}
            for (site, stat, step), name in FIRST.items():
                is_here = (own["site"] == site) & (own["stat"] == stat) & (own["step"] == step)
                here = holds[own.index[is_here]]
                row[name] = f"{100 * here.mean():.0f} % of {len(here)}" if len(here) else ""
            rows.append(row)
    return minus(table_of(rows))
