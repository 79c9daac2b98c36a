"""Values that OmegaConf hands back as they were, although it would interpret their text."""

import re
from typing import Any

_INTERPOLATION = re.compile(r"(\\*)\$\{")


def literal(value: Any) -> Any:
    r"""``value`` as a config has to hold it, so that no interpolation in it is resolved.

    Text of a file that someone else wrote may name a variable of the environment, such as a token.
    Lists and dictionaries are escaped inside.

    >>> literal(["${oc.env:HF_TOKEN}", 1])
    ['\\${oc.env:HF_TOKEN}', 1]
    """
    if isinstance(value, str):
        # Two backslashes before an interpolation stand for one, and one makes it text.
        return _INTERPOLATION.sub(r"\1\1\\${", value)
    if isinstance(value, dict):
        return {literal(key): literal(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [literal(part) for part in value]
    return value
