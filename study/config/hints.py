"""What a user probably meant, in one line; the help and the completion of ``study train``."""

import re
import shutil
import textwrap
import traceback
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

import yaml
from hydra import initialize_config_dir
from hydra._internal.utils import get_args_parser
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from hydra.plugins.completion_plugin import DefaultCompletionPlugin
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from study.config.compose import CONF, first_line
from study.config.types import CellConfig, optimizer_config
from study.config.values import Checked
from study.errors import StudyError, given
from study.vocabulary.optimizers import OPTIMIZERS

SEE = "see study train --help and --hydra-help"


def arranged(arguments: Sequence[str]) -> list[str]:
    """The arguments of ``study train`` as Hydra's parser accepts them: options before overrides.

    Raises :class:`StudyError` for an option that does not exist.
    """
    parser = get_args_parser()

    def refuse(message: str) -> NoReturn:
        raise StudyError(f"{message}: {SEE}")

    parser.error = refuse
    parsed, others = parser.parse_known_args(arguments)
    for option in (text for text in others if text.startswith("-")):
        real = [flag for action in parser._actions for flag in action.option_strings]
        near = get_close_matches(option, [*real, "--plan"], 1, 0.7)
        raise StudyError(f"unknown option {given(option)}{_meant(near)}: {SEE}")
    overrides = [*parsed.overrides, *others]
    options = list(arguments)
    for override in overrides:
        options.remove(override)
    return [*options, *overrides]


@contextmanager
def as_study_errors() -> Iterator[None]:
    """Inside, an error that Hydra reports becomes a :class:`StudyError` of one line.

    Hydra checks few types. For some mistakes it raises a ``TypeError`` or a ``ValueError`` from
    its own code, so whatever its code raises is taken for a mistake of the user.
    """
    try:
        yield
    except (StudyError, BrokenPipeError):  # the reader of a pipe, such as head, has enough
        raise
    except MissingConfigException as error:
        near = get_close_matches(Path(error.missing_cfg_file or "").name, error.options or [], 1)
        choices = f": choose from {', '.join(error.options)}" if error.options else ""
        line = first_line(error).rpartition("': ")[2]
        raise StudyError(f"{line}{choices}{_meant(near)}") from error
    except OverrideParseException as error:
        raise StudyError(
            f"can't read {given(error.override)} ({first_line(error)}): write key=value; a value "
            "with spaces, brackets or letters beyond a to z has quotes of its own, such as "
            "\"name='été'\""
        ) from error
    except yaml.YAMLError as error:
        said = " ".join(str(error).split())
        raise StudyError(f"a file of the configuration is not valid YAML: {said}") from error
    except Exception as error:
        raised_in = traceback.extract_tb(error.__traceback__)[-1].filename
        of_hydra = isinstance(error, HydraException | OmegaConfBaseException)
        if not of_hydra and not re.search("/(hydra|omegaconf|antlr4)/", raised_in):
            raise
        about = "" if of_hydra else "can't compose the configuration: "
        raise StudyError(f"{about}{_cause(error)}") from error


def _cause(error: BaseException) -> str:
    """The first line of the innermost cause and, for an unknown key, the key that was meant."""
    while error.__cause__ is not None:
        error = error.__cause__
    key, parent = getattr(error, "full_key", None), getattr(error, "parent_node", None)
    if key and isinstance(parent, DictConfig) and str(error).startswith("Key "):
        return unknown_key(key, [str(name) for name in parent if name != "hydra"])
    line = first_line(error) if str(error) else type(error).__name__
    if line.startswith("Ambiguous value"):
        line += ": add -m to sweep over several values, or write [4,8] for one list"
    return line


def unknown_key(key: str, siblings: Iterable[str]) -> str:
    """The line about ``key``, which does not exist. ``siblings``: the keys that do, beside it."""
    beside = list(siblings)
    group, _, name = key.rpartition(".")
    by_name: dict[str, str] = {}
    for known in known_keys():
        by_name.setdefault(known.rpartition(".")[2], known)
    if not group and name in by_name:
        found = [by_name[name]]
    elif near := get_close_matches(name, beside, 1, 0.65):
        found = [f"{group}.{near[0]}" if group else near[0]]
    else:
        found = [by_name[each] for each in get_close_matches(name, by_name, 1, 0.65)]
    choices = "" if found else f": choose from {', '.join(beside)}"
    return f"unknown key {key}{_meant(found)}{choices}"


def _meant(likely: Sequence[str]) -> str:
    return f": did you mean {likely[0]}?" if likely else ""


@cache
def known_keys() -> tuple[str, ...]:
    """The dotted keys of a cell."""
    return tuple(dict.fromkeys(key for key, _ in _typed_fields()))


def _typed_fields() -> Iterator[tuple[str, Any]]:
    """Every dotted key of a cell with its annotated type. Optimizers may share a key."""
    for part in fields(CellConfig):
        kinds = (
            [optimizer_config(name) for name in OPTIMIZERS]
            if part.name == "optimizer"
            else [part.type]
        )
        for kind in kinds:
            if is_dataclass(kind):
                yield from ((f"{part.name}.{each.name}", each.type) for each in fields(kind))
            else:
                yield part.name, kind


@cache
def choices(key: str) -> tuple[str, ...]:
    """The words that a dotted key may hold. Empty for a key that does not exist or takes others."""
    words: dict[str, None] = {}
    for name, kind in _typed_fields():
        if name == key:
            words |= dict.fromkeys(("true", "false") if kind is bool else ())
            for each in getattr(kind, "__metadata__", ()):
                words |= dict.fromkeys(each.words if isinstance(each, Checked) else ())
    return tuple(words)


def reference(root: DictConfig) -> str:
    """The groups with their options, and each key of the composed configuration ``root``.

    A key's value is that of ``root``, its meaning is its comment in ``conf/``, and its choices are
    those of its type.
    """
    composed = OmegaConf.to_container(root, resolve=False)
    assert isinstance(composed, dict)
    chosen = {str(key): str(value) for key, value in root.hydra.runtime.choices.items()}
    sources = [Path(source.path) for source in root.hydra.runtime.config_sources]
    folders = [folder for folder in sources if folder.is_dir()]
    options: dict[str, list[Path]] = {}
    for file in (file for folder in folders for file in sorted(folder.glob("*/*.yaml"))):
        options.setdefault(file.parent.name, []).append(file)
    lines = ["Groups (group=option), each with its options:", ""]
    for group, files in options.items():
        if len(files) > 1:
            names = " | ".join(file.stem for file in files)
            lines += _entry(f"{group}={chosen.get(group, 'null')}", names)
    lines += ["", "Keys (key=value):", ""]
    meanings = _meanings([folder / "config.yaml" for folder in folders])
    for key, value in composed.items():
        if isinstance(value, dict) and key in options:
            files = sorted(options[key], key=lambda file: file.stem != chosen.get(key))
            inside = _meanings(files)
            lines.append("")
            for name, each in value.items():
                if name != "name":  # it is chosen with its group
                    lines += _described(f"{key}.{name}", each, inside.get(name, ""))
        elif not isinstance(value, dict | list):
            lines += _described(str(key), value, meanings.get(str(key), ""))
    return "\n".join(lines)


def _described(key: str, value: Any, meaning: str) -> list[str]:
    """The lines of a key. Its choices follow its meaning unless that names them all."""
    words = [word for word in choices(key) if word != "null"]
    if not all(word in meaning for word in words):
        meaning = f"{meaning} [{' | '.join(words)}]"
    shown = yaml.safe_dump(value, default_flow_style=True, width=10**6).split("\n")[0]
    return _entry(f"{key}={shown}", meaning)


def _entry(left: str, text: str) -> list[str]:
    """``left``, and ``text`` beside it or, if it is too long, below."""
    width = max(52, min(shutil.get_terminal_size((100, 24)).columns, 100))
    first = f"  {left}".ljust(32)
    lines = [first.rstrip()] if len(first) > 32 else []
    body = textwrap.wrap(
        text,
        width,
        initial_indent=" " * 32 if lines else first,
        subsequent_indent=" " * 32,
        break_long_words=False,
        break_on_hyphens=False,
    )
    return [*lines, *body] or [first.rstrip()]


def _meanings(files: Iterable[Path]) -> dict[str, str]:
    """The comment of each key in some YAML files: of its line, and of the lines below. The first
    file that comments on a key counts.
    """
    found: dict[str, str] = {}
    for text in (file.read_text() for file in files if file.is_file()):
        entries = re.findall(r"^(\w+):.*?#\s+(.*(?:\n\s+#.*)*)", text, re.MULTILINE)
        for name, comment in entries:
            found.setdefault(name, " ".join(re.sub(r"\n\s+#", " ", comment).split()))
    return found


class _Words(DefaultCompletionPlugin):
    def __call__(self, line: str) -> list[str]:
        """Hydra's completions of the last word of ``line``: groups, options, keys and defaults."""
        return self._query("config", line)


def complete(overrides: Sequence[str], word: str) -> list[str]:
    """What ``word`` may become after ``overrides``, which stand before it on the command line.

    Those are Hydra's completions and, for the value of a key, the choices of its type.
    """
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        # A single space after the last override makes Hydra complete a new word.
        found = _Words(GlobalHydra.instance().config_loader())(" ".join([*overrides, word]))
    key, equals, _ = word.partition("=")
    found += [f"{key}={choice}" for choice in choices(key)] if equals else []
    return [each for each in dict.fromkeys(found) if each.startswith(word)]
