"""One-line corrections of mistakes; the help of ``study train``."""

import re
import textwrap
import traceback
from argparse import ArgumentError
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path

import yaml
from hydra._internal.utils import get_args_parser
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from study.config.compose import CONF, first_line, meant, unknown_key
from study.errors import StudyError, given
from study.vocabulary.extras import install

SEE = "see study train --help and --hydra-help"
LAUNCHERS = ("joblib", "ray", "submitit")
"""The extras of launchers: the first words of the names that they give to Hydra."""
GRID = "a sweep trains every value of a list, such as -m optimizer.lr=1e-4,3e-4,1e-3"


def arranged(arguments: Sequence[str]) -> list[str]:
    """The arguments of ``study train`` as Hydra's parser accepts them: options before overrides."""
    parser = get_args_parser()
    parser.exit_on_error = parser.allow_abbrev = False
    try:
        parsed, others = parser.parse_known_args(arguments)
    except ArgumentError as error:
        raise StudyError(f"{error}: {SEE}") from None
    for option in (text for text in others if text.startswith("-")):
        real = [flag for action in parser._actions for flag in action.option_strings]
        near = get_close_matches(option, [*real, "--plan"], 1, 0.8)
        keys = "keys have no dashes, as in adapter.rank=4"
        raise StudyError(f"unknown option {given(option)}{meant(near) or f': {keys}'}; {SEE}")
    overrides = [*parsed.overrides, *others]
    for text in overrides:
        if text.startswith(("hydra.sweep.", "hydra.run.")):  # Hydra would make empty folders
            key = text.partition("=")[0]
            raise StudyError(f"{key} is not used: give results_dir=FOLDER, and name=NAME")
    return [*(text for text in arguments if text not in overrides), "--", *overrides]


@contextmanager
def as_study_errors() -> Iterator[None]:
    """Context manager: an error that Hydra reports becomes a :class:`StudyError` of one line. Hydra
    checks few types, so a ``TypeError`` or ``ValueError`` from its own code counts too."""
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
        name = Path(error.missing_cfg_file or "").name
        if f"{error.missing_cfg_file}".startswith("hydra/sweeper/"):
            return f"there is no hydra/sweeper={name}: {GRID}"
        near = get_close_matches(name, options, 1)
        choices = f": choose from {', '.join(options)}" if options else ""
        if (extra := name.partition("_")[0]) in LAUNCHERS:
            choices += f", or {install(extra)}"
        return first_line(error).rpartition("': ")[2] + choices + meant(near)
    if isinstance(error, OverrideParseException):
        text = given(error.override)
        if text.endswith((".yml", ".yaml", ".json")):
            return f"{text} is not key=value: for a configuration file, study sweep-from {text}"
        why = f"can't read {text}: write key=value without spaces, and quote a value with other"
        return f"{why} characters than a to z, such as \"name='été'\""
    if isinstance(error, yaml.YAMLError):
        return f"a file of the configuration is not valid YAML: {' '.join(str(error).split())}"
    while error.__cause__ is not None:
        error = error.__cause__
    key, parent = getattr(error, "full_key", None), getattr(error, "parent_node", None)
    if key and isinstance(parent, DictConfig) and str(error).startswith("Key "):
        return unknown_key(key, parent)
    line = first_line(error) if str(error) else type(error).__name__
    if line.startswith("Ambiguous value"):
        line += ": add -m to sweep over several values, or write [4,8] for one list"
    if line.startswith("Sweep parameters"):
        line += ": add -m"
    if "interval(" in line or "INTERVAL_SWEEP" in line:
        return f"interval(...) has no list of values: {GRID}"
    if line.startswith("Multiple values"):  # an experiment's file without override, or +model=tiny
        line += " in a file, and no + on the command line"
    return f"can't compose the configuration: {line}"


def reference(root: DictConfig) -> str:
    """The groups with their options, and the keys with the comments of their files."""
    chosen, sources = root.hydra.runtime.choices, root.hydra.runtime.config_sources
    folders = [Path(source.path) for source in sources if source.schema == "file"]
    files: dict[str, dict[str, Path]] = {}
    for file in (file for folder in folders for file in sorted(folder.glob("*/*.yaml"))):
        files.setdefault(file.parent.name, {})[file.stem] = file
    lines = ["Groups (group=option), each with its options:", ""]
    for group, options in files.items():
        if len(options) > 1:
            row = f"{group}={chosen.get(group) or 'null'}".ljust(31) + f" {' | '.join(options)}"
            lines += textwrap.wrap(row, 100, subsequent_indent=" " * 32, break_on_hyphens=False)
    lines += ["", "Keys, and their values if none is given, such as train.steps=100:", ""]
    outside = (CONF / "config.yaml").read_text()
    lines += re.findall(r"^\w+:.*#.*", outside, re.MULTILINE)
    for group, options in files.items():
        if group in root and (own := options.get(chosen.get(group))):
            lines += ["", f"{group}:", textwrap.indent(own.read_text().rstrip(), "  ")]
    return "\n".join(lines)
