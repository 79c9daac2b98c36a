"""Configurations of other tools as experiments of ``study train``: start with ``files``."""

from study.integrations.configs.experiment import Experiment
from study.integrations.configs.files import TOOLS, from_sweep_file, read_file
from study.integrations.configs.writing import write
