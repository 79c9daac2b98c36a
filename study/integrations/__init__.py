"""Other tools: probes in their training, and exchange of adapters and configurations.

:mod:`~study.integrations.recording` uses :mod:`~study.integrations.passes` (the passes between two
updates) and :mod:`~study.integrations.runs` (the cell).
"""
