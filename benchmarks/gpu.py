"""Everything that is measured on a GPU: ``make gpu``, or ``python -m benchmarks.gpu``.

It is a list of steps, each a command of at most ten minutes. A file beside the results names the
steps that are done, so that the same command goes on where an earlier one stopped. A step that was
stopped or that failed runs again; a sweep then trains only the cells that it lacks.

Results go to ``results/gpu/DEVICE``: the tables of the suites in ``bench/``, a folder for each
study, the output of each step in ``logs/``, and ``done.txt``.
"""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import click

from study.errors import StudyError
from study.store.files import make_folder, write_text

ROOT = Path(__file__).parents[1]
STEP_MINUTES = 10.0
"""The most that one step takes at a time."""
GRACE = 20.0
"""Seconds in which a stopped step may write a checkpoint."""
RANKS = (4, 16, 64, 256, 1024, 2048)
EXPERIMENTS = ("quick", "stable_exponent", "theorem_over_training")
"""The reference studies of SmolLM2, shortest first."""


def gpu_steps(folder: Path) -> dict[str, list[str]]:
    """The steps in order: the arguments after ``python``, by name. ``folder``: of the results."""
    steps = {"tests": ["-m", "pytest", "-q", "-m", "gpu", "tests"]}
    shape = ["--device=cuda", "--precision=bf16", "--steps=20"]
    shape += [f"--to={folder / 'bench'}", f"--plots={folder / 'bench'}"]
    for suite in ("sweep", "large-steps"):
        for rank in RANKS:
            more = [f"--ranks={rank}", "--add"]
            steps[f"{suite}-{rank}"] = ["-m", "study", "bench", suite, *shape, *more]
    steps["folds"] = ["-m", "study", "bench", "folds", *shape]
    where = [f"results_dir={folder}", f"plots_dir={folder / 'plots'}"]
    for name in EXPERIMENTS:
        what = [f"experiment={name}", "preset=gpu", "device=cuda"]
        steps[name] = ["-m", "study", "train", *what, *where]
    return steps


def run_steps(steps: dict[str, list[str]], folder: Path, minutes: float) -> bool:
    """Run the steps that are not done, in order, for at most ``minutes``.

    Prints how each ends, and what is left. Returns whether every step is done.
    """
    ends = time.monotonic() + 60 * minutes - GRACE
    path = folder / "done.txt"
    done = path.read_text().split() if path.exists() else []
    make_folder(folder / "logs")
    for name, command in steps.items():
        seconds = min(ends - time.monotonic(), 60 * STEP_MINUTES)
        if name in done or seconds <= 0:
            continue
        click.echo(f"{name}: at most {seconds:.0f} s", err=True)
        log = folder / "logs" / f"{name}.txt"
        status = run_step(command, log, seconds)
        click.echo(f"{name} {status}: {log}", err=True)
        if status == "is done":
            done.append(name)
            write_text(path, "\n".join(done) + "\n")
    left = [name for name in steps if name not in done]
    click.echo(f"{len(steps) - len(left)} of {len(steps)} steps are done: {folder}")
    if left:
        click.echo(f"left: {', '.join(left)}. Run the same command again to go on")
    return not left


def run_step(command: list[str], log: Path, seconds: float) -> str:
    """Run a step, and stop it after ``seconds``: it, and the processes that it has started, get a
    signal and :data:`GRACE` seconds to end. Its output is appended to ``log``.
    """
    with log.open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, *command],
            cwd=ROOT,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            return "is done" if process.wait(seconds) == 0 else "failed"
        except subprocess.TimeoutExpired:
            return "was stopped"
        finally:  # also if this process is interrupted
            _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    try:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(GRACE)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    except ProcessLookupError:  # all have ended
        pass


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--minutes",
    type=click.FloatRange(min=1),
    default=30.0,
    show_default=True,
    help="Stop after so many minutes. The same command goes on from there.",
)
def main(minutes: float) -> None:
    """Run the tests marked gpu, the benchmarks and the reference studies on a GPU.

    Exits with 0 once every step is done, and with 1 otherwise.
    """
    import torch  # it takes seconds, and the help does not need it

    if not torch.cuda.is_available():
        raise StudyError(
            "make gpu measures on a CUDA device, and torch sees none: run it on a machine with a "
            "GPU and a CUDA build of torch"
        )
    device = re.sub(r"[^A-Za-z0-9.]+", "-", torch.cuda.get_device_name()).strip("-")
    folder = ROOT / "results/gpu" / device
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # ends the step too
    sys.exit(not run_steps(gpu_steps(folder), folder, minutes))


if __name__ == "__main__":
    try:
        main()
    except StudyError as error:
        sys.exit(f"study: {error}")
