"""The studies of a page: one, or several side by side.

Each study is followed, fitted and judged on its own, so its numbers are those of its own page. On
the page of several, a rule of each study is a rule of its own: every chart that compares rules then
compares studies too.
"""

import json
import secrets
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from study.analysis.wording import batch_words
from study.dashboard.following import FollowedStudy
from study.dashboard.overview import configuration, in_order, overview
from study.dashboard.packing import pack_message
from study.dashboard.probes import Layers, Quantity
from study.dashboard.verdicts import Verdicts
from study.errors import StudyError

DASHES = ("solid", "dash", "dot", "dashdot", "longdash")
"""The lines of the first study, of the second, and so on."""


class Studies:
    """The studies in ``folders``, in this order. ``names``: one each.

    Raises :class:`StudyError` if a folder holds no study or is given twice.
    """

    def __init__(self, folders: Sequence[Path]) -> None:
        twice = [str(folder) for folder, count in Counter(folders).items() if count > 1]
        if twice:
            raise StudyError(f"{twice[0]} is given twice: give each study once")
        self.instance = secrets.token_hex(8)
        self.layers = Layers()
        self.followed = [FollowedStudy(folder, self.layers) for folder in folders]
        self.names = _names(folders)
        self._verdicts = [Verdicts() for _ in folders]

    @property
    def title(self) -> str:
        """The names, for a heading."""
        return ", ".join(self.names)

    def refresh(self) -> bool:
        """Read what changed. Returns whether anything did."""
        changed = [study.refresh() for study in self.followed]  # every one of them
        return any(changed)

    def quantities(self) -> list[Quantity]:
        """The quantities that any cell of any study measured."""
        return in_order(
            list(dict.fromkeys(q for study in self.followed for q in study.quantities()))
        )

    def values_message(self, quantity: Quantity, have: Mapping[str, tuple[int, int]]) -> bytes:
        """The values of ``quantity`` that the page lacks: see :meth:`FollowedStudy.values`.

        ``have`` is by the key of a cell on the page.
        """
        blocks, parts = [], []
        for number, study in enumerate(self.followed):
            start = len(self._prefix(number))
            own = {
                key[start:]: there
                for key, there in have.items()
                if key.startswith(self._prefix(number))
            }
            for block, values in study.values(quantity, own):
                blocks.append({**block, "cell": self._prefix(number) + block["cell"]})
                parts.append(values)
        header = {
            "instance": self.instance,
            "quantity": quantity,
            "width": len(self.layers),
            "blocks": blocks,
        }
        return pack_message(header, parts)

    def overview(self, live: bool) -> dict[str, Any]:
        """Everything on the page except the probed values."""
        pages = [
            overview(study, verdicts, live)
            for study, verdicts in zip(self.followed, self._verdicts, strict=True)
        ]
        whole = pages[0] if len(pages) == 1 else self._side_by_side(pages)
        return whole | {"instance": self.instance, "study": self.title, "studies": self.names}

    def log(self, problem: str) -> None:
        """Log a problem, once."""
        self.followed[0].log(problem)

    def _prefix(self, number: int) -> str:
        """What distinguishes the cells and rules of a study from those of the others."""
        return f"{number}: " if len(self.followed) > 1 else ""

    def _side_by_side(self, pages: Sequence[dict[str, Any]]) -> dict[str, Any]:
        every = [self._of_study(number, page) for number, page in enumerate(pages)]
        joined: dict[str, Any] = {
            name: [row for page in every for row in page[name]]
            for name in ("cells", "unreadable", "rules", "verdicts")
        }
        states = pages[0]["counts"]
        cells = pd.concat([study.cells() for study in self.followed], ignore_index=True)
        return pages[0] | {
            **joined,
            "counts": {state: sum(page["counts"][state] for page in pages) for state in states},
            "configuration": configuration(cells),
            "optimizers": {k: v for page in pages for k, v in page["optimizers"].items()},
            "quantities": [quantity._asdict() for quantity in self.quantities()],
            "batches": batch_words(quantity.batch for quantity in self.quantities()),
            "layers": pages[-1]["layers"],
            "brackets": _if_same([page["brackets"] for page in pages]),
            "verdict_notes": _distinct(page["verdict_notes"] for page in pages),
            "p_star": {
                name: _distinct(page["p_star"][name] for page in every)
                for name in ("rows", "notes")
            },
            "losses": {
                name: [row for page in every for row in page["losses"][name]]
                for name in ("runs", "compared")
            },
        }

    def _of_study(self, number: int, page: dict[str, Any]) -> dict[str, Any]:
        """The page of a study with keys that no other study has, and with its name in its texts."""
        prefix, name = self._prefix(number), self.names[number]

        def own_rule(row: dict[str, Any]) -> dict[str, Any]:
            return row | {"rule": prefix + row["rule"], "study": number}

        return {
            "cells": [own_rule(cell) | {"key": prefix + cell["cell_id"]} for cell in page["cells"]],
            "unreadable": [cell | {"study": number} for cell in page["unreadable"]],
            "rules": [
                rule
                | {
                    "id": prefix + rule["id"],
                    "name": f"{rule['name']}, {name}",
                    "lines": [rule["name"], name],
                    "dash": DASHES[number % len(DASHES)],
                    "marker": rule["marker"] + ("-open" if number else ""),
                    "study": number,
                }
                for rule in page["rules"]
            ],
            "verdicts": [own_rule(verdict) for verdict in page["verdicts"]],
            "p_star": {
                "rows": [
                    row | {"setting": ", ".join(filter(None, (name, row["setting"])))}
                    for row in page["p_star"]["rows"]
                ],
                "notes": page["p_star"]["notes"],
            },
            "losses": {
                table: [own_rule(row) for row in page["losses"][table]]
                for table in ("runs", "compared")
            },
        }


def _names(folders: Sequence[Path]) -> list[str]:
    """The name of each folder; its path if another folder has the same name."""
    names = [folder.resolve().name for folder in folders]
    return [
        str(folder) if names.count(name) > 1 else name
        for folder, name in zip(folders, names, strict=True)
    ]


def _distinct(lists: Any) -> list[Any]:
    """The elements of ``lists``, each once, in order."""
    found = {json.dumps(one, sort_keys=True): one for each in lists for one in each}
    return list(found.values())


def _if_same(texts: Sequence[str]) -> str:
    return texts[0] if len(set(texts)) == 1 else ""
