"""Configurations of other tools as experiments of ``study train``.

- :mod:`~study.integrations.configs.files`: finds the form of a file by its keys, and reads it;
- :mod:`~study.integrations.configs.axolotl` (also FinLoRA's) and
  :mod:`~study.integrations.configs.trainer_tools` (LLaMA-Factory's, TRL's, PEFT's): the readers;
- :mod:`~study.integrations.configs.keys`: the keys and settings that several tools share;
- :mod:`~study.integrations.configs.experiment`: what a reader returns, with its notes;
- :mod:`~study.integrations.configs.writing`: the files that it becomes.
"""

from study.integrations.configs.experiment import Experiment
from study.integrations.configs.files import from_sweep_file, read_file
from study.integrations.configs.writing import write
