"""Other tools: probes in their training, their adapters and configurations, ours for them.

:mod:`~study.integrations.recording` stands on :mod:`~study.integrations.passes` (what happens
between two updates) and :mod:`~study.integrations.runs` (the cell).
"""
