"""Tables of what a user can choose and what a reader can see: one row for each thing.

- :mod:`~study.vocabulary.scaling`: scaling rules;
- :mod:`~study.vocabulary.inits`: initialisations of A and B;
- :mod:`~study.vocabulary.optimizers`: optimizers and their options;
- :mod:`~study.vocabulary.sources`: models and data sets;
- :mod:`~study.vocabulary.quantities`: sites, statistics, metrics and batches;
- :mod:`~study.vocabulary.peft_fields`: the fields of PEFT's adapter configuration;
- :mod:`~study.vocabulary.statuses`: the states of a cell;
- :mod:`~study.vocabulary.verdicts`: the words of the verdicts;
- :mod:`~study.vocabulary.thresholds`: the numbers that verdicts and warnings compare with.

The tables import nothing but the standard library. ``docs/extending.md`` says how to add a row.
"""
