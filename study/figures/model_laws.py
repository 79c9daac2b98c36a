"""Two numbers of the whole model against the rank: the gradient norm and the descent."""

from matplotlib.figure import Figure

from study.figures import laws, style
from study.figures.captions import on_batch
from study.figures.selection import Tables, holding, model_wide
from study.vocabulary.quantities import DESCENT, GRADIENT_NORM, Quantity

MOST_ROWS = 3


@style.paper()
def grad_norm_vs_rank(tables: Tables) -> Figure:
    """Norm of the gradient over all adapters, on the training batch, against the rank, at the first
    and last probed step.

    While B = 0, only B has a gradient.
    """
    return _against_rank(tables, GRADIENT_NORM, last=True)


@style.paper()
def descent_vs_rank(tables: Tables) -> Figure:
    """Descent ``-<gradient, update>`` of the first update, over all adapters, on the training
    batch, against the rank.

    The descent is the first-order decrease of the loss.
    """
    return _against_rank(tables, DESCENT, last=False, unit="(nats)")


def _against_rank(tables: Tables, quantity: Quantity, *, last: bool, unit: str = "") -> Figure:
    """A row per family: a panel for the first step and, with ``last``, one for the last.

    Without ``last``, two families stand beside each other.
    """
    site, stat = quantity.site, quantity.stat
    series = model_wide(tables.cells, tables.probes, site, stat)
    cells = holding(tables.cells, series, f"model-wide {site} {stat}")
    shown, left_out = laws.measured(cells, series, MOST_ROWS if last else 2 * MOST_ROWS)
    steps = [list(dict.fromkeys([one.steps[0], one.steps[-1]]))[: 1 + last] for one in shown]
    columns = max(map(len, steps))
    beside = 2 if columns == 1 and len(shown) > 1 else 1
    families = [one.family for one in shown]
    page, grid = laws.panels(families, columns, ratio=0.58, beside=beside)
    inches = page.get_figwidth() / (columns * beside) - 0.6
    drawn: list[laws.Law] = []
    for panels, one, its_steps in zip(grid, shown, steps, strict=True):
        for ax, step in zip(style.first(panels, len(its_steps)), its_steps, strict=True):
            where = laws.whole_model(site, stat)
            found = laws.laws(one.family, series, tables.exponents, step=step, **where)
            laws.draw(ax, found, one.family, heading=f"step {step}", inches=inches)
            drawn += found
        style.y_label(panels[0], quantity.name, f"{quantity.symbol} {unit}".strip())
        style.log_axis(panels)
    return style.finish(
        page,
        laws.fine_print(drawn),
        on_batch(),
        left_out,
        shown=families,
    )
