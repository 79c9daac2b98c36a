"""The sweeps that are disturbed: small, and between them every kind of state that a cell has."""

import json
from pathlib import Path

NAME = "s"
"""The name of every study."""
EVERY = 3
"""Steps between two checkpoints."""
SHORT_EVERY = 2
"""The same in the short sweep."""

SMALL = (
    f"train -m name={NAME} model=tiny device=cpu data=file "
    f"data.sequence_length=32 data.heldout=4 train.batch_size=2 train.steps=11 "
    f"checkpoint.every={EVERY} adapter.contraction=factored"
).split()
"""The contraction is fixed: ``auto`` depends on a measurement, and results are compared by bits."""

NO_PROBES = "probes.steps=null"
SWEEPS = {
    "dropout": "adapter.rank=2,5 adapter.scaling=lora,rslora adapter.dropout=0.2 "
    "train.accumulation=2 probes.steps=null probes.every=3",
    "fold of four": f"adapter.rank=2,3,4,6 pack.fold=4 optimizer=lion adapter.dropout=0.1 "
    f"{NO_PROBES}",
    "adapters": "optimizer=adafactor,rmsprop adapter.rank=4 seed=0,1 train.save_adapter=true "
    "probes.truncations=log pack.fold=2 train.schedule=cosine train.warmup=3 train.clip=0.5",
    "optimizers": f"optimizer=sgd,momentum,nesterov,signsgd,adam,adamw adapter.rank=4 pack.fold=3 "
    f"{NO_PROBES} optimizer.lr=1e-2",
    "infinite rank": "optimizer=momentum adapter.scaling=rslora adapter.rank=2,inf "
    "train.schedule=linear train.warmup=2",
    "diverging": "optimizer=sgd optimizer.lr=1e15,1e-12 adapter.alpha=1e10 adapter.rank=2,3 "
    "pack.fold=3",
    "batches": "probes.batch=[train,heldout,noise] probes.stats=[all,r_align,r_sign] "
    "train.eval_every=4 adapter.rank=2,3 seed=0,1 pack.fold=2 optimizer=adamw",
    "merged": "adapter.targets=mlp adapter.rank=3,4,5 pack.fold=2 adapter.init=orthogonal "
    "optimizer=nesterov train.accumulation=3 probes.steps=[0,5,9] adapter.contraction=merged",
}
"""The overrides of each sweep."""
SHORT = (
    f"adapter.rank=2,3 pack.fold=2 train.steps=4 checkpoint.every={SHORT_EVERY} "
    "train.save_adapter=true "
    "probes.steps=[0] probes.sites=[adapter_out,A] probes.truncations=[1] data.heldout=2 "
    "adapter.dropout=0.1"
)
"""The overrides of a sweep that makes every kind of file call, and few of them."""

LAUNCHERS = {
    "basic": (),
    "joblib": ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "pack.max_cells=2"),
    "submitit_local": (
        *("hydra/launcher=submitit_local", "hydra.launcher.timeout_min=5"),
        *("hydra.launcher.submitit_folder=.submitit/%j", "pack.max_cells=2"),
    ),
}
"""The overrides of each launcher."""


def arguments(sweep: str, launcher: str = "basic") -> list[str]:
    """The command line of a sweep, without the word ``study``."""
    return [*SMALL, *SWEEPS[sweep].split(), _data(SWEEPS[sweep]), *LAUNCHERS[launcher]]


def short_arguments() -> list[str]:
    """The command line of the short sweep."""
    return [*SMALL, *SHORT.split(), _data(SHORT)]


def _data(sweep: str) -> str:
    """Rows of uneven length, or of one length for folds of several cells: a batch is as long as the
    longest row of a fold, so the last bits of a cell's numbers depend on the cells beside it."""
    return f"data.path={'even' if 'pack.fold' in sweep else 'uneven'}.jsonl"


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
