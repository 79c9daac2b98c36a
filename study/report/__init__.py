"""``study report``: a study on one page, as Markdown and as a self-contained HTML file.

- :mod:`~study.report.page`: the page in Markdown, which calls one module per group of sections:
  :mod:`~study.report.condition`, :mod:`~study.report.exponents`, :mod:`~study.report.rates`,
  :mod:`~study.report.losses`, :mod:`~study.report.task`, :mod:`~study.report.truncations`,
  :mod:`~study.report.provenance`;
- :mod:`~study.report.caveats`: reasons to doubt the numbers;
- :mod:`~study.report.formatting`, :mod:`~study.report.markdown`: numbers and names; tables, lists
  and pictures;
- :mod:`~study.report.html`: the Markdown as HTML with its figures embedded;
- :mod:`~study.report.current`: derived tables and figures, made again if they are out of date;
- :mod:`~study.report.write`: both files, from a study's folder.
"""

from study.report.caveats import caveats
from study.report.current import current_figures, current_tables, draw_figures
from study.report.html import as_html
from study.report.markdown import Picture
from study.report.page import page
from study.report.write import write_report

__all__ = [
    "Picture",
    "as_html",
    "caveats",
    "current_figures",
    "current_tables",
    "draw_figures",
    "page",
    "write_report",
]
