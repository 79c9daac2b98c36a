"""What only this project's own publications need. The wheel does not hold it.

- :mod:`.make` is the command: it draws the committed pictures and writes the numbers of documents;
- :mod:`.blocks` is the mechanism, and :mod:`.record` says which blocks are still right;
- :mod:`.findings`, :mod:`.numbers`, :mod:`.horizons`, :mod:`.law_page`, :mod:`.plane` and
  :mod:`.pair_law` write blocks;
- :mod:`.rate_fits` and :mod:`.law` fit the law of the best rate, :mod:`.external` reads the
  sweeps of others, and :mod:`.evidence` writes what ``study advise`` reads;
- :mod:`.archive` commits a study. ``logs/`` has a dated diary for each study.
"""
