"""A copy of the results in Weights & Biases (``tracker=wandb``, extra ``wandb``).

- :mod:`~study.tracking.names`: the names of metrics in W&B;
- :mod:`~study.tracking.runs`: one W&B run per cell, updated while it trains;
- :mod:`~study.tracking.publish`: exponents and figures of a study, as artifacts;
- :mod:`~study.tracking.workspace`: a W&B workspace for a study.

The store stays complete without W&B. An error in W&B prints one line and does not stop training.
"""
