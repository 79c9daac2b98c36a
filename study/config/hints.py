"""One-line corrections of mistakes; the help of ``study train``."""

import re
import traceback
from argparse import ArgumentError
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from hydra._internal.utils import get_args_parser
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from study.config.compose import first_line
from study.config.types import CellConfig, optimizer_config
from study.errors import StudyError, given
from study.vocabulary.optimizers import OPTIMIZERS

SEE = "see study train --help and --hydra-help"


def arranged(arguments: Sequence[str]) -> list[str]:
    """The arguments of ``study train`` as Hydra's parser accepts them: options before overrides."""
    parser = get_args_parser()
    parser.exit_on_error = False
    try:
        parsed, others = parser.parse_known_args(arguments)
    except ArgumentError as error:
        raise StudyError(f"{error}: {SEE}") from None
    for option in (text for text in others if text.startswith("-")):
        real = [flag for action in parser._actions for flag in action.option_strings]
        near = get_close_matches(option, [*real, "--plan"], 1, 0.7)
        raise StudyError(f"unknown option {given(option)}{_meant(near)}: {SEE}")
    overrides = [*parsed.overrides, *others]
    for text in overrides:
        if text.startswith(("hydra.sweep.", "hydra.run.")):  # Hydra would make empty folders
            key = text.partition("=")[0]
            raise StudyError(f"{key} is not used: give results_dir=FOLDER, and name=NAME")
    return [*(text for text in arguments if text not in overrides), *overrides]


@contextmanager
def as_study_errors() -> Iterator[None]:
    """Context manager: an error that Hydra reports becomes a :class:`StudyError` of one line.

    Hydra checks few types. For some mistakes it raises a ``TypeError`` or a ``ValueError`` from its
    own code. So every error of its code counts as a mistake of the user.
    """
    try:
        yield
    except (StudyError, BrokenPipeError):  # the reader of a pipe, such as head, has ended
        raise
    except Exception as error:
        raised_in = traceback.extract_tb(error.__traceback__)[-1].filename
        reported = isinstance(error, HydraException | OmegaConfBaseException | yaml.YAMLError)
        if not reported and not re.search("/(hydra|omegaconf|antlr4)/", raised_in):
            raise
        raise StudyError(_line(error)) from error


def _line(error: BaseException) -> str:
    if isinstance(error, MissingConfigException):
        options = error.options or []
        near = get_close_matches(Path(error.missing_cfg_file or "").name, options, 1)
        choices = f": choose from {', '.join(options)}" if options else ""
        return first_line(error).rpartition("': ")[2] + choices + _meant(near)
    if isinstance(error, OverrideParseException):
        return (
            f"can't read {given(error.override)} ({first_line(error)}): write key=value, and "
            "quote a value with other characters than a to z, such as \"name='été'\""
        )
    if isinstance(error, yaml.YAMLError):
        return f"a file of the configuration is not valid YAML: {' '.join(str(error).split())}"
    while error.__cause__ is not None:
        error = error.__cause__
    key, parent = getattr(error, "full_key", None), getattr(error, "parent_node", None)
    if key and isinstance(parent, DictConfig) and str(error).startswith("Key "):
        return unknown_key(key, [str(name) for name in parent if name != "hydra"])
    line = first_line(error) if str(error) else type(error).__name__
    if line.startswith("Ambiguous value"):
        line += ": add -m to sweep over several values, or write [4,8] for one list"
    return f"can't compose the configuration: {line}"


def unknown_key(key: str, siblings: Iterable[str]) -> str:
    """The line about ``key``, which does not exist. ``siblings``: the keys that do."""
    others = list(siblings)
    group, dot, name = key.rpartition(".")
    # Of keys with the same name, the first one is meant: train.steps before probes.steps.
    dotted = {known.rpartition(".")[2]: known for known in reversed(known_keys()) if known != key}
    dotted |= {each: group + dot + each for each in others}
    near = get_close_matches(name, others, 1, 0.7) or get_close_matches(name, dotted, 1, 0.65)
    choices = "" if near else f": choose from {', '.join(others)}"
    return f"unknown key {key}{_meant([dotted[each] for each in near])}{choices}"


def _meant(likely: Sequence[str]) -> str:
    return f": did you mean {likely[0]}?" if likely else ""


@cache
def known_keys() -> dict[str, tuple[str, ...]]:
    """Every dotted key of a cell, with its words if it takes no other values."""
    parts: list[tuple[str, Any]] = [(part.name, part.type) for part in fields(CellConfig)]
    parts += [("optimizer", optimizer_config(name)) for name in OPTIMIZERS]
    found: dict[str, tuple[str, ...]] = {}
    for part, kind in parts:
        inside = {f"{part}.{f.name}": f.type for f in fields(kind)} if is_dataclass(kind) else {}
        for key, each in (inside or {part: kind}).items():
            checks = getattr(each, "__metadata__", ())
            words = [word for check in checks for word in getattr(check, "words", ())]
            found[key] = (*found.get(key, ()), *(("true", "false") if each is bool else words))
    return found


def reference(root: DictConfig) -> str:
    """The groups with their options, and each key of ``root``: value, meaning and choices."""
    composed: Any = OmegaConf.to_container(root, resolve=False)
    chosen = root.hydra.runtime.choices
    sources = root.hydra.runtime.config_sources
    folders = [Path(source.path) for source in sources if source.schema == "file"]
    options: dict[str, list[Path]] = {}
    for file in (file for folder in folders for file in sorted(folder.glob("*/*.yaml"))):
        options.setdefault(file.parent.name, []).append(file)
    groups, keys = _table(), _table()
    for group, files in options.items():
        if len(files) > 1:
            names = " | ".join(file.stem for file in files)
            groups.add_row(f"{group}={chosen.get(group) or 'null'}", names)
    outside = meanings([folder / "config.yaml" for folder in folders])
    for part, values in composed.items():
        if isinstance(values, dict) and part in options:
            files = sorted(options[part], key=lambda file: file.stem != chosen.get(part))
            inside = meanings(files)
            for name, value in values.items():
                if name != "name":  # it is chosen with its group
                    keys.add_row(*_described(f"{part}.{name}", value, inside.get(name, "")))
            keys.add_row()
        elif not isinstance(values, dict | list):
            keys.add_row(*_described(part, values, outside.get(part, "")))
    console = Console(highlight=False)
    with console.capture() as shown:
        console.print("Groups (group=option), each with its options:\n", groups, sep="\n")
        console.print("\nKeys (key=value):\n", keys, sep="\n")
    return "\n".join(line.rstrip() for line in shown.get().splitlines())


def _table() -> Table:
    table = Table.grid(padding=(0, 1))
    table.add_column(width=31, overflow="fold")
    return table


def _described(key: str, value: Any, meaning: str) -> tuple[str, str]:
    """A key with its value, and its meaning, with the choices if the meaning does not name them."""
    words = [word for word in known_keys().get(key, ()) if word != "null"]
    if not all(word in meaning for word in words):
        meaning = f"{meaning} [{' | '.join(words)}]"
    shown = yaml.safe_dump(value, default_flow_style=True, width=10**6).split("\n")[0]
    return escape(f"{key}={shown}"), escape(meaning)


def meanings(files: Iterable[Path]) -> dict[str, str]:
    """The first comment of each key in some YAML files, on its line and the lines below."""
    found: dict[str, str] = {}
    for text in (file.read_text() for file in files if file.is_file()):
        entries = re.findall(r"^(\w+):.*?#\s+(.*(?:\n\s+#.*)*)", text, re.MULTILINE)
        for name, comment in entries:
            found.setdefault(name, " ".join(re.sub(r"\n\s+#", " ", comment).split()))
    return found
