"""``study report``: a study on one page, as Markdown and as a self-contained HTML file.

- :mod:`~study.report.page`: the page, and its files;
- :mod:`~study.report.answer`: what was found, in a few sentences;
- :mod:`~study.report.caveats`: reasons to doubt the numbers;
- :mod:`~study.report.expected`, :mod:`~study.report.sections`, :mod:`~study.report.provenance`: its
  sections;
- :mod:`~study.report.text`: how it prints numbers, rules, tables and pictures.
"""

from study.report.answer import answer
from study.report.caveats import caveats
from study.report.page import as_html, draw_figures, report_blocks, write_report
from study.report.text import Picture, as_markdown

__all__ = [
    "Picture",
    "answer",
    "as_html",
    "as_markdown",
    "caveats",
    "draw_figures",
    "report_blocks",
    "write_report",
]
