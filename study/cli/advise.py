"""``study advise``: alpha and learning rate at a rank and a rule, with the evidence; what may have
caused a failed run (``--symptom``)."""

import json
import math
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import redirect_stderr
from dataclasses import asdict, dataclass, replace
from difflib import unified_diff
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click
import pandas as pd

import study
from study.analysis import advice
from study.analysis.advice import Advice, Span, committed
from study.analysis.law import USUAL_SIZE, USUAL_STEPS, Setting, short_model
from study.analysis.rates import best_rates_of
from study.cli.group import PATH, cli
from study.config.types import MOST_RANK, MOST_STEPS
from study.config.values import written
from study.errors import StudyError, command_line, unknown
from study.integrations.configs import TOOLS, read_file
from study.integrations.configs.tools import PEFT, Tool
from study.store import StudyTables, cell_folders, find_cell
from study.store.tables import load_measured, rows_of
from study.theory import family
from study.vocabulary import scaling
from study.vocabulary.optimizers import MOST_USED, OPTIMIZERS, label
from study.vocabulary.quantities import MODEL_WIDE
from study.vocabulary.sources import DATASETS, MODELS, model_label

SCHEMA = 3  # of what --json prints
USUAL_ALPHA, UNKNOWN_RATE, BF16_MATTERS, CROSSOVER = 16.0, 1e-2, 0.1, 40.0
CHECK, SHORTER, CHECK_STEPS, CHECK_SEEDS = "check", 10, 20, "0,1"
"""The check's name, the run's steps over its own, its fewest steps, and its seeds."""
TENTHS = (-1.0, -0.5, 0.0, 0.5, 1.0)  # its rates, in powers of ten around the advised one
HIGHEST_RATE = 0.02
"""Of a check under Adam. Recipes for pretrained models have far lower ones."""
OF_THE_CHECK = (  # keys that it does not take from a run, apart from those that it sets
    *("name", "seed", "data.seed", "data.heldout", "adapter.exponent", "adapter.rank"),
    *("train.epochs", "train.save_adapter", "train.eval_every", "optimizer.lr"),
)
DATA = ("examples", "tokens", "loss", "parameters")
"""Options on the data, for the smallest rank that can store them (docs/capacity.md)."""
MOST_POWER = 8
TOP_RANK = 2048
"""No study here has a higher rank."""
NOT_COVERED = re.compile(r"[^:]*(use_|relora|lr_groups|optim|loss_type|_pattern|init_)")
"""Notes of an imported configuration on what changes the advice."""
PAGES = {name: f"docs/{name}.md" for name in ("no-learning", "diverged", "grad-norm")}
PAGES["nothing-changes"] = "docs/no-learning.md#in-bf16"
LOOKS = (
    "With a configuration, a cell or a study, this looks at the rate against the best one, gamma, "
    "and bf16; after training also at layers that do not move, eps against gradients, and clipping."
)
SMALL = ("no-learning", "nothing-changes")
LARGE = ("diverged", "grad-norm")
NEAR_EPS = 100.0
Cause = tuple[float, str, str, tuple[str, ...]]
"""A weight by how much something is off, what a run shows, the change, and the symptoms."""


@dataclass(frozen=True)
class Given:
    """A run as it was given. ``words``: its settings as overrides of ``study train``. ``notes``: on
    what has no advice or is missing. ``untaken``: settings that the check trains otherwise.
    ``data``: of a cell, the values of :data:`DATA`. ``absent``: settings that the file lacks."""

    run: Setting
    origin: str
    words: Sequence[str]
    notes: Sequence[str]
    untaken: Sequence[str]
    data: Mapping[str, float]
    absent: Collection[str]

    @property
    def tool(self) -> Tool:
        """The tool whose keys the file has; PEFT without one."""
        name, _, file = self.origin.partition("'s ")
        is_entry = name == "FinLoRA" and file.endswith(".json")
        return TOOLS.get("Axolotl" if is_entry else name, PEFT)


def read_run(path: Path | None, options: Mapping[str, Any]) -> Given:
    """The run in the configuration, cell or recorded run ``path``, completed by ``options``."""
    found: dict[str, Any] = {f"adapter.{key}": options[key] for key in ("rank", "alpha")}
    found["adapter.scaling"] = options["rule"]
    origin, words, notes, untaken = "the options", list[str](), list[str](), list[str]()
    data: Mapping[str, float] = {}
    absent: Collection[str] = ()
    model = options["model"]
    cells = [] if path is None or path.is_file() else cell_folders(path)
    if len(cells) > 1:
        one = f"one of them, such as {cells[0]}, or use it as evidence with --study {path}"
        raise StudyError(f"{path} is a study of {len(cells)} cells: give {one}")
    if path and (cells or path.parent.name == "cells"):
        from study.config.overrides import leaves, overrides_of  # loads Hydra

        cell = cells[0] if cells else path
        folder, record = find_cell(cell.parent.parent, cell.name)
        found = {key.removesuffix(".name"): x for key, x in leaves(record["config"]).items()}
        origin = f"cell {folder.name} of {folder.parent.parent.resolve().name}"
        data = of_cell(folder, record)
        words = [] if "peft" in record else overrides_of(record["config"], CHECK, ())
        if "peft" in record:  # of a loop, whose model and data have no names
            origin = f"PEFT's {origin}"
            same = ("precision", "train.batch_size", "train.accumulation")
            words = [f"{key}={found[key]}" for key in same if found[key] is not None]
    elif path:
        path = path / "adapter_config.json" if path.is_dir() else path
        read = read_file(path, options["entry"], base=model)
        found, origin, absent = read.settings(), read.origin, read.absent
        words = [f"{key}={written(value)}" for key, value in found.items() if value is not None]
        cannot = "; ".join(filter(NOT_COVERED.match, read.differs))
        notes = [f"The numbers do not cover: {cannot}."] if cannot else []
        untaken = [note.partition(":")[0] for note in (*read.differs, *read.missing)]
    if (init := found.get("adapter.init")) in ("scaled", "init_b"):
        notes.append(f"The numbers do not cover: adapter.init={init} (read as kaiming).")
    for key, usual in (("optimizer", MOST_USED), ("alpha", f"{USUAL_ALPHA:g}")):
        if not (options[key] or found.get(key) or found.get(f"adapter.{key}")):
            notes.append(f"Assumed: {key} {usual} (--{key}).")
    if model in MODELS or not any(word.startswith("model") for word in words):
        words = [word for word in words if not word.startswith("model")]
        hub = ["model=hf", f"model.path={model or 'YOUR_MODEL'}"]
        words += [f"model={model}"] if model in MODELS else hub
    return Given(setting(found, options), origin, words, notes, untaken, data, absent)


def of_cell(folder: Path, record: Mapping[str, Any]) -> dict[str, float]:
    """The values of :data:`DATA` in a cell's record and its losses of step 0. None if the record
    lacks them: that of a loop, or an old one."""
    rows = record.get("rows") or {}
    if "supervised" not in rows or (steps := rows_of(folder, "metrics")).empty:
        return {}
    losses = steps.iloc[0].reindex(["eval_loss", "loss"]).dropna()
    found = (rows["train"], rows["supervised"] / rows["train"], losses.iloc[0])
    return dict(zip(DATA, (*found, record["parameters"]), strict=True))


def with_data(given: Given, data: str) -> Given:
    """The run on a file or data set, whose values of :data:`DATA` one step of it shows."""
    named = [f"data={data}"] if data in DATASETS else ["data=file", f"data.path={written(data)}"]
    words = [w for w in given.words if w.partition("=")[0] not in ("name", "data", "data.path")]
    own = ["train.steps=1", "train.batch_size=1", "train.accumulation=1", "train.epochs=null"]
    own += ["train.warmup=0", "probes.steps=null", "data.heldout=64"]
    taken = {word.partition("=")[0] for word in own}
    kept = [word for word in words if word.partition("=")[0] not in taken]
    with TemporaryDirectory() as folder, redirect_stderr(StringIO()):
        own += [f"adapter.rank={given.run.rank}", f"results_dir={folder}"]
        pairs = (word.partition("=")[::2] for word in [*kept, *named, *own])
        study.train(dict(pairs), name="data")
        found = of_cell(*find_cell(Path(folder, "data"), ""))
    untaken = [key for key in given.untaken if not key.startswith("data")]
    return replace(given, words=[*words, *named], untaken=untaken, data=found)


def setting(found: Mapping[str, Any], options: Mapping[str, Any]) -> Setting:
    """The run with these settings, completed by ``options``."""
    name = options["optimizer"] or found.get("optimizer") or MOST_USED
    if name not in OPTIMIZERS:
        raise unknown("optimizer", name, OPTIMIZERS)
    lr = found.get("optimizer.lr") if options["lr"] is None else options["lr"]
    alpha, rank = found.get("adapter.alpha"), float(found["adapter.rank"])
    if rank == math.inf:
        raise StudyError("no alpha reaches infinite rank: give a run of finite rank")
    batch, ratio = found.get("train.batch_size"), found.get("optimizer.loraplus_lr_ratio")
    numbers = {"rank": rank, "alpha": alpha, "learning rate": found.get("optimizer.lr")}
    numbers |= {"batch": batch, "accumulation": found.get("train.accumulation")}
    numbers |= {"LoRA+ ratio": ratio, "--alpha": options["alpha"], "--lr": options["lr"]}
    for what, value in numbers.items():
        if value is not None and not 0 < value < math.inf:
            raise StudyError(f"{what}={value:g}: give a number above 0")
    model = options["model"] or found.get("model.path") or found.get("model") or ""
    return Setting(
        rank=int(rank),
        alpha=USUAL_ALPHA if alpha is None else alpha,
        rule=rule_of(found.get("adapter.scaling") or "lora", found.get("adapter.exponent")),
        optimizer=name,
        crossover=found.get("adapter.crossover") or CROSSOVER,
        ratio=float(ratio or 1.0),
        lr=lr,
        steps=options["steps"] or found.get("train.steps"),
        model=short_model(str(model)),
        batch=batch and batch * (found.get("train.accumulation") or 1),
        epochs=found.get("train.epochs"),
        schedule=found.get("train.schedule") or "",
    )


def rule_of(rule: str, p: float | None = None) -> str:
    """A rule as a value of ``adapter.scaling``."""
    try:
        name, power = scaling.named_rule(str(rule), None if p != p else p)
        found = scaling.exponent(name, power)
        if found is not None and abs(found) > MOST_POWER:
            raise ValueError(f"{found:g}: give a power of the rank of at most {MOST_POWER}")
    except ValueError as error:
        raise StudyError(str(error)) from None
    return name if name != scaling.POWER else f"{found:g}"


def own_rates(folders: Sequence[Path]) -> pd.DataFrame | None:
    """The best rates of the user's studies. Raises :class:`StudyError` for one without any."""
    found = [best_rates_of(load_measured(folder), str(folder)) for folder in folders]
    for folder, own in zip(folders, found, strict=True):
        if own.empty:
            what = "has no rank with two learning rates for all of its seeds"
            raise StudyError(f"{folder} {what}: sweep over some, such as optimizer.lr=1e-4,1e-3")
    return pd.concat(found, ignore_index=True) if found else None


def span(found: Span, form: str = ".2g") -> str:
    value, low, high = (format(each, form) for each in found)
    return value if low == high else f"{value} [{low}, {high}]"


def rate_words(found: Advice | None) -> str:
    if found is None:
        return "not known: run the check"
    return span(found.rate) + (" x yours" if found.is_relative else "")


def sentence(found: Advice, new: Setting, has_steps: bool) -> str:
    """One answer, what it rests on, and its condition."""
    rows = committed()["rows"]
    names = {"law": "the law", "run": "the law, if your rate is the best one of your run"}
    rests = names.get(found.rests, "best rates of your studies and the law")
    steps = f"{new.steps or USUAL_STEPS:.0f} steps" + ("" if has_steps else " (assumed)")
    if found.rests == "studies" and not new.steps:
        steps = "their steps"
    if found.rests == "law" and not new.size:
        steps += f" of a model of {USUAL_SIZE / 1e9:.0f} billion weights (assumed)"
    fitted = f"{rows['rates']} best rates of {rows['models']} models in {rows['studies']} studies"
    return f"{rate_words(found)} at {steps}, by {rests} ({fitted}; docs/law.md)."


def difference_lines(old: Setting, new: Setting) -> Iterator[str]:
    """What each difference of two runs changes in the best rate, and what the law does not know."""
    same = old.under(new.rule)

    def words(name: str) -> str:
        ends = (getattr(run, name) or "unknown" for run in (same, new))
        under = f" under {new.rule}" if name == "alpha" and old.rule != new.rule else ""
        texts = (x if isinstance(x, str) else f"{x:.4g}" for x in ends)
        return f"{name}{under} " + " to ".join(texts)

    both = [name for name in ("model", "optimizer") if getattr(old, name) and getattr(new, name)]
    if said := [words(name) for name in both if getattr(old, name) != getattr(new, name)]:
        yield f"Your rate does not count, as these differ: {'; '.join(said)}."
        return
    if found := advice.parts(old, new):
        each = (f"{words(name)} x {factor:.2g}" for name, factor in found.items())
        yield f"Factors: {'; '.join(each)}."
    if advice.keeps_rate(old, new):
        decays = "decays" if old.schedule and new.schedule else "decays (assumed)"
        yield f"The number of steps does not change the rate, as its schedule {decays}."
    if bool(old.steps) != bool(new.steps):
        yield f"Assumed: {USUAL_STEPS:.0f} steps where they are unknown (--steps)."
    if "batch" in found:
        power, error = committed()["law"]["batch"]
        ends = (found["batch"] ** (1 + sign * advice.WIDE * error / power) for sign in (0, -1, 1))
        factor = span(Span(next(ends), *sorted(ends)))
        yield f"The batch by itself: x {factor}. Three sweeps vary it (docs/law.md)."
    if family(new.optimizer) == "spectral" and old.rank != new.rank:
        yield "Under Muon this rests on 8 steps; a published sweep contradicts it (docs/law.md)."


def worth_lines(old: Setting, new: Setting) -> Iterator[str]:
    """What the new rank costs, and what ranks gained in the nearest studies."""
    size, times = 4 * (2 + OPTIMIZERS[new.optimizer].states), f"x {new.rank / old.rank:.3g}"
    what = f"weights, gradients and states of {label(new.optimizer)}"
    yield f"{times} parameters of adapters; {times} memory of {what}, {size} bytes a parameter."
    for gain in advice.gains(new):
        low, high = gain["ranks"]
        where = f"{gain['source']}: {model_label(gain['model'])}, LoRA, {gain['steps']} steps"
        gap, unit = span(Span(*gain["gap"]), ".3f"), "byte" if gain["model"] == "small" else "token"
        less = f"Loss of rank {high} less that of {low}, at their best rates"
        yield f"{less}: {gap} nats a {unit} ({where})."


def rank_lines(rank: int, about: Mapping[str, float]) -> Iterator[str]:
    """What the data have to learn, what the adapter of ``rank`` holds, and the rank that holds it.

    No line without one of :data:`DATA`.
    """
    if not about:
        return
    if lacks := [f"--{name}" for name in DATA if not about.get(name)]:
        yield f"The rank that your data need is not known without {', '.join(lacks)}."
        return
    examples, tokens, loss, parameters = (about[name] for name in DATA)
    known = committed()["capacity"]
    bits = examples * tokens * loss / math.log(2)
    mean, low, high = (parameters * each for each in known["bits"])
    least, *others = (max(1, math.ceil(rank * bits / held)) for held in (mean, high, low))
    smallest = f"{least} [{others[0]}, {others[1]}]" if least <= TOP_RANK else f"above {TOP_RANK}"
    held = f"{mean / 1e6:.2g} Mbit [{low / 1e6:.2g}, {high / 1e6:.2g}] in {known['passes']} passes"
    yield (
        f"Your data have at most {bits / 1e6:.2g} Mbit to learn ({examples:,} examples of "
        f"{tokens:.3g} supervised tokens, {loss:.3g} nats each), and rank {rank} stores about "
        f"{held}: the smallest rank that stores all is {smallest} "
        f"({known['source']}: random strings, {model_label(known['model'])}; docs/capacity.md)."
    )


def notes_on(
    given: Given, new: Setting, rate: float | None, own: pd.DataFrame | None
) -> Iterator[str]:
    yield from given.notes
    run, keys = given.run, ("adapter.rank", "adapter.alpha", "optimizer.lr")
    defaults = zip(keys, (run.rank, run.alpha, run.lr), strict=True)
    if used := [f"{given.tool.key(key)} {x:g}" for key, x in defaults if key in given.absent and x]:
        yield f"Not in the file, so the default of {given.tool.name}: {', '.join(used)}."
    if own is not None:
        for row in own[own["edge"] != ""].to_dict("records")[:1]:
            at = f"{row['source']}: the {row['edge']} rate is best at rank {row['rank']:g}"
            yield f"{at}: {command_line('rates', row['source'], '--refine')}"
        if new.model and (others := sorted(set(own["model"]) - {new.model})):
            yield f"Studies of {', '.join(others)} do not count for {new.model}."
    lost = advice.lost_in_bf16(new, rate) if rate and "precision=bf16" in given.words else {}
    if lost.get(10, 0.0) > BF16_MATTERS:
        yield (
            f"In bf16 under PEFT, rounding takes about {lost[1]:.0%} of the adapter's output after "
            f"1 update and {lost[10]:.0%} after 10 (computed for SmolLM2): docs/bf16.md"
        )


def check_of(
    given: Given, old: Setting, new: Setting, rate: float | None, has_steps: bool
) -> dict[str, str]:
    """The command that measures the best rates on the user's model, its size, and what it lacks."""
    run = replace(new, lr=rate, steps=new.steps or int(USUAL_STEPS))
    steps = max(CHECK_STEPS, math.ceil((run.steps or 0) / SHORTER))
    shorter = advice.parts(run, replace(run, steps=steps)).get("steps", 1.0)  # a higher best rate
    centre = (rate or UNKNOWN_RATE) * shorter
    tenths = [tenth * (1 if rate else 2) for tenth in TENTHS]
    if family(new.optimizer) == "sign":
        centre = min(centre, HIGHEST_RATE / 10 ** tenths[-1])
    rates = ",".join(f"{centre * 10**tenth:.2g}" for tenth in tenths)
    low, high = sorted((new.rank, old.rank if old.rank != new.rank else new.rank // 4 or 4))
    own = [f"optimizer={new.optimizer}", f"adapter.scaling={new.rule}", "probes.steps=null"]
    own += [f"adapter.alpha={new.alpha:.10g}", f"train.steps={steps}", f"adapter.rank={low},{high}"]
    own += [f"optimizer.lr={rates}", f"seed={CHECK_SEEDS}"]
    own += [f"adapter.crossover={new.crossover:g}"] if new.rule == "crossover" else []
    taken = {word.partition("=")[0] for word in own}.union(OF_THE_CHECK)
    shared = [word for word in given.words if word.partition("=")[0] not in taken]
    shared = [word for word in shared if not re.match(r"train\.warmup=[1-9]", word)]  # in steps
    if "data=file" in shared and not any(word.startswith("data.path") for word in shared):
        shared.append("data.path=YOUR_FILE")
    has_data = given.origin.startswith("cell") or any(w.startswith("data") for w in shared)
    more = "" if has_steps else "--steps STEPS "
    lacks = [] if has_data else ["data (add data=file data.path=YOUR_FILE)"]
    return {
        "command": command_line("train", "-m", f"name={CHECK}", *shared, *own),
        "cost": f"{20 * steps} steps; with --plan it prints their time",
        "lacks": ", ".join([*lacks, *given.untaken]),
        "then": f"the same command with {more}--study results/{CHECK}",
    }


def written_alpha(given: Given, run: Setting) -> tuple[float, bool]:
    """The alpha of a run in its tool, and whether its rule is written as rsLoRA. Tools know two
    rules: any other is written as LoRA's. Most take whole numbers only."""
    is_rslora = run.rule == "rslora" and "adapter.scaling" in given.tool.cells
    alpha = run.alpha if is_rslora else run.under("lora").alpha
    return (alpha if given.tool.name in ("PEFT", "torchtune") else max(1, round(alpha))), is_rslora


def paste_lines(
    given: Given, run: Setting, lr: float | None, rate: str, without: Collection[str] = ()
) -> list[str]:
    """The run in the keys of its tool. ``lr``: a rate, as YAML 1.1 reads it; or ``rate``, words.
    ``without``: settings that have no line."""
    tool, number = given.tool, lr and f"{lr:.1e}"
    if given.origin.startswith("cell"):
        ours = f"adapter.rank={run.rank} adapter.alpha={run.alpha:.10g}"
        return [f"{ours} adapter.scaling={run.rule} optimizer.lr={number or rate}"]
    alpha, is_rslora = written_alpha(given, run)
    if tool is PEFT:
        config = f"r={run.rank}, lora_alpha={alpha:.10g}, use_rslora={is_rslora}"
        last = f"learning_rate = {number}" if number else f"# learning_rate: {rate}"
        return [f"LoraConfig({config})", last]
    values = {"adapter.rank": run.rank, "adapter.alpha": f"{alpha:.10g}"}
    if is_rslora or "adapter.scaling" not in given.absent:
        values |= {"adapter.scaling": str(is_rslora).lower()}
    values |= {"optimizer.lr": number} if number else {}
    values |= {"optimizer.loraplus_lr_ratio": f"{run.ratio:g}"} if run.ratio != 1 else {}
    lines = tool.lines({key: value for key, value in values.items() if key not in without})
    if given.origin.endswith(".json"):
        lines = [re.sub(r"(\w+): (.*)", r'"\1": \2,', line) for line in lines]
    is_written = number and "optimizer.lr" in tool.cells
    return lines if is_written else [*lines, f"# learning rate: {number or rate}"]


def about_run(run: Setting) -> str:
    rate = f", learning rate {run.lr:.2g}" if run.lr is not None else ""
    ratio = f", LoRA+ ratio {run.ratio:g}" if run.ratio != 1 else ""
    about = f"rank {run.rank}, {run.rule}, alpha {run.alpha:.4g}, {label(run.optimizer)}"
    return about + ratio + rate


def advice_lines(found: Mapping[str, Any], has_evidence: bool) -> Iterator[str]:
    run, into = found["run"], found["advice"]["origin"]
    where = "" if into == run["origin"] else f"{into}; your run is "
    yield f"Set ({where}{run['origin']}: {run['words']}):"
    yield from (f"  {line}" for line in found["changes"])
    for head, key in (("Why", "why"), ("Is it worth it", "worth")):
        yield from (f"{head}: {line}" for line in found[key][:1])
        yield from (f"  {line}" for line in found[key][1:])
    if check := found["check"]:
        yield f"Check ({check['cost']}): {check['command']}"
        yield from (f"  It leaves out your {check['lacks']}." for _ in check["lacks"][:1])
        yield f"  Then: {check['then']}"
    if has_evidence:
        yield "Evidence, the strongest first:"
        yield from (f"  {basis['words']}" for basis in found["evidence"])


def worst_cell(path: Path) -> tuple[Path, StudyTables | None]:
    """A cell and its tables: that of a study which ended worst; ``path`` if it is neither."""
    is_cell = path.parent.name == "cells"
    folder = path.parent.parent if is_cell else path if cell_folders(path) else None
    if folder is None:
        return path, None
    tables = load_measured(folder)
    losses = tables.metrics.astype({"cell_id": str}).groupby("cell_id")["loss"]
    ends = losses.agg(lambda rows: rows.iloc[-1]).fillna(math.inf)
    worst = ends[[name for name in ends.index if not is_cell or name.startswith(path.name)]]
    path = folder / "cells" / str(worst.idxmax())
    parts = {name: getattr(tables, name) for name in ("cells", "metrics", "probes")}
    own = {key: part[part["cell_id"].astype(str) == path.name] for key, part in parts.items()}
    return path, replace(tables, **own)


def causes(
    run: Setting, words: Sequence[str], law: Span | None, tables: StudyTables | None
) -> Iterator[Cause]:
    """What a run shows. ``law``: its best rate. ``tables``: of its cell, if it has run."""
    if law and run.lr and not law.low <= run.lr <= law.high:
        off, best = run.lr / law.value, f"{law.value:.1e}"
        seen = f"learning rate {run.lr:g} is {off:.2g} times the best one by the law"
        symptoms = LARGE[:1] if off > 1 else SMALL
        yield (abs(math.log(off)), seen, f"learning rate {best}", symptoms)
    above = run.gamma / (USUAL_ALPHA / run.rank)
    if above > 1.5 and family(run.optimizer) == "sign":
        doubled = (
            " (alpha = 2r)" if run.rule == "lora" and math.isclose(run.alpha, 2 * run.rank) else ""
        )
        seen = f"gamma is {run.gamma:.3g}{doubled}, {above:.3g} times that of LoRA with alpha 16"
        change = (
            f"alpha {run.alpha / above:.3g}, or a rate divided by {above**0.5:.2g} to {above:.2g}"
        )
        yield (math.log(above) / 2, seen, change, LARGE)
    lost: Mapping[Any, float] = {}
    if "precision=bf16" in words and run.lr:
        lost = advice.lost_in_bf16(run, run.lr)
    if tables is not None:
        yield from _of_tables(run, tables)
        rows = tables.probes[tables.probes["swallowed"].notna()]
        lost = rows.groupby("step")["swallowed"].median().to_dict() or lost
    if lost and max(lost.values()) > BF16_MATTERS:
        shares = ", ".join(f"{share:.0%} after {step}" for step, share in sorted(lost.items()))
        seen = f"bf16 loses part of the adapter's output: {shares} updates"
        change = "round_once(model) for PEFT (docs/bf16.md), or float32"
        yield (4 * max(lost.values()), seen, change, SMALL)


def _of_tables(run: Setting, tables: StudyTables) -> Iterator[Cause]:
    probes = tables.probes[(tables.probes["layer"] != MODEL_WIDE)]
    norms = probes[probes["site"] == "adapter_update"].groupby("layer", observed=True)["norm"].max()
    if fixed := [str(layer) for layer in norms[norms == 0].index]:
        seen = f"{len(fixed)} of {len(norms)} layers do not move, such as {fixed[0]}"
        yield (6 * len(fixed) / len(norms), seen, "set requires_grad on them", SMALL)
    grads = probes[probes["site"] == "adapter_grad"].groupby("step")["rms"].median()
    eps = tables.cells["eps"].iloc[0] if "eps" in tables.cells else math.nan
    if OPTIMIZERS[run.optimizer].has_eps and len(grads) and grads.min() < NEAR_EPS * eps:
        seen = (
            f"in the median layer gradients are down to {grads.min() / eps:.2g} times eps {eps:g}"
        )
        yield (math.log(NEAR_EPS * eps / grads.min()), seen, "a lower eps, or alpha up", SMALL)
    factors = tables.metrics["clip_factor"].dropna()
    if (factors < 1).any():
        share, least = (factors < 1).mean(), factors.min()
        seen = f"{share:.0%} of the gradients are clipped, down to {least:.2g} of their size"
        change = f"a limit {1 / least:.2g} times as high" if share > 0.5 else "none: it is rare"
        yield (share * -math.log(least), seen, change, ("no-learning", "grad-norm"))


def symptom_lines(symptom: str, run: str = "", found: Sequence[Cause] = ()) -> list[str]:
    """Of the causes ``found`` in a ``run``, those of the symptom, and the page on it."""
    own = sorted((one for one in found if symptom in one[-1]), reverse=True)
    lines = [f"{n}. {seen}. Change: {change}." for n, (_, seen, change, _) in enumerate(own, 1)]
    what = "The likeliest cause first:" if own else "It shows no known cause of this."
    head = [f"{run}. {what}"] if run else []
    return [*head, *(lines or [LOOKS]), f"page: {PAGES[symptom]}"]


def causes_in(path: Path, options: Mapping[str, Any]) -> tuple[str, list[Cause]]:
    """A configuration, a cell, or the cell of a study that ended worst; and what it shows."""
    path, tables = worst_cell(path)
    given = read_run(path, options)
    same = replace(given.run, lr=None)
    law = next((one.rate for one in advice.advise(same, same) if not one.is_relative), None)
    found = causes(given.run, given.words, law, tables)
    return f"{given.origin}: {about_run(given.run)}", list(found)


@cli.command()
@click.argument("config", type=PATH, metavar="[CONFIG]", required=False)
@click.argument("new_config", type=PATH, metavar="[NEW]", required=False)
@click.option("--rank", type=click.IntRange(1, MOST_RANK), help="The new rank; or the run's own.")
@click.option("--rule", help="The new rule: lora, rslora, crossover or p.  [default: the same]")
@click.option("--alpha", type=float, help="The new alpha.  [default: that of the run]")
@click.option("--lr", type=float, help="The learning rate of the run.")
@click.option("--optimizer", metavar="NAME", help="The optimizer of the run.")
@click.option("--steps", type=click.IntRange(1, MOST_STEPS), help="The steps of the run.")
@click.option("--model", "--base", "model", help="Its model: gemma3, a folder, a hub name, ...")
@click.option("--study", "studies", type=PATH, multiple=True, help="A study on this model.")
@click.option("--entry", help="The configuration to read, if the file holds several.")
@click.option("--data", help="Your data, to print the rank that holds them.")
@click.option("--examples", type=int, help="Examples of your data, for the rank that holds them.")
@click.option("--tokens", type=float, help="Their supervised tokens, per example.")
@click.option(
    "--loss", type=float, help="The base's loss on them, in nats per token: that of step 0."
)
@click.option(
    "--parameters",
    type=int,
    help="Parameters of the adapter at the run's own rank, as PEFT prints them.",
)
@click.option("--symptom", type=click.Choice(list(PAGES)), help="What goes wrong.")
@click.option("--evidence", "has_evidence", is_flag=True, help="Print all evidence too.")
@click.option("--json", "as_json", is_flag=True, help="Print the advice as JSON.")
def advise(
    config: Path | None, new_config: Path | None, symptom: str | None, as_json: bool, **options: Any
) -> None:
    """CONFIG is a configuration of PEFT, Axolotl, LLaMA-Factory, TRL, Unsloth, torchtune or
    FinLoRA, a cell (RESULTS/NAME/cells/ID) or a recorded run. NEW is the run that gets the rate.
    Options can also describe a run: --rank 64 --optimizer adamw.
    """
    if symptom is not None:
        lines = symptom_lines(symptom, *(causes_in(config, options) if config else ()))
        text = json.dumps({"schema": SCHEMA, "lines": lines}) if as_json else "\n".join(lines)
        click.echo(text)
        return
    rank, rule, alpha = (options[key] for key in ("rank", "rule", "alpha"))
    if config is None and rank is None:
        raise StudyError("give a configuration, or the rank of the run: study advise --rank 64")
    steps = options["steps"]
    options |= {"steps": None} if new_config else {}  # then only where a file has none
    given = read_run(config, options)
    given = with_data(given, options["data"]) if options["data"] else given
    old, origin = replace(given.run, steps=given.run.steps or steps), given.origin
    about = {**given.data, **{name: options[name] for name in DATA if options[name]}}
    given = read_run(new_config, options) if new_config else given
    new = given.run.under(rule_of(rule) if rule else given.run.rule)
    new = replace(new, rank=rank or new.rank, alpha=alpha or new.alpha, steps=new.steps or steps)
    whole, is_rslora = written_alpha(given, new)
    new = replace(new, rule=new.rule if is_rslora else "lora", alpha=whole).under(new.rule)
    if "parameters" in about:
        about["parameters"] *= new.rank / old.rank
    known_steps = new.steps or old.steps
    old, new = advice.in_steps(old, new)
    has_steps = bool(known_steps and new.steps)
    own = own_rates(options["studies"])
    found = advice.advise(old, new, own)
    first = found[0] if found else None
    rate = first.rate.value if first and not first.is_relative else None
    paste = paste_lines(given, new, rate, rate_words(first))
    was = paste_lines(given, given.run, given.run.lr, "not given", given.absent)
    check = check_of(given, old, new, rate, has_steps) if own is None else None
    why = sentence(first, new, has_steps) if first else "The law has no rate of this optimizer."
    said = {
        "schema": SCHEMA,
        "run": asdict(old) | {"origin": origin, "words": about_run(old)},
        "advice": asdict(new) | {"lr": first and asdict(first.rate), "origin": given.origin},
        "paste": paste,
        "changes": list(unified_diff(was, paste, lineterm="", n=9))[3:] or paste,
        "why": [why, *difference_lines(old, new), *notes_on(given, new, rate, own)],
        "worth": [
            *([] if new.rank == old.rank else worth_lines(old, new)),
            *rank_lines(new.rank, about),
        ],
        "check": check,
        "evidence": [asdict(x) | {"words": sentence(x, new, has_steps)} for x in found],
    }
    text = "\n".join(advice_lines(said, options["has_evidence"]))
    click.echo(json.dumps(said) if as_json else text)
