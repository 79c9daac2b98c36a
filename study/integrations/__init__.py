"""Other tools: probes in their training, their adapters and configurations, ours for them.

- :mod:`~study.integrations.transformers`: a callback for the Trainer;
- :mod:`~study.integrations.runs`: runs of the Trainer as cells of a study;
- :mod:`~study.integrations.axolotl`: the same as a plugin of Axolotl;
- :mod:`~study.integrations.peft`: ``study export`` and ``study import``;
- :mod:`~study.integrations.configs`: ``study import-config`` and ``study sweep-from``.
"""
