"""``study transfer``: alpha and learning rates of a run at another rank or rule."""

import math
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
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
from study.config.values import read
from study.errors import StudyError, unknown
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
from study.vocabulary.scaling import RULES, named_rule, rule_words

Layers = Sequence[Sequence[Layer]]
ADAPTER = {"targets": "all-linear", "init": "kaiming", "dropout": 0.0}
"""What a run need not say of its adapter."""


@dataclass(frozen=True)
class TransferRun:
    """A run whose settings are to be converted.

    ``has_lr``: whether its learning rate is known; if not, it is 1. ``init`` may be one without
    theory. ``clip``: the gradient norm that it clips at. ``assumed``: what it does not say.
    """

    origin: str
    adapter: AdapterConfig
    optimizer: OptimizerConfig
    has_lr: bool
    init: str
    clip: Any
    assumed: Sequence[str]

    def rate(self, factor: float) -> str:
        """A learning rate, ``factor`` times that of the run, in words."""
        if self.has_lr:
            return f"{self.optimizer.lr * factor:.4g}"
        return "yours" if math.isclose(factor, 1) else f"{factor:.4g} times yours"


def words_of(adapter: AdapterConfig) -> str:
    return rule_words(adapter.scaling, adapter.exponent)


def read_source(
    path: Path, entry: str | None = None, lr: float | None = None, optimizer: str | None = None
) -> TransferRun:
    """The run that ``path`` describes. ``lr`` and ``optimizer`` say what it does not.

    Raises :class:`StudyError` for whatever cannot be read, and for a value out of range.
    """
    origin, settings = _settings(path, entry)
    name, rate = settings.get("optimizer.name") or optimizer, settings.get("optimizer.lr", lr)
    assumed = []
    if name is None:
        assumed.append(f"optimizer {MOST_USED} (--optimizer names another)")
    if rate is None:
        assumed.append("no learning rate: rates are factors on yours (--lr gives it)")
    trained = {
        "name": name or MOST_USED,
        "lr": 1.0 if rate is None else rate,
        "weight_decay": 0.0,
        "loraplus_lr_ratio": settings.get("optimizer.loraplus_lr_ratio", 1.0),
    }
    own = {key: settings.get(f"adapter.{key}") for key in ("rank", "alpha", "scaling", "exponent")}
    try:
        if trained["name"] not in OPTIMIZERS:
            raise unknown("optimizer", name, OPTIMIZERS)
        adapter = read(AdapterConfig, ADAPTER | own, "adapter.")
        if adapter.rank == math.inf:
            raise StudyError("no alpha reaches infinite rank: give a run of finite rank")
        optimized = read(OptimizerConfig, trained, "optimizer.")
    except ValueError as error:
        raise StudyError(f"{origin}: {error}") from None
    init, clip = settings.get("adapter.init", ADAPTER["init"]), settings.get("train.clip")
    return TransferRun(origin, adapter, optimized, rate is not None, init, clip, assumed)


def _settings(path: Path, entry: str | None) -> tuple[str, Mapping[str, Any]]:
    """Where settings come from, and the settings by dotted key."""
    if path.parent.name == "cells":
        folder, record = find_cell(path.parent.parent, path.name)
        [flat] = pd.json_normalize([record["config"]]).to_dict("records")
        settings = {str(key): value for key, value in flat.items()}
        return f"cell {folder.name} of {path.parent.parent.name}", settings
    found = read_file(path / "adapter_config.json" if path.is_dir() else path, entry)
    for difference in found.differs:
        say(f"read as: {difference}")
    return found.origin, {**found.values, "optimizer.name": found.groups.get("optimizer")}


def read_target(run: TransferRun, rank: int | None, rule: str | None) -> AdapterConfig:
    """The new rank and rule. Its alpha is that with which the run at its own rank has the rule.

    Raises :class:`StudyError` for values out of range.
    """
    old = run.adapter
    scaling, power = (old.scaling, old.exponent) if rule is None else named_rule(rule)
    changed = {"rank": old.rank if rank is None else rank, "scaling": scaling, "exponent": power}
    new = read(AdapterConfig, asdict(old) | changed, "adapter.")
    try:
        alpha = converted_alpha(old.alpha, old.rank, old.p, new.p)
    except ValueError:
        raise StudyError(f"--rule={rule} has no exponent: give a number, its p") from None
    return replace(new, alpha=alpha)


@cli.command()
@click.argument("config", type=PATH, metavar="CONFIG")
@click.option(
    "--rank",
    type=click.IntRange(1, MOST_RANK),
    help="The new rank.  [default: that of CONFIG]",
)
@click.option("--rule", help="The new rule: lora, rslora, or a number p.  [default: the same]")
@click.option("--lr", type=float, help="The learning rate of the run, if CONFIG has none.")
@click.option(
    "--optimizer",
    type=click.Choice(list(OPTIMIZERS)),
    metavar="NAME",
    help="The optimizer of the run, if CONFIG names none.",
)
@click.option("--study", "study_dir", type=PATH, metavar="RESULTS/NAME", help="A measured study.")
@click.option(
    "--keep",
    type=click.Choice(list(QUANTITIES)),
    default="descent",
    show_default=True,
    help="What the lines to paste keep.",
)
@click.option("--entry", help="The configuration to read, if the file holds several.")
def transfer(
    config: Path,
    rank: int | None,
    rule: str | None,
    lr: float | None,
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
    run = read_source(config, entry, lr, optimizer)
    target = read_target(run, rank, rule)
    tables = None if study_dir is None else load_tables(study_dir)
    grown = growths(run, target, bounds(run, tables))
    parts: list[Iterable[str]] = [exact_lines(run, target)]
    if target.rank != run.adapter.rank:
        parts.append(first_update_lines(run, target, grown))
        if tables is None:
            parts.append(measuring_lines(run, target, config))
        else:
            head = f"(c) best by a measured study, {study_dir}"
            parts.append([head, *measured_lines(run, target, tables.rates)])
    parts.append(gradient_norm_lines(target, grown["grad_norm"]))
    parts.append(paste_lines(run, target, grown, keep))
    click.echo("\n\n".join("\n".join(lines) for lines in parts))


def bounds(run: TransferRun, tables: Any) -> Layers:
    """The layers of the run if a study recorded them: ``[layers]``.

    Otherwise a usual layer, and the two ends between which a layer can be.
    """
    # Recorded alignments are those of adapter_out with A drawn.
    if tables is not None and run.init in INITS and INITS[run.init].drawn == "A":
        cells = tables.cells
        same = cells["optimizer"].astype(str) == run.optimizer.name
        cells = cells[same & cells["init"].astype(str).isin(INITS)]
        if len(cells):
            low, high = layer_bounds(cells, tables.probes, run.optimizer.name)
            if low is high:
                return [low]
    return [[USUAL], [ALIGNED], [UNALIGNED]]


def exact_lines(run: TransferRun, target: AdapterConfig) -> list[str]:
    """The run, the other rules at its rank, and the trade of alpha against B's rate."""
    adapter, name = run.adapter, run.optimizer.name
    rules = {rule: row.p for rule, row in RULES.items() if row.p is not None}
    rules |= {words_of(target): target.p}
    same = ", ".join(
        f"{rule} with alpha {converted_alpha(adapter.alpha, adapter.rank, adapter.p, p):.10g}"
        for rule, p in rules.items()
    )
    double, ratio = rescaling(name, 1.0, 0.5), run.optimizer.loraplus_lr_ratio
    rate = f", learning rate {run.optimizer.lr:g}" if run.has_lr else ""
    lines = [
        f"{run.origin}: rank {adapter.rank}, alpha {adapter.alpha:g}, {words_of(adapter)} "
        f"(gamma {adapter.gamma:.4g}), {name}{rate}",
        *(f"assumed: {what}" for what in run.assumed),
        "",
        "(a) exactly equivalent",
        f"  at rank {adapter.rank}: {same}",
        f"  at rank {adapter.rank} under {name}{' (eps 0)' if OPTIMIZERS[name].has_eps else ''}, "
        f"without weight decay and clipping: alpha {adapter.alpha * double.alpha:g} instead of "
        f"{adapter.alpha:g}, or loraplus_lr_ratio {ratio / double.lr_b:g} instead of {ratio:g}",
    ]
    if target.rank != adapter.rank:
        lines.append(f"  at rank {target.rank}: nothing, because A has other random rows there")
    return lines


Growths = dict[str, list[float] | str]


def growths(run: TransferRun, target: AdapterConfig, layers: Layers) -> Growths:
    """How much each quantity grows from the run to the target, at one alpha and learning rate.

    One number if it does not depend on the layers or if they are known. Otherwise three: for a
    usual layer and for the two ends. A sentence if there is no prediction.
    """
    init, ranks, name = INITS.get(run.init), (run.adapter.rank, target.rank), run.optimizer.name
    gammas = (replace(target, rank=ranks[0]).gamma, target.gamma)
    if init is None or init.q is None:
        return dict.fromkeys(QUANTITIES, f"no prediction for init {run.init}")
    found: Growths = {}
    for quantity in QUANTITIES:
        setting: Any = {"q": init.q, "init": init.drawn}
        try:
            sizes = [growth(quantity, ranks, gammas, name, layers=x, **setting) for x in layers]
        except StudyError as error:
            found[quantity] = str(error)
            continue
        if any(map(math.isnan, sizes)):
            found[quantity] = f"no curve for {name} has been derived"
        else:
            are_equal = math.isclose(min(sizes), max(sizes), rel_tol=1e-9)
            found[quantity] = sizes[:1] if are_equal else sizes
    return found


def first_update_lines(run: TransferRun, target: AdapterConfig, grown_of: Growths) -> Iterator[str]:
    yield (
        f"(b) equal in the first update, by theory: from rank {run.adapter.rank} with "
        f"{words_of(target)} and alpha {target.alpha:.10g} to rank {target.rank}"
    )
    for name, what in QUANTITIES.items():
        grown = grown_of[name]
        if isinstance(grown, str):
            yield f"  keeps the {what.label}: {grown}"
            continue
        row = row_of(name, run.optimizer.name, INITS[run.init].drawn)
        alpha = _with_ends([f"{target.alpha * gamma_factor(each, row):.4g}" for each in grown])
        rates = [run.rate(factor) for each in grown if (factor := lr_factor(each, row)) is not None]
        rate = f"learning rate {_with_ends(rates)}" if rates else "no learning rate changes it"
        yield f"  keeps the {what.label}: alpha {alpha}, or {rate}"
        if len(grown) > 1:
            yield (
                f"    (for r_sign {USUAL.r_sign:g} and r_align {USUAL.r_align:g}, as measured on "
                "two models; in brackets: inputs along the gradients, and unrelated to them; "
                "--study with r_align and r_sign of adapter_out gives the number of your model)"
            )
    if run.clip is not None and family(run.optimizer.name) == "linear":
        yield f"  this is without clipping; the run clips at {run.clip}"


def _with_ends(numbers: Sequence[str]) -> str:
    """``8.4 [8 to 16]``, or the one number."""
    first, *ends = numbers
    return f"{first} [{' to '.join(ends)}]" if ends else first


def measuring_lines(run: TransferRun, target: AdapterConfig, config: Path) -> list[str]:
    rule = target.scaling if target.exponent is None else f"{target.exponent:g}"
    ranks = ",".join(str(rank) for rank in sorted({run.adapter.rank, target.rank}))
    return [
        "(c) best by a measured study: give --study RESULTS/NAME. These commands measure it:",
        f"  study train experiment=learning_rate_transfer name=transfer "
        f"optimizer={run.optimizer.name} adapter.alpha={target.alpha:.10g} "
        f"adapter.exponent={target.p:g} adapter.rank={ranks}",
        f"  study transfer {shlex.quote(str(config))} --rank {target.rank} --rule {rule} "
        "--study results/transfer",
    ]


def measured_lines(run: TransferRun, target: AdapterConfig, rates: pd.DataFrame) -> Iterator[str]:
    """Two lines per exponent of the best rate with the optimizer and the rule of the target, the
    alpha closest to the target's first."""
    ranks, rule = (run.adapter.rank, target.rank), words_of(target)
    rows = [
        row
        for row in rate_transfer(rates).to_dict("records")
        if row["optimizer"] == run.optimizer.name
        and math.isclose(row["exponent_p"], target.p, abs_tol=1e-9)
        and math.isfinite(row["exponent"])
    ]
    for row in sorted(rows, key=lambda row: abs(math.log(row["alpha"] / target.alpha))):
        at = [row[key] for key in ("exponent", "ci_low", "ci_high")]
        best, *ends = ((ranks[1] / ranks[0]) ** each for each in at)
        over = {"seeds": "95 % interval over seeds", "ranks": "interval over ranks of one seed"}
        spread = " to ".join(run.rate(end) for end in sorted(ends))
        interval = (
            f"{spread}, {over[row['interval']]}" if row["interval"] in over else "no interval"
        )
        is_inside = row["rank_min"] <= min(ranks) and max(ranks) <= row["rank_max"]
        yield (
            f"  {rule}, alpha {target.alpha:.10g} at both ranks: learning rate {run.rate(best)} "
            f"({interval})"
        )
        yield (
            f"    exponent {at[0]:.2f} [{at[1]:.2f}, {at[2]:.2f}] at the study's alpha, "
            f"{row['alpha']:g}, over ranks {row['rank_min']:g} to {row['rank_max']:g}, "
            f"{count_noun(row['seeds'], 'seed')}"
            f"{'' if is_inside else '; these ranks are outside, so this extrapolates'}"
        )
    if not rows:
        yield (
            f"  no exponent for {run.optimizer.name} and {rule}: it needs two ranks at which the "
            "best of several learning rates is not at an edge"
        )


def gradient_norm_lines(target: AdapterConfig, grown: list[float] | str) -> Iterator[str]:
    yield "gradient norm at step 0, under every optimizer"
    yield (
        "  rsLoRA's grad_norm is sqrt(r) times LoRA's at the same alpha: "
        f"{math.sqrt(target.rank):.3g} times at rank {target.rank} is normal"
    )
    if isinstance(grown, str):
        yield f"  {grown}"
        return
    # From the run to the target's rule at its own rank, gamma stays.
    yield (
        f"  {words_of(target)} with alpha {target.alpha:.10g} at rank {target.rank} is expected to "
        f"have {grown[0]:.3g} times the grad_norm of this run"
    )


def paste_lines(run: TransferRun, target: AdapterConfig, grown_of: Growths, keep: str) -> list[str]:
    """Lines for PEFT and Axolotl. They change alpha and leave the learning rate.

    A lower learning rate would keep the same quantity of the first update. But it would also slow
    A, which then learns less in the steps that follow.
    """
    alpha, why, notes, name = target.alpha, "exactly equivalent", [], run.optimizer.name
    if target.rank != run.adapter.rank:
        grown, descent = grown_of[keep], grown_of["descent"]
        if isinstance(grown, str):
            return [f"nothing to paste: {grown}"]
        drawn = INITS[run.init].drawn
        factor = gamma_factor(grown[0], row_of(keep, name, drawn))
        alpha *= factor
        why = f"keeps the {QUANTITIES[keep].label} by alpha, because a lower rate also slows A"
        if keep == "grad_norm" and family(name) != "linear" and not isinstance(descent, str):
            changed = descent[0] * factor ** row_of("descent", name, drawn).gammas
            notes.append(
                f"  warning: {name} divides the gradient norm out. This alpha multiplies the "
                f"descent of the first update by {changed:.3g}; --keep descent keeps it"
            )
    is_rslora = target.scaling == "rslora"
    theirs = alpha if is_rslora else converted_alpha(alpha, target.rank, target.p, 1.0)
    number, lr = f"{theirs:.10g}", run.rate(1.0)
    lines = [
        f"to paste ({why})",
        *notes,
        f"  PEFT:    LoraConfig(r={target.rank}, lora_alpha={number}, use_rslora={is_rslora})"
        f"  # learning rate: {lr}",
        "  Axolotl:",
        f"    lora_r: {target.rank}",
        f"    lora_alpha: {number}",
        f"    peft_use_rslora: {str(is_rslora).lower()}",
        f"    {'' if run.has_lr else '# '}learning_rate: {lr}",
    ]
    if not float(number).is_integer():
        lines.append(f"    # Axolotl takes a whole lora_alpha: round {number}, or change --rule")
    return lines
