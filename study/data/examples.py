"""Examples: where they come from, what identifies them, and which of them are held out.

An example is FinLoRA's: a ``context`` to read and a ``target`` to produce, and only the target is learned. Nothing
here knows a tokenizer or a model, so a user's mistake in a file is told before either is loaded.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from omegaconf import MISSING

from study.config import DataConfig
from study.data import pydoc, xbrl
from study.errors import StudyError, unknown
from study.vocabulary.sources import DATASETS


@dataclass(frozen=True)
class Example:
    """One supervised text; the model reads ``context + target`` and learns ``target``."""

    context: str
    target: str


def load_examples(config: DataConfig) -> list[Example]:
    """The examples that ``data=...`` names, in the source's own order: the file's, or the generator's.

    Raises:
        StudyError: for an unknown name; a ``path`` that is missing, unreadable, a folder, or given to a source that
            reads none; a line that is not an object with the strings ``context`` and ``target`` (with its number); a
            target without text; no example at all.
    """
    if config.name not in DATASETS:
        raise unknown("data", config.name, DATASETS)
    if config.name == "jsonl":
        return _read_jsonl(config.path)
    if config.path not in (None, MISSING):
        raise StudyError(
            f"data={config.name} reads no file, but data.path={config.path!r}: use data=jsonl or drop it"
        )
    pairs = pydoc.documentation() if config.name == "pydoc" else xbrl.questions()
    examples = [Example(context, target) for context, target in pairs]
    if not examples:  # pydoc, in a Python that is installed without sources and without docstrings
        raise StudyError(
            f"data={config.name} is empty on this machine: use data=xbrl_extract or data=jsonl"
        )
    return examples


def fingerprint(examples: Sequence[Example]) -> str:
    """The content hash: sha256, in hex, over one line of canonical JSON per example.

    Order counts, because the batches follow it; the file's name, its white space, its further keys and its way of
    escaping do not.
    """
    digest = hashlib.sha256()
    for example in examples:
        digest.update(_canonical(example))
    return digest.hexdigest()


def split(examples: Sequence[Example], heldout: int) -> tuple[list[Example], list[Example]]:
    """``(train, heldout)``: held out is at least one example, at most ``heldout`` and at most a tenth of all.

    They are those with the smallest content hashes: a fixed random draw that does not move with the seed, with the
    order of the file or, but for the few displaced, with rows that are added to it. They are distinct (the tenth is of
    distinct examples) and come in the order of their hashes; every copy of them leaves the training side, which keeps
    its own order and duplicates.

    Raises:
        StudyError: with fewer than two distinct examples.
    """
    digests = [hashlib.sha256(_canonical(example)).digest() for example in examples]
    by_digest = dict(zip(digests, examples, strict=True))
    if len(by_digest) < 2:
        raise StudyError(
            f"the data has {len(by_digest)} distinct example(s): add some, one to train on and one held out"
        )
    chosen = sorted(by_digest)[: max(1, min(heldout, len(by_digest) // 10))]
    out = set(chosen)
    train = [
        example for example, digest in zip(examples, digests, strict=True) if digest not in out
    ]
    return train, [by_digest[digest] for digest in chosen]


def _canonical(example: Example) -> bytes:
    """One line that two examples share only if they are equal: in JSON a newline inside a string is escaped."""
    row = {"context": example.context, "target": example.target}
    return json.dumps(row, sort_keys=True, separators=(",", ":")).encode("ascii") + b"\n"


def _read_jsonl(path: str | None) -> list[Example]:
    """FinLoRA's files: one ``{"context": str, "target": str}`` a line; further keys and blank lines are passed over."""
    if path in (None, "", MISSING):
        raise StudyError("data=jsonl reads a file and none is named: add data.path=<file.jsonl>")
    file = Path(str(path)).expanduser()
    if file.is_dir():
        raise StudyError(f"data.path={path!r} is a folder: name one .jsonl file in it")
    if not file.exists():
        raise StudyError(f"data.path={path!r} does not exist: name a file of {_ROW} lines")
    try:
        content = file.read_bytes()
    except OSError as error:
        raise StudyError(
            f"data.path={path!r} cannot be read ({error.strerror}): check its permissions"
        ) from None
    examples = list(_parse(content.removeprefix(b"\xef\xbb\xbf"), str(path)))
    if not examples:
        raise StudyError(f"data.path={path!r} holds no example: it needs at least two {_ROW} lines")
    return examples


_ROW = '{"context": ..., "target": ...}'


def _parse(content: bytes, path: str) -> Iterator[Example]:
    # Split at newlines only: str.splitlines() would also cut at U+2028, which JSON strings may hold.
    for number, line in enumerate(content.split(b"\n"), start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            row = json.loads(line.decode("utf-8"))
        except UnicodeDecodeError:
            raise StudyError(f"{where}: not UTF-8: save the file as UTF-8") from None
        except (ValueError, RecursionError) as error:
            reason = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
            raise StudyError(f"{where}: not JSON ({reason}): write one {_ROW} a line") from None
        if not isinstance(row, dict):
            raise StudyError(
                f"{where}: a {type(row).__name__} and not an object: write one {_ROW} a line"
            )
        yield Example(_text(row, "context", where), _text(row, "target", where))


def _text(row: dict[str, object], key: str, where: str) -> str:
    if key not in row:
        raise StudyError(
            f"{where}: no key {key!r} among {', '.join(map(repr, row)) or 'none'}: write {_ROW}"
        )
    text = row[key]
    if not isinstance(text, str):
        raise StudyError(
            f"{where}: {key!r} is a {type(text).__name__} and not a string: put it in quotes"
        )
    if key == "target" and not text.strip():
        raise StudyError(
            f"{where}: 'target' is empty, so nothing is learned from it: fill it in or drop the line"
        )
    try:
        text.encode()
    except UnicodeEncodeError:  # no tokenizer takes one
        raise StudyError(
            f"{where}: {key!r} holds half of a surrogate pair: write the whole character"
        ) from None
    return text
