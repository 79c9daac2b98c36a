"""The run that a user gives to ``study advise``: a configuration, a cell or options; and its
settings as its tool writes them."""

import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from study.analysis.law import Setting, short_model
from study.errors import StudyError, unknown
from study.vocabulary import scaling
from study.vocabulary.optimizers import MOST_USED, OPTIMIZERS, label
from study.vocabulary.sources import MODELS

if TYPE_CHECKING:
    from study.integrations.configs.tools import Tool

USUAL_ALPHA, CROSSOVER, MOST_POWER = 16.0, 40.0, 8
"""The alpha and the crossover of a run that has none; the highest power of a rule."""
USUAL_HELDOUT = 64
"""Rows, as in ``conf/data/file.yaml``."""
CHECK = "check"
"""The name of the study that measures best rates."""
SYMPTOMS = {
    "no-learning": "Under Adam a step grows as lr gamma r, which is lr alpha under LoRA. Raise the "
    "rate or alpha. At alpha 16 LoRA's best rate is about nine times that of full fine-tuning.",
    "diverged": "Under Adam a step grows as lr gamma r. So rsLoRA at the same alpha, alpha = 2r "
    "and a higher rank under either need a lower rate.",
    "grad-norm": "At step 0 the gradient norm is in proportion to gamma sqrt(r). Adam's step does "
    "not depend on it. Under SGD, divide the rate by r from LoRA to rsLoRA at one alpha.",
    "nothing-changes": "bf16 rounds an output away that is below 1/512 of its layer's. B is 0 "
    "before the first update, so step 0 has the base's loss. A warm-up begins at a rate of 0.",
}
"""What may go wrong, and why."""
INEXACT = ("torchtune",)
"""The tools, apart from PEFT, that take an alpha that is not whole."""


@dataclass(frozen=True)
class Given:
    """A run as it was given.

    - ``words``: its settings as overrides of ``study train``;
    - ``notes``: what the numbers do not cover. ``assumed``: what nobody said;
    - ``untaken``: settings that the check trains otherwise;
    - ``untrainable``: settings that keep ``study train`` from training it;
    - ``data``: of a cell, what it has to learn (:mod:`study.cli.capacity`);
    - ``absent``: settings that the file lacks;
    - ``warmup``: its warm-up, None if unknown;
    - ``tool``: whose keys its file has; None for PEFT, a cell or options.
    """

    run: Setting
    origin: str
    words: Sequence[str] = ()
    notes: Sequence[str] = ()
    assumed: Sequence[str] = ()
    untaken: Sequence[str] = ()
    untrainable: Sequence[str] = ()
    data: Mapping[str, float] = field(default_factory=dict)
    absent: Collection[str] = ()
    warmup: float | None = None
    tool: "Tool | None" = None

    @property
    def is_cell(self) -> bool:
        """Whether it is a cell of a study."""
        return self.origin.startswith("cell")

    @property
    def is_bf16(self) -> bool:
        """Whether outputs are rounded to bf16."""
        return "precision=bf16" in self.words


def read_run(path: Path | None, options: Mapping[str, Any]) -> Given:
    """The run in the configuration, cell or recorded run ``path``, completed by ``options``."""
    own = {f"adapter.{key}": options[key] for key in ("rank", "alpha")}
    own["adapter.scaling"] = options["rule"]
    if path is None:
        return _completed(own, options, origin="the options")
    if path.is_file() or not (path.is_dir() or path.parent.name == "cells"):
        return _of_file(path, options)
    from study.store import cell_folders  # loads pyarrow

    cells = cell_folders(path)
    if len(cells) > 1:
        one = f"one of them, such as {cells[0]}, or use it as evidence with --study {path}"
        raise StudyError(f"{path} is a study of {len(cells)} cells: give {one}")
    if cells or path.parent.name == "cells":
        return _of_cell(cells[0] if cells else path, options)
    return _of_file(path / "adapter_config.json", options)


def _of_cell(path: Path, options: Mapping[str, Any]) -> Given:
    from study.cli.capacity import of_cell
    from study.config.overrides import leaves, overrides_of  # loads Hydra
    from study.store import find_cell

    folder, record = find_cell(path.parent.parent, path.name)
    found = {key.removesuffix(".name"): x for key, x in leaves(record["config"]).items()}
    origin = f"cell {folder.name} of {folder.parent.parent.resolve().name}"
    about: dict[str, Any] = {"data": of_cell(folder, record), "warmup": found.get("train.warmup")}
    if "peft" not in record:
        words = overrides_of(record["config"], CHECK, ())
        return _completed(found, options, origin=origin, words=words, **about)
    # Of a loop, whose model and data have no names.
    same = ("precision", "train.batch_size", "train.accumulation")
    words = [f"{key}={found[key]}" for key in same if found[key] is not None]
    return _completed(found, options, origin=f"PEFT's {origin}", words=words, **about)


def _of_file(path: Path, options: Mapping[str, Any]) -> Given:
    from study.config.values import written
    from study.integrations.configs import TOOLS, read_file  # loads pyarrow

    read = read_file(path, options["entry"], base=options["model"], trains=False)
    found = read.settings()
    words = [f"{key}={written(value)}" for key, value in found.items() if value is not None]
    if (steps := steps_of(found)) is not None:
        found["train.steps"] = steps
    said = [key for key in read.uncovered if not is_said(key, read.untrainable)]
    uncovered = "; ".join([*said, *read.untrainable])
    name, _, file = read.origin.partition("'s ")
    is_entry = name == "FinLoRA" and file.endswith(".json")
    tool = TOOLS.get("Axolotl" if is_entry else name)
    has_recipe = tool is not None and "train.warmup" in tool.cells
    return _completed(
        found,
        options,
        origin=read.origin,
        words=words,
        notes=[f"The numbers do not cover: {uncovered}."] if uncovered else [],
        untaken=[note.partition(":")[0] for note in (*read.differs, *read.missing)],
        untrainable=read.untrainable,
        absent=read.absent,
        warmup=found.get("train.warmup", 0) if has_recipe else None,
        tool=tool,
    )


def is_said(note: str, others: Sequence[str]) -> bool:
    """Whether one of ``others`` is about the key of ``note``, ``use_dora: true``."""
    return any(other.startswith(note.partition(":")[0]) for other in others)


def steps_of(found: Mapping[str, Any]) -> int | None:
    """The steps of the epochs of a file, if its data are on this machine and are not packed; about
    a tenth of few rows is held out."""
    from study.data import files

    paths, epochs = found.get("data.path"), found.get("train.epochs")
    paths = [paths] if isinstance(paths, str) else paths or []
    is_here = bool(paths) and all(Path(path).is_file() for path in paths)
    if found.get("train.steps") or not (epochs and is_here) or found.get("data.sample_packing"):
        return None
    try:
        rows = sum(1 for path in paths for _ in files.read(path))
    except StudyError:
        return None
    rows = min(rows, found.get("data.max_samples") or rows)
    rows -= max(1, min(found.get("data.heldout") or USUAL_HELDOUT, rows // 10))
    batches = math.ceil(rows / found["train.batch_size"])
    return math.ceil(epochs * math.ceil(batches / found["train.accumulation"])) or None


def _completed(found: Mapping[str, Any], options: Mapping[str, Any], **about: Any) -> Given:
    """The run with the settings ``found``; notes on what is missing, and words on its model."""
    notes, assumed = [*about.pop("notes", [])], list[str]()
    if (init := found.get("adapter.init")) in ("scaled", "init_b"):
        notes.append(f"The numbers do not cover: adapter.init={init} (read as kaiming).")
    for key, usual in (("optimizer", MOST_USED), ("alpha", f"{USUAL_ALPHA:g}")):
        if not (options[key] or found.get(key) or found.get(f"adapter.{key}")):
            assumed.append(f"{key} {usual} (--{key})")
    words, model = about.pop("words", []), options["model"]
    if model in MODELS or not any(word.startswith("model") for word in words):
        words = [word for word in words if not word.startswith("model")]
        hub = ["model=hf", f"model.path={model or 'YOUR_MODEL'}"]
        words += [f"model={model}"] if model in MODELS else hub
    run = setting(found, options)
    return Given(run, words=words, notes=notes, assumed=assumed, **about)


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


def label_of(rule: str) -> str:
    """A value of ``adapter.scaling`` as it is written in texts: ``rsLoRA``."""
    return scaling.rule_label(*scaling.named_rule(rule))


def written_alpha(given: Given, run: Setting) -> tuple[float, bool]:
    """The alpha of a run in its tool, and whether its rule is written as rsLoRA. Tools know two
    rules: any other is written as LoRA's. Most take whole numbers only."""
    tool = given.tool
    is_rslora = run.rule == "rslora" and (tool is None or "adapter.scaling" in tool.cells)
    alpha = run.alpha if is_rslora else run.under("lora").alpha
    is_exact = tool is None or tool.name in INEXACT
    return (alpha if is_exact else max(1, round(alpha))), is_rslora


def rate_text(lr: float) -> str:
    """A rate as YAML 1.1 reads it: 1e-05 would be text."""
    digits, _, power = f"{lr:.6e}".partition("e")
    digits = digits.rstrip("0")
    return f"{digits}{'0' if digits.endswith('.') else ''}e{power}"


def pasted(given: Given, run: Setting, rate: str, comments: Mapping[str, str]) -> list[str]:
    """The run in the keys of its tool. ``rate``: words on the rate if ``run.lr`` is None.
    ``comments``: by setting, after its line."""
    number = rate_text(run.lr) if run.lr else None

    def noted(line: str, *settings: str) -> str:
        said = "; ".join(comments[each] for each in settings if comments.get(each))
        return f"{line:<24} # {said}" if said else line

    if given.is_cell:
        ours = f"adapter.rank={run.rank} adapter.alpha={run.alpha:.10g}"
        line = f"{ours} adapter.scaling={run.rule} optimizer.lr={number or rate}"
        return [noted(line, *comments)]
    alpha, is_rslora = written_alpha(given, run)
    if given.tool is None:
        config = f"LoraConfig(r={run.rank}, lora_alpha={alpha:.10g}, use_rslora={is_rslora})"
        last = f"learning_rate = {number}" if number else f"# learning_rate: {rate}"
        return [noted(config, "adapter.alpha"), noted(last, "optimizer.lr")]
    values = {"adapter.rank": str(run.rank), "adapter.alpha": f"{alpha:.10g}"}
    if is_rslora or "adapter.scaling" not in given.absent:
        values |= {"adapter.scaling": str(is_rslora).lower()}
    values |= {"optimizer.lr": number} if number else {}
    values |= {"optimizer.loraplus_lr_ratio": f"{run.ratio:g}"} if run.ratio != 1 else {}
    if given.origin.endswith(".json"):
        lines = [re.sub(r"(\w+): (.*)", r'"\1": \2,', line) for line in given.tool.lines(values)]
    else:
        own = {key: noted(value, key) for key, value in values.items()}
        lines = given.tool.lines(own)
    is_written = number and "optimizer.lr" in given.tool.cells
    return lines if is_written else [*lines, f"# learning rate: {number or rate}"]


def about_run(run: Setting, before: int | None = None) -> str:
    """A run in words. ``before``: another rank, from which it moves."""
    rate = f", learning rate {rate_text(run.lr)}" if run.lr is not None else ""
    ratio = f", LoRA+ ratio {run.ratio:g}" if run.ratio != 1 else ""
    ranks = f"{before} -> {run.rank}" if before not in (None, run.rank) else f"{run.rank}"
    about = f"rank {ranks}, {label_of(run.rule)}, alpha {run.alpha:.4g}, {label(run.optimizer)}"
    return about + ratio + rate
