"""Configurations of other tools as experiments of ``study train``.

- :mod:`~study.integrations.configs.files`: reads a file and finds its form by its keys;
- :mod:`~study.integrations.configs.axolotl`, :mod:`~study.integrations.configs.llama_factory`,
  :mod:`~study.integrations.configs.trl`, :mod:`~study.integrations.configs.finlora_yaml`,
  :mod:`~study.integrations.configs.finlora_json`, :mod:`~study.integrations.configs.peft`: one
  reader for each form. Beside the first two, a module for their data and a table of the keys that
  have no counterpart;
- :mod:`~study.integrations.configs.fields`, :mod:`~study.integrations.configs.parts`,
  :mod:`~study.integrations.configs.rows`, :mod:`~study.integrations.configs.training`: shared by
  the readers;
- :mod:`~study.integrations.configs.notes`: what is trained differently, assumed or left out;
- :mod:`~study.integrations.configs.sweeps`: Axolotl's sweep files;
- :mod:`~study.integrations.configs.experiment`: the result of a reader, and the files it becomes.
"""

from study.integrations.configs.experiment import Experiment, Written, write
from study.integrations.configs.files import read_file
from study.integrations.configs.sweeps import from_sweep_file

__all__ = ["Experiment", "Written", "from_sweep_file", "read_file", "write"]
