"""The report's section on how the best learning rate changes with rank."""

from study.analysis import rate_transfer
from study.analysis.terminal import exponent_text, interval_span, legend
from study.analysis.wording import bracket_notes
from study.report.formatting import row_list, rule_of_row, span
from study.report.markdown import Block, Details, table
from study.store import StudyTables
from study.vocabulary.optimizers import label


def rate_section(tables: StudyTables) -> list[Block]:
    """The exponent of the best rate, and the best rates; empty if no rates were swept."""
    transfer = rate_transfer(tables.rates)
    if transfer.empty:
        return []
    fitted = transfer[transfer["exponent"].notna()]
    heads = ["optimizer", "rule", "exponent of the best rate", "theory", "agreement", "ranks"]
    heads += ["at the edge", "ρ", "seeds"]
    body = [
        [
            label(row.optimizer),
            rule_of_row(row),
            exponent_text(row.exponent, row.ci_low, row.ci_high),
            interval_span(row.predicted_low, row.predicted_high),
            row.agreement,
            str(row.ranks),
            str(row.edges),
            span(row.rho_min, row.rho_max) or "not recorded",
            str(row.seeds),
        ]
        for row in row_list(transfer)
    ]
    by = ["optimizer", "scaling", "exponent_p", "rank"]
    best = tables.rates.groupby(by, observed=True, sort=True)["best_lr"].median().reset_index()
    rates = [
        [label(row.optimizer), rule_of_row(row), f"{row.rank:g}", f"{row.best_lr:.2g}"]
        for row in row_list(best)
    ]
    return [
        "## Does the best learning rate transfer across ranks?",
        Details(
            "Table: the exponent of the best learning rate with rank, beside theory's",
            f"{table(heads, body)}\n\n"
            f"{' '.join([*legend(transfer), *bracket_notes(fitted), NOTES])}",
        ),
        Details(
            "Table: the best learning rate of each rank",
            table(["optimizer", "rule", "rank", "best learning rate"], rates),
        ),
    ]


NOTES = (
    "The best rate is the minimum of a parabola in log lr around the best of the rates that every "
    "seed of the rank was run at. Intervals over seeds contain the error that the grid of rates "
    "makes. *At the edge* counts best rates that are the lowest or highest tried. Theory "
    "is the rate that changes the adapter output by the same amount at every rank measured. Under "
    "a sign-like optimizer one end is for ρ = |ΔA x| / |A₀ x| far below 1, and the other, half of "
    "it, for ρ far above 1."
)
