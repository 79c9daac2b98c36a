"""``study report``: a study on one page, as Markdown and as a self-contained HTML file.

- :mod:`~study.report.page`: the page, which calls one module per group of sections:
  :mod:`~study.report.expected`, :mod:`~study.report.condition`, :mod:`~study.report.exponents`,
  :mod:`~study.report.rates`, :mod:`~study.report.losses`, :mod:`~study.report.task`,
  :mod:`~study.report.truncations`, :mod:`~study.report.provenance`;
- :mod:`~study.report.answer`, :mod:`~study.report.curves`: what was found, in a few sentences, and
  the curves that they speak about;
- :mod:`~study.report.caveats`: reasons to doubt the numbers;
- :mod:`~study.report.literal`: names that can't become markup;
- :mod:`~study.report.formatting`, :mod:`~study.report.markdown`: numbers and rules; tables, lists
  and pictures;
- :mod:`~study.report.html`: the page as HTML with its figures embedded;
- :mod:`~study.report.records`: the records of all cells;
- :mod:`~study.report.write`: both files, from a study's folder.
"""

from study.report.answer import answer
from study.report.caveats import caveats
from study.report.html import as_html
from study.report.markdown import Picture, as_markdown
from study.report.page import page
from study.report.write import draw_figures, write_report

__all__ = [
    "Picture",
    "answer",
    "as_html",
    "as_markdown",
    "caveats",
    "draw_figures",
    "page",
    "write_report",
]
