"""Train adapters on a frozen base. Read :mod:`~study.training.loop` first: it is the algorithm.

- :mod:`~study.training.run`: one cell as the loop sees it;
- :mod:`~study.training.fold`: the cells that share a forward pass, and their passes;
- :mod:`~study.training.probing`: which probes measure them, and on which batch;
- :mod:`~study.training.evaluation`: held-out loss, exact match, loss at lower ranks;
- :mod:`~study.training.results`: what one step yields;
- :mod:`~study.training.checkpoint`: a cell's state between two steps, and how it goes on;
- :mod:`~study.training.stuck`: whether a run has stopped learning;
- :mod:`~study.training.optimizers`: optimizers, schedules and clipping;
- :mod:`~study.training.loss`: the loss of target tokens in chunks;
- :mod:`~study.training.devices`, :mod:`~study.training.allocator`: the machine.
"""
