"""What ``study advise`` prints, and what following it was worth, for the documents."""

from textwrap import fill

import numpy as np
from click.testing import CliRunner

from docs import evidence
from docs.blocks import Block, study_tables
from docs.blocks import table as read
from study.analysis.advice import lost_in_bf16
from study.analysis.law import Setting
from study.analysis.rate_theory import rate_exponent
from study.analysis.rates import exponents_against_rho, rates_by_horizon
from study.cli.group import cli
from study.report.text import table
from study.vocabulary.optimizers import label
from study.vocabulary.scaling import RULES
from study.vocabulary.sources import model_label

WITHIN = 2.0


def printed(*arguments: str) -> str:
    """The lines of ``study advise``, in a fence, the long ones wrapped."""
    ran = CliRunner().invoke(cli, ["advise", *arguments], catch_exceptions=False)
    lines = [f"$ study advise {' '.join(arguments)}", *ran.output.splitlines()]
    wrapped = (fill(x, 110, subsequent_indent="    ", break_on_hyphens=False) for x in lines)
    return "\n".join(["```", *wrapped, "```"])


def fact(name: str, form: str = "") -> str:
    """A number of :func:`docs.evidence.facts`."""
    return format(evidence.facts()[name], form)


def advised() -> str:
    """A row for each configuration of ``benchmarks/advice.py``, and how many are right."""
    heads = ["from", "to", "rests on", "advised", "check", "best", "advised / best", "check / best"]
    rows, body = read("advice/advised"), []
    for row in rows.to_dict("records"):
        ratio = f", LoRA+ {row['ratio']:g}" if row["ratio"] != 1 else ""
        old = f"{row['rule']} r {row['rank']} α {row['alpha']:g}, {label(row['optimizer'])}{ratio}"
        new = f"{row['new_rule']} r {row['new_rank']} α {row['new_alpha']:.4g}"
        rates = [row[key] for key in ("advised", "checked", "best")]
        off = [f"{rate / row['best']:.2f}" for rate in rates[:2]]
        body.append([old, new, row["source"], *(f"{rate:.2g}" for rate in rates), *off])
    right = [
        int((np.abs(np.log(rows[key] / rows["best"])) <= np.log(WITHIN)).sum())
        for key in ("advised", "checked")
    ]
    return (
        f"{table(heads, body)}\n\nThe advised rate is within a factor of {WITHIN:g} of the best "
        f"one in {right[0]} of {len(rows)} rows, and with the check in {right[1]}. 40 steps, "
        "3 seeds, rates in steps of 2."
    )


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


BLOCKS: dict[str, Block] = {
    "lost": lost,
    "advice": printed,
    "fact": fact,
    "advised": advised,
    "rate-theories": rate_theories,
}
