"""Weights & Biases beside the store, for those who want it (``tracker=wandb``, ``pip install 'study[wandb]'``).

- :mod:`~study.tracking.names`: what metrics are called there;
- :mod:`~study.tracking.runs`: one run per cell, told of every row while it trains;
- :mod:`~study.tracking.publish`: exponents and figures of a study, as artifacts;
- :mod:`~study.tracking.workspace`: the page that shows them, as code.

The store is the truth and W&B a copy: what goes wrong there is said once and stops nothing.
"""
