"""What surrounds the packs of a sweep: its first line, its file and its last lines."""

import contextlib
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import psutil

from study.config.schedules import late_probes
from study.errors import StudyError, one_line
from study.store import load_cells
from study.store.checkpoints import newest_step
from study.store.files import remove
from study.sweeps import processes, signals
from study.sweeps.cells import Cell
from study.sweeps.estimate import full_estimate
from study.sweeps.progress import Planned, count_noun, counts, posted, stop_file
from study.sweeps.sharing import Outcome, train_all
from study.vocabulary.extras import WANDB
from study.vocabulary.sources import MODELS

_LOST = (
    "TerminatedWorkerError",  # joblib
    "BrokenProcessPool",
    "UncompletedJobError",  # submitit
    "WorkerCrashedError",  # ray
)
"""The errors of launchers whose process ended without a result. Their packages are optional."""


Pass = Callable[[list[Cell], Mapping[Path, Path]], Iterable[Outcome]]
"""Trains cells that no process holds, once. It gets the file of the sweep by a study's folder."""


def conduct(
    cells: Sequence[Cell], packs: Sequence[Sequence[Cell]], one_pass: Pass, here: bool = True
) -> None:
    """Train ``cells`` until all have results. ``packs``: those that are to be trained.

    ``here``: whether the launcher runs its jobs in this process. Raises as
    :func:`~study.sweeps.sharing.train_all` does.
    """
    check_weights(cells)
    processes.check(cells, here)
    announce(cells, packs)
    with _post(packs) as files:
        train_all(cells, lambda free: one_pass(free, files))
    if packs:
        _publish(cells)
    for study_dir in sorted({cell.study_dir for cell in cells}):
        print(f"study {study_dir.name}: {counts(load_cells(study_dir)['status'])}", file=sys.stderr)
        print(f"next: study report {study_dir}", file=sys.stderr, flush=True)


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
def _post(packs: Sequence[Sequence[Cell]]) -> Iterator[Mapping[Path, Path]]:
    """Inside, every process sees which cells are to be trained (:mod:`study.sweeps.progress`).

    Yields the file of the sweep in each study, by the study's folder.
    """
    planned: dict[Path, list[Planned]] = {}
    for cell in (cell for pack in packs for cell in pack):
        flops = full_estimate(cell.config, cell.card).flops
        each = Planned(cell.description, flops, newest_step(cell.folder))
        planned.setdefault(cell.study_dir, []).append(each)
    with contextlib.ExitStack() as stack:
        yield {
            study_dir: stack.enter_context(posted(study_dir, of_study))
            for study_dir, of_study in planned.items()
        }


@contextlib.contextmanager
def stopping_together(files: Iterable[Path]) -> Iterator[None]:
    """Inside, a first signal stops every process of the sweep after its step; a second one kills
    those of this machine.
    """
    stops = [stop_file(file) for file in files]

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
            raise signals.current().stopped(signum) from None
        if type(error).__name__ not in _LOST:
            raise
        raise StudyError(
            f"a process of the launcher was lost ({one_line(error)}): run the same command again, "
            "which continues"
        ) from None


def _publish(cells: Sequence[Cell]) -> None:
    """Send the results of studies that are tracked in W&B to it."""
    for study_dir, config in {cell.study_dir: cell.config for cell in cells}.items():
        if config.tracker.name == WANDB:
            from study.tracking.publish import publish  # needs wandb

            publish(study_dir, Path(config.plots_dir) / config.name, config.tracker, signals.say)
