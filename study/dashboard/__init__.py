"""``study dashboard``: every layer of a study on one page, live in a browser or as one file.

Python writes what the page shows; the files in ``page/`` draw it.
"""
