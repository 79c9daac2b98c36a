"""What ``study advise`` prints, and what following it was worth, for the documents."""

from collections.abc import Iterator
from textwrap import fill

import numpy as np
import pandas as pd
from click.testing import CliRunner
from scipy.interpolate import Akima1DInterpolator

from docs import evidence, law
from docs.blocks import study_tables
from study.analysis.advice import lost_in_bf16, moved
from study.analysis.capacity import departures
from study.analysis.grouping import groups
from study.analysis.law import Setting
from study.analysis.losses import OF_A_RULE, common_rates, final_losses
from study.analysis.rate_theory import rate_exponent
from study.analysis.rates import exponents_against_rho, rates_by_horizon, setting_of
from study.cli.group import cli
from study.report.answer import answer, answer_table
from study.report.text import bullets, minus, table, table_of
from study.vocabulary.scaling import RULES
from study.vocabulary.sources import model_label


def advice(*arguments: str) -> str:
    """The lines of ``study advise``, in a fence, the long ones wrapped."""
    ran = CliRunner().invoke(cli, ["advise", *arguments], catch_exceptions=False)
    lines = [f"$ study advise {' '.join(arguments)}", *ran.output.splitlines()]
    wrapped = (fill(x, 110, subsequent_indent="    ", break_on_hyphens=False) for x in lines)
    return "\n".join(["```", *wrapped, "```"])


def fact(name: str, form: str = "") -> str:
    """A number of :func:`docs.evidence.facts`."""
    return format(evidence.facts()[name], form)


FOLLOWED = (("horizons_small", 256, 10), ("paper_learning_rate", 20, 2))
"""Studies whose runs are followed, with the steps of the new runs and their number."""


def drawn(rows: pd.DataFrame, steps: int, count: int) -> Iterator[tuple[pd.Series, pd.Series]]:
    """Pairs of best rates, drawn before any was looked at: runs of so many steps, and for each of
    them any other run, which may differ in rank, rule, alpha and steps."""
    draw = np.random.default_rng(0)
    rows = rows.sort_values(["steps", "rule", "alpha", "rank"], ignore_index=True)
    for new in draw.permutation(rows.index[rows["steps"] == steps])[:count]:
        yield rows.loc[draw.choice(rows.index.drop(new))], rows.loc[new]


def followed() -> str:
    """The advice followed without training: the rate that the law without the study gives a run
    from the best rate of another, and the loss there. Losses are means over seeds, interpolated
    over the log rate. ``gain``: of the rank, between the best losses of a rule's ranks."""
    body = []
    for name, steps, count in FOLLOWED:
        basins, of = dict[tuple[str, float, float], Akima1DInterpolator](), study_tables(name)
        own = of.cells[of.cells["steps"] == steps]
        for runs in groups(final_losses(own, of.metrics), (*OF_A_RULE, "rank")):
            loss = runs[runs["lr"].isin(common_rates(runs))].groupby("lr")["loss"].mean()
            run = setting_of(runs.iloc[0])
            basins[run.rule, run.alpha, run.rank] = Akima1DInterpolator(np.log(loss.index), loss)
        lowest = {
            key: float(basin(np.linspace(*basin.x[[0, -1]], 999)).min())
            for key, basin in basins.items()
        }
        rates = law.best_rates()
        for old, new in drawn(rates[rates["source"] == name], steps, count):
            value, half = moved(dict(old), dict(new), old["log_lr"], law.without(name))
            key = new["rule"], new["alpha"], new["rank"]
            gives = float(basins[key](value)) - lowest[key]
            ranks = [loss for (*same, _), loss in lowest.items() if same == [*key[:2]]]
            gain = max(ranks) - min(ranks)
            words = [
                f"{x['rule']} r {x['rank']:g} α {x['alpha']:.3g}, {x['steps']:g} steps"
                for x in (old, new)
            ]
            holds = "yes" if abs(value - new["log_lr"]) <= half else "no"
            each = [f"{np.exp(x):.2g}" for x in (value, new["log_lr"])]
            each += [f"{np.exp(value - new['log_lr']):.2f}", holds, f"{gives:.4f}"]
            body.append([name, *words, *each, f"{gain:.4f}", f"{100 * gives / gain:.0f} %"])
    heads = ["study", "from", "to", "advised", "best", "advised / best", "interval holds"]
    return table([*heads, "loss given away", "gain of the rank", "share"], body)


RATE_STUDIES = ("rate_rivals", "rate_rivals_gemma3", "rate_rivals_muon", "rho_ends")
RATE_STUDIES = (*RATE_STUDIES, "rho_ends_gemma3", "learning_rate_rho", "learning_rate_rho_tiny")


def rate_theories() -> str:
    """The root mean square of measured less predicted exponents, by study and number of steps."""
    rows = []
    for name in RATE_STUDIES:
        tables = study_tables(name)
        rates = rates_by_horizon(tables.cells, tables.metrics, tables.probes)
        found = exponents_against_rho(rates).dropna(subset=["exponent", "output_slope"])
        for steps, here in found.groupby("horizon"):
            rho, both = here["rho"], (1 - here["exponent_p"], here["output_slope"])
            off = [here["exponent"] - rate_exponent(m, rho) for m in both]
            ranks = f"{here['rank_min'].min():g} to {here['rank_max'].max():g}"
            rows.append((name, model_label(here["model"].iloc[0]), steps, ranks, off))
    heads = ["study", "model", "steps", "ranks", "exponents", "off the descent", "off the output"]
    body = [
        [*map(str, facts), str(len(off[0])), *(f"{np.sqrt(np.mean(each**2)):.3f}" for each in off)]
        for *facts, off in rows
    ]
    return table(heads, body)


def lost(alpha: str, lr: str, *ranks: str) -> str:
    """The share of an adapter's output that bf16 loses by theory: a row per rule and rank."""
    body = []
    for name in ("lora", "rslora"):
        for rank in ranks:
            run = Setting(int(rank), float(alpha), name, "adamw")
            shares = lost_in_bf16(run, float(lr)).values()
            body.append([RULES[name].label, rank, *(f"{100 * share:.0f} %" for share in shares)])
    return table(["rule", "rank", "lost after 1 update", "after 10"], body)


def stored(name: str) -> str:
    """What adapters stored: the answer of a study and its table."""
    tables = study_tables(name)
    return minus(f"{bullets(answer(tables))}\n\n{table_of(answer_table(tables).rows)}")


def fell_behind(*names: str) -> str:
    """The step at which each rank falls behind the highest one, measured and expected."""
    found = pd.concat([departures(study_tables(name)).assign(study=name) for name in names])
    never = found[["step", "expected"]].isna()
    ratio = found["step"] / found["expected"]
    near = (never.all(axis=1) | ratio.between(0.5, 2)).sum()
    body = []
    found = found[~never.all(axis=1)].sort_values(["study", "steps", "scaling", "rank"])
    for row in found.itertuples():
        known = (row.step, row.expected, row.expected_low, row.expected_high)
        step, mean, *ends = ("never" if np.isnan(x) else f"{x:.0f}" for x in known)
        times = "" if np.isnan(row.step / row.expected) else f"{row.step / row.expected:.2g}"
        runs = [row.study, f"{row.steps:g}", RULES[row.scaling].label, f"{row.rank:g}"]
        own = [str(row.seeds), f"{row.parameters:,.0f}", step, f"{mean} [{', '.join(ends)}]", times]
        body.append([*runs, *own])
    heads = ["study", "steps", "rule", "rank", "seeds", "parameters", "behind from step"]
    said = (
        f"Of {len(never)} settings {near} are as expected: within a factor of 2, or never in both "
        f"({never.all(axis=1).sum()} settings). All in which a rank falls behind, or should:"
    )
    return f"{said}\n\n{table([*heads, 'expected', 'measured / expected'], body)}"
