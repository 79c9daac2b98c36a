"""Other tools: probes in their training, their adapters and configurations, ours for them.

- :mod:`~study.integrations.loops`: ``study.record``, around a loop of one's own;
- :mod:`~study.integrations.recording`: what it does, on :mod:`~study.integrations.passes`,
  :mod:`~study.integrations.runs` (cells) and :mod:`~study.integrations.refusals`;
- :mod:`~study.integrations.transformers`: a callback for the Trainer, on a recording;
- :mod:`~study.integrations.axolotl`: the same as a plugin of Axolotl;
- :mod:`~study.integrations.peft`: ``study export`` and ``study import``;
- :mod:`~study.integrations.configs`: ``study import-config`` and ``study sweep-from``.
"""
