"""Two numbers of the whole model against the rank: the gradient norm and the descent."""

from matplotlib.figure import Figure

from study.figures import laws, style
from study.figures.captions import on_batch
from study.figures.selection import MOST_FAMILIES, Tables, cells_of, probed
from study.vocabulary.quantities import DESCENT, GRADIENT_NORM, Quantity


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
    where = {"site": quantity.site, "stat": quantity.stat}
    series = probed(tables, **where, model=True)
    cells = cells_of(tables.cells, series, f"model-wide {quantity.site} {quantity.stat}")
    shown, left_out = laws.measured(cells, series, MOST_FAMILIES * (1 if last else 2))
    ends = [list(dict.fromkeys([steps[0], steps[-1]]))[: 1 + last] for steps in shown.values()]
    columns = max(map(len, ends))
    beside = 2 if columns == 1 and len(shown) > 1 else 1
    page, grid = laws.panels(list(shown), columns, ratio=0.58, beside=beside)
    inches = page.get_figwidth() / (columns * beside) - 0.6
    drawn: list[laws.Law] = []
    for panels, family, steps in zip(grid, shown, ends, strict=True):
        for ax, step in style.each(panels, steps):
            found = laws.laws(family, series, tables.exponents, step, **where)
            laws.draw(ax, found, family, f"step {step}", inches)
            drawn += found
        style.y_axis(panels, quantity.name, f"{quantity.symbol} {unit}".strip(), log=True)
    return style.finish(page, laws.fine_print(drawn), on_batch(), left_out)
