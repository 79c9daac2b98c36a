"""``study dashboard``: one page on every layer of a study, live in a browser or as one file.

- :mod:`~study.dashboard.packing`: numbers as the page receives them, two bytes each;
- :mod:`~study.dashboard.probes`: one cell's probed values, quantity by quantity;
- :mod:`~study.dashboard.following`: a study on disk, read again as far as it changed;
- :mod:`~study.dashboard.verdicts`: the primary exponents so far;
- :mod:`~study.dashboard.overview`: all that is on the page beside the probed values;
- :mod:`~study.dashboard.document`: the page itself, put together from the files under ``page/``;
- :mod:`~study.dashboard.export`, :mod:`~study.dashboard.server`: the two ways to hand it out.
"""
