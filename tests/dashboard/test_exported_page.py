"""The exported file in a browser without a network: its values and its controls."""

import math
from urllib.parse import parse_qs

import numpy as np
import pandas as pd
import pytest

from study.dashboard.document import export
from study.store import load_measured
from tests.store.small_cells import flip

from .conftest import LAYER, begin_cell, one_step, written

IN_VIEW = """ids => ids.filter(id => {
    const { top, bottom, left, right } = byId(id).getBoundingClientRect();
    return top < 0 || left < 0 || bottom > innerHeight || right > innerWidth;
})"""
PLACE = """([row, column]) => {
    const box = byId('heat').getBoundingClientRect();
    const { xaxis, yaxis } = byId('heat')._fullLayout;
    return [box.x + xaxis._offset + xaxis.c2p(column), box.y + yaxis._offset + yaxis.c2p(row)];
}"""
HEAT = """() => page.heat.panels.map(p => {
    const { at } = page.heat.grid;
    const colour = n => {
        const row = at.findIndex(places => places.includes(n));
        return p.z[row][at[row].indexOf(n)];
    };
    return { rule: p.rule.id, of: p.of, layers: page.heat.rows.map(l => l.name),
        colours: page.heat.rows.map((_, n) => colour(n)),
        values: p.values.map(
            v => v === undefined ? "missing" : Number.isFinite(v) ? v : String(v)) };
})"""
"""The panels of tiles: by layer, its value and its colour. Values not finite are strings."""


@pytest.fixture(scope="module")
def exported(opener, file):
    """The file, opened once for this module."""
    watched = opener(offline=True)
    watched.open(file.as_uri())
    return watched


def exported_page(watched, folder, choices):
    """The page of a study in a file of its own, opened with these choices."""
    file = folder.parent / "page.html"
    export([folder], file)
    return watched.open(f"{file.as_uri()}?{len(watched.requests)}#{choices}")


def test_the_same_study_gives_the_same_file(tmp_path):
    folder = written(tmp_path / "odd", "a", "b")
    first, again = (tmp_path / name for name in ("first.html", "again.html"))
    for file in (first, again):
        export([folder], file)
    assert first.read_bytes() == again.read_bytes()


def test_a_file_stays_below_the_limit(tmp_path):
    writer, file = begin_cell(tmp_path / "odd", "a"), tmp_path / "some.html"
    for step, site in enumerate(("adapter_grad", "A_grad", "B_grad")):
        one_step(writer, step, {f"layers.{n}.q_proj": 2 + math.sin(n) for n in range(400)}, site)
    writer.close("complete", steps_done=2)
    inside, there = export([tmp_path / "odd"], file)
    assert inside == there
    most = file.stat().st_size - 1_000
    inside, _ = export([tmp_path / "odd"], file, most)
    assert 1 < inside < there
    assert file.stat().st_size <= most


def test_no_request_and_no_error(exported, file):
    page = exported.show()
    assert exported.requests == [file.as_uri()]
    assert page.locator("#counts").inner_text() == "✕ 2 diverged", "done ones are counted once"
    assert page.locator("#findings img").first.is_visible()
    assert exported.errors == []


# ---- layers


def test_every_value_is_in_its_place(exported, trained):
    """Every value of every panel against the store, for two quantities and one seed."""
    tables = load_measured(trained)
    every = tables.cells.query("optimizer == 'sgd' and lr < 1")
    cells = every.query("seed == 1")
    cell_of = cells.set_index(["scaling", "rank"])["cell_id"]
    probes = tables.probes[tables.probes["batch"] == "train"]
    for (site, stat), step, rank in (
        (("adapter_grad", "norm"), 0, 2),
        (("adapter_grad", "norm"), 2, 8),
        (("adapter_out", "max_abs"), 0, 4),
        (("adapter_out", "max_abs"), 2, 4),
    ):
        where = f"site={site}&stat={stat}&batch=train&step={step}&rank={rank}"
        page = exported.show(f"tab=layers&optimizer=sgd&seed=1&{where}")
        here = probes[probes["site"] == site].astype({"cell_id": str, "layer": str})
        stored = here.set_index(["cell_id", "step", "layer"])[stat]
        panels = page.evaluate(HEAT)
        sizes = [panel for panel in panels if panel["of"] == "value"]
        assert [panel["rule"] for panel in sizes] == ["lora p=1", "rslora p=0.5"]
        for panel in sizes:
            cell = cell_of[panel["rule"].partition(" ")[0], rank]
            wanted = stored[[(cell, step, layer) for layer in panel["layers"]]].to_numpy(float)
            assert panel["values"] == pytest.approx(wanted, rel=1.1e-3), where
            for value, colour in zip(wanted, panel["colours"], strict=True):
                if value > 0:
                    assert colour == pytest.approx(math.log10(value), abs=5e-4)
                else:
                    assert colour is None, "zero and negative values have no colour"
        for panel in (one for one in panels if one["of"] == "exponent"):
            # Over all seeds, also if one is chosen.
            of_rule = every[every["scaling"] == panel["rule"].partition(" ")[0]]
            for layer, slope in zip(panel["layers"], panel["colours"], strict=True):
                norms = [stored[cell, step, layer] for cell in of_rule["cell_id"]]
                expected = np.polyfit(np.log(of_rule["rank"]), np.log(norms), 1)[0]
                assert slope == pytest.approx(expected, abs=2e-3)


def test_values_that_are_not_finite_are_marked(exported):
    page = exported.show("tab=layers&optimizer=sgd&rules=rslora p=0.5")
    settings = page.locator("#setting option").all_inner_texts()
    exported.choose("setting", next(text for text in settings if "1e+30" in text))
    assert "not finite from step" in page.locator("#where").inner_text()
    page.locator("#where .broken").click()
    page.evaluate("rendering")
    assert page.locator("#key .not-finite.any").inner_text().startswith("not finite:")
    heat = "byId('heat').data.filter(t => t.type === 'heatmap' && !t.coloraxis)"
    marked = page.evaluate(f"{heat}.flatMap(t => t.z.flat())")
    values = "page.heat.panels.filter(p => p.of === 'value').flatMap(p => p.values)"
    broken = page.evaluate(f"{values}.filter(v => v !== undefined && !Number.isFinite(v)).length")
    assert sum(mark in (0, 1) for mark in marked) == broken > 0
    page.locator("#tabs [data-tab=cells]").click()
    assert "diverged" in page.locator("#cells tbody").inner_text()
    assert exported.errors == []


def test_a_click_on_a_layer_shows_its_curves_and_its_fit(exported, trained):
    page = exported.show("tab=layers&optimizer=adamw&seed=0&step=1")
    sizes = [panel["values"] for panel in page.evaluate(HEAT) if panel["of"] == "value"]
    odd = page.evaluate("page.heat.panels.slice(-2).map(p => oddOnes(p).map(one => one.value))")
    assert odd == [[min(of_rule), max(of_rule)] for of_rule in sizes]
    assert page.locator("#where button").count() == 6, "of each rule, an exponent and two values"
    layer, step = page.evaluate("page.heat.rows[page.heat.grid.at[3][1]].name"), 1
    place = page.evaluate(PLACE, [3, 1])
    page.mouse.move(*place)
    page.wait_for_selector("#tip:not([hidden])")
    assert layer in page.locator("#tip").inner_text()
    page.mouse.click(*place)
    exported.until("page.view.layer !== 'mean over layers'")
    page.evaluate("rendering")
    assert page.locator("#layer").input_value() == layer
    assert page.evaluate("page.view.step") == step
    assert page.evaluate(IN_VIEW, ["heat", "layer-panel", "layer-curves", "layer-fit"]) == []

    tables = load_measured(trained)
    cells = tables.cells.query("optimizer == 'adamw' and seed == 0").set_index("cell_id")
    rows = tables.probes.query("site == 'adapter_grad' and batch == 'train' and layer == @layer")
    stored = rows.astype({"cell_id": str}).set_index(["cell_id", "step"])["norm"].astype(float)
    curves = page.evaluate("page.curves.map(c => [c.cells[0].cell_id, c.x, c.y])")
    assert {cell for cell, *_ in curves} == set(cells.index)
    for cell, steps, values in curves:
        assert values == pytest.approx([stored[cell, s] for s in steps], rel=1.1e-3)
    for rule, name in (("lora", "LoRA"), ("rslora", "rsLoRA")):
        ids = cells[cells["scaling"] == rule]
        norms = [stored[cell, step] for cell in ids.index]
        slope = np.polyfit(np.log(ids["rank"]), np.log(norms), 1)[0]
        assert f"{name} {slope:.2f}".replace("-", "−") in page.locator("#fit-title").inner_text()


def test_every_control_changes_the_charts_and_the_address_restores_it(exported, offline):
    page = exported.show("tab=layers")
    wanted = {"optimizer": "sgd", "site": "adapter_out", "stat": "m4", "batch": "train"}
    wanted |= {"kind": "q_proj", "seed": "1", "rank": "2"}
    before = page.evaluate(HEAT)
    for name, value in wanted.items():
        exported.choose(name, value)
        after = page.evaluate(HEAT)
        assert after != before, name
        before = after
    exported.choose("layer", page.locator("#layer option").last.get_attribute("value"))
    page.locator("#step").fill("1")
    page.uncheck("#rules input[value='lora p=1']")
    page.evaluate("rendering")
    shown = page.evaluate(HEAT)
    assert {panel["rule"] for panel in shown} == {"rslora p=0.5"}
    address = parse_qs(page.url.partition("#")[2])
    assert {name: address[name] for name in wanted} == {n: [v] for n, v in wanted.items()}

    fields = (*wanted, "setting", "step", "layer")
    state = {name: page.locator(f"#{name}").input_value() for name in fields}
    again = offline.open(page.url)
    assert {name: again.locator(f"#{name}").input_value() for name in fields} == state
    assert again.evaluate(HEAT) == shown
    assert exported.errors == offline.errors == []


# ---- how it looks

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


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (1920, "dark")])
def test_it_fits_the_screen_light_and_dark(opener, file, width, scheme):
    watched = opener(viewport={"width": width, "height": 1000}, color_scheme=scheme)
    page = watched.open(file.as_uri())
    assert page.evaluate("document.documentElement.dataset.theme") == scheme
    for tab in ("layers", "losses", "cells", "findings"):
        watched.show(f"tab={tab}&optimizer=sgd")
        widths = "[document.documentElement.scrollWidth, byId('main').scrollWidth]"
        assert max(page.evaluate(widths)) <= width, tab
        assert page.evaluate(TEXTS) == [], tab
    watched.show("tab=losses")
    assert page.evaluate(IN_VIEW, ["loss"]) == []


# ---- unusual studies


def test_it_opens_where_there_is_something_to_show_and_says_what_is_not_measured(offline, tmp_path):
    """Two ranks: gradients at steps 0 and 4, updates at step 0, outputs that are 0 at step 0."""
    for rank in (4, 8):
        writer = begin_cell(tmp_path / "sparse", f"rank{rank}", rank)
        for step in (0, 4):
            one_step(writer, step, {LAYER: rank})
            rows = pd.DataFrame({"step": step, "layer": [LAYER], "block": 0, "kind": "q_proj"})
            rows = rows.assign(batch="train", nonfinite=0.0)
            writer.append("probes", rows.assign(site="adapter_out", norm=0.5 * step * rank))
            if step == 0:
                writer.append("probes", rows.assign(site="adapter_update", norm=0.1 * rank))
        writer.close("complete", steps_done=4)
    page = exported_page(offline, tmp_path / "sparse", "tab=layers")
    step, notice = "page.view.step", page.locator("#notice")
    assert (page.evaluate(step), notice.is_visible()) == (4, False)
    offline.show("tab=layers&site=adapter_update")
    assert page.evaluate(step) == 0, "the last step with a value of the chosen site"
    offline.show("tab=layers&site=adapter_update&step=4")
    said = "adapter_update norm: not measured at step 4. It was at step 0."
    assert said in notice.inner_text()
    assert said in page.locator("#layer-fit").inner_text()
    notice.locator("button").click()
    page.evaluate("rendering")
    assert (page.evaluate(step), notice.is_visible()) == (0, False)
    offline.show("tab=layers&site=adapter_out&step=0")
    assert "zero or negative at step 0. B is zero before the first update." in notice.inner_text()
    assert offline.errors == []


def test_names_from_the_data_are_never_markup(offline, tmp_path):
    layer = "</script><script>alert(1)</script>.<b>q_proj"
    cell_id = "<img src=x onerror=alert(2)>"
    writer = begin_cell(tmp_path / "odd", cell_id)
    one_step(writer, 0, {layer: 1.0, LAYER: 2.0})
    writer.close("failed", error="<script>alert(3)</script> & co", steps_done=1)
    written(tmp_path / "odd", "plain")
    page = exported_page(offline, tmp_path / "odd", "tab=layers&step=0")
    offline.choose("layer", layer)
    assert page.locator("#layer option:checked").inner_text() == f"0: {layer}"
    ticks = page.locator("#heat .ytick").all_text_contents()
    assert "<b>q_proj" in ticks, "Plotly does not interpret markup"
    page.locator("#tabs [data-tab=cells]").click()
    row = page.locator("#cells tbody tr", has_text="failed").inner_text()
    assert cell_id in row
    assert "<script>alert(3)</script> & co" in row
    assert page.locator("main img:not([src^=data])").count() == 0
    assert offline.errors == [], "no script ran"
    assert len(offline.requests) == 1


def test_the_page_lists_unreadable_cells(offline, tmp_path):
    folder = written(tmp_path / "odd", "a", "b", "c")
    (folder / "cells/b/record.json").write_text("<b>{")
    flip(folder / "cells/c/metrics.parquet")
    page = exported_page(offline, folder, "tab=cells")
    assert page.locator("#counts").inner_text().endswith("2 unreadable")
    rows = page.locator("#cells tbody tr", has_text="unreadable").all_inner_texts()
    for row, (cell, why) in zip(rows, (("b", "record.json"), ("c", "a table is")), strict=True):
        assert cell in row.split()
        assert why in row
    assert page.locator("#cells tbody tr").count() == 3
    for cell in ("a", "c"):
        (folder / f"cells/{cell}/record.json").write_text("")
    page = exported_page(offline, folder, "tab=cells")
    assert not page.locator("#tabs [data-tab=layers]").is_visible()
    assert not page.locator("#choices").is_visible()
    assert offline.errors == []
