"""The server of processes imports this: what a run of ``study`` imports sooner or later."""

from importlib import import_module

from hydra.core.plugins import Plugins

MODULES = (
    *("joblib", "pandas", "pyarrow.parquet", "pytorch_optimizer", "transformers.optimization"),
    *("study.cli", "study.sweeps.app", "study.sweeps.run", "study.sweeps.launch"),
    *("study.sweeps.plan", "study.sweeps.status", "study.store.checkpoints"),
    *("tests.faults.instrument", "tests.faults.seeded_bugs"),
)

for name in MODULES:
    import_module(name)
Plugins.instance()
