"""The report's section on how the best learning rate changes with rank."""

from study.analysis import rate_transfer
from study.report.formatting import interval, row_list, rule_of_row, span
from study.report.markdown import table
from study.store import StudyTables
from study.vocabulary.optimizers import label


def rate_section(tables: StudyTables) -> str:
    """The exponent of the best rate, and the best rates; empty if no rates were swept."""
    transfer = rate_transfer(tables.rates)
    if transfer.empty:
        return ""
    heads = ["optimizer", "rule", "exponent of the best rate", "theory", "agree", "ranks"]
    heads += ["at the edge", "ρ", "seeds"]
    body = [
        [
            label(row.optimizer),
            rule_of_row(row),
            interval(row.exponent, row.ci_low, row.ci_high) or "—",
            span(row.predicted_low, row.predicted_high),
            {1.0: "yes", 0.0: "no"}.get(row.agrees, ""),
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
    return (
        "## Does the best learning rate transfer across ranks?\n\n"
        + table(heads, body)
        + "\n\nThe best rate is the minimum of a parabola in log lr, fitted around the best rate "
        "tried. *At the edge* counts best rates that are the lowest or highest tried. Theory is "
        "the interval from −(1 − p), if ρ = |ΔA x| / |A₀ x| is far below 1, to −(1 − p)/2, if ρ "
        "is far above 1.\n\n" + table(["optimizer", "rule", "rank", "best learning rate"], rates)
    )
