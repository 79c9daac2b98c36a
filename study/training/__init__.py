"""Train adapters on a frozen base. Read :mod:`~study.training.loop` first: it is the algorithm."""
