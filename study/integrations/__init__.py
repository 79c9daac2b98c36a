"""Other tools: probes in their training, their adapters and configurations, ours for them.

- :mod:`~study.integrations.recording`: ``study.record``, around a loop of one's own, on
  :mod:`~study.integrations.passes` (what happens between two updates) and
  :mod:`~study.integrations.runs` (the cell);
- :mod:`~study.integrations.transformers`: a callback for the Trainer, on a recording;
- :mod:`~study.integrations.axolotl`: the same as a plugin of Axolotl;
- :mod:`~study.integrations.peft`: ``study export`` and ``study import``;
- :mod:`~study.integrations.configs`: ``study import-config`` and ``study sweep-from``.
"""
