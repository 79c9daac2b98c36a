"""Files that others wrote: opened, read and parsed within bounds.

Such a file may hold anything, and its path may lead to a pipe or a device, where reading never
ends. Every function raises :class:`StudyError` for what it can't read. The message is one line:
``named`` (the file as the user gave it), the cause, and ``fix``.
"""

import json
import os
import resource
import stat
from functools import cache
from io import BufferedReader
from pathlib import Path
from typing import Any

import psutil

from study.errors import StudyError, short

LONGEST_HEADER = 8 << 20
"""Bytes of a safetensors header."""

_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe, not a file"),
    (stat.S_ISCHR, "a device, not a file"),
    (stat.S_ISBLK, "a device, not a file"),
)


def open_file(path: str | Path, named: str, fix: str) -> BufferedReader:
    """Open a regular file for reading. ``~`` in ``path`` is the user's home folder.

    Nothing else can be opened: a pipe can be read only once, and every process reads its files
    again.
    """
    try:
        # Without O_NONBLOCK, opening a pipe waits until another process writes to it.
        descriptor = os.open(Path(path).expanduser(), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise StudyError(f"{named} does not exist: {fix}") from None
    except (OSError, ValueError, RuntimeError) as error:  # a null byte, or an unknown user after ~
        raise StudyError(f"{named} can't be read ({_cause(error)}): {fix}") from None
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        kind = next((words for test, words in _KINDS if test(mode)), "not a file")
        raise StudyError(f"{named} is {kind}: {fix}")
    return os.fdopen(descriptor, "rb")


def read_file(path: str | Path, named: str, fix: str, most: int) -> bytes:
    """The content of a regular file of at most ``most`` bytes."""
    with open_file(path, named, fix) as file:
        try:
            content = file.read(most + 1)  # files of /proc don't know their size
        except OSError as error:
            raise StudyError(f"{named} can't be read ({_cause(error)}): {fix}") from None
    if len(content) > most:
        raise StudyError(f"{named} is larger than {most / 2**20:g} MiB: {fix}")
    return content


def read_object(path: str | Path, named: str, fix: str, most: int) -> dict[str, Any]:
    """The JSON object in a UTF-8 file of at most ``most`` bytes.

    No key may occur twice in an object, because readers differ in which value they take. Parsing
    takes up to 25 times the memory of the file.
    """
    content = read_file(path, named, fix, most)
    try:
        value = json.loads(content.decode("utf-8-sig"), object_pairs_hook=_distinct)
    except UnicodeDecodeError:
        raise StudyError(f"{named} is not UTF-8 text: {fix}") from None
    except (ValueError, RecursionError) as error:
        raise StudyError(f"{named} is not valid JSON ({_cause(error)}): {fix}") from None
    if not isinstance(value, dict):
        raise StudyError(f"{named} holds a {type(value).__name__}, not an object with keys: {fix}")
    return value


def check_tensors(path: str | Path, named: str, fix: str) -> None:
    """Check that a safetensors file can be opened in bounded memory.

    Its library parses a header of up to 100 MB, in which a file of a stranger may name millions of
    tensors. Models with the most tensors have headers of about 1 MiB.
    """
    with open_file(path, named, fix) as file:
        length = int.from_bytes(file.read(8), "little")
    if length > LONGEST_HEADER:
        raise StudyError(f"{named} is damaged (it claims a header of {length} bytes): {fix}")


def check_memory(need: int, free: int, named: str, fix: str) -> None:
    """Check that ``need`` bytes fit into the ``free`` ones (:func:`free_memory`)."""
    if need > free:
        raise StudyError(
            f"{named} needs {need / 2**30:.3g} GiB of memory and {free / 2**30:.3g} GiB are free: "
            f"{fix}"
        )


def free_memory() -> int:
    """Bytes that this process can still take: what the machine has free, within the limits of the
    process (``ulimit -v``) and of its control group (a container's or Slurm's).
    """
    free = psutil.virtual_memory().available
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit != resource.RLIM_INFINITY:
        free = min(free, limit - psutil.Process().memory_info().vms)
    for folder in _groups():
        most, used = (_lines(folder / f"memory.{name}") for name in ("max", "current"))
        if most and used and most[0].isdigit():
            free = min(free, int(most[0]) - int(used[0]) + _cached(folder))
    return max(free, 0)


@cache
def all_memory() -> int:
    """Bytes that this process could take if nothing else were in memory, within the same limits.

    Asked once: a sweep compares every cell with it.
    """
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    held = psutil.Process().memory_info().vms  # libraries, which count towards ulimit -v
    limits = [] if limit == resource.RLIM_INFINITY else [max(limit - held, 0)]
    of_groups = [_lines(folder / "memory.max") for folder in _groups()]
    limits += [int(most[0]) for most in of_groups if most and most[0].isdigit()]
    return min([psutil.virtual_memory().total, *limits])


def _groups() -> list[Path]:
    """The folders of this process's control groups, the innermost first."""
    path = next((line[3:] for line in _lines("/proc/self/cgroup") if line.startswith("0::")), "")
    group = Path("/sys/fs/cgroup", path.strip("/"))
    return [group, *group.parents[: len(group.parts) - 4]]


def _cached(group: Path) -> int:
    """Bytes of files in memory that the system drops first."""
    stat = dict(line.split(" ", 1) for line in _lines(group / "memory.stat"))
    return int(stat.get("inactive_file", 0))


def _lines(path: str | Path) -> list[str]:
    """The lines of a file of the system; none if it is not there."""
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key {short(key)} occurs twice")
        found[key] = value
    return found


def _cause(error: Exception) -> str:
    """What went wrong, in a few words."""
    text = getattr(error, "strerror", None) or getattr(error, "msg", None) or str(error)
    return " ".join(str(text).split())[:160]
