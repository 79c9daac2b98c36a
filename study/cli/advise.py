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
    Basis,
    Evidence,
    Setting,
    Span,
    committed,
    committed_evidence,
    lost_in_bf16,
    rest,
    study_evidence,
)
from study.cli.group import PATH, cli
from study.cli.rates import overrides_of
from study.cli.symptoms import SYMPTOMS
from study.config import AdapterConfig
from study.config.types import MOST_RANK, MOST_STEPS
from study.config.values import read
from study.data import files
from study.errors import StudyError, count_noun, unknown
from study.integrations.configs import read_file
from study.integrations.configs.writing import written
from study.store import find_cell
from study.store.tables import load_measured
from study.theory import family
from study.theory.equivalence import converted_alpha
from study.vocabulary.optimizers import MOST_USED, OPTIMIZERS, label
from study.vocabulary.scaling import RULES, named_rule, rule_words
from study.vocabulary.sources import DEVICES, MATMUL_SHARE, MODELS, model_label

MOST_LINES = 15
USUAL_ALPHA, UNKNOWN_RATE = 16.0, 1e-2
WIDTHS = {"tiny": 64, "smollm2": 576}
CHECK, CHECK_STEPS, CHECK_SEEDS, TENTHS = "check", 20, "0,1", (-1.0, -0.5, 0.0, 0.5, 1.0)
"""The check's name, steps, seeds, and rates (in powers of ten around the advised one)."""
OF_THE_CHECK = re.compile(
    r"(train\.(epochs|steps|warmup|schedule|save_adapter|eval_every)|adapter\.(rank|alpha|scaling|"
    r"exponent)|optimizer|optimizer\.lr|(data\.)?seed|data\.heldout|name|probes\.\w+)=|"
    r"(adapter\.dropout|optimizer\.weight_decay)=0\.0$|train\.accumulation=1$|"
    r"adapter\.targets=all-linear$|precision=float32$|model\.quant_bits=null$"
)
"""Settings that the check sets itself or leaves at their defaults."""
NOT_COVERED = re.compile(r"[^:]*(dora|mora|optim|_pattern|init_)")
"""Notes of an imported configuration on what changes the advice."""
BF16_MATTERS = 0.1
NOT_KNOWN = "not known: run the check"


@dataclass(frozen=True)
class Asked:
    """The run ``old`` and the advised run ``new``, with their rules in words.

    ``words``: the settings read, as overrides of ``study train``. ``cannot``: settings without
    advice. ``assumed``: settings that the configuration lacks.
    """

    origin: str
    words: list[str]
    old: Setting
    new: Setting
    rules: tuple[str, str]
    cannot: list[str]
    assumed: list[str]


# Reading.


def read_settings(
    path: Path, entry: str | None, base: str | None
) -> tuple[str, dict[str, Any], list[str], list[str]]:
    """The source of a run; its settings by dotted key, and as overrides; those without advice."""
    if path.parent.name == "cells":
        folder, record = find_cell(path.parent.parent, path.name)
        [flat] = pd.json_normalize([record["config"]]).to_dict("records")
        settings = {str(key).removesuffix(".name"): value for key, value in flat.items()}
        origin = f"cell {folder.name} of {path.parent.parent.name}"
        return origin, settings, overrides_of(record["config"], CHECK, ()), []
    found = read_file(path / "adapter_config.json" if path.is_dir() else path, entry, base=base)
    settings = found.settings()
    words = [f"{key}={written(value)}" for key, value in settings.items() if value is not None]
    return found.origin, settings, words, list(filter(NOT_COVERED.match, found.differs))


def read_question(path: Path | None, entry: str | None, given: Mapping[str, Any]) -> Asked:
    """The question about the configuration ``path``, or about the options ``given`` alone.

    Raises :class:`StudyError` for a file that cannot be read, and for a value out of range.
    """
    rank, rule, alpha, model = (given[key] for key in ("rank", "rule", "alpha", "model"))
    if path is None and rank is None:
        raise StudyError("give a configuration, or the rank of the run: study advise --rank 64")
    settings: dict[str, Any] = {"adapter.rank": rank, "adapter.alpha": alpha or USUAL_ALPHA}
    settings["adapter.scaling"] = rule or "lora"
    origin, words, cannot = "the options", list[str](), list[str]()
    if path is not None:
        base = None if model in MODELS else model
        origin, settings, words, cannot = read_settings(path, entry, base)
    name = given["optimizer"] or settings.get("optimizer") or MOST_USED
    if name not in OPTIMIZERS:
        raise unknown("optimizer", name, OPTIMIZERS)
    known = str(settings.get("model.path") or settings.get("model") or "")
    is_named = bool(given["optimizer"] or settings.get("optimizer"))
    assumed = [] if is_named else [f"optimizer {MOST_USED} (--optimizer)"]
    assumed += [f"alpha {USUAL_ALPHA:g} (--alpha)"] if path is None and alpha is None else []
    if (init := settings.get("adapter.init")) in ("scaled", "init_b"):
        cannot.append(f"adapter.init={init} (read as kaiming)")
    adapters = _adapters(origin, settings, rank, rule, alpha)
    rate = settings.get("optimizer.lr") if given["lr"] is None else given["lr"]
    if rate is not None and not 0 < rate < math.inf:
        raise StudyError(f"--lr={rate:g}: give a learning rate above 0")
    base = short_model(model or known)
    old, new = (
        Setting(
            *(adapter.rank, adapter.alpha, adapter.p, name),
            ratio=float(settings.get("optimizer.loraplus_lr_ratio") or 1.0),
            lr=rate,
            steps=given["steps"] or steps_of(settings),
            model=base,
            width=given["width"] or WIDTHS.get(base),
        )
        for adapter in adapters
    )
    if model in MODELS or not (known or words):
        hub = ["model=hf", f"model.path={model or 'YOUR_MODEL'}"]
        words = [word for word in words if not word.startswith("model")]
        words += [f"model={model}"] if model in MODELS else hub
    rules = [rule_words(each.scaling, each.exponent) for each in adapters]
    return Asked(origin, words, old, new, (rules[0], rules[1]), cannot, assumed)


def _adapters(
    origin: str, settings: Mapping[str, Any], rank: int | None, rule: str | None, alpha: Any
) -> tuple[AdapterConfig, AdapterConfig]:
    """The adapter of the run, and that with the new rank and rule.

    Without ``alpha``, the new alpha gives the same run at the old rank under the new rule.
    """
    own = {key: settings.get(f"adapter.{key}") for key in ("rank", "alpha", "scaling", "exponent")}
    if own["exponent"] != own["exponent"]:  # of a cell
        own["exponent"] = None
    try:
        fixed = {"targets": "all-linear", "init": "kaiming", "dropout": 0.0}
        old = read(AdapterConfig, fixed | own, "adapter.")
        if old.rank == math.inf:
            raise StudyError("no alpha reaches infinite rank: give a run of finite rank")
        scaling, p = (old.scaling, old.exponent) if rule is None else named_rule(rule)
        changed = {"rank": rank or old.rank, "scaling": scaling, "exponent": p}
        new = read(AdapterConfig, asdict(old) | changed, "adapter.")
        same = converted_alpha(old.alpha, old.rank, old.p, new.p)
    except ValueError as error:
        raise StudyError(f"{origin}: {error}") from None
    return old, replace(new, alpha=alpha or same)


def steps_of(settings: Mapping[str, Any]) -> int | None:
    """The optimizer's steps. From epochs they are known only if the data file is here."""
    if settings.get("train.steps"):
        return int(settings["train.steps"])
    path, epochs = settings.get("data.path"), settings.get("train.epochs")
    is_file = isinstance(path, str) and Path(path).is_file()
    if not epochs or not is_file or settings.get("data.sample_packing"):
        return None
    rows = sum(1 for _ in files.read(str(path))) - settings.get("data.heldout", 0)
    batch = settings.get("train.batch_size", 8) * settings.get("train.accumulation", 1)
    return max(1, math.ceil(epochs * math.ceil(rows / batch)))


def short_model(name: str) -> str:
    """The name by which studies on the same model are found."""
    last = name.rstrip("/").rpartition("/")[2].lower()
    starts = {"smollm2-135m": "smollm2", "gemma-3-270m": "gemma3"}
    return next((short for start, short in starts.items() if last.startswith(start)), last)


def own_evidence(folders: tuple[Path, ...]) -> Evidence | None:
    """The evidence of the user's studies. Raises :class:`StudyError` for one without rates."""
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


def span(found: Span, form: str = ".2g") -> str:
    value, low, high = (format(each, form) for each in found)
    return value if low == high else f"{value} [{low}, {high}]"


def rate_words(basis: Basis | None) -> str:
    if basis is None:
        return NOT_KNOWN
    return span(basis.rate) + (" x yours" if basis.relative else "")


def about_run(run: Setting, rule: str) -> str:
    rate = f", learning rate {run.lr:.2g}" if run.lr is not None else ""
    ratio = f", LoRA+ ratio {run.ratio:g}" if run.ratio != 1 else ""
    return f"rank {run.rank}, {rule}, alpha {run.alpha:.4g}, {label(run.optimizer)}{ratio}{rate}"


HEADS = {
    "measured": "measured",
    "exponent": "measured, r^{}",
    "theory": "theory, from equal descents to equal outputs",
    "yours": "yours, nothing changes the best rate",
    "others": "measured by others",
}


def basis_line(basis: Basis, new: Setting) -> str:
    """The answer of one basis, where it was measured, and how the user's setting differs."""
    law = span(basis.exponent, ".2f") if basis.exponent else ""
    line = f"{HEADS[basis.kind].format(law)}: {rate_words(basis)}"
    if (where := basis.where) is None:
        return line
    far = [] if basis.inside else ["outside its ranks or rates"]
    far.append("same model" if where.model == new.model else "other model")
    if where.optimizer != new.optimizer:
        far.append(f"{label(new.optimizer)}, not {label(where.optimizer)}")
    far.append(f"{new.steps / where.steps:.2g} x the steps" if new.steps else "--steps not given")
    alpha = f", alpha {where.alpha:g}" if where.alpha else ""
    return (
        f"{line} ({where.source}: {model_label(where.model)}, ranks {where.ranks[0]} to "
        f"{where.ranks[-1]}{alpha}, {where.steps} steps, {count_noun(where.seeds, 'seed')}; "
        f"yours: {', '.join(far)})"
    )


def paste_lines(asked: Asked, rate: str) -> list[str]:
    """Lines for PEFT and for Axolotl. Both know two rules: any other is written as LoRA's."""
    new, is_rslora = asked.new, asked.rules[1] == "rslora"
    theirs = new.alpha if is_rslora else converted_alpha(new.alpha, new.rank, new.p, 1.0)
    alpha, whole = f"{theirs:.10g}", theirs == round(theirs)
    return [
        f"PEFT: LoraConfig(r={new.rank}, lora_alpha={alpha}, use_rslora={is_rslora})",
        f"lora_r: {new.rank}  # Axolotl",
        f"lora_alpha: {alpha}{'' if whole else '  # round it: Axolotl takes whole numbers'}",
        f"peft_use_rslora: {str(is_rslora).lower()}",
        f"learning_rate: {rate}",
        *([f"loraplus_lr_ratio: {new.ratio:g}"] if new.ratio != 1 else []),
    ]


def product_line(asked: Asked) -> str:
    """Why alpha and the learning rate are one question, and which settings give the same run.

    B grows by its rate times its update, and a linear update grows with gamma.
    """
    old = asked.old
    square, rate = ("^2", 0.25) if family(old.optimizer) == "linear" else ("", 0.5)
    same = " = ".join(
        f"{rule} alpha {converted_alpha(old.alpha, old.rank, old.p, row.p):.4g}"
        for rule, row in RULES.items()
        if row.p is not None
    )
    return (
        f"Alpha or rate? Only alpha{square} x rate matters while A hardly moves. The same run at "
        f"rank {old.rank}: {same} = twice that alpha with {rate:g} x B's rate."
    )


def change_words(asked: Asked, rate: float | None) -> Iterator[str]:
    """What would change the advice."""
    if family(asked.new.optimizer) == "linear":
        yield "Adam (lora's rate holds at every rank, rslora's falls)"
        return
    yield "SGD (rslora's rate holds at every rank, lora's grows)"
    if (p := asked.new.p) != 1 and family(asked.new.optimizer) == "sign":
        rho = replace(asked.new, lr=rate).rho
        here = f" (here about {rho:.2g})" if rho else ""
        yield f"rho{here}: r^{p - 1:g} if A hardly moves, r^{(p - 1) / 2:g} if far"
    yield f"10 x the steps: {10 ** -committed()['horizon'][0]:.1g} x the rate"


def notes_on(asked: Asked, rate: float | None, own: Evidence | None) -> Iterator[str]:
    """Lines on bf16, and on the user's studies that do not count."""
    lost = lost_in_bf16(asked.new, rate) if rate and "precision=bf16" in asked.words else {}
    if lost.get(10, 0.0) > BF16_MATTERS:
        yield (
            f"bf16: PEFT loses about {lost[1]:.0%} of the adapter's output after 1 update, "
            f"{lost[10]:.0%} after 10 (theory, sizes of SmolLM2): docs/bf16.md"
        )
    for best in own.bests if own else ():
        if asked.new.model not in ("", best.model):
            yield f"{best.source} is of {best.model}: only its exponents count"
            return
        if best.edge and best.optimizer == asked.new.optimizer:
            yield (
                f"{best.source}: the {best.edge} rate is best at rank {best.ranks[0]}: "
                f"study rates {best.source} --refine"
            )
            return


# The check.


def check_of(asked: Asked, rate: float | None, typed: list[str]) -> dict[str, Any]:
    """The command that measures the best rates on the user's model, its cost, and the next one."""
    new, old = asked.new, asked.old
    rule = asked.rules[1] if asked.rules[1] in RULES else f"{new.p:g}"
    shared = [word for word in asked.words if not OF_THE_CHECK.match(word)]
    shared += [f"optimizer={new.optimizer}", f"adapter.scaling={rule}", "probes.steps=null"]
    shared += [f"adapter.alpha={new.alpha:.10g}", f"train.steps={CHECK_STEPS}"]
    ranks = sorted((new.rank, old.rank if old.rank != new.rank else new.rank // 4 or 4))
    # The best rate of a short run is higher. A run of unknown length counts as 10 times as long.
    longer = (new.steps or 10 * CHECK_STEPS) / CHECK_STEPS
    centre = (rate or UNKNOWN_RATE) * longer ** committed()["horizon"][0]
    rates = [f"{centre * 10 ** (tenth * (1 if rate else 2)):.2g}" for tenth in TENTHS]
    swept = [f"adapter.rank={ranks[0]},{ranks[1]}", f"optimizer.lr={','.join(rates)}"]
    steps = [] if new.steps else ["--steps", "STEPS"]
    folder = f"results/{CHECK}"
    words = ["study", "train", "-m", f"name={CHECK}", *shared, *swept, f"seed={CHECK_SEEDS}"]
    return {
        "command": shlex.join(words),
        "cost": cost_words(shared, ranks, len(rates) * len(CHECK_SEEDS.split(","))),
        "then": shlex.join(["study", "advise", *typed, *steps, "--study", folder]),
    }


def cost_words(shared: list[str], ranks: list[int], cells: int) -> str:
    """The time of the check: on this machine if it has the base, otherwise on a GPU."""
    values = dict(text.split("=", 1) for text in shared)
    model, place = values.get("model", "smollm2"), values.get("model.path", "").strip("'")
    sizes = ("train.batch_size", "8"), ("train.accumulation", "1"), ("data.sequence_length", "48")
    steps = len(ranks) * cells * CHECK_STEPS
    tokens = math.prod(int(values.get(key, usual)) for key, usual in sizes)
    words = f"{steps} steps of {tokens} tokens"
    if place and not Path(place).is_dir():
        size = re.search(r"(\d+(?:\.\d+)?)\s*([bm])\b", place, re.IGNORECASE)
        if size is None:
            return words
        weights = float(size[1]) * (1e9 if size[2] in "bB" else 1e6)
        rate = MATMUL_SHARE / 2 * 1e12 * DEVICES["h100"].bf16
        return f"{words}: at least {math.ceil(4 * weights * steps * tokens / rate)} s on an H100"
    from study.models import packaged

    if MODELS[model].is_packaged and not packaged.is_whole(packaged.PACKAGES[model].folder):
        return words
    from study.sweeps.plan import seconds_of

    of_ranks = seconds_of(shared, [[f"adapter.rank={rank}"] for rank in ranks])
    return f"{words}: at most {math.ceil(cells * sum(of_ranks))} s here"


def advise_of(
    asked: Asked, bases: list[Basis], own: Evidence | None, typed: list[str]
) -> dict[str, Any]:
    """Everything that the command prints, as ``--json`` prints it."""
    first, new = (bases[0] if bases else None), asked.new
    value = first.rate.value if first and not first.relative else None
    return {
        "run": asdict(asked.old) | {"origin": asked.origin, "rule": asked.rules[0]},
        "advice": asdict(new) | {"rule": asked.rules[1], "lr": first and asdict(first.rate)},
        "is_factor": bool(first and first.relative),
        "paste": paste_lines(asked, f"{value:.2g}" if value else f"# {rate_words(first)}"),
        "evidence": [asdict(basis) | {"words": basis_line(basis, new)} for basis in bases],
        "alpha_or_rate": product_line(asked),
        "changes": list(change_words(asked, value)),
        "cannot": asked.cannot,
        "assumed": asked.assumed,
        "notes": list(notes_on(asked, value, own)),
        "check": None if own else check_of(asked, value, typed),
    }


def advice_lines(found: Mapping[str, Any], asked: Asked, answer: str) -> list[str]:
    """The advice in at most :data:`MOST_LINES` lines."""
    lines = [
        f"From: {about_run(asked.old, asked.rules[0])}",
        f"Set:  {about_run(replace(asked.new, lr=None), asked.rules[1])}, learning rate {answer}",
        *found["paste"],
        *(f"cannot say: {'; '.join(found['cannot'])}" for _ in found["cannot"][:1]),
        *(f"assumed: {'; '.join(found['assumed'])}" for _ in found["assumed"][:1]),
    ]
    last = [found["alpha_or_rate"], f"It changes with {'; '.join(found['changes'])}."]
    last += found["notes"]
    if check := found["check"]:
        last += [f"Check ({check['cost']}): {check['command']}", f"Then: {check['then']}"]
    evidence = [basis["words"] for basis in found["evidence"]]
    return [*lines, *evidence[: MOST_LINES - len(lines) - len(last)], *last]


@cli.command()
@click.argument("config", type=PATH, metavar="[CONFIG]", required=False)
@click.option("--rank", type=click.IntRange(1, MOST_RANK), help="The new rank; or the run's own.")
@click.option("--rule", help="The new rule: lora, rslora, or a number p.  [default: the same]")
@click.option("--alpha", type=float, help="The new alpha.  [default: the same run at its own rank]")
@click.option("--lr", type=float, help="The learning rate of the run.")
@click.option("--optimizer", metavar="NAME", help="The optimizer of the run.")
@click.option("--steps", type=click.IntRange(1, MOST_STEPS), help="The steps of the run.")
@click.option("--model", "--base", "model", help="Its model: tiny, smollm2, a folder, a hub name.")
@click.option("--width", type=click.IntRange(1), help="Features of its hidden states.")
@click.option("--study", "studies", type=PATH, multiple=True, help="A study on this model.")
@click.option("--entry", help="The configuration to read, if the file holds several.")
@click.option("--symptom", type=click.Choice(list(SYMPTOMS)), help="What goes wrong.")
@click.option("--json", "as_json", is_flag=True, help="Print the advice as JSON.")
def advise(
    config: Path | None,
    studies: tuple[Path, ...],
    entry: str | None,
    symptom: str | None,
    as_json: bool,
    **given: Any,
) -> None:
    """Print alpha and learning rate for a rank and a rule, with the evidence.

    CONFIG is a configuration of PEFT, Axolotl, LLaMA-Factory, TRL, Unsloth or FinLoRA, or a cell:
    RESULTS/NAME/cells/ID. Options can also describe a run: --rank 64 --optimizer adamw.
    """
    if symptom is not None:
        facts = committed()["facts"]
        answer = {key: text.format(**facts) for key, text in SYMPTOMS[symptom].items()}
        lines = [f"{key}: {text}" for key, text in answer.items()]
        click.echo(json.dumps(answer) if as_json else "\n".join(lines))
        return
    asked, own = read_question(config, entry, given), own_evidence(studies)
    bases = rest(asked.old, asked.new, own, committed_evidence())
    typed = [] if config is None else [str(config)]
    typed += [f"--{key}={value}" for key, value in given.items() if value is not None]
    found = advise_of(asked, bases, own, typed)
    lines = advice_lines(found, asked, rate_words(bases[0] if bases else None))
    click.echo(json.dumps(found) if as_json else "\n".join(lines))
