"""The views of the page in Chromium, on a laptop's screen and on a large one."""

import json
import re
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import pandas as pd
import pytest

import study
from study.analysis import load_tables
from study.dashboard.document import PARTS, SCRIPTS, export
from study.vocabulary.verdicts import glossary

from .conftest import Watched, begin_cell

SCREENS = {"laptop": (1280, 800), "large": (1920, 1080)}
LAYER = "model.layers.0.q_proj"


@pytest.fixture(scope="module")
def file(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("views") / "small.html"
    export([trained], path)
    return path


@pytest.fixture(scope="module", params=SCREENS.values(), ids=SCREENS)
def screen(browser: Any, file: Path, request: pytest.FixtureRequest) -> Iterator[Watched]:
    """The exported study, opened once on each screen."""
    width, height = request.param
    context = browser.new_context(viewport={"width": width, "height": height}, offline=True)
    watched = Watched(context.new_page())
    watched.open(file.as_uri())
    yield watched
    context.close()


def opened(browser: Any, folder: Path, choices: str = "") -> Watched:
    """A study exported and opened in a page of its own, which ends with the browser."""
    export([folder], folder / "page.html")
    context = browser.new_context(viewport={"width": 1280, "height": 800}, offline=True)
    watched = Watched(context.new_page())
    watched.open((folder / "page.html").as_uri() + f"#{choices}")
    return watched


IN_VIEW = """ids => ids.filter(id => {
    const { top, bottom, left, right } = byId(id).getBoundingClientRect();
    return top < 0 || left < 0 || bottom > innerHeight || right > innerWidth;
})"""
PLACE = """([row, column]) => {
    const box = byId('heat').getBoundingClientRect();
    const { xaxis, yaxis } = byId('heat')._fullLayout;
    return [box.x + xaxis._offset + xaxis.c2p(column), box.y + yaxis._offset + yaxis.c2p(row)];
}"""


def test_a_click_shows_the_panel_of_a_layer_without_scrolling(screen: Watched) -> None:
    page = screen.show("tab=layers&optimizer=sgd&seed=1")
    page.mouse.click(*page.evaluate(PLACE, [5, 1]))
    screen.until("page.view.layer === page.heat.rows[5].name")
    page.evaluate("rendering")
    assert page.evaluate(IN_VIEW, ["heat", "layer-panel", "layer-curves", "layer-fit"]) == []
    assert page.evaluate("byId('main').scrollTop + scrollY") == 0
    assert page.locator("#layer").input_value() == page.evaluate("page.heat.rows[5].name")
    assert page.evaluate("page.view.step") == 1


def test_the_charts_of_each_view_fit_the_screen(screen: Watched) -> None:
    page = screen.show("tab=losses")
    assert page.evaluate(IN_VIEW, ["loss", "rank-loss", "rate-loss"]) == []
    assert screen.errors == []


AXES = """id => {
    const layout = byId(id)._fullLayout;
    return Object.keys(layout).filter(name => /^xaxis/.test(name)).map(name => ({
        range: layout[name].range, title: layout[name].title.text,
        y: layout.yaxis.title.text, ticks: layout[name].tickvals ?? null }));
}"""


def test_rules_share_their_axes_and_every_axis_has_a_title(screen: Watched) -> None:
    page = screen.show("tab=layers&optimizer=sgd")
    charts = {"layer-curves": 2, "layer-fit": 1}
    found = {chart: page.evaluate(AXES, chart) for chart in charts}
    screen.show("tab=losses&optimizer=sgd")
    charts |= {"loss": 2, "rank-loss": 1}
    found |= {chart: page.evaluate(AXES, chart) for chart in ("loss", "rank-loss")}
    for chart, panels in charts.items():
        axes = found[chart]
        assert len(axes) == panels, chart
        assert len({tuple(axis["range"]) for axis in axes}) == 1, chart
        assert [axis for axis in axes if not (axis["title"] and axis["y"])] == [], chart
    for axis in (*found["layer-curves"], *found["loss"]):
        assert axis["title"] == "step"
        assert len(axis["ticks"]) > 1
        assert all(isinstance(step, int) for step in axis["ticks"])
    assert found["loss"][0]["y"] == "training loss (nats per token)"


TEXTS = """() => [...document.querySelectorAll('.chart')].flatMap(chart => {
    if (!chart.clientHeight) return [];
    const outer = chart.getBoundingClientRect();
    const shown = [...chart.querySelectorAll('svg text')].filter(t => t.textContent.trim());
    const boxes = shown.map(t => [t.textContent, t.getBoundingClientRect()]);
    const clipped = boxes.filter(([, b]) => b.left < outer.left - 1 || b.right > outer.right + 1 ||
        b.top < outer.top - 1 || b.bottom > outer.bottom + 1).map(([text]) => text);
    const over = boxes.flatMap(([text, a], n) => boxes.slice(n + 1).filter(([, b]) =>
        Math.min(a.right, b.right) - Math.max(a.left, b.left) > 2 &&
        Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 4)
        .map(([other]) => `${text} / ${other}`));
    return [...clipped.map(t => `clipped: ${t}`), ...over];
})"""


@pytest.mark.parametrize("choices", ["tab=layers", "tab=layers&order=kind&step=1", "tab=losses"])
def test_no_text_of_a_chart_is_clipped_or_overlaps(screen: Watched, choices: str) -> None:
    page = screen.show(f"{choices}&optimizer=sgd")
    assert page.evaluate(TEXTS) == []
    select = """() => [...document.querySelectorAll('select')].filter(s => s.clientWidth)
        .filter(s => s.selectedOptions[0].text.length * 6 > s.clientWidth).map(s => s.id)"""
    assert page.evaluate(select) == [], "a chooser shows its whole text"


def test_a_curve_is_the_mean_that_the_heat_map_shows(screen: Watched) -> None:
    """Two seeds under SGD: one curve per rule and rank, labelled at its end."""
    page = screen.show("tab=layers&optimizer=sgd")
    layer = page.evaluate("page.heat.rows[2].name")
    screen.show(f"tab=layers&optimizer=sgd&layer={layer}&rank=4")
    found = page.evaluate(
        """() => page.curves.filter(c => c.rank === 4).map(c => [c.cells.length, c.y,
            page.heat.panels.find(p => p.of === 'steps' && p.rule === c.rule).values[2]])"""
    )
    assert len(found) == 2
    for seeds, curve, row in found:
        assert seeds == 2
        assert curve == pytest.approx(row, rel=1e-9)
    assert page.evaluate("page.curves.length") == 2 * 3
    labels = page.evaluate("byId('layer-curves').layout.annotations.map(a => a.text)")
    ranks = [re.sub("<[^>]*>|━", "", text).strip() for text in labels if "━" in text]
    assert sorted(ranks) == ["2", "2", "4", "4", "8", "8"]


def test_p_star_has_the_numbers_of_the_table(screen: Watched, trained: Path) -> None:
    stable = load_tables(trained).stable
    page = screen.show("tab=findings")
    rows = page.evaluate("page.overview.p_star.rows")
    assert len(rows) >= 4
    for row in rows:
        same = stable[
            (stable["site"] == row["site"])
            & (stable["stat"] == row["stat"])
            & (stable["step"] == row["step"])
        ]
        assert (same["p_star"] - row["p_star"]).abs().min() < 1e-9
    shown = page.locator("#p-star-table").inner_text()
    assert all(row["estimate"].replace("-", "−") in shown for row in rows)
    assert page.locator("#p-star-table svg").count() == len(rows)


def test_final_losses_are_those_of_the_table(screen: Watched, trained: Path) -> None:
    tables = load_tables(trained)
    wanted = tables.losses.query("how == 'fixed' and optimizer == 'sgd'")
    page = screen.show("tab=losses&optimizer=sgd")
    shown = page.evaluate("page.rankLosses.map(r => [r.rule, r.rank, r.seed, r.loss])")
    stored = {
        (f"{row.scaling} p={row.exponent_p:g}", row.rank, row.seed): row.loss
        for row in wanted.itertuples()
    }
    assert len(shown) == len(stored) > 6
    for rule, rank, seed, loss in shown:
        assert loss == pytest.approx(stored[rule, rank, seed])
    means = page.evaluate("byId('rank-loss').data.filter(t => t.mode === 'lines').map(t => t.y)")
    expected = wanted.groupby(["scaling", "rank"], observed=True)["loss"].mean()
    assert list(chain(*means)) == pytest.approx(expected.tolist())


def test_words_are_explained_on_hover_and_on_focus(screen: Watched) -> None:
    words = glossary()
    page = screen.show("tab=layers")
    page.mouse.move(0, 0)
    page.hover("#choices [data-term=stat] >> nth=0")
    assert page.locator("#tip").inner_text() == words["stat"]
    page.focus("#rules [data-term=rule]")
    assert page.locator("#tip").inner_text() == words["rule"]
    page.mouse.move(0, 0)
    screen.show("tab=findings")
    page.hover("#verdict-table [data-term=unclear] >> nth=0")
    assert page.locator("#tip").inner_text() == words["unclear"]
    used = page.evaluate("[...document.querySelectorAll('[data-term]')].map(n => n.dataset.term)")
    choosers = {"all", "depth", "kind", "fixed", "best", "matched", "loss", "train"}
    unknown = {w for w in used if w not in words} - choosers
    assert not {w for w in unknown if not page.query_selector(f"select[data-term='{w}']")}


def test_a_number_in_findings_opens_its_layers(screen: Watched) -> None:
    page = screen.show("tab=findings")
    page.locator("#verdict-table button.cell").first.click()
    page.evaluate("rendering")
    row = page.evaluate("page.overview.verdicts[0]")
    assert page.evaluate(
        "[document.body.dataset.tab, page.view.quantity.site, page.view.step]"
    ) == [*("layers", row["site"], row["step"])]
    assert page.evaluate("page.view.layer") == "model"
    drawn = page.evaluate("byId('layer-fit').data.filter(t => t.name === 'theory').length")
    assert drawn == page.evaluate("page.view.rules.length"), "theory's slope is dotted"


def test_a_zoom_is_in_the_address_and_a_double_click_ends_it(screen: Watched) -> None:
    page = screen.show("tab=losses&optimizer=sgd")
    whole = page.evaluate("byId('loss')._fullLayout.xaxis.range")
    box = page.evaluate(
        """() => { const box = byId('loss').getBoundingClientRect();
            const { xaxis, yaxis } = byId('loss')._fullLayout;
            return [box.x + xaxis._offset, box.y + yaxis._offset,
                    xaxis._length, yaxis._length]; }"""
    )
    x, y, width, height = box
    page.mouse.move(x + 0.3 * width, y + 0.3 * height)
    page.mouse.down()
    page.mouse.move(x + 0.8 * width, y + 0.8 * height, steps=4)
    page.mouse.up()
    screen.until("page.view.zoom !== null")
    page.evaluate("rendering")
    address = page.url.partition("#")[2]
    low, high, *_ = map(float, parse_qs(address)["zoom"][0].split(","))
    assert whole[0] < low < high < whole[1]
    screen.show()
    screen.show(address)
    ranges = page.evaluate("['xaxis', 'xaxis2'].map(name => byId('loss')._fullLayout[name].range)")
    assert ranges == [pytest.approx([low, high])] * 2, "the address restores it in every panel"
    assert page.locator("#unzoom").is_visible()
    page.mouse.dblclick(x + 0.5 * width, y + 0.5 * height)
    screen.until("page.view.zoom === null")
    assert "zoom" not in parse_qs(page.url.partition("#")[2])
    screen.show(f"tab=losses&zoom={'1,2,3'}")
    assert page.evaluate("page.view.zoom") is None
    assert screen.errors == []


# ---- where something is not measured


def sparse(folder: Path) -> Path:
    """Two ranks: gradients at steps 0 and 4, updates at step 0, outputs that are 0 at step 0."""
    for rank in (4, 8):
        writer = begin_cell(folder, f"rank{rank}", rank=rank)
        for step in (0, 4):
            sites = {"adapter_grad": 1.0, "adapter_out": 0.5 * step}
            sites |= {"adapter_update": 0.1} if step == 0 else {}
            common = {"layer": LAYER, "block": 0, "kind": "q_proj", "batch": "train"}
            rows = [
                {**common, "step": step, "site": site, "norm": norm * rank, "nonfinite": 0.0}
                for site, norm in sites.items()
            ]
            writer.append("probes", pd.DataFrame(rows))
            metrics = {"step": step, "tokens": 9, "loss": 2.0, "lr": 1e-4}
            writer.append("metrics", pd.DataFrame([metrics]))
        writer.close("complete", steps_done=4)
    return folder


def test_it_opens_where_there_is_something_to_show_and_says_what_is_not_measured(
    browser: Any, tmp_path: Path
) -> None:
    watched = opened(browser, sparse(tmp_path / "sparse"), "tab=layers")
    page = watched.page
    step, notice = "page.view.step", page.locator("#notice")
    assert (page.evaluate(step), notice.is_visible()) == (4, False)
    watched.show("tab=layers&site=adapter_update")
    assert page.evaluate(step) == 0, "the last step with a value of the chosen site"
    watched.show("tab=layers&site=adapter_update&step=4")
    said = "adapter_update norm: not measured at step 4. It was at step 0."
    assert said in notice.inner_text()
    assert said in page.locator("#layer-fit").inner_text()
    assert page.locator("#fit-title").inner_text() == "Not measured at step 4"
    notice.locator("button").click()
    page.evaluate("rendering")
    assert (page.evaluate(step), notice.is_visible()) == (0, False)
    watched.show("tab=layers&step=12")
    assert notice.inner_text() == "Not measured at step 12. This is step 4."
    watched.show("tab=layers&site=adapter_out&step=0")
    assert "zero or negative at step 0. B is zero before the first update." in notice.inner_text()
    watched.show("tab=losses")
    assert "No final held-out loss yet" in page.locator("#rank-loss").inner_text()
    assert watched.errors == []


# ---- the scripts


def test_no_name_is_defined_in_two_scripts() -> None:
    """All scripts share one scope: a later definition would replace an earlier one."""
    text = "\n".join((PARTS / name).read_text() for name in SCRIPTS)
    names = re.findall(r"^(?:async )?(?:function|class|const|let) (\w+)", text, re.MULTILINE)
    assert len(names) > 100
    assert sorted({name for name in names if names.count(name) > 1}) == []


def test_every_word_has_one_sentence_and_its_table_says_the_same() -> None:
    words = glossary()
    assert words["norm"] == "Frobenius norm: sqrt(sum x^2)."
    assert words["stable"] == "Shown to change by less than a factor of 1.5."
    assert all(text.endswith(".") and len(text) < 200 for text in words.values())
    json.dumps(words)
    html = (PARTS / "page.html").read_text()
    assert set(re.findall(r'data-term="([^"]+)"', html)) <= set(words)
    assert study.__doc__
