"""Everything that is timed. README.md says which command makes which table.

- :mod:`.training`: training against PEFT (``study bench``);
- :mod:`.inference`: merged and unmerged adapters (``study bench inference``);
- ``analysis.py``, ``dashboard.py``, ``tracker_cost.py``: scripts that run by themselves.

In a clone this is the package ``benchmarks``, in a wheel ``study.benchmarks``. Imports between its
modules are therefore relative.
"""
