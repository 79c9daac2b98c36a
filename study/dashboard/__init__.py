"""``study dashboard``: every layer of a study on one page, live in a browser or as one file.

Python writes what the page shows; the files in ``page/`` draw it.

- :mod:`~study.dashboard.packing`: values in two bytes each, for the browser;
- :mod:`~study.dashboard.probes`: one cell's probed values, one quantity at a time;
- :mod:`~study.dashboard.following`: a study on disk; reads only what changed;
- :mod:`~study.dashboard.verdicts`: the primary exponents, p* and losses so far;
- :mod:`~study.dashboard.p_star`, :mod:`~study.dashboard.losses`: their rows on the page;
- :mod:`~study.dashboard.overview`: everything on the page except the probed values;
- :mod:`~study.dashboard.studies`: several studies side by side;
- :mod:`~study.dashboard.ahead`: what running sweeps have still to train;
- :mod:`~study.dashboard.colours`: the colours and markers of the rules;
- :mod:`~study.dashboard.document`: the HTML page, assembled from the files in ``page/``;
- :mod:`~study.dashboard.export`, :mod:`~study.dashboard.server`: the page as a file, and served.
"""
