"""The sweeps that are disturbed. Their processes are forked from a server, in milliseconds."""

import json
import os
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.forked import ROOT, exit_code, inherited_path, leave, server

from .instrument import Plan, install

NAME = "s"
"""The name of every study."""
EVERY = 3
"""Steps between two checkpoints."""
SMALL = (
    f"train -m name={NAME} model=tiny device=cpu data=file "
    f"data.sequence_length=32 data.heldout=4 train.batch_size=2 train.steps=11 "
    f"checkpoint.every={EVERY} adapter.contraction=factored"
)
"""The contraction is fixed: ``auto`` depends on a measurement, and results are compared by bits."""
SWEEPS = {
    "dropout": "adapter.rank=2,5 adapter.scaling=lora,rslora adapter.dropout=0.2 "
    "train.accumulation=2 probes.steps=null probes.every=3",
    "adapters": "optimizer=adafactor,rmsprop adapter.rank=4 seed=0,1 train.save_adapter=true "
    "probes.truncations=log pack.fold=2 train.schedule=cosine train.warmup=3 train.clip=0.5",
    "infinite rank": "optimizer=momentum adapter.scaling=rslora adapter.rank=2,inf "
    "train.schedule=linear train.warmup=2",
    "diverging": "optimizer=sgd optimizer.lr=1e15,1e-12 adapter.alpha=1e10 adapter.rank=2,3 "
    "pack.fold=3",
    "batches": "probes.batch=[train,heldout,noise] probes.stats=[all,r_align,r_sign] "
    "train.eval_every=4 adapter.rank=2,3 seed=0,1 pack.fold=2 optimizer=adamw",
    "short": "adapter.rank=2,3 pack.fold=2 train.steps=4 checkpoint.every=2 "
    "train.save_adapter=true probes.steps=[0] probes.sites=[adapter_out,A] "
    "probes.truncations=[1] data.heldout=2 adapter.dropout=0.1",
}
"""The overrides of each sweep. The short one makes every kind of file call, and few of them."""
PATIENCE = 600.0
"""Seconds after which a run that has not ended counts as hanging."""
STOPPING = (signal.SIGINT, signal.SIGTERM)


def arguments(sweep: str) -> list[str]:
    """The command line of a sweep, without the word ``study``.

    Rows have uneven length, or one length for folds of several cells: a batch is as long as the
    longest row of a fold, so the last bits of a cell's numbers depend on the cells beside it.
    """
    rows = "even" if "pack.fold" in SWEEPS[sweep] else "uneven"
    return f"{SMALL} {SWEEPS[sweep]} data.path={rows}.jsonl".split()


def make_folder(folder: Path) -> Path:
    """A new working directory with the data of the sweeps. Returns its absolute path."""
    folder.mkdir(parents=True)
    for name, least in (("even", 20), ("uneven", 0)):
        rows = [
            {
                "context": f"Say {'very ' * (least + n % 5)}{n} twice:",
                "target": f" {n}{' ok' * (n % 4)}",
            }
            for n in range(60)
        ]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder.resolve()


def study_of(folder: Path) -> Path:
    """The study that a run in ``folder`` writes."""
    return folder / "results" / NAME


@dataclass(frozen=True)
class Ended:
    """How a run ended. ``code``: negative for a signal that nobody handled; None if it hangs."""

    code: int | None
    err: str


class Running:
    """A run of ``study`` with ``arguments`` in the folder of ``plan``, which happens to it."""

    def __init__(self, arguments: Sequence[str], plan: Plan) -> None:
        self.plan, self.err = plan, Path(f"{plan.folder}.{plan.run}.err")
        target: Any = (tuple(arguments), plan.dumps(), str(self.err))
        self.process = server().Process(target=_become_study, args=target)
        self.process.start()

    def send(self, signum: int) -> bool:
        """Send a signal. False if the run has ended."""
        if self.process.exitcode is not None:
            return False
        os.kill(self.process.pid, signum)
        return True

    def wait(self) -> Ended:
        """Wait for the end. A run that hangs is killed."""
        self.process.join(PATIENCE)
        code = self.process.exitcode
        if code is None:
            self.process.kill()
        return Ended(code, self.err.read_text(errors="replace") if self.err.exists() else "")


def _become_study(arguments: tuple[str, ...], plan_text: str, err: str) -> None:
    """The child of the server: becomes a run of ``study``, and ends as the interpreter would."""
    os.setsid()
    signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)  # until the faults are in place
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    plan = Plan.loads(plan_text)
    os.environ["STUDY_CACHE"] = str(Path(plan.folder).parent / "cache")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), *inherited_path()])
    os.chdir(plan.folder)
    file = os.open(err, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    os.dup2(file, 1)
    os.dup2(file, 2)
    install(plan)
    sys.argv = ["study", *arguments]
    code = _code_of_main()
    for signum in STOPPING:
        signal.signal(signum, signal.SIG_IGN)  # nothing of study runs any more
    leave(code)


def _code_of_main() -> int:
    from study.cli import main

    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)
        main()
    except SystemExit as leaving:
        return exit_code(leaving)
    except KeyboardInterrupt:  # before study listens: the interpreter ends by the signal
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(60)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        return 1
    return 0
