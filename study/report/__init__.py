"""``study report``: a study on one page, as Markdown and as a self-contained HTML file.

- :mod:`~study.report.page`: the page, and its files; ``templates/report.jinja`` has its prose;
- :mod:`~study.report.answer`: what was found, in a few sentences;
- :mod:`~study.report.caveats`: reasons to doubt the numbers;
- :mod:`~study.report.expected`, :mod:`~study.report.sections`, :mod:`~study.report.provenance`: the
  values of its sections;
- :mod:`~study.report.text`: how it prints numbers, rules and tables.
"""

from study.report.answer import answer
from study.report.caveats import caveats
from study.report.page import (
    Study,
    as_html,
    draw_figures,
    plots_folder,
    report_of,
    report_text,
    write_report,
)
