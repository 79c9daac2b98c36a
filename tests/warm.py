"""The server of :mod:`tests.forked` imports this: what ``study`` imports sooner or later.

It also composes a configuration: the parsers of Hydra and OmegaConf are slow the first time. As in
the tests themselves, ``fsync`` does not wait for the disk.
"""

import os
from importlib import import_module

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins

from study.config.compose import CONF, parse

MODULES = (
    *("joblib", "pandas", "pyarrow.parquet", "pytorch_optimizer", "transformers.optimization"),
    *("study.cli", "study.sweeps.app", "study.sweeps.run", "study.sweeps.launch"),
    *("study.sweeps.plan", "study.sweeps.progress", "study.store.checkpoints"),
    *("study.cli.tables", "study.report", "study.dashboard.document"),
)

for name in MODULES:
    import_module(name)
Plugins.instance()
with initialize_config_dir(str(CONF), version_base="1.3"):
    parse(compose("config", overrides=["model=tiny", "adapter.rank=2", "optimizer.lr=1e-3"]))
GlobalHydra.instance().clear()
os.fsync = os.fstat
