"""A copy of the results in an experiment tracker (``tracker=wandb``, ``tracker=tensorboard`` ...).

- :mod:`~study.tracking.runs`: one run per cell, in W&B or through ``accelerate.tracking``;
- :mod:`~study.tracking.publish`: exponents and figures of a study in W&B, as artifacts;
- :mod:`~study.tracking.workspace`: a W&B workspace for a study.

The store stays complete without them. An error in a tracker prints one line and does not stop
training.
"""
