"""Tables of what a user can choose and what a reader can see: one row for each thing, in one place.

- :mod:`~study.vocabulary.scaling`: the scaling rules;
- :mod:`~study.vocabulary.inits`: the initialisations of A and B;
- :mod:`~study.vocabulary.quantities`: sites, statistics and batches.

This package imports nothing but the standard library and :mod:`study.errors`.
"""
