"""The one exception that is a user's mistake and not ours."""


class StudyError(ValueError):
    """Bad input: the message names the value, the choices and the fix in one line; no traceback is shown for it."""


def unknown(what: str, value: object, choices: object) -> StudyError:
    """The error for a value outside a closed list: ``unknown scaling 'lorra': choose from lora, rslora, power``."""
    return StudyError(f"unknown {what} {value!r}: choose from {', '.join(map(str, choices))}")  # type: ignore[call-overload]
