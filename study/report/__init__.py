"""``study report``: one page on a study, as Markdown and as HTML that is whole in one file.

- :mod:`~study.report.caveats`: what to hold against the numbers, computed from the tables;
- :mod:`~study.report.page`: the page in Markdown, section by section;
- :mod:`~study.report.task`: its section on held-out perplexity and exact match;
- :mod:`~study.report.html`: the same with its figures inside;
- :mod:`~study.report.write`: both files, from a study's folder.
"""

from study.report.caveats import caveats
from study.report.html import as_html
from study.report.page import Picture, page
from study.report.write import write_report

__all__ = ["Picture", "as_html", "caveats", "page", "write_report"]
