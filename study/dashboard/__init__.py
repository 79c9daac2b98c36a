"""``study dashboard``: every layer of a study on one page, live in a browser or as one file.

Python writes what the page shows; the files in ``page/`` draw it.

- :mod:`~study.dashboard.studies`: the studies, read by the store and judged by the analysis;
- :mod:`~study.dashboard.findings`: verdicts, p* and final losses on the page;
- :mod:`~study.dashboard.values`: the probed values, in two bytes each;
- :mod:`~study.dashboard.overview`: everything on the page except the probed values;
- :mod:`~study.dashboard.document`: the page as data, as HTML and as a file;
- :mod:`~study.dashboard.server`: the page, served.
"""
