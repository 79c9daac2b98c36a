"""The report, section by section: Markdown and pictures."""

from collections.abc import Sequence

from study.report.caveats import caveats
from study.report.condition import condition_section
from study.report.exponents import exponent_section, p_star_section
from study.report.formatting import distinct, number_list, row_list, rule_of_row
from study.report.literal import Record, literal_record, literal_tables
from study.report.losses import loss_section
from study.report.markdown import Block, Picture, bullets, literal
from study.report.provenance import provenance_section
from study.report.rates import rate_section
from study.report.task import task_section
from study.report.truncations import truncation_section
from study.store import StudyTables
from study.vocabulary.optimizers import label


def page(
    name: str, tables: StudyTables, records: Sequence[Record], pictures: Sequence[Picture]
) -> list[Block]:
    """The whole report on the study ``name``, from analyzed tables."""
    tables, records = literal_tables(tables), [literal_record(record) for record in records]
    blocks: list[Block] = [
        f"# {literal(name)}: how does LoRA's scaling behave as rank grows?",
        _overview(tables),
        condition_section(tables),
        _caveat_section(tables, records),
        p_star_section(tables),
        exponent_section(tables),
        rate_section(tables),
        loss_section(tables),
        task_section(tables),
        truncation_section(tables),
        "## Figures" if pictures else "",
        *pictures,
        provenance_section(tables, records),
    ]
    return [block for block in blocks if block]


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
        f"{seeds} {'seed' if seeds == 1 else 'seeds'}.\n\n"
        "> LoRA with α√r *is* rsLoRA with α. If alpha and the learning rate are tuned at every "
        "rank, the rules are the same. The study tests transfer across ranks at fixed "
        "hyper-parameters. p\\* depends on the optimizer, the quantity and the step."
    )


def _caveat_section(tables: StudyTables, records: Sequence[Record]) -> str:
    return "## Caveats\n\n" + bullets(caveats(tables, records) or ["None found in the tables."])
