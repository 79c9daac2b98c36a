"""The sweeps that are disturbed. Their processes are forked from a server, in milliseconds."""

import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from tests.forked import Forked

from .instrument import Plan

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


def start(arguments: Sequence[str], plan: Plan) -> Forked:
    """A run of ``study`` in the folder of ``plan``, which happens to it."""
    folder = Path(plan.folder)
    environment = os.environ | {"STUDY_CACHE": str(folder.parent / "cache")}
    code = f"from tests.faults.instrument import run; run({asdict(plan)})"
    return Forked(code, arguments, folder, environment)
