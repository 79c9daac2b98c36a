"""A whole sweep: its first lines, the launches of its packs, and its last lines."""

import contextlib
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from study.config.schedules import late_probes
from study.errors import StudyError, command_line, count_noun, one_line
from study.store import load_cells
from study.store.checkpoints import newest_step
from study.store.files import remove
from study.sweeps import processes, signals
from study.sweeps.cells import Cell
from study.sweeps.progress import Outcome, counts, posted, remove_killed_sweeps, stop_file
from study.sweeps.run import Worker, train_all, train_pack
from study.vocabulary.extras import WANDB
from study.vocabulary.sources import MODELS

_LOST = (
    "TerminatedWorkerError",  # joblib
    "BrokenProcessPool",
    "UncompletedJobError",  # submitit
    "WorkerCrashedError",  # ray
)
"""The errors of launchers whose process ended without a result. Their packages are optional."""

Launch = Callable[[list[Cell], Mapping[Path, Path]], Iterable[Outcome]]
"""Trains cells that no process holds, once. It gets the file of the sweep by a study's folder."""


def train_here(
    cells: Sequence[Cell],
    packs: Sequence[Sequence[Cell]],
    divide: Callable[[list[Cell]], Iterable[list[Cell]]],
) -> None:
    """:func:`conduct` in this process. ``divide``: makes packs of the cells that none holds."""
    with Worker() as worker:

        def one_pass(free: list[Cell], files: Mapping[Path, Path]) -> Iterator[Outcome]:
            for pack in divide(free):
                yield train_pack(pack, worker, files[pack[0].study_dir])

        conduct(cells, packs, one_pass)


def conduct(
    cells: Sequence[Cell], packs: Sequence[Sequence[Cell]], launch: Launch, here: bool = True
) -> None:
    """Train ``cells`` until all have results. ``packs``: those to be trained, in this process if
    ``here``."""
    for cell in cells:
        if not MODELS[cell.config.model.name].has_weights:
            why = f"model={cell.config.model.name} has no weights"
            raise StudyError(f"{why}: add --plan, or give model=hf model.path=...")
    processes.check(cells, here)
    announce(cells, packs)
    studies = {cell.study_dir: cell.config for cell in cells}
    for study_dir in studies:
        remove_killed_sweeps(study_dir)
    planned: dict[Path, list[dict[str, Any]]] = {}
    for cell in (cell for pack in packs for cell in pack):
        step = newest_step(cell.folder)
        done = {"steps_done": step - 1} if step else {}
        planned.setdefault(cell.study_dir, []).append(cell.description | done)
    with posted(planned) as files:

        def one_pass(free: list[Cell]) -> Iterable[Outcome]:
            # A process that trains handles signals itself.
            with contextlib.nullcontext() if here else _launched(files.values()):
                return launch(free, files)

        train_all(cells, one_pass)
    for study_dir, config in sorted(studies.items()):
        if packs and config.tracker.name == WANDB:
            from study.tracking.publish import publish  # needs wandb

            publish(study_dir, Path(config.plots_dir) / config.name, config.tracker, signals.say)
        print(f"study {study_dir.name}: {counts(load_cells(study_dir)['status'])}", file=sys.stderr)
        print(f"next: {command_line('report', study_dir)}", file=sys.stderr, flush=True)


def announce(cells: Sequence[Cell], packs: Sequence[Sequence[Cell]]) -> None:
    """Print how many cells the sweep has, will continue and will train, and notices."""
    todo = [cell for pack in packs for cell in pack]
    distinct = len({cell.folder for cell in cells})
    steps = [step for cell in todo if (step := newest_step(cell.folder))]
    parts = [count_noun(distinct, "cell"), f"{distinct - len(todo)} done"]
    if steps:
        parts.append(f"{count_noun(len(steps), 'cell')} to continue from step {min(steps):,} on")
    if len(todo) > len(steps):
        parts.append(f"{len(todo) - len(steps)} to train")
    names = ", ".join(sorted({cell.config.name for cell in cells}))
    end = f" in {count_noun(len(packs), 'pack')}" if todo else ", nothing to train"
    notices = [notice for c in cells for notice in (c.coverage.notice, late_probes(c.config))]
    lines = [f"study {names}: {', '.join(parts)}{end}", *dict.fromkeys(filter(None, notices))]
    print("\n".join(lines), file=sys.stderr, flush=True)


@contextlib.contextmanager
def _launched(files: Iterable[Path]) -> Iterator[None]:
    """Context manager: a signal stops all processes of a launcher after their step."""
    stops = [stop_file(file) for file in files]

    def stop() -> None:
        for path in stops:
            with contextlib.suppress(OSError):  # a full disk: a second signal remains
                path.touch()

    try:
        with signals.patience(stop):
            yield
    except Exception as error:
        if (signum := signals.asked()) is not None:  # the signal came before its process listened
            raise signals.current().stopped(signum) from None
        if type(error).__name__ in _LOST:
            line = f"a process of the launcher was lost ({one_line(error)})"
            raise StudyError(f"{line}: rerun the command to resume") from None
        raise
    for path in stops:
        remove(path)
