"""The first day on a GPU: ``make gpu``, or ``python -m benchmarks.gpu --minutes 9 --to DIR``.

:data:`STEPS` are commands, in four stages. ``DIR/done.txt`` names those that are done, so that the
same call goes on where an earlier one stopped. A step that was stopped or that failed runs again; a
sweep then trains only the cells that it lacks.

A stage has a folder with the output and the results of its steps. ``--rehearse`` runs the same
steps with the tiny base on a CPU. ``benchmarks/pack.sh`` makes what a machine without a network
needs.
"""

import contextlib
import os
import runpy
import signal
import sys
import time
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path

import click

from study.errors import StudyError
from study.store.files import make_folder, write_text
from study.vocabulary.optimizers import OPTIMIZERS

GRACE = 20.0
"""Seconds in which a stopped step may write a checkpoint."""
STEPS = """
1-checks/versions   torch.utils.collect_env
1-checks/tests      pytest {options} tests/training/pretend_gpu_checks.py
1-checks/optimizers {train} {tiny} optimizer={optimizers}
1-checks/diverging  {train} {tiny} optimizer=sgd optimizer.lr=1e30
1-checks/compiled   {train} {tiny} pack.compile={compiled} adapter.rank=4,8
2-large/fetch       {fetch}
2-large/model       benchmarks.first_day {shape} {base} {device} {to}/model
2-large/plan        {train} {large} adapter.rank=16,256 --plan
2-large/rank-16     {train} {large} adapter.rank=16
2-large/rank-256    {train} {large} adapter.rank=256
2-large/rank-1024   {train} {large} adapter.rank=1024 train.batch_size=2 train.accumulation=8
2-large/compiled    {train} {large} adapter.rank=16 pack.compile={compiled}
3-smollm2/quick     {train} experiment=quick model={base} precision=float32 {fewer}
3-smollm2/compare   study compare {folder}/quick results/reference/quick --to={folder}
3-smollm2/trainer   {bench} --tokens={tokens} sweep
4-studies/stable_exponent {train} experiment=stable_exponent model={base} {size} {fewer}
4-studies/quick     {train} experiment=quick model={base} precision=bf16 {fewer}
4-studies/theorem   {train} experiment=theorem_over_training model={base} {size} {fewer}
"""
"""Stage and name of each step, a module, and its arguments."""
VALUES = {
    "device": ("cuda", "cpu"),
    "base": ("smollm2", "tiny"),
    "shape": ("llama-3.1-8b", "tiny"),
    "size": ("preset=gpu", "preset=gpu data.sequence_length=32 data.heldout=8 train.batch_size=2"),
    "small": ("", "data.heldout=4 train.batch_size=2"),
    "tokens": ("4096", "256"),
    "fewer": ("", "adapter.rank=4 seed=0 train.steps=2"),
    "ranks": ("4,16,64,256,1024,2048", "4"),
    "steps": ("8", "2"),
    "precision": ("float32,bf16", "bf16"),
    "compiled": ("true", "false"),
    "options": ("-q", "--collect-only"),
    "fetch": ("study fetch smollm2", "study --help"),
}
"""The words in braces: on a GPU, and in a rehearsal."""
SHARED = {
    "tiny": "model=tiny precision={precision} train.steps=3 {small}",
    "large": "model=hf model.path={to}/model {size} train.steps=8 train.eval_every=0"
    " probes.steps=null",
    "train": "study train -m device={device} name={name} results_dir={folder}",
    "bench": "study bench --device={device} --model={base} --precision=bf16 --steps={steps}"
    " --ranks={ranks} --to={folder}",
    "optimizers": ",".join(OPTIMIZERS),
}


def gpu_steps(to: Path, rehearse: bool) -> dict[str, list[str]]:
    """The steps in order, by name: a module and its arguments. Results go to folders of ``to``."""
    steps = {}
    for line in STEPS.strip().splitlines():
        name, words = line.split(maxsplit=1)
        stage, own = name.split("/")
        known = {key: both[rehearse] for key, both in VALUES.items()}
        known |= SHARED | {"to": str(to), "folder": str(to / stage), "name": own}
        for _ in range(3):  # a value may hold others
            words = words.format(**known)
        steps[name] = words.split()
    return steps


def run_steps(steps: dict[str, list[str]], to: Path, minutes: float) -> bool:
    """Run the steps that are not done, in order, for at most ``minutes``. Prints how each ends,
    and what is left. Returns whether every step is done."""
    ends = time.monotonic() + 60 * minutes - GRACE
    path = to / "done.txt"
    done = path.read_text().split() if path.exists() else []
    for name, command in steps.items():
        began = time.monotonic()
        if name in done or began >= ends:
            continue
        log = to / f"{name}.txt"
        make_folder(log.parent)
        status = run_step(command, log, ends - began)
        click.echo(f"{name} {status}, {time.monotonic() - began:.1f} s: {log}", err=True)
        if status == "is done":
            done.append(name)
            write_text(path, "\n".join(done) + "\n")
    left = [name for name in steps if name not in done]
    click.echo(f"{len(steps) - len(left)} of {len(steps)} steps are done: {to}")
    if left:
        click.echo(f"left: {', '.join(left)}. Run the same command again to go on")
    return not left


def run_step(command: list[str], log: Path, seconds: float) -> str:
    """Run a step in a fork of this process, and stop it after ``seconds``: it, and the processes
    that it has started, get a signal and :data:`GRACE` seconds to end. ``log`` gets its output.
    """
    process = get_context("fork").Process(target=_become, args=(command, log))
    process.start()
    try:
        process.join(seconds)
        return {None: "was stopped", 0: "is done"}.get(process.exitcode, "failed")
    finally:  # also if this process is interrupted
        for signum in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):  # all have ended
                os.killpg(process.pid or 0, signum)
                process.join(GRACE)


def _become(command: list[str], log: Path) -> None:
    os.setsid()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    sys.stdout = sys.stderr = output = log.open("a", buffering=1)
    os.dup2(output.fileno(), 1)
    os.dup2(output.fileno(), 2)
    sys.argv = command
    runpy.run_module(command[0], run_name="__main__", alter_sys=True)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--minutes", type=click.FloatRange(min=1), default=30.0, help="Stop after so many.")
@click.option("--to", type=click.Path(path_type=Path), default="results/gpu", help="The results.")
@click.option("--rehearse", is_flag=True, help="With the tiny base, on a CPU.")
def main(minutes: float, to: Path, rehearse: bool) -> None:
    """Run the first day on a GPU, or go on with it. Exits with 0 once every step is done."""
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"  # CUDA can't be used in a fork after its own
    import_module("study.sweeps.app")  # and torch: what the steps import, before they fork
    if rehearse:  # they import bitsandbytes, which asks for the GPU
        import_module("transformers.optimization")
        import_module("pytorch_optimizer")
        import_module("study.sweeps.run")
    if not (rehearse or import_module("torch").cuda.is_available()):
        raise StudyError(
            "make gpu measures on a CUDA device, and torch sees none: run it on a machine with a "
            "GPU and a CUDA build of torch"
        )
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # ends the step too
    sys.exit(not run_steps(gpu_steps(to.absolute(), rehearse), to.absolute(), minutes))


if __name__ == "__main__":
    try:
        main()
    except StudyError as error:
        sys.exit(f"study: {error}")
