"""Everything that is measured on a GPU: ``make gpu``, or ``python -m benchmarks.gpu``.

It is a list of steps, each a command of at most ten minutes. A file beside the results says which
steps are done, so that the same command goes on where an earlier one stopped. A step that was
stopped or that failed runs again; a sweep then trains only the cells that it lacks.

Results go to ``results/gpu/DEVICE``: the tables of the suites in ``bench/``, a folder for each
study, the output of each step in ``logs/``, and the state of the steps.
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import click

from study.errors import StudyError
from study.store.files import make_folder, write_text

ROOT = Path(__file__).parents[1]
STATE = "steps.json"
DONE, STOPPED, FAILED = "done", "stopped", "failed"
STEP_MINUTES = 10.0
"""The most that one step takes at a time."""
ALL_MINUTES = 30.0
"""The most that all steps take together, over all calls."""
GRACE = 20.0
"""Seconds in which a stopped step may write a checkpoint."""
RANKS = (4, 16, 64, 256, 1024, 2048)
EXPERIMENTS = ("quick", "stable_exponent", "theorem_over_training")
"""The reference studies of SmolLM2, shortest first."""


@dataclass(frozen=True)
class Step:
    """``command``: its arguments after ``python``."""

    name: str
    command: Sequence[str]


@dataclass(frozen=True)
class Ended:
    """How a step ended, and the seconds that it has taken in all calls."""

    status: str
    seconds: float


def gpu_steps(folder: Path) -> list[Step]:
    """The steps in order. ``folder``: of the results."""
    bench = ["-m", "study", "bench"]
    where = ["--to", str(folder / "bench"), "--plots", str(folder / "bench")]
    shape = ["--device", "cuda", "--precision", "bf16", "--steps", "20"]
    ranks = ",".join(map(str, RANKS))
    return [
        Step("tests", ["-m", "pytest", "-q", "-m", "gpu", "tests"]),
        *(
            Step(f"{suite}-{rank}", [*bench, suite, *shape, "--ranks", str(rank), "--add", *where])
            for suite in ("sweep", "large-steps")
            for rank in RANKS
        ),
        Step("folds", [*bench, "folds", *shape, "--ranks", ranks, *where]),
        *(
            Step(
                name,
                [
                    *("-m", "study", "train", f"experiment={name}", "preset=gpu", "device=cuda"),
                    *(f"results_dir={folder}", f"plots_dir={folder / 'plots'}"),
                ],
            )
            for name in EXPERIMENTS
        ),
    ]


def run_steps(
    steps: Sequence[Step],
    folder: Path,
    minutes: float,
    say: Callable[[str], None],
    all_minutes: float = ALL_MINUTES,
) -> dict[str, Ended]:
    """Run the steps that are not done, in order, for at most ``minutes``.

    Returns how every step that has begun has ended, in this call or an earlier one. The state is
    written after each step. All calls together take at most ``all_minutes``.
    """
    ended = read_state(folder)
    began, spent = time.monotonic(), sum(each.seconds for each in ended.values())
    for step in steps:
        before = ended.get(step.name, Ended(STOPPED, 0.0))
        here = time.monotonic() - began
        left = min(60 * minutes - here, 60 * all_minutes - spent - here) - GRACE
        if before.status == DONE or left <= 0:
            continue
        say(f"{step.name}: at most {min(left, 60 * STEP_MINUTES):.0f} s")
        status, seconds = run_step(step, folder, min(left, 60 * STEP_MINUTES))
        ended[step.name] = Ended(status, before.seconds + seconds)
        _write_state(folder, ended)
        say(f"{step.name}: {status} after {seconds:.0f} s")
    return ended


def run_step(step: Step, folder: Path, seconds: float) -> tuple[str, float]:
    """Run one step, and stop it after ``seconds``. Returns its status and the seconds it took.

    Its output is appended to its log. A step that is stopped gets a signal, as do the processes
    that it has started, and :data:`GRACE` seconds to end.
    """
    make_folder(folder / "logs")
    began, status = time.monotonic(), STOPPED
    with log_of(folder, step.name).open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, *step.command],
            cwd=ROOT,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            status = DONE if process.wait(seconds) == 0 else FAILED
        except subprocess.TimeoutExpired:
            pass
        finally:  # also if this process is interrupted
            _end(process)
    return status, time.monotonic() - began


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process and those that it has started."""
    try:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(GRACE)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    except ProcessLookupError:  # all have ended
        pass


def log_of(folder: Path, name: str) -> Path:
    """The file with the output of a step."""
    return folder / "logs" / f"{name}.txt"


def read_state(folder: Path) -> dict[str, Ended]:
    """How the steps of earlier calls have ended, by name."""
    path = folder / STATE
    if not path.exists():
        return {}
    try:
        return {name: Ended(**each) for name, each in json.loads(path.read_text()).items()}
    except (ValueError, TypeError, AttributeError):
        raise StudyError(f"{path} can't be read: delete it, and all steps run again") from None


def _write_state(folder: Path, ended: Mapping[str, Ended]) -> None:
    states = {name: asdict(each) for name, each in ended.items()}
    write_text(folder / STATE, json.dumps(states, indent=1) + "\n")


def gpu_name() -> str:
    """The name of the GPU. Raises :class:`StudyError` if torch sees none."""
    import torch  # it takes seconds, and the help does not need it

    if not torch.cuda.is_available():
        raise StudyError(
            "make gpu measures on a CUDA device, and torch sees none: run it on a machine with a "
            "GPU and a CUDA build of torch"
        )
    return torch.cuda.get_device_name()


def folder_of(name: str) -> Path:
    """The folder of a device's results."""
    return ROOT / "results/gpu" / re.sub(r"[^A-Za-z0-9.]+", "-", name).strip("-")


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--minutes",
    type=click.FloatRange(min=1),
    default=ALL_MINUTES,
    show_default=True,
    help="Stop after so many minutes. The same command goes on from there.",
)
def main(minutes: float) -> None:
    """Run the tests marked gpu, the benchmarks and the reference studies on a GPU.

    Exits with 0 once every step is done, and with 1 otherwise.
    """
    folder = folder_of(gpu_name())
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # ends the step too
    steps = gpu_steps(folder)
    ended = run_steps(steps, folder, minutes, lambda line: click.echo(line, err=True))
    click.echo(conclusion(steps, ended, folder))
    sys.exit(any(step.name not in ended or ended[step.name].status != DONE for step in steps))


def conclusion(steps: Sequence[Step], ended: Mapping[str, Ended], folder: Path) -> str:
    """What is done and what is left, in a line each."""
    names = [step.name for step in steps]
    of = {
        status: [name for name in names if name in ended and ended[name].status == status]
        for status in (DONE, STOPPED, FAILED)
    }
    left = [name for name in names if name not in ended] + of[STOPPED]
    lines = [f"{len(of[DONE])} of {len(names)} steps are done: {folder}"]
    lines += [f"{name} failed: {log_of(folder, name)}" for name in of[FAILED]]
    if left:
        lines.append(f"left: {', '.join(left)}. Run the same command again to go on")
    return "\n".join(lines)


if __name__ == "__main__":
    try:
        main()
    except StudyError as error:
        sys.exit(f"study: {error}")
