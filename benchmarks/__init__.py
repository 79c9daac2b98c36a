"""Everything that is timed. README.md says which command makes which table.

- :mod:`.commands`: ``study bench``; :mod:`.training`: what is timed against PEFT; :mod:`.summary`:
  its tables as text;
- :mod:`.gpu`, :mod:`.first_day`: all that is measured on a GPU;
- :mod:`.start`: how long commands take to start.

In a clone this is the package ``benchmarks``, in a wheel ``study.benchmarks``. Imports between its
modules are therefore relative.
"""
