"""``study transfer``: alpha and learning rates of a run at another rank or rule."""

import math
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click
import pandas as pd

from study.analysis import load_tables, rate_transfer
from study.analysis.rate_theory import layer_bounds
from study.cli.group import PATH, cli
from study.cli.transfer_source import Target, TransferRun, read_source, read_target
from study.errors import StudyError, unknown
from study.sweeps.progress import count_noun
from study.theory import Layer, family
from study.theory.equivalence import (
    ALIGNED,
    QUANTITIES,
    UNALIGNED,
    USUAL,
    converted_alpha,
    gamma_factor,
    growth,
    lr_factor,
    rescaling,
    row_of,
)
from study.vocabulary.inits import INITS
from study.vocabulary.optimizers import OPTIMIZERS
from study.vocabulary.scaling import RULES, rule_words

NO_RATE_KEEPS = {"grad_norm": "no learning rate changes it"}


@cli.command()
@click.argument("config", type=PATH, metavar="CONFIG")
@click.option("--rank", help="The new rank.  [default: that of CONFIG]")
@click.option("--rule", help="The new rule: lora, rslora, or a number p.  [default: the same]")
@click.option("--lr", help="The learning rate of the run, if CONFIG has none.")
@click.option("--optimizer", help="The optimizer of the run, if CONFIG names none.")
@click.option("--study", "study_dir", type=PATH, metavar="RESULTS/NAME", help="A measured study.")
@click.option(
    "--keep",
    default="descent",
    show_default=True,
    help="What the lines to paste keep: descent, grad_norm or adapter_out.",
)
@click.option("--entry", help="The configuration to read, if the file holds several.")
def transfer(
    config: Path,
    rank: str | None,
    rule: str | None,
    lr: str | None,
    optimizer: str | None,
    study_dir: Path | None,
    keep: str,
    entry: str | None,
) -> None:
    """Print the alpha and learning rates of a run at another rank or rule.

    CONFIG is a configuration of PEFT, Axolotl, LLaMA-Factory or FinLoRA, or a cell:
    RESULTS/NAME/cells/ID. It prints what is exactly equivalent, what is equal in the first update
    by theory, and what a study measured as best.
    """
    if keep not in QUANTITIES:
        raise unknown("--keep", keep, QUANTITIES)
    run = read_source(config, entry, lr, optimizer)
    target = read_target(run, rank, rule)
    tables = None
    if study_dir is not None:
        tables = load_tables(study_dir)
    layers = bounds(run, tables)
    parts = [about(run), exact_lines(run, target)]
    if target.rank != run.adapter.rank:
        parts.append(first_update_lines(run, target, layers))
        parts.append(measured_lines(run, target, tables, study_dir, config))
    parts.append(gradient_norm_lines(run, target))
    parts.append(paste_lines(run, target, layers, keep))
    click.echo("\n\n".join("\n".join(lines) for lines in parts))


Layers = Sequence[Sequence[Layer]]


def bounds(run: TransferRun, tables: Any) -> Layers:
    """The layers of the run if a study recorded them: ``[layers]``.

    Otherwise a usual layer, and the two ends between which a layer can be.
    """
    # Recorded alignments are those of adapter_out with A drawn.
    drawn = INITS[run.init].drawn if run.init in INITS else ""
    if tables is not None and len(tables.cells) and drawn == "A":
        cells = tables.cells
        same = cells["optimizer"].astype(str) == run.optimizer.name
        cells = cells[same & cells["init"].astype(str).isin(INITS)]
        if len(cells):
            low, high = layer_bounds(cells, tables.probes, run.optimizer.name)
            if low is high:
                return [low]
    return [[USUAL], [ALIGNED], [UNALIGNED]]


def about(run: TransferRun) -> list[str]:
    rule = rule_words(run.adapter.scaling, run.adapter.exponent)
    rate = f", learning rate {run.optimizer.lr:g}" if run.has_lr else ""
    head = (
        f"{run.origin}: rank {run.adapter.rank}, alpha {run.adapter.alpha:g}, {rule} "
        f"(gamma {run.adapter.gamma:.4g}), {run.optimizer.name}{rate}"
    )
    return [head, *(f"assumed: {what}" for what in run.assumed)]


def exact_lines(run: TransferRun, target: Target) -> list[str]:
    """The other rules at the run's rank, the trade of alpha against B's rate, and its limits."""
    rank, name = run.adapter.rank, run.optimizer.name
    rules = {rule: row.p for rule, row in RULES.items() if row.p is not None}
    rules |= {target.name: target.p}
    same = ", ".join(
        f"{rule} with alpha {converted_alpha(run.adapter.alpha, rank, run.p, p):.10g}"
        for rule, p in rules.items()
    )
    double = rescaling(name, 1.0, 0.5)
    ratio = run.optimizer.loraplus_lr_ratio / double.lr_b
    given = "" if not OPTIMIZERS[name].has_eps else " (exact for eps 0)"
    old, alpha = run.optimizer.loraplus_lr_ratio, run.adapter.alpha
    lines = [
        "(a) exactly equivalent",
        f"  at rank {rank}: {same}",
        f"  at rank {rank} under {name}{given}: alpha {alpha * double.alpha:g} instead of "
        f"{alpha:g}, or loraplus_lr_ratio {ratio:g} instead of {old:g}; without weight decay and "
        "clipping",
    ]
    if target.rank != rank:
        lines.append(f"  at rank {target.rank}: nothing, because A has other random rows there")
    return lines


def factors(run: TransferRun, target: Target, quantity: str, layers: Layers) -> list[float]:
    """How much a quantity grows from the run to the target, at one alpha and learning rate.

    One number if it does not depend on the layers or if they are known. Otherwise three: for a
    usual layer and for the two ends. Raises :class:`StudyError` without a prediction.
    """
    init = INITS.get(run.init)
    if init is None or init.q is None:
        raise StudyError(f"no prediction for init {run.init}")
    ranks = (run.adapter.rank, target.rank)
    gammas = tuple(target.alpha * float(rank) ** -target.p for rank in ranks)
    found = [
        growth(
            quantity,
            ranks,
            (gammas[0], gammas[1]),
            run.optimizer.name,
            q=init.q,
            init=init.drawn,
            layers=these,
        )
        for these in layers
    ]
    if any(map(math.isnan, found)):
        raise StudyError(f"no curve for {run.optimizer.name} has been derived")
    return found[:1] if math.isclose(min(found), max(found), rel_tol=1e-9) else found


def first_update_lines(run: TransferRun, target: Target, layers: Layers) -> list[str]:
    lines = [
        f"(b) equal in the first update, by theory: from rank {run.adapter.rank} with "
        f"{target.name} and alpha {target.alpha:.10g} to rank {target.rank}"
    ]
    for name, what in QUANTITIES.items():
        try:
            grown = factors(run, target, name, layers)
        except StudyError as error:
            lines.append(f"  keeps the {what.label}: {error}")
            continue
        row = row_of(name, run.optimizer.name, INITS[run.init].drawn)
        alpha = _with_ends([f"{target.alpha * gamma_factor(each, row):.4g}" for each in grown])
        rates = [run.rate(factor) for each in grown if (factor := lr_factor(each, row)) is not None]
        rate = f"learning rate {_with_ends(rates)}" if rates else NO_RATE_KEEPS[name]
        lines.append(f"  keeps the {what.label}: alpha {alpha}, or {rate}")
        if len(grown) > 1:
            lines.append(
                f"    (for r_sign {USUAL.r_sign:g} and r_align {USUAL.r_align:g}, as measured on "
                "two models; in brackets: inputs along the gradients, and unrelated to them; "
                "--study with r_align and r_sign of adapter_out gives the number of your model)"
            )
    if run.clip is not None and family(run.optimizer.name) == "linear":
        lines.append(f"  this is without clipping; the run clips at {run.clip:g}")
    return lines


def _with_ends(numbers: Sequence[str]) -> str:
    """``8.4 [8 to 16]``, or the one number."""
    first, *ends = numbers
    return f"{first} [{' to '.join(ends)}]" if ends else first


def measured_lines(
    run: TransferRun, target: Target, tables: Any, study_dir: Path | None, config: Path
) -> list[str]:
    head = "(c) best by a measured study"
    if tables is None or study_dir is None:
        ranks = ",".join(str(rank) for rank in sorted({run.adapter.rank, target.rank}))
        return [
            f"{head}: give --study RESULTS/NAME. These commands measure it:",
            "  study train experiment=learning_rate_transfer name=transfer "
            f"optimizer={run.optimizer.name} adapter.alpha={target.alpha:.10g} "
            f"adapter.exponent={target.p:g} adapter.rank={ranks}",
            f"  study transfer {shlex.quote(str(config))} --rank {target.rank} "
            f"--rule {target.rule if target.rule != 'power' else f'{target.p:g}'} "
            "--study results/transfer",
        ]
    return [f"{head}, {study_dir}", *_measured(run, target, tables.rates)]


def _measured(run: TransferRun, target: Target, rates: pd.DataFrame) -> Iterator[str]:
    """Two lines per exponent of the best rate with the optimizer and the rule of the target, the
    alpha closest to the target's first."""
    rows = [
        row
        for row in rate_transfer(rates).to_dict("records")
        if row["optimizer"] == run.optimizer.name
        and math.isclose(row["exponent_p"], target.p, abs_tol=1e-9)
        and math.isfinite(row["exponent"])
    ]
    for row in sorted(rows, key=lambda row: abs(math.log(row["alpha"] / target.alpha))):
        up = target.rank / run.adapter.rank
        at = [row[key] for key in ("exponent", "ci_low", "ci_high")]
        best, *ends = (up**each for each in at)
        spread = " to ".join(run.rate(end) for end in sorted(ends))
        over = {"seeds": "95 % interval over seeds", "ranks": "interval over ranks of one seed"}
        interval = (
            f"{spread}, {over[row['interval']]}" if row["interval"] in over else "no interval"
        )
        inside = all(
            row["rank_min"] <= rank <= row["rank_max"] for rank in (run.adapter.rank, target.rank)
        )
        beyond = "" if inside else "; these ranks are outside, so this extrapolates"
        yield (
            f"  {target.name}, alpha {target.alpha:.10g} at both ranks: learning rate "
            f"{run.rate(best)} ({interval})"
        )
        yield (
            f"    exponent {at[0]:.2f} [{at[1]:.2f}, {at[2]:.2f}] at the study's alpha, "
            f"{row['alpha']:g}, over ranks {row['rank_min']:g} to {row['rank_max']:g}, "
            f"{count_noun(row['seeds'], 'seed')}{beyond}"
        )
    if not rows:
        yield (
            f"  no exponent for {run.optimizer.name} and {target.name}: it needs two ranks at "
            "which the best of several learning rates is not at an edge"
        )


def gradient_norm_lines(run: TransferRun, target: Target) -> list[str]:
    lines = [
        "gradient norm at step 0, under every optimizer",
        "  rsLoRA's grad_norm is sqrt(r) times LoRA's at the same alpha: "
        f"{math.sqrt(target.rank):.3g} times at rank {target.rank} is normal",
    ]
    try:
        grown = factors(run, target, "grad_norm", bounds(run, None))[0]
    except StudyError as error:
        return [*lines, f"  {error}"]
    # From the run to the target's rule at its own rank, gamma stays.
    return [
        *lines,
        f"  {target.name} with alpha {target.alpha:.10g} at rank {target.rank} is expected to have "
        f"{grown:.3g} times the grad_norm of this run",
    ]


def paste_lines(run: TransferRun, target: Target, layers: Layers, keep: str) -> list[str]:
    """Lines for PEFT and Axolotl. They change alpha and leave the learning rate.

    A lower learning rate would keep the same quantity of the first update. But it would also slow
    A, which then learns less in the steps that follow.
    """
    alpha, why = target.alpha, "exactly equivalent"
    notes: list[str] = []
    if target.rank != run.adapter.rank:
        try:
            grown = factors(run, target, keep, layers)[0]
        except StudyError as error:
            return [f"nothing to paste: {error}"]
        row = row_of(keep, run.optimizer.name, INITS[run.init].drawn)
        alpha *= gamma_factor(grown, row)
        why = f"keeps the {QUANTITIES[keep].label} by alpha, because a lower rate also slows A"
        notes = _divided_out(run, target, layers, keep, alpha)
    is_rslora = target.rule == "rslora"
    theirs = alpha if is_rslora else converted_alpha(alpha, target.rank, target.p, 1.0)
    number = f"{theirs:.10g}"
    flag = str(is_rslora)
    lr = run.rate(1.0)
    lines = [
        f"to paste ({why})",
        *notes,
        f"  PEFT:    LoraConfig(r={target.rank}, lora_alpha={number}, use_rslora={flag})"
        f"  # learning rate: {lr}",
        "  Axolotl:",
        f"    lora_r: {target.rank}",
        f"    lora_alpha: {number}",
        f"    peft_use_rslora: {flag.lower()}",
        f"    learning_rate: {lr}" if run.has_lr else f"    # learning_rate: {lr}",
    ]
    if not float(number).is_integer():
        lines.append(
            f"    # Axolotl takes a whole lora_alpha, not {number}: round it, or try another "
            "--rule or --keep"
        )
    return lines


def _divided_out(
    run: TransferRun, target: Target, layers: Layers, keep: str, alpha: float
) -> list[str]:
    """A warning if the optimizer divides out what ``alpha`` keeps."""
    if keep != "grad_norm" or family(run.optimizer.name) == "linear":
        return []
    try:
        grown = factors(run, target, "descent", layers)[0]
    except StudyError:
        return []
    row = row_of("descent", run.optimizer.name, INITS[run.init].drawn)
    changed = grown * (alpha / target.alpha) ** row.gammas
    return [
        f"  warning: {run.optimizer.name} divides the gradient norm out. This alpha multiplies the "
        f"descent of the first update by {changed:.3g}; --keep descent keeps it"
    ]
