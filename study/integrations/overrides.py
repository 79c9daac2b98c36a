"""Values in the grammar of Hydra's overrides."""

import re
from typing import Any

from study.config.values import literal


def written(value: Any) -> str:
    r"""``value`` so that Hydra reads it back unchanged after ``key=``.

    Text may come from a stranger's file: an interpolation in it stays text.

    >>> written(["a b", None, True, 1e-05, "${oc.env:HOME}"])
    "['a b',null,true,1e-05,'\\${oc.env:HOME}']"
    """
    if value is None:
        return "null"
    if isinstance(value, list | tuple):
        return f"[{','.join(map(written, value))}]"
    if not isinstance(value, str):
        return str(value).lower() if isinstance(value, bool) else str(value)
    is_word = re.fullmatch(r"[a-z_/][\w./-]*", value, re.ASCII | re.IGNORECASE)
    if is_word and value.lower() not in ("true", "false", "null", "nan", "inf"):
        return value
    # Hydra takes two backslashes before a quote for one.
    text = re.sub(r"(\\*)'", r"\1\1\\'", literal(value))
    return "'" + re.sub(r"(\\+)\Z", r"\1\1", text) + "'"
