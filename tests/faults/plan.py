"""What a process under test is to suffer. It travels as JSON in an environment variable."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

VARIABLE = "STUDY_FAULTS"
"""The environment variable with the plan. Workers of a launcher inherit it."""


@dataclass(frozen=True)
class Plan:
    """The faults of one run, which may have several processes.

    The processes of a run count their points together, from 1: each call that changes a file of
    the store, and each row of metrics. At most one of the following happens:

    - ``signal``: the process that reaches point ``at`` sends this signal to itself or, with
      ``group``, to all processes of the run. The call at that point is not made; a write is cut;
    - ``errno``: the call at point ``at`` fails with this error and, with ``for_good``, so do all
      later ones of its process;
    - ``power``: at point ``at`` the machine loses power. What a disk may then hold is written to
      the folder ``after``, drawn with the seed ``power``.

    - ``folder``: where the run trains; its trace and its points are beside it;
    - ``listing``: write every point to the trace;
    - ``rows``: whether rows are points; no row is a call that could fail;
    - ``fork_workers``: let joblib fork its workers, which is fast;
    - ``seeded_bug``: one of :data:`tests.faults.seeded_bugs.BUGS`, to see that it is found.
    """

    folder: str
    run: str
    at: int | None = None
    signal: int | None = None
    group: bool = False
    errno: int | None = None
    for_good: bool = False
    power: int | None = None
    listing: bool = False
    rows: bool = True
    fork_workers: bool = False
    seeded_bug: str | None = None

    @property
    def trace(self) -> Path:
        """The events of all runs in ``folder``, one JSON object a line."""
        return Path(f"{self.folder}.trace")

    @property
    def points(self) -> Path:
        """A file with a byte for each point of this run."""
        return Path(f"{self.folder}.{self.run}.points")

    @property
    def after(self) -> Path:
        """The folder as a disk may hold it after the loss of power."""
        return Path(f"{self.folder}.after")

    def dumps(self) -> str:
        """The plan as JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def loads(cls, text: str) -> "Plan":
        """The plan that :meth:`dumps` wrote."""
        return cls(**json.loads(text))
