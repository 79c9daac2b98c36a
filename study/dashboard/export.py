"""``study dashboard --export``: the page as one file that works offline."""

import json
from collections.abc import Sequence
from pathlib import Path

from study.dashboard.document import embedded, whole_document
from study.dashboard.studies import Studies
from study.store import write_output

MOST_BYTES = 10_000_000

EXPORTED = "exported"
"""In place of the random name of a live process: the same studies give the same file."""


def export(folders: Sequence[Path], file: Path, most_bytes: int = MOST_BYTES) -> tuple[int, int]:
    """Write the page on the studies in ``folders`` to ``file``.

    Returns the numbers of quantities in it and in all.
    Quantities are added in the order of :func:`~study.dashboard.overview.in_order` until the file
    reaches ``most_bytes``. The first is always included. Raises :class:`StudyError` if a folder
    holds no study, or if the file can't be written.
    """
    studies = Studies(folders)
    studies.instance = EXPORTED
    page = studies.overview(live=False)
    title = f"{studies.title}: dashboard"
    quantities = studies.quantities()
    bytes_left = most_bytes - len(whole_document(title, json.dumps(page).encode(), []).encode())
    values: list[str] = []
    for quantity in quantities:
        text = embedded(studies.values_message(quantity, {}))
        bytes_left -= len(text) + 100  # Its element and its entry in the overview take some too.
        if bytes_left < 0 and values:
            break
        values.append(text)
    page["left_out"] = len(quantities) - len(values)
    page["quantities"] = page["quantities"][: len(values)]
    whole = whole_document(title, json.dumps(page, allow_nan=False).encode(), values)
    write_output(file, whole)
    return len(values), len(quantities)
