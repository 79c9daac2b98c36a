"""A prediction is one number: in the table, in every figure, in the report and on the dashboard."""

import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hydra.core.global_hydra import GlobalHydra

from study.analysis import load_tables
from study.dashboard.following import FollowedStudy
from study.dashboard.overview import overview
from study.dashboard.verdicts import Verdicts
from study.figures.activation_moments import activation_moments_vs_rank
from study.figures.against_p import exponent_against_p
from study.figures.conditions import conditions
from study.figures.model_laws import descent_vs_rank, grad_norm_vs_rank
from study.figures.over_steps import exponents_over_training
from study.report.exponents import exponent_section
from study.report.markdown import as_markdown
from study.store import StudyTables
from study.sweeps import app as hydra_app
from study.theory import slope
from study.vocabulary.optimizers import label
from study.vocabulary.quantities import PRIMARY, TRAIN, Quantity
from study.vocabulary.scaling import RULES

RANKS, STEPS = (4, 8, 16, 32), (0, 1, 2, 3)
STATS = "[mean_abs,rms,m4,norm,descent,r_align,r_sign,r_diag,r_eff,r_joint,r_back]"
P = {"lora": 1.0, "rslora": 0.5}


@pytest.fixture(scope="session")
def trained(jsonl: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model: 4 ranks, 2 rules, SGD and AdamW, 3 seeds; steps 0 to 3 are probed."""
    results = tmp_path_factory.mktemp("one")
    small = ["model=tiny", "data=file", f"data.path={jsonl}", f"results_dir={results}", "name=one"]
    small += ["data.sequence_length=32", "data.heldout=4", "train.steps=4", "train.batch_size=2"]
    small += ["probes.steps=[0,1,2,3]", f"probes.stats={STATS}", "optimizer.lr=1e-4"]
    small += ["adapter.rank=4,8,16,32", "adapter.scaling=lora,rslora", "seed=0,1,2"]
    argv = sys.argv
    try:
        GlobalHydra.instance().clear()
        hydra_app.main(["-m", *small, "optimizer=sgd,adamw"])
    finally:
        sys.argv = argv
    return results / "one"


Faces = tuple[Path, StudyTables]


@pytest.fixture(params=["lazy", "refused"])
def study(
    request: pytest.FixtureRequest,
    trained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Faces:
    """The study and its tables, as trained, and as if no step from 1 on were lazy."""
    folder = tmp_path / "one"
    shutil.copytree(trained, folder)
    if request.param == "refused":
        monkeypatch.setattr("study.analysis.predictions.LAZY_WITHIN", 0.0)
    tables = load_tables(folder)
    later = tables.exponents.query("site == 'adapter_out' and layer == 'mean_log'")["predicted"]
    assert later.isna().all() if request.param == "refused" else later.notna().all()
    return folder, tables


def row(tables: StudyTables, quantity: Quantity, step: int, optimizer: str, scaling: str) -> Any:
    """The one row of the table."""
    rows = tables.exponents
    keys = {"site": quantity.site, "stat": quantity.stat, "layer": quantity.layer, "step": step}
    keys |= {"kind": quantity.kind, "batch": TRAIN, "optimizer": optimizer, "scaling": scaling}
    for name, value in keys.items():
        rows = rows[rows[name] == value]
    (found,) = rows.itertuples(index=False)
    return found


def printed(value: float) -> float:
    """A number as every face prints it."""
    return value if np.isnan(value) else round(value, 2) + 0.0


def theory_in(text: str) -> float:
    """The number after ``theory`` in a label, or in parentheses; NaN if there is none."""
    found = re.search(r"(?:theory |\()(−?[\d.]+)\b", text)
    return float(found[1].replace("−", "-")) if found else np.nan


def panels(figure: Any) -> list[Any]:
    return [ax for ax in figure.axes if ax.get_visible() and ax.get_legend()]


def labels_by_rule(ax: Any) -> dict[str, float]:
    """By rule the theory that a panel's legend prints."""
    words = [text.get_text() for text in ax.get_legend().get_texts()]
    return {
        scaling: theory_in(next(w for w in words if w.startswith(RULES[scaling].label + " ")))
        for scaling in P
    }


def check_labels(figure: Any, tables: StudyTables, shown: list[tuple[Quantity, int]]) -> None:
    """The panels of a figure: for each optimizer, one per quantity and step of ``shown``."""
    found = panels(figure)
    optimizers = sorted(set(tables.cells["optimizer"]))
    assert len(found) == len(shown) * len(optimizers)
    for k, ax in enumerate(found):
        optimizer, (quantity, step) = optimizers[k // len(shown)], shown[k % len(shown)]
        for scaling, number in labels_by_rule(ax).items():
            expected = row(tables, quantity, step, optimizer, scaling).predicted
            assert number == pytest.approx(printed(expected), nan_ok=True, abs=1e-9)


def test_labels_of_figures_against_the_rank(study: Faces) -> None:
    _, tables = study
    grad, descent, out, back = PRIMARY
    check_labels(grad_norm_vs_rank(tables), tables, [(grad, 0), (grad, 3)])
    check_labels(descent_vs_rank(tables), tables, [(descent, 0)])
    check_labels(conditions(tables), tables, [(out, 3), (back, 3)])
    moments = [replace(out, stat=stat) for stat in ("mean_abs", "rms", "m4")]
    check_labels(activation_moments_vs_rank(tables), tables, [(one, 3) for one in moments])


def test_the_slope_of_a_drawn_curve(study: Faces, read) -> None:
    _, tables = study
    figure = conditions(tables)
    optimizers = sorted(set(tables.cells["optimizer"]))
    drawn = 0
    for k, ax in enumerate(panels(figure)):
        quantity = PRIMARY[2 + k % 2]
        for scaling, p in P.items():
            lines = [
                line for line in read.artists(figure, f"curve {scaling} p={p:g}") if line.axes is ax
            ]
            predicted = row(tables, quantity, 3, optimizers[k // 2], scaling).predicted
            assert len(lines) == np.isfinite(predicted)
            for line in lines:
                at = np.interp(np.log(RANKS), np.log(line.get_xdata()), np.log(line.get_ydata()))
                assert slope(np.exp(at), RANKS) == pytest.approx(predicted, abs=1e-6)
                drawn += 1
    assert drawn in (0, 8)


def test_dotted_lines_over_steps_and_against_p(study: Faces, read) -> None:
    """The set of all numbers drawn is the set of the table's, for the quantities shown."""
    _, tables = study
    for figure, steps in (
        (exponents_over_training(tables), STEPS),
        (exponent_against_p(tables), (0, 1, 3)),
    ):
        drawn = np.concatenate(
            [[], *(line.get_ydata() for line in read.artists(figure, "theory"))]
        ).astype(float)
        expected = []
        for quantity in PRIMARY:
            rows = tables.exponents[tables.exponents["step"].isin(steps)]
            for name in ("site", "stat", "layer", "kind"):
                rows = rows[rows[name] == getattr(quantity, name)]
            if steps != STEPS:
                at = [3 if step == "last" else step for step in quantity.primary_at]
                rows = rows[rows["step"].isin(at)]
            expected += list(rows["predicted"].dropna())
        assert sorted(drawn[np.isfinite(drawn)]) == pytest.approx(sorted(expected))


def test_the_report_and_the_dashboard(study: Faces) -> None:
    folder, tables = study
    text = as_markdown(exponent_section(tables))
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()]
    report = pd.DataFrame([line for line in lines if len(line) > 5 and line[2].isdigit()])
    page = overview(FollowedStudy(folder), Verdicts(), live=False)
    assert len(page["verdicts"]) > 8
    for verdict in page["verdicts"]:
        scaling = verdict["rule"].split()[0]
        (quantity,) = (one for one in PRIMARY if one.label == verdict["label"])
        found = row(tables, quantity, verdict["step"], verdict["optimizer"], scaling)
        predicted = np.nan if verdict["predicted"] is None else verdict["predicted"]
        assert predicted == pytest.approx(found.predicted, nan_ok=True)
        named = f"{label(verdict['optimizer'])}, {RULES[scaling].label}"
        here = report[(report[0] == named) & (report[2] == str(verdict["step"]))]
        (said,) = here.loc[here[1] == quantity.label, 5]
        said = float(said.replace("−", "-")) if re.search(r"\d", said) else np.nan
        assert said == pytest.approx(printed(found.predicted), nan_ok=True, abs=1e-9)
        shown = float(verdict["theory"].replace("−", "-")) if verdict["theory"] else np.nan
        assert shown == pytest.approx(printed(found.predicted), nan_ok=True, abs=1e-9)
