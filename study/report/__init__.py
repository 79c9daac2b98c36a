"""``study report``: a study on one page, as Markdown and as a self-contained HTML file.

``templates/report.jinja`` has the prose of the page.
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
