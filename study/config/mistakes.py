"""What Hydra and OmegaConf say about a user's mistake, in one line of ours."""

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from types import TracebackType

import hydra
import yaml
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from study.config.hints import unknown_key
from study.errors import StudyError, given

_LIBRARIES = tuple(
    f"{Path(str(hydra.__file__)).parents[1] / name}{os.sep}"
    for name in ("hydra", "omegaconf", "antlr4", "yaml")
)

_STANDARD = f"{Path(os.__file__).parent}{os.sep}"


@contextmanager
def as_study_errors(arguments: Sequence[str] = ()) -> Iterator[None]:
    """Inside, an error that Hydra reports becomes a :class:`StudyError` that says what is wrong.

    ``arguments``: those of the command, from which a corrected override takes its value.

    Hydra checks few types. For some mistakes it raises a ``TypeError`` or a ``ValueError`` from
    its own code, so whatever its code raises is taken for a mistake of the user.
    """
    try:
        yield
    except (StudyError, BrokenPipeError):  # the reader of a pipe, such as head, has enough
        raise
    except MissingConfigException as error:
        raise StudyError(_choices(error)) from error
    except OverrideParseException as error:
        line = str(error).splitlines()[0]
        raise StudyError(
            f"can't read {given(error.override)} ({given(line)}): write key=value; a value with "
            "spaces, brackets or letters beyond a to z has quotes of its own, such as "
            "\"name='été'\""
        ) from error
    except yaml.YAMLError as error:
        said = " ".join(str(error).split())
        raise StudyError(f"a file of the configuration is not valid YAML: {said}") from error
    except (HydraException, OmegaConfBaseException) as error:
        raise StudyError(_cause(error, arguments)) from error
    except Exception as error:
        if not _is_raised_by_hydra(error.__traceback__):
            raise
        raise StudyError(
            f"can't compose the configuration ({_cause(error, arguments)}): a group, such as "
            "optimizer, takes the name of an option, and any other key a value"
        ) from error


def _is_raised_by_hydra(traceback: TracebackType | None) -> bool:
    """Whether the last code that is not of the standard library is of Hydra or below it."""
    last = ""
    while traceback is not None:
        file = traceback.tb_frame.f_code.co_filename
        last = last if _is_standard(file) else file
        traceback = traceback.tb_next
    return last.startswith(_LIBRARIES)


def _is_standard(file: str) -> bool:
    return file.startswith((_STANDARD, "<")) and "site-packages" not in file


def _choices(error: MissingConfigException) -> str:
    """``Could not find 'optimizer/adamv': choose from adam, sgd; did you mean adam?``."""
    line = str(error).splitlines()[0]
    found = line.partition(": ")[2] if line.startswith("In '") else line
    if not error.options:
        return found
    near = get_close_matches(str(error.missing_cfg_file).rpartition("/")[2], error.options, 1)
    hint = f"; did you mean {near[0]}?" if near else ""
    return f"{found}: choose from {', '.join(error.options)}{hint}"


def _cause(error: BaseException, arguments: Sequence[str]) -> str:
    """The first line of the innermost cause and, for an unknown key, the key that was meant."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = str(error)
    line = type(error).__name__ if text in ("", "None") else text.splitlines()[0]
    key, parent = getattr(error, "full_key", None), getattr(error, "parent_node", None)
    if key and isinstance(parent, DictConfig) and line.startswith("Key "):
        return unknown_key(key, [str(name) for name in parent if name != "hydra"], arguments)
    if ambiguous := re.match("Ambiguous value for argument '(.*)'", line):
        key, _, values = ambiguous[1].partition("=")
        return (
            f"{given(ambiguous[1])} names alternatives: add -m to sweep over it, or write "
            f"{given(f'{key}=[{values}]')} for one list"
        )
    return f"{key}: {line}" if key and key not in line else line
