"""Two model-wide numbers against the rank: the norm of the adapters' gradient, and the descent of an update."""

import pandas as pd
from matplotlib.figure import Figure

from study.figures import laws, style
from study.figures.selection import Tables, holding, model_wide
from study.vocabulary.quantities import MODEL_WIDE

MOST_FAMILIES = 4

Label = tuple[str, str]
"""What a y axis says: the quantity and its formula."""


@style.paper()
def grad_norm_vs_rank(tables: Tables) -> Figure:
    """The norm of the gradient over all adapters against the rank, at the first and at the last probed step.

    Theory for step 0: exponent ``1/2 - p`` under every optimizer, as only B has a gradient while B = 0.
    """
    series = model_wide(tables.cells, tables.probes, "adapter_grad", "norm")
    cells = holding(tables.cells, series, "model-wide adapter_grad norm")
    label = ("adapter gradient norm", r"$\|\nabla_{\!A,B}\,L\|_2$")
    return _against_rank(tables, cells, series, label, last=True, site="adapter_grad", stat="norm")


@style.paper()
def descent_vs_rank(tables: Tables) -> Figure:
    """The descent ``-<gradient, update>`` of the first update, over A and B of all adapters, against the rank.

    To first order it is what the step takes off the loss. Theory: exponent ``1 - 2p`` under SGD, ``1 - p`` under a
    sign-like optimizer, at any rank.
    """
    series = model_wide(tables.cells, tables.probes, "adapter_update", "descent")
    cells = holding(tables.cells, series, "model-wide adapter_update descent")
    label = ("descent of the update", r"$-\langle\nabla_{\!A,B}\,L,\ \Delta\rangle$ (nats)")
    return _against_rank(
        tables, cells, series, label, last=False, site="adapter_update", stat="descent"
    )


def _against_rank(
    tables: Tables,
    cells: pd.DataFrame,
    series: pd.DataFrame,
    label: Label,
    *,
    last: bool,
    site: str,
    stat: str,
) -> Figure:
    """A row per family: a panel for the first step and, with ``last``, one for the last."""
    shown, left_out = laws.measured(cells, series, MOST_FAMILIES)
    steps = [list(dict.fromkeys([one.steps[0], one.steps[-1]]))[: 1 + last] for one in shown]
    columns = max(map(len, steps))
    column = style.FULL if columns > 1 else style.HALF
    entries = max(len(one.family.rules) for one in shown) + 1
    page = style.figure(
        len(shown), columns, column=column, ratio=0.58, above=0.3 + 0.14 * entries * len(shown)
    )
    inches = page.get_figwidth() / columns - 0.6
    where = {"site": site, "stat": stat, "batch": "train", "layer": MODEL_WIDE, "kind": MODEL_WIDE}
    drawn: list[laws.Law] = []
    for part, one, its_steps in zip(
        style.rows(page, [o.family.label for o in shown]), shown, steps, strict=True
    ):
        panels = part.subplots(1, columns, sharey=True, squeeze=False)[0]
        for ax, step in zip(panels, its_steps, strict=False):
            found = laws.laws(one.family, series, tables.exponents, step=step, **where)
            laws.draw(ax, found, one.family, heading=f"step {step}", inches=inches)
            drawn += found
        for ax in panels[len(its_steps) :]:
            ax.set_visible(False)
        style.y_label(panels[0], *label)
        style.log_axis(panels)
    return style.finish(page, laws.fine_print(drawn), left_out)
