"""How many configurations of other tools import, and how many without a material difference.

    python -m benchmarks.imports CHECKOUT ...

Walks checkouts of Axolotl, LLaMA-Factory, FinLoRA or Unsloth, or any folder of such files. A
difference is material if ``study import-config`` lists it under *Trained differently from the
file*.
"""

import json
import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from study.errors import StudyError
from study.integrations.configs import read_file

TRAINS_LORA = re.compile(
    r"^adapter: *q?lora|^finetuning_type: *lora|^use_peft: *true|^ *training_type: *lora", re.M
)
"""A line of Axolotl, of LLaMA-Factory, of TRL or of Unsloth."""
ENTRIES = "finetune_configs.json"
"""FinLoRA's file, which holds many configurations."""
SHOWN = 12


def configurations(folder: Path) -> Iterator[tuple[Path, str | None]]:
    """Every file below ``folder`` that trains LoRA, and the entry if it holds several."""
    for path in sorted(folder.rglob("*.y*ml")):
        if TRAINS_LORA.search(path.read_text(errors="replace")):
            yield path, None
    for path in sorted(folder.rglob(ENTRIES)):
        yield from ((path, entry) for entry in json.loads(path.read_text()))


def summary(folder: Path) -> list[str]:
    """The counts of a folder, then the most frequent differences and refusals."""
    imported, clean = 0, 0
    differences, refusals = Counter[str](), Counter[str]()
    found = list(configurations(folder))
    for path, entry in found:
        try:
            experiment = read_file(path, entry)
        except StudyError as error:
            refusals[str(error).partition(": ")[2]] += 1
            continue
        imported += 1
        clean += not experiment.differs
        differences.update({re.sub(r"\[\d+\]|: .*(?= \()", "", d) for d in experiment.differs})
    head = f"{folder.name}: {len(found)} files, {imported} import, {clean} without a difference"
    rows = {"differs": differences, "refused": refusals}
    lines = [f"  {n:4} {what}: {why}" for what in rows for why, n in rows[what].most_common(SHOWN)]
    return [head, *lines]


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        print(*summary(Path(argument)), sep="\n")
