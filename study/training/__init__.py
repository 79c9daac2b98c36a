"""Train adapters on a frozen base. Read :mod:`~study.training.loop` first: it is the algorithm.

- :mod:`~study.training.run`: one cell as the loop sees it;
- :mod:`~study.training.fold`: the cells that share a forward pass, their passes and losses;
- :mod:`~study.training.optimizers`: optimizers, schedules and clipping;
- :mod:`~study.training.measuring`: measurements on held-out examples and by probes;
- :mod:`~study.training.results`: the results of one step;
- :mod:`~study.training.checkpoint`: a cell's state between two steps, and how it resumes;
- :mod:`~study.training.stuck`: whether a run has stopped learning;
- :mod:`~study.training.sharding`: one cell over several processes;
- :mod:`~study.training.devices`: the machine.
"""
