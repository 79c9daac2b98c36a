"""``study advise``: alpha and learning rate at a rank and a rule, with the evidence."""

import json
import math
import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import click
import pandas as pd

from study.analysis.advice import (
    ONE,
    Basis,
    Evidence,
    Setting,
    Span,
    committed,
    committed_evidence,
    expected_rho,
    lost_in_bf16,
    rest,
    study_evidence,
)
from study.cli.group import PATH, cli
from study.cli.rates import overrides_of
from study.cli.symptoms import SYMPTOMS, symptom_lines, symptom_of
from study.config import AdapterConfig
from study.config.types import MOST_RANK, MOST_STEPS
from study.config.values import read
from study.data import files
from study.errors import StudyError, unknown
from study.integrations.configs import read_file
from study.integrations.overrides import written
from study.store import find_cell
from study.store.tables import load_measured
from study.sweeps.progress import count_noun
from study.theory import family
from study.theory.equivalence import converted_alpha, rescaling
from study.vocabulary.optimizers import MOST_USED, OPTIMIZERS, label
from study.vocabulary.scaling import RULES, named_rule, rule_words
from study.vocabulary.sources import MODELS, model_label

USUAL_ALPHA = 16.0
WIDTHS = {"tiny": 64, "smollm2": 576, "gemma3": 640}
MOST_LINES = 15
CHECK, CHECK_STEPS, CHECK_SEEDS, DECADE = "check", 20, "0,1", (-1.0, -0.5, 0.0, 0.5, 1.0)
"""Of the check: name, steps, seeds, and its rates in powers of ten about the advised one."""
OF_THE_CHECK = {
    *("train.epochs", "train.steps", "train.warmup", "train.schedule", "train.save_adapter"),
    *("adapter.rank", "adapter.alpha", "adapter.scaling", "adapter.exponent", "optimizer.lr"),
    *("optimizer", "seed", "data.seed", "data.heldout", "train.eval_every", "name"),
}
"""Keys that the check sets itself or leaves at their defaults."""
NOT_KNOWN = "not known: run the check"
UNKNOWN_RATE = 1e-2
"""The middle of the check's rates if no rate is known; they are then twice as far apart."""
BF16_MATTERS = 0.1
"""Of the adapter's output after ten updates."""


@dataclass(frozen=True)
class Asked:
    """What is asked: a run ``old`` and the run ``new`` that it becomes, with their rules in words.

    ``origin``: where the run was read. ``words``: what was read, as overrides of ``study train``.
    ``cannot``: what the advice does not cover. ``assumed``: what the run does not say.
    """

    origin: str
    words: list[str]
    is_bf16: bool
    old: Setting
    new: Setting
    rules: tuple[str, str]
    cannot: list[str]
    assumed: list[str]


# Reading.


def _settings(
    path: Path | None, entry: str | None, base: str | None
) -> tuple[str, dict[str, Any], list[str], list[str]]:
    """Where the settings come from; they by dotted key, and as overrides; and what is not kept."""
    if path is None:
        return "", {}, [], []
    if path.parent.name == "cells":
        folder, record = find_cell(path.parent.parent, path.name)
        [flat] = pd.json_normalize([record["config"]]).to_dict("records")
        settings = {
            str(key).removesuffix(".name"): value
            for key, value in flat.items()
            if isinstance(value, list) or not pd.isna(value)
        }
        origin = f"cell {folder.name} of {path.parent.parent.name}"
        return origin, settings, overrides_of(record["config"], CHECK, ())[1:], []
    found = read_file(path / "adapter_config.json" if path.is_dir() else path, entry, base=base)
    about = re.compile(r"[^:]*(dora|mora|optim|_pattern|init_)")
    settings = found.settings()
    words = [f"{key}={written(value)}" for key, value in settings.items() if value is not None]
    return found.origin, settings, words, list(filter(about.match, found.differs))


def read_question(
    path: Path | None,
    *,
    rank: int | None = None,
    rule: str | None = None,
    alpha: float | None = None,
    lr: float | None = None,
    optimizer: str | None = None,
    steps: int | None = None,
    model: str | None = None,
    width: int | None = None,
    entry: str | None = None,
) -> Asked:
    """What is asked about the configuration ``path``, or about the options alone.

    Raises :class:`StudyError` for whatever cannot be read, and for a value out of range.
    """
    base = model if path is not None and model not in MODELS else None
    origin, settings, words, cannot = _settings(path, entry, base)
    if path is None and rank is None:
        raise StudyError("give a configuration, or the rank of the run: study advise --rank 64")
    name = optimizer or settings.get("optimizer") or MOST_USED
    if name not in OPTIMIZERS:
        raise unknown("optimizer", name, OPTIMIZERS)
    assumed = []
    if not (optimizer or settings.get("optimizer")):
        assumed.append(f"optimizer {MOST_USED} (--optimizer)")
    if path is None and alpha is None:
        assumed.append(f"alpha {USUAL_ALPHA:g} (--alpha)")
    own = {key: settings.get(f"adapter.{key}") for key in ("rank", "alpha", "scaling", "exponent")}
    if path is None:
        own = {"rank": rank, "alpha": alpha or USUAL_ALPHA, "scaling": rule or "lora"}
    adapter, target = _adapters(origin, own, rank, rule, alpha)
    rate = lr if lr is not None else settings.get("optimizer.lr")
    if rate is not None and not 0 < rate < math.inf:
        raise StudyError(f"--lr={rate:g}: give a learning rate above 0")
    known = str(settings.get("model.path") or settings.get("model") or "")
    old = Setting(
        *(adapter.rank, adapter.alpha, adapter.p, name),
        ratio=float(settings.get("optimizer.loraplus_lr_ratio") or 1.0),
        lr=rate,
        steps=steps or steps_of(settings),
        model=short_model(model or known),
        clip=settings.get("train.clip") is not None,
        width=width or WIDTHS.get(short_model(model or known)),
    )
    new = replace(old, rank=target.rank, alpha=target.alpha, p=target.p)
    rules = tuple(rule_words(each.scaling, each.exponent) for each in (adapter, target))
    if model in MODELS or not known:
        words = [word for word in words if not word.startswith("model")]
        hub = ["model=hf", f"model.path={model or 'YOUR_MODEL'}"]
        words += [f"model={model}"] if model in MODELS else hub
    is_bf16 = settings.get("precision") == "bf16"
    return Asked(origin, words, is_bf16, old, new, (rules[0], rules[1]), cannot, assumed)


def steps_of(settings: Mapping[str, Any]) -> int | None:
    """The optimizer's steps. Epochs have some only if the file of the rows is here."""
    if settings.get("train.steps"):
        return int(settings["train.steps"])
    path, epochs = settings.get("data.path"), settings.get("train.epochs")
    if not epochs or not isinstance(path, str) or not Path(path).is_file():
        return None
    if settings.get("data.sample_packing"):
        return None
    rows = sum(1 for _ in files.read(path)) - settings.get("data.heldout", 0)
    batch = settings.get("train.batch_size", 8) * settings.get("train.accumulation", 1)
    return max(1, math.ceil(epochs * math.ceil(rows / batch)))


def _adapters(
    origin: str, own: Mapping[str, Any], rank: int | None, rule: str | None, alpha: float | None
) -> tuple[AdapterConfig, AdapterConfig]:
    """The adapter of the run, and that with the new rank and rule.

    Without ``alpha``, the new alpha is that with which the run at its own rank has the rule.
    """
    fixed = {"targets": "all-linear", "init": "kaiming", "dropout": 0.0}
    try:
        old = read(AdapterConfig, fixed | dict(own), "adapter.")
        if old.rank == math.inf:
            raise StudyError("no alpha reaches infinite rank: give a run of finite rank")
        scaling, p = (old.scaling, old.exponent) if rule is None else named_rule(rule)
        changed = {"rank": rank or old.rank, "scaling": scaling, "exponent": p}
        new = read(AdapterConfig, asdict(old) | changed, "adapter.")
        same = converted_alpha(old.alpha, old.rank, old.p, new.p)
    except ValueError as error:
        raise StudyError(f"{origin}: {error}" if origin else str(error)) from None
    return old, replace(new, alpha=alpha or same)


def short_model(name: str) -> str:
    """The name by which studies on the same model are found."""
    last = name.rstrip("/").rpartition("/")[2].lower()
    return "smollm2" if last.startswith("smollm2-135m") else last


def own_evidence(folders: tuple[Path, ...]) -> Evidence | None:
    """What the user's studies measured. Raises :class:`StudyError` for one without rates."""
    bests, laws = [], []
    for folder in folders:
        tables = load_measured(folder)
        found = study_evidence(tables.cells, tables.metrics, tables.probes, str(folder))
        if not found.bests:
            raise StudyError(
                f"{folder} has no rank with two learning rates for all of its seeds: sweep over "
                "some, such as optimizer.lr=1e-4,3e-4,1e-3"
            )
        bests += [replace(best, model=short_model(best.model)) for best in found.bests]
        laws += [replace(law, model=short_model(law.model)) for law in found.laws]
    return Evidence(bests, laws) if folders else None


# Words.


def number(value: float) -> str:
    return f"{value:.2g}"


def span(found: Span, unit: str = "") -> str:
    if math.isclose(found.low, found.high):
        return f"{number(found.value)}{unit}"
    return f"{number(found.value)}{unit} [{number(found.low)}, {number(found.high)}]"


def about_run(run: Setting, rule: str) -> str:
    rate = f", learning rate {number(run.lr)}" if run.lr is not None else ""
    ratio = f", LoRA+ ratio {run.ratio:g}" if run.ratio != 1 else ""
    return f"rank {run.rank}, {rule}, alpha {run.alpha:.4g}, {label(run.optimizer)}{rate}{ratio}"


def basis_line(basis: Basis, asked: Asked) -> str:
    """The answer of one basis, what was measured where, and how far the user's setting is."""
    is_linear = family(asked.new.optimizer) == "linear"
    answer = span(basis.rate) if basis.rate else span(basis.factor or ONE, " x yours")
    if basis.kind == "theory":
        why = "any layer" if is_linear else "A has hardly moved to A has moved far"
        return f"theory: {answer}, so that the adapter's output moves as before ({why})"
    if basis.kind == "yours":
        return f"yours: {answer}; nothing changes that would change the best rate"
    law = "measured" if basis.kind != "others" else "measured by others"
    if basis.exponent:
        law += (
            f" r^{basis.exponent.value:.2f} [{basis.exponent.low:.2f}, {basis.exponent.high:.2f}]"
        )
    low, high = basis.ranks or (0, 0)
    seeds = f", {count_noun(basis.seeds, 'seed')}" if basis.seeds and basis.kind != "others" else ""
    alpha = f", alpha {basis.alpha:g}" if basis.alpha else ""
    where = f"{model_label(basis.model)}, ranks {low} to {high}{alpha}, {basis.steps} steps{seeds}"
    yours = ", ".join(_distance(basis, asked.new))
    return f"{law}: {answer} ({basis.source}: {where}; yours: {yours})"


def _distance(basis: Basis, new: Setting) -> Iterator[str]:
    """How far the user's setting is from a study."""
    if not basis.inside:
        yield "outside (extrapolated)"
    same = "same model" if new.model == basis.model else "another model"
    yield same if new.model else "model not known"
    if new.optimizer != MOST_USED and basis.kind == "exponent":
        yield f"{label(new.optimizer)}, not AdamW"
    if new.steps is None or not basis.steps:
        yield "steps not known (--steps)"
    elif new.steps != basis.steps:
        yield f"{new.steps / basis.steps:.2g} times the steps"


def paste_lines(asked: Asked, rate: str, known: bool) -> tuple[str, list[str]]:
    """The advice for PEFT, and for Axolotl. Both know two rules: any other is written as LoRA's."""
    new, is_rslora = asked.new, asked.rules[1] == "rslora"
    theirs = new.alpha if is_rslora else converted_alpha(new.alpha, new.rank, new.p, 1.0)
    alpha, comment = f"{theirs:.10g}", ""
    if not float(alpha).is_integer():
        comment = "  # Axolotl takes a whole number: round it, or use the other rule"
    peft = f"LoraConfig(r={new.rank}, lora_alpha={alpha}, use_rslora={is_rslora})"
    axolotl = [
        f"lora_r: {new.rank}  # Axolotl",
        f"lora_alpha: {alpha}{comment}",
        f"peft_use_rslora: {str(is_rslora).lower()}",
        f"{'' if known else '# '}learning_rate: {rate}",
    ]
    if new.ratio != 1:
        axolotl.append(f"loraplus_lr_ratio: {new.ratio:g}")
    return f"{peft}  # learning_rate={rate}", axolotl


def product_line(asked: Asked) -> str:
    """Why alpha and the learning rate are one question, and what is exactly the same run."""
    old = asked.old
    product = "alpha^2 x rate" if family(old.optimizer) == "linear" else "alpha x rate"
    same = " = ".join(
        f"{rule} with alpha {converted_alpha(old.alpha, old.rank, old.p, row.p):.4g}"
        for rule, row in RULES.items()
        if row.p is not None
    )
    return (
        f"Alpha or rate? One question: only {product} matters while A hardly moves. At rank "
        f"{old.rank} the same run: {same} = twice that alpha with "
        f"{rescaling(old.optimizer, 1.0, 0.5).lr_b:g} x B's rate."
    )


def change_lines(asked: Asked, rate: float | None) -> Iterator[str]:
    """What would change the advice."""
    h, kind, p = committed()["horizon"], family(asked.new.optimizer), asked.new.p
    others = {
        "sign": "SGD (rslora's rate holds at every rank; lora's grows as r)",
        "linear": "Adam (lora's rate holds at every rank; rslora's falls)",
        "spectral": "Adam or SGD",
    }
    yield f"another optimizer: {others[kind]}"
    if kind != "linear" and p != 1:
        rho = expected_rho(asked.new, rate) if rate else None
        here = f", here about {number(rho)}" if rho else ""
        yield (
            f"rho = |dA x|/|A0 x|{here}: the rate goes as r^{p - 1:g} far below 1, as "
            f"r^{(p - 1) / 2:g} far above"
        )
    if kind == "sign":
        yield f"10 times the steps: about {10 ** -h[0]:.1g} times the rate"


def bf16_note(asked: Asked, rate: float | None) -> list[str]:
    if not asked.is_bf16 or rate is None:
        return []
    lost = dict(lost_in_bf16(asked.new, rate))
    if lost.get(10, 0.0) < BF16_MATTERS:
        return []
    return [
        f"bf16: PEFT loses about {lost[1]:.0%} of the adapter's output after 1 update and "
        f"{lost[10]:.0%} after 10 (theory at SmolLM2's sizes); round_once mends it: docs/bf16.md"
    ]


# The check.


def check_of(asked: Asked, rate: float | None, typed: list[str]) -> dict[str, Any]:
    """The command that measures the best rates on the user's model, its time, and what reads it."""
    new, old = asked.new, asked.old
    rule = asked.rules[1] if asked.rules[1] in RULES else f"{new.p:g}"
    kept = (word for word in asked.words if not word.startswith("probes."))
    shared = [word for word in kept if word.split("=")[0] not in OF_THE_CHECK]
    shared += [f"optimizer={new.optimizer}", f"adapter.scaling={rule}"]
    shared += [f"adapter.alpha={new.alpha:.10g}", f"train.steps={CHECK_STEPS}"]
    shared.append("probes.steps=null")
    other = old.rank if old.rank != new.rank else new.rank // 4 or 4
    ranks = sorted((new.rank, other))
    # The best rate of a short run is higher. A run of unknown length is taken as 10 times as long.
    longer = (new.steps or 10 * CHECK_STEPS) / CHECK_STEPS
    centre = (rate or UNKNOWN_RATE) * longer ** committed()["horizon"][0]
    wide = 1 if rate else 2
    rates = ",".join(f"{centre * 10 ** (wide * power):.2g}" for power in DECADE)
    swept = [f"adapter.rank={ranks[0]},{ranks[1]}", f"optimizer.lr={rates}", f"seed={CHECK_SEEDS}"]
    of_rank = planned_seconds(shared, ranks)
    cells = len(DECADE) * len(CHECK_SEEDS.split(","))
    steps = [] if new.steps else ["--steps", "STEPS"]
    folder = f"results/{CHECK}"
    return {
        "command": shlex.join(["study", "train", "-m", f"name={CHECK}", *shared, *swept]),
        "seconds": None if of_rank is None else cells * sum(of_rank),
        "then": shlex.join(["study", "advise", *typed, *steps, "--study", folder]),
    }


def planned_seconds(shared: list[str], ranks: list[int]) -> list[float] | None:
    """The time of one cell of each rank; None if base or data are not on this machine."""
    values = dict(text.split("=", 1) for text in shared)
    model = values.get("model", "smollm2")
    places = [values[key].strip("'") for key in ("model.path", "data.path") if key in values]
    if model not in MODELS or not all(Path(place).exists() for place in places):
        return None  # a hub is asked when it is trained
    from study.models import packaged

    if MODELS[model].is_packaged and not packaged.is_whole(packaged.PACKAGES[model].folder):
        return None
    from study.sweeps.plan import seconds_of

    try:
        return seconds_of(shared, [[f"adapter.rank={rank}"] for rank in ranks])
    except StudyError:  # the check itself will say why
        return None


# The advice.


def advise_of(
    asked: Asked, bases: list[Basis], own: Evidence | None, typed: list[str]
) -> dict[str, Any]:
    """Everything that the command says, as it is printed by ``--json``."""
    rate = next((basis.rate for basis in bases if basis.rate), None)
    factor = next((basis.factor for basis in bases if basis.factor), None)
    value = rate.value if rate else None
    words = number(value) if value else f"{number(factor.value)} x yours" if factor else NOT_KNOWN
    peft, axolotl = paste_lines(asked, words, rate is not None)
    notes = [*bf16_note(asked, value), *own_notes(own, asked.new)]
    new = asked.new
    return {
        "asked": {"origin": asked.origin, "rule": asked.rules[0], **asdict(asked.old)},
        "advice": {
            "rule": asked.rules[1],
            "rank": new.rank,
            "alpha": new.alpha,
            "gamma": new.gamma,
            "learning_rate": rate and asdict(rate),
            "factor": factor and asdict(factor),
            "loraplus_lr_ratio": new.ratio,
        },
        "peft": peft,
        "axolotl": axolotl,
        "evidence": [{**asdict(basis), "words": basis_line(basis, asked)} for basis in bases],
        "alpha_or_rate": product_line(asked),
        "changes": list(change_lines(asked, value)),
        "cannot": asked.cannot,
        "assumed": asked.assumed,
        "notes": notes,
        "check": None if own else check_of(asked, value, typed),
    }


def own_notes(own: Evidence | None, new: Setting) -> Iterator[str]:
    """What of the user's studies does not count: another model, rates at the end of those tried."""
    for best in own.bests if own else ():
        if new.model not in ("", best.model):
            yield f"{best.source} is of {best.model}: only its exponents count for {new.model}"
            return
        if best.edge and best.optimizer == new.optimizer:
            yield (
                f"{best.source}: the {best.edge} rate that was tried is best at rank {best.rank} "
                f"({number(best.lr)}): study rates {best.source} --refine prints what to train"
            )
            return


def advice_lines(found: Mapping[str, Any], asked: Asked) -> list[str]:
    """The advice in at most :data:`MOST_LINES` lines."""
    rate, factor = found["advice"]["learning_rate"], found["advice"]["factor"]
    answer = (
        span(Span(**rate)) if rate else span(Span(**factor), " x yours") if factor else NOT_KNOWN
    )
    lines = [
        f"From: {about_run(asked.old, asked.rules[0])}",
        f"Set:  {about_run(replace(asked.new, lr=None), asked.rules[1])}, "
        f"learning rate {answer or NOT_KNOWN}",
        f"PEFT: {found['peft']}",
        *found["axolotl"],
    ]
    for what in ("cannot say", "assumed"):
        if found[what.split()[0]]:
            lines.append(f"{what}: {'; '.join(found[what.split()[0]])}")
    last = [found["alpha_or_rate"], f"Changes it: {'; '.join(found['changes'])}.", *found["notes"]]
    if check := found["check"]:
        seconds = check["seconds"]
        time = "--plan says its time" if seconds is None else f"{max(1, round(seconds))} s here"
        last += [f"Check ({time}): {check['command']}", f"Then: {check['then']}"]
    evidence = [basis["words"] for basis in found["evidence"]]
    return [*lines, *evidence[: MOST_LINES - len(lines) - len(last)], *last]


@cli.command()
@click.argument("config", type=PATH, metavar="[CONFIG]", required=False)
@click.option("--rank", type=click.IntRange(1, MOST_RANK), help="The new rank; or the run's own.")
@click.option("--rule", help="The new rule: lora, rslora, or a number p.  [default: the same]")
@click.option("--alpha", type=float, help="The new alpha.  [default: the same run at its own rank]")
@click.option("--lr", type=float, help="The learning rate of the run, if CONFIG has none.")
@click.option("--optimizer", metavar="NAME", help="The optimizer of the run.")
@click.option("--steps", type=click.IntRange(1, MOST_STEPS), help="The steps of the run.")
@click.option(
    "--model",
    "--base",
    "model",
    metavar="NAME",
    help="The model: tiny, smollm2, a folder or a hub name.  [default: that of CONFIG]",
)
@click.option("--width", type=click.IntRange(1), help="Features of its hidden states.")
@click.option(
    "--study",
    "studies",
    type=PATH,
    multiple=True,
    metavar="RESULTS/NAME",
    help="A study of yours, measured on this model.",
)
@click.option("--entry", help="The configuration to read, if the file holds several.")
@click.option(
    "--symptom", type=click.Choice(list(SYMPTOMS)), help="What goes wrong, and what to set."
)
@click.option("--json", "as_json", is_flag=True, help="Print the advice as JSON.")
def advise(
    config: Path | None,
    studies: tuple[Path, ...],
    symptom: str | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Say which alpha and learning rate to set at a rank and a rule, and on what that rests.

    CONFIG is a configuration of PEFT, Axolotl, LLaMA-Factory, TRL, Unsloth or FinLoRA, or a cell:
    RESULTS/NAME/cells/ID. Options alone describe a run as well: --rank 64 --optimizer adamw.
    """
    if symptom is not None:
        answer = symptom_of(symptom, committed()["facts"])
        click.echo(json.dumps(answer) if as_json else "\n".join(symptom_lines(answer)))
        return
    asked = read_question(config, **options)
    own = own_evidence(studies)
    bases = rest(asked.old, asked.new, own, committed_evidence())
    typed = [] if config is None else [str(config)]
    typed += [word for key, value in options.items() if value for word in (f"--{key}", str(value))]
    found = advise_of(asked, bases, own, typed)
    click.echo(json.dumps(found) if as_json else "\n".join(advice_lines(found, asked)))
