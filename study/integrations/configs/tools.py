"""The keys of several tools for the settings of a run, and the experiment that a file describes.

``tools.csv`` has a row for each setting, with a tool's keys for it and the value of a missing key:
``lora_r=64``. An empty cell means the keys in the column *Trainer*, ``none`` no key. ``tools.yaml``
has the rest, and ``changes.yaml`` keys of any tool without a counterpart.
"""

import csv
import json
import re
import textwrap
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

import yaml
from pydantic import Field, TypeAdapter, ValidationError

from study.config.values import Real, Whole
from study.errors import StudyError, given, printable, short
from study.vocabulary.optimizers import MOST_USED, OPTIMIZERS
from study.vocabulary.peft_fields import refusal

HERE = Path(__file__).parent
TABLE = list(csv.DictReader((HERE / "tools.csv").read_text().splitlines()))
ROWS: dict[str, dict[str, Any]] = yaml.safe_load((HERE / "tools.yaml").read_text())
_REST = yaml.safe_load((HERE / "changes.yaml").read_text())
CHANGES = {key: instead for instead, keys in _REST["instead"].items() for key in keys.split()}
"""What is trained instead, by key."""
UNCOVERED = _REST["uncovered"].split()
MEDIA = {
    name: re.compile(text, re.IGNORECASE | re.VERBOSE) for name, text in _REST["media"].items()
}
KINDS: dict[str, Any] = {
    "whole": Whole,
    "real": Real,
    "flag": bool,
    "flag or text": bool | str,
    "text": str,
    "names": str | list[str],
    "bits": Literal[4, 8, False],
    "rows": Annotated[list[dict[str, Any]], Field(min_length=1)],
}
"""Types of values."""
NEEDED = ("adapter.rank", "adapter.alpha", "optimizer.lr")
"""Settings without which a file is refused."""
WITHOUT_WARMUP = "constant"
"""The Trainer's schedule that ignores warm-up."""
SCHEDULES = {name: name for name in ("cosine", "linear", WITHOUT_WARMUP)}
SCHEDULES |= {"get_cosine_schedule_with_warmup": "cosine", "constant_with_warmup": "constant"}
SCHEDULES |= {"cosine_with_restarts": "cosine", "polynomial": "linear"}  # equal, by default
DECAYING = "cosine"
"""What is trained instead of any other schedule."""
BF16 = (True, "true", "auto", "full", "bf16")
GIVE_PATH = "give data.path=... when you train"


@dataclass
class Experiment:
    """A configuration of another tool, translated: options of groups, values and lists to sweep by
    dotted key, and notes under the headings of :meth:`lines`."""

    origin: str
    groups: dict[str, str] = field(default_factory=dict)
    values: dict[str, Any] = field(default_factory=dict)
    sweep: dict[str, list[Any]] = field(default_factory=dict)
    differs: list[str] = field(default_factory=list)
    details: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    defaults: list[str] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)
    absent: set[str] = field(default_factory=set)
    """Settings without a key in the file."""
    uncovered: list[str] = field(default_factory=list)
    """Of ``differs``, what the numbers of ``study advise`` do not cover: ``use_dora: true``."""
    untrainable: list[str] = field(default_factory=list)
    """What ``study train`` lacks, of a file that is only read for advice: ``rl='dpo'``."""

    def settings(self) -> dict[str, Any]:
        return {**self.groups, **self.values}

    def note(
        self, key: str, value: Any, instead: str, *, detail: bool = False, covered: bool = True
    ) -> None:
        """Note what is trained ``instead``. ``covered``: whether numbers for that hold here too."""
        notes = self.details if detail else self.differs
        notes.append(f"{key}: {shown(value)} ({instead})")
        if not covered:
            self.uncovered.append(f"{key}: {shown(value)}")

    def lines(self) -> Iterator[str]:
        ignored = textwrap.wrap(", ".join(map(printable, self.ignored)), 98, break_on_hyphens=False)
        for heading, notes in (
            ("Trained differently from the file:", self.differs),
            ("Different in detail:", self.details),
            ("To give when you train:", self.missing),
            ("Not in the file, set by default:", self.defaults),
            ("Ignored:", ignored),
        ):
            if notes:
                yield heading
                yield from (f"  {printable(note)}" for note in notes)

    def note_rest(self, keys: Mapping[str, Any], prefix: str = "") -> None:
        for key, value in keys.items():
            name, last = f"{prefix}{shown(key)}", str(key).rpartition(".")[2]
            usual = _REST["unchanged"].get(last)
            if last not in CHANGES or value == usual or not (value or usual is True):
                self.ignored.append(name)
            else:
                is_detail, is_covered = (last in _REST["details"], last not in UNCOVERED)
                self.note(name, value, CHANGES[last], detail=is_detail, covered=is_covered)


@dataclass
class Reading:
    """A file that is being read. ``where``: its name in messages. ``found``: values by setting.
    ``unset``: the defaults of missing keys. ``rest``: values of keys without a setting.
    ``trains``: whether ``study train`` must be able to train it; advice needs less."""

    where: str
    folder: Path
    rest: dict[str, Any]
    experiment: Experiment
    found: dict[str, Any] = field(default_factory=dict)
    unset: dict[str, Any] = field(default_factory=dict)
    trains: bool = True

    def refuse(self, why: str) -> NoReturn:
        raise StudyError(f"{self.where}: {why}")

    def cannot_train(self, what: str, why: str) -> None:
        """Refuse ``what``, which ``study train`` lacks. A file for advice only gets a note."""
        if self.trains:
            self.refuse(f"{what}: {why}")
        self.experiment.untrainable.append(what)

    def inside(self, key: str, values: Mapping[str, Any]) -> "Reading":
        rest = {name: value for name, value in values.items() if value is not None}
        where = f"{self.where}: {key}"
        return Reading(where, self.folder, rest, self.experiment, trains=self.trains)

    def take(self, key: str, kind: str, usual: Any = None) -> Any:
        """The value of a key without a setting, which must be there if none is ``usual``."""
        if key not in self.rest and usual is None:
            self.refuse(f"{key} is missing: add a value to import it")
        return typed(self.where, kind, key, self.rest.pop(key, usual))


@dataclass(frozen=True)
class Tool:
    """A column of :data:`TABLE` and a row of :data:`ROWS`. ``adjust``: changes what was found."""

    name: str
    adjust: Callable[[Reading], Any]

    @cached_property
    def cells(self) -> dict[str, str]:
        cells = {row["setting"]: row[self.name] or row["Trainer"] for row in TABLE}
        return {setting: cell for setting, cell in cells.items() if cell != "none"}

    def key(self, setting: str) -> str:
        return re.split("[ =]", self.cells[setting])[0]

    def lines(self, settings: Mapping[str, Any]) -> list[str]:
        lines, above = list[str](), ""
        for setting in (each for each in settings if each in self.cells):
            section, _, key = self.key(setting).rpartition(".")
            if section not in ("", above):
                lines.append(f"{section}:")
            above = section
            lines.append(f"{'  ' if section else ''}{key}: {settings[setting]}")
        return lines

    def read(
        self,
        values: Mapping[str, Any],
        where: str,
        folder: Path,
        base: str | None = None,
        trains: bool = True,
    ) -> Experiment:
        """The experiment of a file in ``folder``, ``where`` in messages. ``base`` replaces the
        file's. ``trains``: see :class:`Reading`."""
        experiment = Experiment(f"{self.name}'s {where}", {"model": "hf"})
        off = dict.fromkeys(ROWS[self.name].get("off_by_null", "").split(), 0)
        read = ((key, off.get(key) if x is None else x) for key, x in self._flat(values))
        rest = {key: value for key, value in read if value is not None}
        rest |= {self.key("model.path"): base} if base else {}
        reading = Reading(where, folder, rest, experiment, trains=trains)
        if "optimizer" in self.cells:  # a recipe, with data
            own = set() if base is None else {self.key("model.path")}
            refuse_media(reading, {key: value for key, value in rest.items() if key not in own})
        keys = {setting: cell.partition("=")[0].split() for setting, cell in self.cells.items()}
        experiment.absent = {setting for setting in keys if rest.keys().isdisjoint(keys[setting])}
        for row in ROWS[self.name].get("needs", ()):
            for key in row["keys"].split():
                value = reading.found[key] = (rest.get if key in CHANGES else rest.pop)(key, None)
                if value not in row["values"]:
                    said = f"{key} is missing" if value is None else f"{key}={given(value)}"
                    if row.get("advised"):
                        reading.cannot_train(said, row["fix"])
                    else:
                        reading.refuse(f"{said}: {row['fix']}")
        for row in TABLE:
            if row["setting"] in self.cells:
                self._take(reading, row["setting"], row["kind"])
        self.adjust(reading)
        if data := ROWS[self.name].get("data"):
            experiment.groups["data"] = "file"
            named = [f"{key}: {shown(rest.pop(key))}" for key in data.split() if key in rest]
            experiment.missing.append(f"{', '.join(named) or 'data'} ({GIVE_PATH})")
        self._put_adapter(reading)
        if "optimizer" in self.cells:
            self._put_optimizer(reading)
            self._put_length(reading)
        if reading.unset:
            used = [f"{key} {value}" for key, value in reading.unset.items()]
            experiment.defaults.append(f"{self.name}'s defaults: {', '.join(used)}")
        experiment.note_rest(rest)
        return experiment

    def _flat(self, values: Mapping[str, Any], section: str = "") -> Iterator[tuple[str, Any]]:
        for key, value in values.items():
            if ROWS[self.name].get("has_sections") and isinstance(value, dict):
                yield from self._flat(value, f"{section}{key}.")
            else:
                yield f"{section}{key}", value

    def _take(self, reading: Reading, setting: str, kind: str) -> None:
        cell, _, usual = self.cells[setting].partition("=")
        keys, rest = cell.split(), reading.rest
        values = {key: reading.take(key, kind) for key in keys if key in rest}
        real = {key: value for key, value in values.items() if value}
        if len(set(map(str, real.values()))) > 1:
            reading.refuse(f"{' and '.join(real)} contradict each other: keep one")
        if values:
            reading.found[setting] = next(iter((real or values).values()))
        elif usual and not (setting == "precision" and (rest.get("fp16") or rest.get("float16"))):
            reading.found[setting] = value = typed(self.name, kind, keys[0], usual)
            reading.unset |= {keys[0]: usual} if value else {}
        elif setting == "model.path":
            reading.refuse(f"{keys[0]} is missing: give one with --base (a folder or a hub name)")
        elif setting in NEEDED:
            reading.refuse(f"{keys[0]} is missing: add a value to import it")

    def _put_adapter(self, reading: Reading) -> None:
        found, ours = reading.found, reading.experiment.values
        ours |= {key: found[key] for key in self.cells if "." in key and key in found}
        if (near := reading.folder / found["model.path"]).is_dir():
            ours["model.path"] = str(near.resolve())
        ours["model.quant_bits"] = found.get("model.quant_bits") or None
        ours["adapter.scaling"] = "rslora" if found.get("adapter.scaling") else "lora"
        if "adapter.targets" in self.cells:
            ours["adapter.targets"] = all_targets(reading, self.key("adapter.targets"))

    def _put_optimizer(self, reading: Reading) -> None:
        found, experiment, ours = reading.found, reading.experiment, reading.experiment.values
        key, text = self.key("optimizer"), found["optimizer"]
        # The last part of torch.optim.AdamW, paged_adamw_8bit or PagedAdamW8bit.
        name = re.sub("^(paged|ao|optimi)_?", "", text.rpartition(".")[2].lower())
        name = re.split(r"_|\d", name)[0]
        if name not in OPTIMIZERS:
            name = MOST_USED
            experiment.note(key, text, f"{name} instead", covered=False)
        elif "8bit" in text or "4bit" in text:
            experiment.note(key, text, f"{name}, with states in 32 bits", detail=True)
        experiment.groups["optimizer"] = name
        if {"beta1", "beta2"} & found.keys():
            ours["optimizer.betas"] = [found.get("beta1", 0.9), found.get("beta2", 0.999)]
        for option in ("betas", "eps"):
            if option not in OPTIMIZERS[name].options and f"optimizer.{option}" in ours:
                del ours[f"optimizer.{option}"]
                experiment.ignored.append(f"adam_{option}")
        is_bf16 = reading.rest.get("bfloat16") or reading.rest.get("pure_bf16")
        ours["precision"] = "bf16" if is_bf16 or found.get("precision") in BF16 else "float32"
        if "seed" in found:
            ours["seed"] = found["seed"]
        else:
            experiment.defaults.append(f"seed: {self.name} draws adapters without one (seed=0)")

    def _put_length(self, reading: Reading) -> None:
        experiment, ours = reading.experiment, reading.experiment.values
        if not ours.get(length := "data.sequence_length"):
            ours.pop(length, None)
            experiment.note(self.key(length), None, f"cut at {length}")
        if ours.get("train.steps", 0) > 0:
            del ours["train.epochs"]
            experiment.ignored.append(f"{self.key('train.epochs')} (max_steps decides)")
        else:
            ours.pop("train.steps", None)
        schedule = ours["train.schedule"].rpartition(".")[2]
        if schedule not in SCHEDULES:
            experiment.note(self.key("train.schedule"), schedule, f"{DECAYING} instead")
        ours["train.schedule"] = SCHEDULES.get(schedule, DECAYING)
        if schedule == WITHOUT_WARMUP:
            ours["train.warmup"] = 0
        elif ours.get("train.warmup", 0.5) % 1 == 0:
            ours["train.warmup"] = int(ours["train.warmup"])
        ours["train.clip"] = ours["train.clip"] or None


def refuse_media(reading: Reading, values: Mapping[str, Any]) -> None:
    """Refuse a recipe with a sign of images or sound in ``values``, at any depth."""
    for path, value in _leaves(values):
        key, bases = path.rpartition(".")[2], ("model", "model_name_or_path")
        is_set = MEDIA["keys"].search(key) and not MEDIA["except"].fullmatch(key) and value
        is_named = MEDIA["named"].search(key) and MEDIA["names"].search(str(value))
        if is_set or is_named:
            fix = "repeat it with --base" if path in bases else "remove or rename it"
            why = "images and sound are not read"
            reading.refuse(f"{path}={given(value)}: {why}; if all data are text, {fix}")


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Scalars with their keys, such as ``datasets.path``."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _leaves(inner, f"{path}.{key}".strip("."))
    elif isinstance(value, list):
        for inner in value:
            yield from _leaves(inner, path)
    else:
        yield path, value


def typed(where: str, kind: str, key: str, value: Any) -> Any:
    bits = re.search(r"load_in_([48])bit$", key)
    try:
        read = TypeAdapter(bool if bits else KINDS[kind]).validate_python(value)
    except ValidationError as error:
        what = error.errors(include_url=False)[0]["msg"].replace("Input should be", "give")
        raise StudyError(f"{where}: {key}={short(value)}: {what}") from None
    return int(bits[1]) if bits and read else read


def all_targets(reading: Reading, key: str) -> Any:
    """``adapter.targets``: linear layers, which may be named by their weight, and experts."""
    named, experts = reading.found.get("adapter.targets", []), reading.found.get("experts", [])
    experts = [experts] if isinstance(experts, str) else experts
    weights = [name.removesuffix(".weight") for name in experts]
    if weights and reading.unset.pop(key, None):
        named = []
    if isinstance(named, str) and re.fullmatch(r"[\w.-]+(\s*,\s*[\w.]+)*", named):
        named = re.split(r"\s*,\s*", named)
    if isinstance(named, str):  # a regex that matches whole paths
        return rf"({named})|(.*\.)?({'|'.join(map(re.escape, weights))})" if weights else named
    if {"all", "all-linear"} & set(named):
        return "all-linear"  # experts too
    return list(dict.fromkeys([*named, *weights]))


def note_init(reading: Reading, key: str) -> None:
    """Note PEFT's ``init_lora_weights`` if it is not the default; refuse one that changes W0."""
    init = reading.rest.pop(key, None)
    if why := refusal({"init_lora_weights": init}, trained=False):
        what, _, fix = why.replace("init_lora_weights", key, 1).partition(": ")
        reading.cannot_train(what, fix)
    elif init not in (None, True):
        why = "adapter.init=kaiming, PEFT's default"
        reading.experiment.note(key, init, why, covered=False)


def _llama_factory(reading: Reading) -> None:
    found, rest = reading.found, reading.rest
    if not rest.get("dataset"):
        reading.refuse("dataset is missing, so it trains nothing: give the file that trains")
    if not found["adapter.alpha"]:
        found["adapter.alpha"] = reading.unset["lora_alpha"] = 2.0 * found["adapter.rank"]
    for name in OPTIMIZERS:
        if rest.pop(f"use_{name}", None):
            found["optimizer"] = name
    if rest.get("packing"):
        if found.get("data.sample_packing"):
            del rest["packing"]  # neat_packing decides
        found["data.sample_packing"] = True


LLAMA_FACTORY = Tool("LLaMA-Factory", _llama_factory)
TRL = Tool("TRL", lambda reading: reading.rest.setdefault("assistant_only_loss", False))
UNSLOTH = Tool(
    "Unsloth", lambda reading: reading.rest.setdefault("training.train_on_completions", False)
)
MLP = ["gate_proj", "up_proj", "down_proj"]


def _torchtune(reading: Reading) -> None:
    found, rest = reading.found, reading.rest
    if re.search("DPO|PPO|GRPO", loss := str(rest.get("loss._component_", ""))):
        why = "study train trains on targets: give a recipe of LoRA on them"
        reading.cannot_train(f"loss={loss}", why)
    if ".qlora_" in str(rest.get("model._component_", "")) or rest.get("model.quantize_base"):
        found["model.quant_bits"] = 4
    names = [*found.get("adapter.targets", []), *MLP * found.get("all_linear", False)]
    found["adapter.targets"] = ["o_proj" if name == "output_proj" else name for name in names]


TORCHTUNE = Tool("torchtune", _torchtune)


def _peft(reading: Reading) -> None:
    others = {key: x for key, x in reading.rest.items() if key != "init_lora_weights"}
    if why := refusal(others, trained=False):
        what, _, fix = why.partition(": ")
        reading.cannot_train(what, fix)
    note_init(reading, "init_lora_weights")
    reading.experiment.defaults.append(
        "data (give data=file data.path=...), optimizer and steps: defaults of study train"
    )


PEFT = Tool("PEFT", _peft)


def shown(value: Any) -> str:
    """A value on one line, at most 100 characters."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return printable(" ".join(text.split()), 100)
