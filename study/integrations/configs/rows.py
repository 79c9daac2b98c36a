"""The rows that a configuration trains on: where they are, and in which format."""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from study.config.values import LARGEST, check_path
from study.data import files, hub
from study.integrations.configs.experiment import Experiment
from study.integrations.configs.fields import Fields
from study.vocabulary.sources import FORMATS

STAND_INS = {"xbrl_extract_train.jsonl": "xbrl_extract"}
"""Generated data that is used if a file of FinLoRA's is missing."""
CONTEXT_TARGET, MESSAGES = "context_target", "messages"
TOKENIZERS_OWN = "the tokenizer's own chat template is used"


@dataclass(frozen=True)
class Rows:
    """Rows of one format.

    - ``key``: what names them in messages;
    - ``path``: a file, or ``org/name`` on the hub, of which ``split`` and ``subset`` are read;
    - ``format``: one of :data:`study.vocabulary.sources.FORMATS`; None: one that can't be read;
    - ``chat_template``: as ``data.chat_template``.
    """

    key: str
    path: str
    format: str | None
    split: str | None = None
    subset: str | None = None
    chat_template: str | None = None


def put_rows(experiment: Experiment, rows: Rows, folder: Path) -> Path | None:
    """Set the data. Returns the file, or None if there is none on this machine.

    A file is looked for beside the configuration, then in the working directory. If FinLoRA's XBRL
    extraction is missing, the toolkit's generated one replaces it. The user has to name any other
    missing file, and one whose format can't be read.
    """
    check_path(rows.path, rows.key)
    differs = experiment.notes.differs
    experiment.groups["data"] = "file"
    if rows.format is None:
        return None
    experiment.values["data.format"] = rows.format
    if rows.chat_template:
        experiment.values["data.chat_template"] = rows.chat_template
    found = first_file(folder / rows.path, Path(rows.path))
    if found is not None:
        experiment.values["data.path"] = str(found.resolve())
        part = " ".join(each for each in (rows.subset, rows.split) if each)
        if part not in ("", "train"):
            differs.append(f"{rows.key}: {part} of {rows.path} (the whole file is read)")
    elif stand_in := STAND_INS.get(Path(rows.path).name):
        experiment.groups["data"] = stand_in
        experiment.values.pop("data.format")
        differs.append(
            f"{rows.key}: {rows.path} not found: data={stand_in} is used instead, generated "
            "questions of the same form; if you have the file: data=file "
            f"data.path={Path(rows.path).name}"
        )
    elif _is_on_the_hub(rows.path, folder):
        experiment.values["data.path"] = rows.path
        if rows.split:
            experiment.values["data.split"] = rows.split
        if rows.subset:
            experiment.values["data.subset"] = rows.subset
    else:
        differs.append(
            f"{rows.key}: {rows.path} is no file here: give data.path=... when you train"
        )
    return found


def _is_on_the_hub(path: str, folder: Path) -> bool:
    return hub.is_hub_name(path) and not files.is_file_name(path) and not (folder / path).is_dir()


def put_heldout(experiment: Experiment, fields: Fields, key: str, file: Path | None) -> None:
    """Add the number of examples to hold out. The tools give a number or a share of the rows."""
    differs = experiment.notes.differs
    asked = fields.take_number(key, 0.0) or 0.0
    if not 0 <= asked <= LARGEST:
        raise fields.wrong(key, asked, "is neither a share nor a number of examples")
    if asked >= 1:
        experiment.values["data.heldout"] = round(asked)
    elif asked and file is not None:
        rows = _count(str(file), file.stat().st_mtime_ns)
        experiment.values["data.heldout"] = max(1, round(asked * rows))
    elif asked:
        differs.append(
            f"{key}: {asked:g} (a share of rows that are not here: data.heldout keeps its default)"
        )
    else:
        differs.append(
            f"{key}: 0 (data.heldout: a few rows are held out, at most a tenth, to measure the "
            "loss on them)"
        )


@lru_cache(maxsize=2)
def _count(path: str, changed: int) -> int:
    """The rows of a file, counted once for all values of a sweep."""
    return sum(1 for _ in files.read(path))


def first_file(*paths: Path) -> Path | None:
    """The first of ``paths`` that is a file."""
    for path in paths:
        try:
            if path.is_file():
                return path
        except OSError:  # a name that is too long names no file
            continue
    return None


def format_of(*names: str) -> str | None:
    """The format whose rows have exactly the fields ``names``, the prompt first; None if none."""
    return next((name for name, row in FORMATS.items() if names in row.needs), None)
