"""Changes to files that stand for a stranger's."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

Change = Callable[[Path], Any]
"""Of a file, or of the files in a folder."""
Refused = Callable[..., str]
"""The type of the fixture ``refused``."""


def update(path: Path, changes: dict[str, Any]) -> None:
    """Set keys of a JSON object."""
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def text(name: str, content: str | bytes) -> Change:
    """Another content of the file ``name``."""
    raw = content.encode() if isinstance(content, str) else content
    return lambda folder: (folder / name).write_bytes(raw)


def replaced(name: str, by: Change) -> Change:
    """Something else in place of the file ``name``, made by ``by``."""

    def act(folder: Path) -> None:
        (folder / name).unlink()
        by(folder / name)

    return act
