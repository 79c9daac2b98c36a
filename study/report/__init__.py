"""``study report``: a study on one page, as Markdown and as a self-contained HTML file."""

from study.analysis.answers import answer, answer_table, asked
from study.report.page import (
    Study,
    as_html,
    as_markdown,
    draw_figures,
    plots_folder,
    read_report,
    report_of,
    write_report,
)
