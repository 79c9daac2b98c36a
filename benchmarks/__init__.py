"""Everything that is timed. README.md says which command makes which table.

- :mod:`.commands`: ``study bench``; :mod:`.suites`: what is timed against PEFT, in the ways of
  :mod:`.ways`; :mod:`.products`: how fast the products of a step are; :mod:`.summary`: the tables
  as text and as a figure;
- :mod:`.inference`, :mod:`.inference_costs`: merged and unmerged adapters;
- :mod:`.scale`: commands on a study of many cells; :mod:`.gpu`: all that is measured on a GPU.

In a clone this is the package ``benchmarks``, in a wheel ``study.benchmarks``. Imports between its
modules are therefore relative.
"""
