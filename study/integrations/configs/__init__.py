"""Configurations of other tools as experiments of ``study train``.

- :mod:`~study.integrations.configs.files`: a file's form, told by its keys;
- :mod:`~study.integrations.configs.finlora_yaml`, :mod:`~study.integrations.configs.finlora_json`,
  :mod:`~study.integrations.configs.axolotl`, :mod:`~study.integrations.configs.peft`: a reader for each form;
- :mod:`~study.integrations.configs.fields`, :mod:`~study.integrations.configs.parts`: what the readers share;
- :mod:`~study.integrations.configs.sweeps`: ranks and rules, and Axolotl's sweep files;
- :mod:`~study.integrations.configs.experiment`: what a reader gives, and its files.
"""

from study.integrations.configs.experiment import Experiment, Written, write
from study.integrations.configs.files import read_file
from study.integrations.configs.sweeps import from_sweep_file

__all__ = ["Experiment", "Written", "from_sweep_file", "read_file", "write"]
