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
    FAR,
    Basis,
    Evidence,
    Law,
    Setting,
    Span,
    committed,
    committed_evidence,
    lost_in_bf16,
    power,
    rest,
    study_evidence,
    unlike,
)
from study.cli.group import PATH, cli, say
from study.cli.rates import overrides_of
from study.cli.symptoms import SYMPTOMS
from study.config import AdapterConfig
from study.config.types import MOST_RANK, MOST_STEPS
from study.config.values import read
from study.data import files
from study.errors import StudyError, count_noun, unknown
from study.integrations.configs import TOOLS, read_file
from study.integrations.configs.tools import PEFT
from study.integrations.configs.writing import written
from study.store import find_cell
from study.store.tables import load_measured
from study.theory import family
from study.theory.equivalence import converted_alpha
from study.vocabulary.optimizers import MOST_USED, OPTIMIZERS, label
from study.vocabulary.scaling import RULES, named_rule, rule_words
from study.vocabulary.sources import MODELS, model_label

MOST_LINES = 15
USUAL_ALPHA, UNKNOWN_RATE = 16.0, 1e-2
WIDTHS = {"tiny": 64, "smollm2": 576, "gemma3": 640}
CHECK, CHECK_STEPS, CHECK_SEEDS, TENTHS = "check", 20, "0,1", (-1.0, -0.5, 0.0, 0.5, 1.0)
"""The check's name, fewest steps, seeds, and rates (in powers of ten around the advised one)."""
HIGHEST_RATE = 0.02
"""Of a check under Adam. Recipes for pretrained models have far lower ones."""
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

    @property
    def rule(self) -> str:
        """The new rule as a value of ``adapter.scaling``."""
        return self.rules[1] if self.rules[1] in RULES else f"{self.new.p:g}"


# Reading.


def read_settings(
    path: Path, entry: str | None, base: str | None
) -> tuple[str, dict[str, Any], list[str], list[str]]:
    """The source of a run; its settings by dotted key, and as overrides; those without advice."""
    if path.parent.name == "cells":
        folder, record = find_cell(path.parent.parent, path.name)
        [flat] = pd.json_normalize([record["config"]]).to_dict("records")
        settings = {str(key).removesuffix(".name"): value for key, value in flat.items()}
        origin = f"cell {folder.name} of {folder.parent.parent.resolve().name}"
        if "peft" in record:  # of a loop, whose model and data have no names
            same = ("precision", "train.batch_size", "train.accumulation")
            words = [f"{key}={settings[key]}" for key in same if settings[key] is not None]
            return f"PEFT's {origin}", settings, words, []
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
    settings: dict[str, Any] = {"adapter.rank": rank, "adapter.scaling": rule or "lora"}
    settings["adapter.alpha"] = USUAL_ALPHA if alpha is None else alpha
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
    rate = settings.get("optimizer.lr") if given["lr"] is None else given["lr"]
    for option, value in (("alpha", alpha), ("lr", rate)):
        if value is not None and not 0 < value < math.inf:
            raise StudyError(f"--{option}={value:g}: give a number above 0")
    adapters = _adapters(origin, settings, rank, rule, alpha)
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
    if model in MODELS or not any(word.startswith("model") for word in words):
        hub = ["model=hf", f"model.path={model or 'YOUR_MODEL'}"]
        words = [word for word in words if not word.startswith("model")]
        words += [f"model={model}"] if model in MODELS else hub
    if "data=file" in words and not any(word.startswith("data.path") for word in words):
        words.append("data.path=YOUR_FILE")
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
    "exponent": "measured, {}",
    "theory": "theory, from equal descents to equal outputs",
    "yours": "yours, nothing changes the best rate",
    "others": "measured by others",
}


def basis_line(basis: Basis, new: Setting) -> str:
    """The answer of one basis, where it was measured, and how the user's setting differs."""
    law, where = "", basis.where
    if isinstance(where, Law) and basis.exponent:
        law = f"r^{span(basis.exponent, '.2f')}"
        if where.points == 2:
            factor = power(math.log(where.ranks[1] / where.ranks[0]), [*basis.exponent])
            law = f"x {span(factor)} between ranks {where.ranks[0]} and {where.ranks[1]}"
    line = f"{HEADS[basis.kind].format(law)}: {rate_words(basis)}"
    if where is None:
        return line
    far = [] if basis.inside else ["outside its ranks or rates"]
    far.append("same model" if where.model == new.model else "other model")
    if where.optimizer != new.optimizer:
        far.append(f"{label(new.optimizer)}, not {label(where.optimizer)}")
    far.append(f"{new.steps / where.steps:.3g} x the steps" if new.steps else "--steps not given")
    alpha = f", alpha {where.alpha:g}" if where.alpha else ""
    return (
        f"{line} ({where.source}: {model_label(where.model)}, ranks {where.ranks[0]} to "
        f"{where.ranks[-1]}{alpha}, {where.steps} steps, {count_noun(where.seeds, 'seed')}; "
        f"yours: {', '.join(far)})"
    )


def paste_lines(asked: Asked, lr: str) -> list[str]:
    """The new settings in the keys of the user's tool; PEFT's without a file.

    ``lr``: a number that YAML 1.1 reads as one, or words, which become a comment. The tools know
    two rules: any other is written as LoRA's.
    """
    new, is_json = asked.new, asked.origin.endswith(".json")
    tool = asked.origin.partition("'s ")[0]
    if tool.startswith("cell"):
        ours = f"adapter.rank={new.rank} adapter.alpha={new.alpha:.10g}"
        return [f"{ours} adapter.scaling={asked.rule} optimizer.lr={lr}"]
    keys = TOOLS.get("Axolotl" if tool == "FinLoRA" and is_json else tool, PEFT)
    is_rslora = asked.rules[1] == "rslora" and "adapter.scaling" in keys.cells
    alpha = new.alpha if is_rslora else converted_alpha(new.alpha, new.rank, new.p, 1.0)
    if keys is PEFT:
        config = f"r={new.rank}, lora_alpha={alpha:.10g}, use_rslora={is_rslora}"
        return [f"LoraConfig({config})", f"{'# ' if ' ' in lr else ''}learning_rate = {lr}"]
    is_right = alpha == round(alpha) or is_json or tool == "torchtune"
    whole = "" if is_right else f"  # round it: {tool} has whole numbers"
    values = {"adapter.rank": new.rank, "adapter.alpha": f"{alpha:.10g}{whole}"}
    values |= {"adapter.scaling": str(is_rslora).lower(), "optimizer.lr": lr}
    values |= {"optimizer.loraplus_lr_ratio": f"{new.ratio:g}"} if new.ratio != 1 else {}
    if " " in lr or "optimizer.lr" not in keys.cells:
        del values["optimizer.lr"]
    lines = keys.lines(values)
    if is_json:
        lines = [re.sub(r"(\w+): (.*)", r'"\1": \2,', line) for line in lines]
    return lines if "optimizer.lr" in values else [*lines, f"# learning rate: {lr}"]


def change_words(asked: Asked, rate: float | None) -> Iterator[str]:
    """What would change the advice."""
    if family(asked.new.optimizer) == "linear":
        return
    if (p := asked.new.p) != 1 and family(asked.new.optimizer) == "sign":
        rho = replace(asked.new, lr=rate).rho
        here = f" (here about {rho:.2g})" if rho else ""
        yield f"rho{here}: r^{p - 1:g} if A hardly moves, r^{(p - 1) / 2:g} if far"
    yield f"10 x the steps: {span(power(-math.log(FAR), committed()['horizon']))} x the rate"


def notes_on(asked: Asked, rate: float | None, own: Evidence | None) -> Iterator[str]:
    """Lines on bf16, on the data of the check, and on the user's studies that do not count."""
    lost = lost_in_bf16(asked.new, rate) if rate and "precision=bf16" in asked.words else {}
    if lost.get(10, 0.0) > BF16_MATTERS:
        yield (
            f"bf16: PEFT loses about {lost[1]:.0%} of the adapter's output after 1 update, "
            f"{lost[10]:.0%} after 10 (theory, sizes of SmolLM2): docs/bf16.md"
        )
    has_data = asked.origin.startswith("cell") or any(w.startswith("data") for w in asked.words)
    if own is None and not has_data:
        yield "the check has data=pydoc, Python's documentation: add data=file data.path=YOUR_FILE"
    bests, steps = own.bests if own else (), asked.new.steps
    is_far = min((unlike(best.steps, steps) for best in bests), default=0.0) > math.log(FAR)
    for best in bests:
        if is_far or asked.new.model not in ("", best.model):
            of = f"{best.steps} steps of {best.model}"
            yield f"{best.source} has {of}: only its exponents count"
            return
        if best.edge and best.optimizer == asked.new.optimizer:
            yield (
                f"{best.source}: the {best.edge} rate is best at rank {best.ranks[0]}: "
                f"study rates {best.source} --refine"
            )
            return


# The check.


def check_of(asked: Asked, rate: float | None, typed: list[str]) -> dict[str, Any]:
    """The command that measures the best rates on the user's model, its size, and the next one."""
    new, old = asked.new, asked.old
    shared = [word for word in asked.words if not OF_THE_CHECK.match(word)]
    shared += [f"optimizer={new.optimizer}", f"adapter.scaling={asked.rule}", "probes.steps=null"]
    # The best rate of a short run is higher. A run of unknown length counts as FAR times as long.
    steps = max(CHECK_STEPS, math.ceil((new.steps or 0) / FAR))
    longer = new.steps / steps if new.steps else FAR
    centre = (rate or UNKNOWN_RATE) * longer ** committed()["horizon"][0]
    tenths = [tenth * (1 if rate else 2) for tenth in TENTHS]
    if family(new.optimizer) == "sign":
        centre = min(centre, HIGHEST_RATE / 10 ** tenths[-1])
    rates = ",".join(f"{centre * 10**tenth:.2g}" for tenth in tenths)
    shared += [f"adapter.alpha={new.alpha:.10g}", f"train.steps={steps}"]
    low, high = sorted((new.rank, old.rank if old.rank != new.rank else new.rank // 4 or 4))
    swept = [f"adapter.rank={low},{high}", f"optimizer.lr={rates}", f"seed={CHECK_SEEDS}"]
    given = [] if new.steps else ["--steps", "STEPS"]
    return {
        "command": shlex.join(["study", "train", "-m", f"name={CHECK}", *shared, *swept]),
        "cost": f"{20 * steps} steps; with --plan it prints their time",
        "then": shlex.join(["study", "advise", *typed, *given, "--study", f"results/{CHECK}"]),
    }


def advise_of(
    asked: Asked, bases: list[Basis], own: Evidence | None, typed: list[str]
) -> dict[str, Any]:
    """Everything that the command prints, as ``--json`` prints it."""
    first, new = (bases[0] if bases else None), asked.new
    value = first.rate.value if first and not first.relative else None
    return {
        "run": asdict(asked.old) | {"origin": asked.origin, "rule": asked.rules[0]},
        "advice": asdict(new) | {"rule": asked.rules[1], "lr": first and asdict(first.rate)},
        "paste": paste_lines(asked, rate_words(first) if value is None else f"{value:.1e}"),
        "evidence": [asdict(basis) | {"words": basis_line(basis, new)} for basis in bases],
        "changes": list(change_words(asked, value)),
        "cannot": asked.cannot,
        "assumed": asked.assumed,
        "notes": list(notes_on(asked, value, own)),
        "check": None if own else check_of(asked, value, typed),
    }


def advice_lines(found: Mapping[str, Any], asked: Asked, answer: str) -> list[str]:
    """The advice in :data:`MOST_LINES` lines, or in more with one basis."""
    lines = [
        f"From: {about_run(asked.old, asked.rules[0])}",
        f"Set:  {about_run(replace(asked.new, lr=None), asked.rules[1])}, learning rate {answer}",
        *found["paste"],
        *(f"cannot say: {'; '.join(found['cannot'])}" for _ in found["cannot"][:1]),
        *(f"assumed: {'; '.join(found['assumed'])}" for _ in found["assumed"][:1]),
    ]
    last = [f"It changes with {'; '.join(found['changes'])}." for _ in found["changes"][:1]]
    last += found["notes"]
    if check := found["check"]:
        last += [f"Check ({check['cost']}): {check['command']}", f"Then: {check['then']}"]
    evidence = [basis["words"] for basis in found["evidence"]]
    return [*lines, *evidence[: max(1, MOST_LINES - len(lines) - len(last))], *last]


@cli.command()
@click.argument("config", type=PATH, metavar="[CONFIG]", required=False)
@click.option("--rank", type=click.IntRange(1, MOST_RANK), help="The new rank; or the run's own.")
@click.option("--rule", help="The new rule: lora, rslora, or a number p.  [default: the same]")
@click.option("--alpha", type=float, help="The new alpha.  [default: the same run at its own rank]")
@click.option("--lr", type=float, help="The learning rate of the run.")
@click.option("--optimizer", metavar="NAME", help="The optimizer of the run.")
@click.option("--steps", type=click.IntRange(1, MOST_STEPS), help="The steps of the run.")
@click.option("--model", "--base", "model", help="Its model: gemma3, a folder, a hub name, ...")
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
    """CONFIG is a configuration of PEFT, Axolotl, LLaMA-Factory, TRL, Unsloth or FinLoRA, or a
    cell: RESULTS/NAME/cells/ID. Options can also describe a run: --rank 64 --optimizer adamw.
    """
    if symptom is not None:
        if config or studies:
            say("--symptom reads no configuration and no study: it prints what is usual")
        facts = committed()["facts"] | {"config": config or "CONFIG"}
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
