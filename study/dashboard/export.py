"""``study dashboard --export``: the page in one file that works from disk, offline, and can be mailed."""

import json
from pathlib import Path

from study.dashboard.document import embedded, whole_document
from study.dashboard.following import Following
from study.dashboard.overview import in_order, overview
from study.dashboard.verdicts import Verdicts

MOST_BYTES = 10_000_000


def export(study_dir: Path, file: Path, most_bytes: int = MOST_BYTES) -> tuple[int, int]:
    """Write the page on a study to ``file``: how many quantities are in it, and how many there are.

    Quantities go in in the order in which they are worth reading (:func:`~study.dashboard.overview.in_order`), as many
    as fit under ``most_bytes``, the first in any case. Raises :class:`StudyError` where the folder holds no study.
    """
    study = Following(study_dir)
    page = overview(study, Verdicts(), live=False)
    title = f"{page['study']}: dashboard"
    there = in_order(study.quantities())
    room = most_bytes - len(whole_document(title, json.dumps(page).encode(), []).encode())
    values: list[str] = []
    for quantity in there:
        text = embedded(study.message(quantity, {}))
        room -= len(text) + 100  # the element around it, and its line of the overview
        if room < 0 and values:
            break
        values.append(text)
    page["left_out"] = len(there) - len(values)
    page["quantities"] = page["quantities"][: len(values)]
    whole = whole_document(title, json.dumps(page, allow_nan=False).encode(), values)
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(file.name + ".partial")
    partial.write_text(whole, encoding="utf-8")
    partial.replace(file)
    return len(values), len(there)
