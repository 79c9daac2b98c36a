"""Configurations of other tools as experiments of ``study train``.

- :mod:`~study.integrations.configs.files`: finds the form of a file by its keys, and reads it;
- :mod:`~study.integrations.configs.axolotl`, :mod:`~study.integrations.configs.llama_factory`,
  :mod:`~study.integrations.configs.trl`, :mod:`~study.integrations.configs.finlora`,
  :mod:`~study.integrations.configs.peft`: one reader for each form;
- :mod:`~study.integrations.configs.fields`: the file and its keys;
- :mod:`~study.integrations.configs.settings`: what the readers share;
- :mod:`~study.integrations.configs.experiment`: the result of a reader, the notes on what is
  trained differently, and the files it becomes.
"""

from study.integrations.configs.experiment import Experiment, Written, write
from study.integrations.configs.files import from_sweep_file, read_file

__all__ = ["Experiment", "Written", "from_sweep_file", "read_file", "write"]
