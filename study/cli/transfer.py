"""``study transfer``: alpha and learning rates of a run at another rank or rule."""

import math
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import click
import pandas as pd

from study.analysis import load_tables, rate_transfer
from study.analysis.rate_theory import layer_bounds
from study.cli.group import PATH, cli, say
from study.config import AdapterConfig, OptimizerConfig
from study.config.types import MOST_RANK
from study.config.values import LARGEST_FLOAT, read
from study.errors import StudyError, given, short, unknown
from study.integrations.configs import read_file
from study.store import find_cell
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
from study.vocabulary.optimizers import MOST_USED, OPTIMIZERS
from study.vocabulary.scaling import POWER, RULES, exponent, rule_words

NO_RATE_KEEPS = {"grad_norm": "no learning rate changes it"}


USUAL_INIT = "kaiming"
NO_RATE = 1.0
"""Stands for a learning rate that is not known. All learning rates are then factors on it."""


@dataclass(frozen=True)
class TransferRun:
    """A run whose settings are to be converted.

    - ``origin``: in words; ``has_lr``: whether its learning rate is known;
    - ``p``: of its rule; ``init``: of its factors, which may be one without theory;
    - ``clip``: the gradient norm that it clips at;
    - ``assumed``: what its configuration does not say.
    """

    origin: str
    adapter: AdapterConfig
    optimizer: OptimizerConfig
    has_lr: bool
    p: float
    init: str
    clip: float | None
    assumed: tuple[str, ...] = ()

    def rate(self, factor: float) -> str:
        """A learning rate, ``factor`` times that of the run, in words."""
        if self.has_lr:
            return f"{self.optimizer.lr * factor:.4g}"
        return "yours" if math.isclose(factor, 1) else f"{factor:.4g} times yours"


@dataclass(frozen=True)
class Target:
    """What is asked for. ``alpha``: with which the run at its own rank has the target's rule."""

    rank: int
    rule: str
    p: float
    alpha: float

    @property
    def name(self) -> str:

        return rule_words(self.rule, self.p if self.rule == POWER else None)


def read_source(
    path: Path, entry: str | None, lr: str | None, optimizer: str | None
) -> TransferRun:
    """The run that ``path`` describes. ``lr`` and ``optimizer`` fill in what it does not say.

    Raises :class:`StudyError` for whatever cannot be read, and for a value out of range.
    """
    origin, settings = _settings(path, entry)
    name, rate, assumed = _training(origin, settings, lr, optimizer)
    ratio, clip = (settings.get(key) for key in ("optimizer.loraplus_lr_ratio", "train.clip"))
    power = settings.get("adapter.exponent")
    adapter = AdapterConfig(
        rank=settings["adapter.rank"],
        alpha=settings["adapter.alpha"],
        scaling=settings["adapter.scaling"],
        exponent=None if power is None else _number("adapter.exponent", power, 1.0),
        targets="all-linear",
        init=USUAL_INIT,
        dropout=0.0,
    )
    trained = OptimizerConfig(
        name=name,
        lr=NO_RATE if rate is None else rate,
        weight_decay=0.0,
        loraplus_lr_ratio=_number("optimizer.loraplus_lr_ratio", ratio, 1.0),
    )
    for part in (adapter, trained):
        try:
            read(type(part), asdict(part))
        except StudyError as error:
            raise StudyError(f"{origin}: {error}") from None
    if adapter.rank == math.inf:
        raise StudyError(f"{origin} has infinite rank, which no alpha reaches: give a finite run")
    try:
        p = exponent(adapter.scaling, adapter.exponent)
    except ValueError as error:
        raise StudyError(f"{origin}: {error}") from None
    _check_gamma(origin, adapter.gamma)
    return TransferRun(
        *(origin, adapter, trained, rate is not None),
        p=p,
        init=str(settings.get("adapter.init", USUAL_INIT)),
        clip=None if clip is None else _number("train.clip", clip, 1.0),
        assumed=tuple(assumed),
    )


def _training(
    origin: str, settings: Mapping[str, Any], lr: str | None, optimizer: str | None
) -> tuple[str, float | None, list[str]]:
    """The optimizer's name, the learning rate if it is known, and what is assumed."""
    given_lr = None if lr is None else _parsed("--lr", lr)
    own_lr, own_name = settings.get("optimizer.lr"), settings.get("optimizer.name")
    for option, asked, own in (("--lr", given_lr, own_lr), ("--optimizer", optimizer, own_name)):
        if asked is not None and own is not None and asked != own:
            raise StudyError(f"{option}={asked}, but {origin} says {own}: leave out {option}")
    assumed = []
    name = own_name or optimizer
    if name is None:
        name = MOST_USED
        assumed.append(f"optimizer {name} (--optimizer names another)")
    if name not in OPTIMIZERS:
        raise unknown("optimizer", name, OPTIMIZERS)
    rate = own_lr if own_lr is not None else given_lr
    if rate is None:
        assumed.append("no learning rate: rates are factors on yours (--lr gives it)")
    return name, rate, assumed


def _parsed(option: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise StudyError(f"{option}={short(text)} is not a number: give one such as 2e-4") from None


def _settings(path: Path, entry: str | None) -> tuple[str, Mapping[str, Any]]:
    """Where settings come from, and the settings by dotted key."""
    if path.parent.name == "cells":
        folder, record = find_cell(path.parent.parent, path.name)
        flat = {
            f"{group}.{key}": value
            for group in ("adapter", "optimizer", "train")
            for key, value in record["config"][group].items()
        }
        return f"cell {folder.name} of {path.parent.parent.name}", flat
    if path.is_dir():
        inside = path / "adapter_config.json"
        if not inside.is_file():
            raise StudyError(
                f"{path} is a folder without adapter_config.json: give a configuration file, the "
                "folder of a PEFT adapter, or a cell, RESULTS/NAME/cells/ID"
            )
        path = inside

    read = read_file(path, entry)
    for difference in read.differs:
        say(f"read as: {difference}")
    named = {"optimizer.name": read.groups["optimizer"]} if "optimizer" in read.groups else {}
    return read.origin, {**read.values, **named}


def _number(key: str, value: Any, usual: float) -> float:
    if value is None:
        return usual
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise StudyError(f"{key}={short(value)} is not a number: give one")
    return float(value)


def read_target(run: TransferRun, rank: str | None, rule: str | None) -> Target:
    """Rank and rule of the new run. Raises :class:`StudyError` for values out of range."""
    new: Any = run.adapter.rank
    if rank is not None:
        new = int(rank) if rank.isascii() and rank.isdecimal() and len(rank) < 20 else 0
        if not 1 <= new <= MOST_RANK:
            raise StudyError(
                f"--rank={given(rank)} is out of range: give a whole number from 1 to {MOST_RANK}"
            )
    adapter = replace(run.adapter, rank=new)
    if rule is not None:
        adapter = replace(adapter, scaling=rule, exponent=None)
    adapter = read(AdapterConfig, asdict(adapter), "adapter.")
    try:
        p = exponent(adapter.scaling, adapter.exponent)
    except ValueError:
        raise StudyError(f"--rule={short(rule)} has no exponent: give a number, its p") from None
    alpha = converted_alpha(adapter.alpha, run.adapter.rank, run.p, p)
    _check_gamma(f"rank {new} with alpha {alpha:.4g}", alpha * float(new) ** -p)
    return Target(new, adapter.scaling, p, alpha)


def _check_gamma(where: str, gamma: float) -> None:
    """Raises :class:`StudyError` for a gamma that a run in float32 cannot have."""
    if not 1 / LARGEST_FLOAT <= gamma <= LARGEST_FLOAT:
        raise StudyError(
            f"{where} has gamma {gamma:g}, which float32 does not hold: change alpha or the rule"
        )


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
