"""The exception for a user's mistake, and the wording of messages."""

import shlex
from collections.abc import Iterable

MOST_CHARACTERS = 1000
"""Of a message."""


class StudyError(ValueError):
    """A user's mistake. The message names the value, the choices and the fix in one line.

    Every function that reads what users give may raise it. The command line prints the line without
    a traceback. Characters that can't be printed are escaped, and a long message loses its middle.
    """

    def __init__(self, message: str) -> None:
        super().__init__(printable(message, MOST_CHARACTERS))


def printable(value: object, most: int = 300) -> str:
    r"""``value`` as one line of visible text. The middle is left out beyond ``most`` characters.

    Control characters, line breaks, direction marks and lone surrogates are escaped as in Python's
    repr.

    >>> printable("a\nb\u202ec")
    'a\\nb\\u202ec'
    """
    text = str(value)
    if not text.isprintable():
        text = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
    half = most // 2
    return text if len(text) <= most else f"{text[: half - 5]} ... {text[-half:]}"


def command_line(*words: object) -> str:
    """``study report 'my results/quick'``: a command that a shell takes as it is printed."""
    return shlex.join(map(str, ("study", *words)))


def count_noun(number: int, noun: str) -> str:
    """``1 cell``, ``2 cells``."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def unknown(what: str, value: object, choices: Iterable[object]) -> StudyError:
    """The error for a value outside a closed list.

    For example: ``unknown scaling 'lorra': choose from lora, rslora, power``.
    """
    return StudyError(f"unknown {what} {short(value)}: choose from {', '.join(map(str, choices))}")


def short(value: object, most: int = 80) -> str:
    """The value as Python writes it, on one line of at most ``most`` characters."""
    try:
        text = repr(value)
    except ValueError:  # Python writes no integer of more than 4300 digits
        return f"a {type(value).__name__} with an integer of over 4300 digits"
    return text if len(text) <= most else f"{text[: most - 3]}..."


def given(value: object) -> str:
    """The value as a user gives it: :func:`short`, without the quotes of a string."""
    return short(value)[1:-1] if isinstance(value, str) else short(value)


def one_line(error: BaseException) -> str:
    """The type of an error and the first line of its message."""
    text = str(error).strip()
    return printable(f"{type(error).__name__}: {text.splitlines()[0] if text else ''}", 1000)
