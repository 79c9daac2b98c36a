"""The report, section by section: Markdown and pictures."""

from collections.abc import Sequence

from study.report.answer import answer
from study.report.caveats import caveats
from study.report.condition import condition_section
from study.report.expected import expected_section
from study.report.exponents import exponent_section, p_star_section
from study.report.formatting import count_noun, distinct, number_list, row_list, rule_of_row
from study.report.literal import Record, literal_record, literal_tables
from study.report.losses import loss_section
from study.report.markdown import Block, Contents, Details, Picture, bullets, literal
from study.report.provenance import provenance_section
from study.report.rates import rate_section
from study.report.task import task_section
from study.report.truncations import truncation_section
from study.store import StudyTables
from study.vocabulary.optimizers import label

MOST_CAVEATS = 8
"""Caveats that are shown at once."""


def page(
    name: str, tables: StudyTables, records: Sequence[Record], pictures: Sequence[Picture]
) -> list[Block]:
    """The whole report on the study ``name``, from analyzed tables."""
    tables, records = literal_tables(tables), [literal_record(record) for record in records]
    sections: list[Block] = [
        *_caveat_section(tables, records),
        *expected_section(tables, records),
        *condition_section(tables),
        *p_star_section(tables),
        *exponent_section(tables),
        *rate_section(tables),
        *loss_section(tables),
        *task_section(tables),
        *truncation_section(tables),
        *_figure_section(pictures),
        provenance_section(tables, records),
    ]
    return [
        f"# {literal(name)}: how does LoRA's scaling behave as rank grows?",
        _overview(tables),
        f"## What was found\n\n{bullets(answer(tables))}",
        Contents.of(sections),
        *sections,
    ]


def _overview(tables: StudyTables) -> str:
    cells = tables.cells
    units = [name for name in ("seed", "data_seed") if name in cells]
    seeds = len(cells[units].drop_duplicates())
    return (
        f"{len(cells)} cells on {distinct(cells['model'])} and {distinct(cells['data'])}: "
        f"ranks {number_list(sorted(set(cells['rank'])))}; "
        f"{distinct(rule_of_row(row) for row in row_list(cells))}; "
        f"{distinct(label(str(name)) for name in cells['optimizer'])}; "
        f"{number_list(sorted(set(cells['steps'])))} steps; "
        f"{seeds} {'seed' if seeds == 1 else 'seeds'}."
    )


def _figure_section(pictures: Sequence[Picture]) -> list[Block]:
    return ["## Figures", *pictures] if pictures else []


def _caveat_section(tables: StudyTables, records: Sequence[Record]) -> list[Block]:
    found = caveats(tables, records)
    first, others = found[:MOST_CAVEATS], found[MOST_CAVEATS:]
    blocks: list[Block] = [f"## Caveats\n\n{bullets(first or ['None found in the tables.'])}"]
    if others:
        blocks.append(Details(f"{count_noun(len(others), 'lesser caveat')}", bullets(others)))
    return blocks
