"""Configurations of other tools as experiments of ``study train``: start with ``files``."""

from study.integrations.configs.files import TOOLS, read_file
from study.integrations.configs.tools import Experiment
from study.integrations.configs.writing import write
