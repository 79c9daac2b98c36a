"""A foreign file and its keys, and the settings that several tools share.

Names of optimizers, schedules and lengths are those of transformers' Trainer, to which the tools
pass their own keys.
"""

import os.path
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NoReturn, Self

import yaml
from pydantic import BaseModel, BeforeValidator, Field, ValidationError

from study.config.values import LARGEST, check_path
from study.data import files
from study.errors import StudyError, short
from study.integrations.configs.experiment import Experiment
from study.reading import read_file, read_object
from study.vocabulary.optimizers import MOST_USED, OPTIMIZERS
from study.vocabulary.peft_fields import refusal
from study.vocabulary.sources import FORMATS

MOST_BYTES = 1 << 18
"""Of a file."""
ADAMW = "adamw_torch_fused"
"""The Trainer's default optimizer."""
SCHEDULES = {"cosine": "cosine", "linear": "linear", "constant_with_warmup": "constant"}
WITHOUT_WARMUP = "constant"
"""The Trainer's schedule that ignores warm-up."""
STAND_INS = {"xbrl_extract_train.jsonl": "xbrl_extract"}
"""Generated data that is used if a file of FinLoRA's is missing."""
MESSAGES = "messages"
GIVE_PATH = "give data.path=... when you train"
TOKENIZERS_OWN = "the tokenizer's own chat template is used"


def load(path: Path) -> dict[str, Any]:
    """The mapping in a YAML or JSON file. Raises :class:`StudyError` for any other file."""
    fix = "give a YAML or JSON file"
    if path.suffix == ".json":
        return read_object(path, str(path), fix, MOST_BYTES)
    content = read_file(path, str(path), fix, MOST_BYTES)
    try:
        values = yaml.safe_load(content.decode("utf-8-sig"))
    except (ValueError, TypeError, RecursionError, yaml.YAMLError) as error:
        raise StudyError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise StudyError(f"{path} holds no keys: give a configuration")
    return values


class Keys(BaseModel, extra="allow", allow_inf_nan=False):
    """The keys of one form that have a meaning here. ``model_extra`` has the others.

    A null value is a missing key.
    """

    _where: str = ""

    @classmethod
    def read(cls, values: Mapping[str, Any], where: str) -> Self:
        """Check ``values``. Messages call them ``where``.

        Raises :class:`StudyError` for missing keys, and for the first value of another type.
        """
        given = {str(key): value for key, value in values.items() if value is not None}
        try:
            found = cls.model_validate(given)
        except OverflowError:
            raise StudyError(f"{where}: a number is out of range") from None
        except ValidationError as error:
            wrong = error.errors(include_url=False)
            missing = [str(each["loc"][0]) for each in wrong if each["type"] == "missing"]
            if missing:
                verb = "is" if len(missing) == 1 else "are"
                raise StudyError(
                    f"{where}: {', '.join(missing)} {verb} missing: add a value to import it"
                ) from None
            key, what = wrong[0]["loc"][0], wrong[0]["msg"].replace("Input should be", "give")
            raise StudyError(f"{where}: {key}={short(given[str(key)])}: {what}") from None
        found._where = where
        return found

    def refuse(self, why: str) -> NoReturn:
        raise StudyError(f"{self._where}: {why}")

    @property
    def rest(self) -> dict[str, Any]:
        """The other keys, of which a reader may take some."""
        return self.model_extra or {}

    def key(self, name: str) -> str:
        return type(self).model_fields[name].alias or name


def _split(value: Any) -> Any:
    return [name.strip() for name in value.split(",")] if isinstance(value, str) else value


Split = BeforeValidator(_split)
Names = Annotated[list[str], Split, Field(default_factory=list)]
"""Strings, of a list or separated by commas."""
Targets = Annotated[str | list[str], Field(default_factory=list)]
Mapped = Annotated[dict[str, Any], Field(default_factory=dict)]


class AdapterKeys(Keys):
    """A base and a LoRA adapter. A field ``adapter__rank`` is our setting ``adapter.rank``.

    ``tool``: whose keys they are.
    """

    tool: ClassVar[str]
    base: str
    adapter__rank: int
    adapter__alpha: float
    use_rslora: bool = False
    quant_bits: Literal[4, 8] | None = None
    load_in_8bit: bool = False
    load_in_4bit: bool = False

    def bits(self) -> int | None:
        """Of the base's weights: 4, 8 or None. The keys may not contradict each other."""
        asked = {self.quant_bits or 0, 8 * self.load_in_8bit, 4 * self.load_in_4bit} - {0}
        if len(asked) > 1:
            self.refuse("load_in_8bit, load_in_4bit, quant_bits contradict each other: keep one")
        return max(asked, default=None)

    def experiment(self, folder: Path) -> Experiment:
        """An experiment with the settings of all such fields, and the base.

        The base is the folder of its name in ``folder``, if there is one.
        """
        check_path(self.base, "the base")
        near = folder / self.base
        values: dict[str, Any] = {
            "model.path": str(near.resolve()) if near.is_dir() else self.base,
            "model.quant_bits": self.bits(),
            "adapter.scaling": "rslora" if self.use_rslora else "lora",
        }
        fields = (name for name in type(self).model_fields if "__" in name)
        values |= {name.replace("__", "."): getattr(self, name) for name in fields}
        given = {key: value for key, value in values.items() if value is not None}
        return Experiment(f"{self.tool}'s {self._where}", {"model": "hf"}, given)


class TrainingKeys(AdapterKeys):
    """A training with the keys of transformers' Trainer, except for renamed ones."""

    base: str = Field(alias="model_name_or_path")
    adapter__dropout: float = Field(0.0, alias="lora_dropout")
    train__batch_size: int = Field(8, alias="per_device_train_batch_size")
    train__accumulation: int = Field(1, alias="gradient_accumulation_steps")
    train__clip: float = Field(1.0, alias="max_grad_norm")
    train__epochs: float = Field(3.0, alias="num_train_epochs")
    optimizer: str = Field(ADAMW, alias="optim")
    optimizer__lr: float = Field(alias="learning_rate")
    optimizer__weight_decay: float = Field(0.0, alias="weight_decay")
    optimizer__loraplus_lr_ratio: float | None = Field(None, alias="loraplus_lr_ratio")
    optimizer__eps: float | None = Field(None, alias="adam_epsilon")
    adam_beta1: float | None = None
    adam_beta2: float | None = None
    max_steps: int = 0
    schedule: str = Field("linear", alias="lr_scheduler_type")
    warmup_steps: float | None = None
    warmup_ratio: float | None = None
    seed: int | None = 42

    def experiment(self, folder: Path) -> Experiment:
        """The same, with optimizer, length, schedule and seed."""
        experiment = super().experiment(folder)
        values = experiment.values
        values["train.clip"] = self.train__clip or None
        self._put_optimizer(experiment)
        if self.max_steps > 0:
            values["train.steps"] = self.max_steps
            del values["train.epochs"]
            experiment.ignored.append(f"{self.key('train__epochs')} (max_steps decides)")
        key, warmup = self.key("schedule"), self.warmup()
        if self.schedule not in (*SCHEDULES, WITHOUT_WARMUP):
            experiment.note(key, self.schedule, "constant instead")
        values["train.schedule"] = SCHEDULES.get(self.schedule, "constant")
        if self.schedule == WITHOUT_WARMUP:
            warmup = 0
        if warmup is not None:
            values["train.warmup"] = warmup
        if self.seed is not None:
            values["seed"] = self.seed
        return experiment

    def _put_optimizer(self, experiment: Experiment) -> None:
        values, key = experiment.values, self.key("optimizer")
        name = self.optimizer.removeprefix("paged_").split("_")[0]  # paged_adamw_8bit is adamw
        if name not in OPTIMIZERS:
            name = MOST_USED
            experiment.note(key, self.optimizer, f"{name} instead")
        elif "8bit" in self.optimizer or "4bit" in self.optimizer:
            experiment.note(key, self.optimizer, f"{name}, with states in 32 bits", detail=True)
        experiment.groups["optimizer"] = name
        betas = [self.adam_beta1, self.adam_beta2]
        if any(beta is not None for beta in betas):
            pairs = zip(betas, (0.9, 0.999), strict=True)
            values["optimizer.betas"] = [usual if beta is None else beta for beta, usual in pairs]
        if not {"betas", "eps"} <= OPTIMIZERS[name].options.keys():
            for option in ("betas", "eps"):
                if values.pop(f"optimizer.{option}", None) is not None:
                    experiment.ignored.append(f"adam_{option}")

    def warmup(self) -> float | int | None:
        """Steps, or a share of them below 1; ``warmup_steps`` may hold either (transformers 5)."""
        steps, ratio = self.warmup_steps, self.warmup_ratio
        if steps and ratio:
            self.refuse("warmup_steps and warmup_ratio contradict each other: keep one")
        if ratio is not None and not 0 <= ratio < 1:
            self.refuse(f"warmup_ratio={ratio:g} leaves no step after the warm-up")
        warmup = max((each for each in (steps, ratio) if each is not None), default=None)
        return warmup if warmup is None or warmup % 1 else int(warmup)

    def finish(self, experiment: Experiment, *more: str) -> None:
        """Note the defaults that are neither empty nor false, ``more`` of them, and the rest."""
        used = [
            f"{self.key(name)} {field.default}"
            for name, field in type(self).model_fields.items()
            if name not in self.model_fields_set
            and not (field.is_required() or field.default_factory)
            and field.default
        ]
        if used := [*used, *more]:
            experiment.defaults.append(f"{self.tool}'s defaults: {', '.join(used)}")
        experiment.note_rest(self.rest)


def all_targets(named: str | list[str] | None, parameters: str | list[str]) -> Any:
    """``adapter.targets`` from the keys for linear layers and for weights of experts.

    None if neither has a value. A linear layer may be selected by its weight.
    """
    given = [parameters] if isinstance(parameters, str) else parameters
    weights = [name.removesuffix(".weight") for name in given if name]
    if not weights or named == "all-linear":  # which has experts
        return named or None
    if isinstance(named, str) and not named.isidentifier():  # a regex that matches whole paths
        return rf"({named})|(.*\.)?({'|'.join(map(re.escape, weights))})"
    return list(dict.fromkeys([*([named] if isinstance(named, str) else named or []), *weights]))


def note_init(experiment: Experiment, keys: Keys, key: str) -> None:
    """Note the init that PEFT calls ``init_lora_weights``, if it is not PEFT's default.

    Raises :class:`StudyError` for one that PEFT does not have, and for one that changes the base.
    """
    init = keys.rest.pop(key, None)
    if why := refusal({"init_lora_weights": init}, trained=False):
        keys.refuse(why.replace("init_lora_weights", key, 1))
    if init not in (None, True):
        experiment.note(key, init, "adapter.init=kaiming, PEFT's default")


@dataclass(frozen=True)
class Rows:
    """The rows of one data set.

    - ``key``: their name in notes;
    - ``path``: a file, or ``org/name`` on the hub, of which ``split`` and ``subset`` are read;
    - ``format``: one of :data:`study.vocabulary.sources.FORMATS`; None: one that can't be read.
    """

    key: str
    path: str
    format: str | None
    split: str | None = None
    subset: str | None = None


def put_rows(
    experiment: Experiment, data_sets: Sequence[Rows], folder: Path, **others: Any
) -> Path | None:
    """Set the data: those of ``data_sets`` that are like the first. Returns the file of the first.

    A file is searched next to the configuration, then in the working directory. If FinLoRA's XBRL
    extraction is missing, the toolkit's generated one replaces it. The user must name any other
    missing file, or a file in a readable format. ``others``: more keys of ``data``.
    """
    experiment.groups["data"] = "file"
    first = data_sets[0]
    common = attrgetter("format", "split", "subset")
    given: dict[str, Any] = {"format": first.format, **others}
    paths, file = [], None
    for rows in data_sets:
        check_path(rows.path, rows.key)
        found = first_file(folder / rows.path, Path(rows.path))
        is_hub = files.is_hub_name(rows.path) and not files.is_file_name(rows.path)
        if common(rows) != common(first):
            why = "its format, split or subset differs from the first one, which is trained on"
            experiment.note(rows.key, rows.path, why)
        elif rows.format is None:
            continue
        elif found is not None:
            file = file or found
            paths.append(str(found.resolve()))
            part = " ".join(each for each in (rows.subset, rows.split) if each)
            if part not in ("", "train"):
                experiment.note(rows.key, f"{part} of {rows.path}", "the whole file is read")
        elif stand_in := STAND_INS.get(Path(rows.path).name):
            experiment.groups["data"] = stand_in
            given = {}
            experiment.differs.append(
                f"{rows.key}: {rows.path} not found: data={stand_in} is used instead, generated "
                f"questions of the same form; if you have the file: data=file "
                f"data.path={Path(rows.path).name}"
            )
        elif is_hub and not (folder / rows.path).is_dir():
            paths.append(rows.path)
            given |= {"split": rows.split, "subset": rows.subset}
        else:
            experiment.missing.append(f"{rows.key}: {rows.path} is no file here: {GIVE_PATH}")
    if first.format is not None:
        given["path"] = paths[0] if len(paths) == 1 else paths
    experiment.values |= {f"data.{name}": value for name, value in given.items() if value}
    return file


def put_heldout(experiment: Experiment, key: str, asked: float, file: Path | None) -> None:
    """Set the number of examples to hold out. The tools give a number or a share of the rows."""
    if asked >= 1:
        experiment.values["data.heldout"] = min(round(asked), LARGEST)
    elif asked > 0 and file is not None:
        rows = sum(1 for _ in files.read(str(file)))
        experiment.values["data.heldout"] = max(1, round(asked * rows))
    elif asked > 0:
        why = "a share of rows that are not here: data.heldout keeps its default"
        experiment.note(key, asked, why, detail=True)
    else:
        why = "data.heldout: a few rows are held out, at most a tenth, to measure the loss on them"
        experiment.note(key, 0, why, detail=True)


def first_file(*paths: Path) -> Path | None:
    """The first of ``paths`` that is a file."""
    return next((path for path in paths if os.path.isfile(path)), None)


def format_of(*names: str) -> str | None:
    """The format whose rows have exactly the fields ``names``, the prompt first; None if none."""
    return next((name for name, row in FORMATS.items() if names in row.needs), None)


def unusual(values: dict[str, Any], usual: Mapping[str, Sequence[Any]]) -> dict[str, Any]:
    """Take the keys of ``usual`` out of ``values``; returns those that have another value."""
    taken = {key: values.pop(key) for key in usual if key in values}
    return {key: value for key, value in taken.items() if value not in usual[key]}
