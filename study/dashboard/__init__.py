"""``study dashboard``: every layer of a study on one page. The files in ``page/`` draw it."""
