"""What surrounds the packs of a sweep: its first line, its agenda and its last lines."""

import contextlib
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import psutil

from study.config.schedules import late_probes
from study.errors import StudyError, one_line
from study.store import load_cells, read_cell
from study.store.checkpoints import newest_step
from study.store.files import remove
from study.sweeps import signals
from study.sweeps.agenda import Planned, posted
from study.sweeps.cells import Cell
from study.sweeps.cost import relative_cost, step_shares
from study.sweeps.sharing import stop_file
from study.sweeps.status import count_noun, counts
from study.vocabulary.sources import MODELS
from study.vocabulary.statuses import RESUMABLE

_LOST = (
    "TerminatedWorkerError",  # joblib
    "BrokenProcessPool",
    "UncompletedJobError",  # submitit
    "WorkerCrashedError",  # ray
)
"""The errors of launchers whose process ended without a result. Their packages are optional."""


def announce(cells: Sequence[Cell], packs: Sequence[Sequence[Cell]]) -> None:
    """Print on stderr how many cells the sweep has, and how many it will continue and train.

    Notices follow, such as which weights of the base can't be adapted.
    """
    todo = [cell for pack in packs for cell in pack]
    distinct = len({cell.folder for cell in cells})
    names = ", ".join(sorted({cell.config.name for cell in cells}))
    parts = [count_noun(distinct, "cell"), f"{distinct - len(todo)} done", *_work(todo)]
    line = f"study {names}: {', '.join(parts)}"
    print(line + f" in {count_noun(len(packs), 'pack')}" * bool(todo), file=sys.stderr, flush=True)
    notices = [notice for c in cells for notice in (c.coverage.notice, late_probes(c.config))]
    for notice in dict.fromkeys(filter(None, notices)):
        print(notice, file=sys.stderr, flush=True)


def _work(todo: Sequence[Cell]) -> list[str]:
    """What is to do with the cells ``todo``: those that continue, and those that begin."""
    if not todo:
        return ["nothing to train"]
    steps = sorted(step for cell in todo if (step := newest_step(cell.folder)))
    parts = []
    if steps:
        span = f"{steps[0]:,}" if steps[0] == steps[-1] else f"{steps[0]:,} to {steps[-1]:,}"
        verb = "continues" if len(steps) == 1 else "continue"
        parts.append(f"{count_noun(len(steps), 'cell')} {verb} at step {span}")
    if len(todo) > len(steps):
        parts.append(f"{len(todo) - len(steps)} to train")
    return parts


def check_weights(cells: Iterable[Cell]) -> None:
    """Raises :class:`StudyError` for a base that has no weights, which serves plans only."""
    for cell in cells:
        if not MODELS[cell.config.model.name].has_weights:
            raise StudyError(
                f"model={cell.config.model.name} has no weights: add --plan, or train with "
                "model=hf and model.path=<a folder or hub name with weights>"
            )


@contextlib.contextmanager
def on_agenda(packs: Sequence[Sequence[Cell]]) -> Iterator[Mapping[Path, Path]]:
    """Inside, every process sees which cells are still to train (:mod:`study.sweeps.agenda`).

    Yields the file of each study's agenda, by the study's folder.
    """
    planned: dict[Path, list[Planned]] = {}
    for pack in packs:
        cells = planned.setdefault(pack[0].study_dir, [])
        number = cells[-1].pack + 1 if cells else 1
        cells += [
            Planned(
                cell.description,
                number,
                relative_cost(cell.config, cell.card),
                _first_step(cell),
                step_shares(cell.config),
            )
            for cell in pack
        ]
    with contextlib.ExitStack() as stack:
        yield {
            study_dir: stack.enter_context(posted(study_dir, of_study))
            for study_dir, of_study in planned.items()
        }


@contextlib.contextmanager
def stopping_together(agendas: Iterable[Path]) -> Iterator[None]:
    """Inside, a first signal stops every process of the sweep after its step; a second one kills
    those of this machine.
    """
    stops = [stop_file(agenda) for agenda in agendas]

    def stop() -> None:
        for path in stops:
            with contextlib.suppress(OSError):  # a full disk: a second signal remains
                path.touch()

    try:
        with signals.patience(stop):
            yield
    except signals.Stopped:
        for process in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error):
                process.kill()
        raise  # the files stay, for jobs that a cluster has not started yet
    for path in stops:
        remove(path)


@contextlib.contextmanager
def lost_workers() -> Iterator[None]:
    """Inside, the error of a launcher that has lost a process is a line: its cells can continue."""
    try:
        yield
    except Exception as error:
        if (signum := signals.asked()) is not None:  # the signal came before its process listened
            raise signals.Stopped(signum) from None
        if type(error).__name__ not in _LOST:
            raise
        raise StudyError(
            f"a process of the launcher was lost ({one_line(error)}): run the same command again, "
            "which continues"
        ) from None


def conclude(cells: Sequence[Cell]) -> None:
    """Print on stderr the state of the cells' studies, and the next command."""
    for study_dir in sorted({cell.study_dir for cell in cells}):
        print(f"study {study_dir.name}: {counts(load_cells(study_dir)['status'])}", file=sys.stderr)
        print(f"next: study report {study_dir}", file=sys.stderr, flush=True)


def _first_step(cell: Cell) -> int:
    """About the step at which a cell continues: a killed process may have lost the last ones."""
    record = read_cell(cell.folder)
    if record is None or record["status"] not in RESUMABLE:
        return 0
    return int(record.get("steps_done", -1)) + 1
