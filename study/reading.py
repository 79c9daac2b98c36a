"""Read files that others wrote; and how much memory is free.

Every function raises :class:`StudyError` for a file it can't read. The message is one line:
``named`` (the file as the user gave it), the cause, and ``fix``.
"""

import json
import resource
from functools import cache
from io import BufferedReader
from pathlib import Path
from typing import Any

import psutil

from study.errors import StudyError, short


def open_file(path: str | Path, named: str, fix: str) -> BufferedReader:
    """Open a regular file for reading. ``~`` in ``path`` is the user's home folder.

    Pipes are refused: they can be read only once, and every process reads its files again.
    """
    try:
        place = Path(path).expanduser()
        is_other = place.exists() and not place.is_file()
        if not is_other:
            return place.open("rb")
    except FileNotFoundError:
        raise StudyError(f"{named} does not exist: {fix}") from None
    except (OSError, ValueError, RuntimeError) as error:  # a null byte, or an unknown user after ~
        raise StudyError(f"{named} can't be read ({_cause(error)}): {fix}") from None
    raise StudyError(f"{named} is {'a folder' if place.is_dir() else 'not a file'}: {fix}")


def read_file(path: str | Path, named: str, fix: str, most: int) -> bytes:
    """The content of a regular file of at most ``most`` bytes."""
    with open_file(path, named, fix) as file:
        try:
            content = file.read(most + 1)
        except OSError as error:
            raise StudyError(f"{named} can't be read ({_cause(error)}): {fix}") from None
    if len(content) > most:
        raise StudyError(f"{named} is larger than {most / 2**20:g} MiB: {fix}")
    return content


def read_object(path: str | Path, named: str, fix: str, most: int) -> dict[str, Any]:
    """The JSON object in a UTF-8 file of at most ``most`` bytes.

    No key may occur twice in an object, because readers differ in which value they take.
    """
    content = read_file(path, named, fix, most)
    try:
        value = json.loads(content.decode("utf-8-sig"), object_pairs_hook=_distinct)
    except (ValueError, RecursionError) as error:
        raise StudyError(f"{named} is not valid JSON ({_cause(error)}): {fix}") from None
    if not isinstance(value, dict):
        raise StudyError(f"{named} holds a {type(value).__name__}, not an object with keys: {fix}")
    return value


def check_memory(need: int, free: int, named: str, fix: str) -> None:
    """Check that ``need`` bytes fit into the ``free`` ones (:func:`free_memory`)."""
    if need > free:
        raise StudyError(
            f"{named} needs {need / 2**30:.3g} GiB of memory and {free / 2**30:.3g} GiB are free: "
            f"{fix}"
        )


def free_memory() -> int:
    """Bytes that this process can still allocate: the machine's free memory, within the limits of
    the process (``ulimit -v``) and of its control group (a container's or Slurm's).
    """
    free = psutil.virtual_memory().available
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit != resource.RLIM_INFINITY:
        free = min(free, limit - psutil.Process().memory_info().vms)
    for most, group in _limits():
        # The system drops the files of a group from memory before anything else.
        counted = (line.split() for line in _lines(group / "memory.stat"))
        files = sum(int(number) for name, number in counted if name == "inactive_file")
        used = sum(map(int, _lines(group / "memory.current")))
        free = min(free, most - used + files)
    return max(free, 0)


@cache
def all_memory() -> int:
    """Bytes that this process could allocate in an empty memory, within the same limits.

    Asked once: a sweep compares every cell with it.
    """
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    held = psutil.Process().memory_info().vms  # libraries, which count towards ulimit -v
    own = [] if limit == resource.RLIM_INFINITY else [max(limit - held, 0)]
    return min([psutil.virtual_memory().total, *own, *(most for most, _ in _limits())])


def _limits() -> list[tuple[int, Path]]:
    """The control groups of this process that limit its memory, each after its limit in bytes."""
    path = next((line[3:] for line in _lines("/proc/self/cgroup") if line.startswith("0::")), "")
    group = Path("/sys/fs/cgroup", path.strip("/"))
    groups = [group, *group.parents[: len(group.parts) - 4]]
    limits = [(_lines(each / "memory.max"), each) for each in groups]
    return [(int(most[0]), each) for most, each in limits if most and most[0].isdigit()]


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
