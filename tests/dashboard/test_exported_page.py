"""The exported file in a browser without a network: its values and its controls."""

import csv
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import numpy as np
import pytest

import study
from study.dashboard.document import export
from study.store import CellWriter

from .conftest import Watched


@pytest.fixture(scope="module")
def file(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("export") / "small.html"
    inside, there = export([trained], path)
    assert inside == there > 50
    return path


@pytest.fixture(scope="module")
def exported(browser: Any, file: Path) -> Iterator[Watched]:
    """The file, opened once for this module."""
    context = browser.new_context(
        viewport={"width": 1280, "height": 1000}, accept_downloads=True, offline=True
    )
    watched = Watched(context.new_page())
    watched.open(file.as_uri())
    yield watched
    context.close()


def heat(page: Any) -> list[dict[str, Any]]:
    """The heat map's panels. Values that are not finite are strings."""
    return page.evaluate(
        """() => page.heat.panels.map(p => ({ rule: p.rule.id, of: p.of, columns: p.columns, z: p.z,
            values: p.values.map(row => row.map(
                v => v === undefined ? "missing" : Number.isFinite(v) ? v : String(v))),
            layers: page.heat.rows.map(l => l.name) }))"""
    )


def chosen(page: Any, name: str, value: str) -> None:
    page.select_option(f"#{name}", value)
    page.evaluate("rendering")


def test_the_same_study_gives_the_same_file(trained: Path, file: Path, tmp_path: Path) -> None:
    export([trained], tmp_path / "again.html")
    assert (tmp_path / "again.html").read_bytes() == file.read_bytes()


def test_no_request_and_no_error(offline: Any, file: Path) -> None:
    page = offline.open(file.as_uri())
    assert offline.requests == [file.as_uri()]
    assert page.locator("#counts").inner_text().replace("\n", " ").startswith("● 18 done")
    assert "2 diverged" in page.locator("#counts").inner_text()
    assert page.locator("#verdict-table tbody tr").count() >= 4
    assert offline.errors == []


def test_one_seed_has_no_interval_and_no_verdict(exported: Watched) -> None:
    """AdamW has one seed, SGD two, and one at the rate at which it diverges."""
    page = exported.show("tab=layers&optimizer=adamw")
    words = page.evaluate("page.overview.verdicts.map(v => [v.optimizer + v.curve, v.verdict])")
    assert {word for curve, word in words if curve.startswith("adamw")} == {"one seed"}
    assert {word for curve, word in words if curve == "sgdlr=0.01"} == {"unclear"}
    assert "brackets: straightness of the line, one seed" in page.locator("#fit-title").inner_text()
    assert "95 %" not in page.locator("#fit-title").inner_text()


def test_every_value_is_in_its_place(exported: Watched, trained: Path) -> None:
    """Every value of every panel against the store, for two quantities and one seed."""
    tables = study.load(trained)
    page = exported.show("tab=layers&optimizer=sgd&seed=1&rank=4&step=2&batch=train")
    for site, stat in (("adapter_grad", "norm"), ("adapter_out", "max_abs")):
        chosen(page, "site", site)
        chosen(page, "stat", stat)
        probes = tables.probes[
            (tables.probes["site"] == site) & (tables.probes["batch"] == "train")
        ]
        cells = tables.cells.query("optimizer == 'sgd' and seed == 1 and lr < 1")
        panels = heat(page)
        assert [(p["rule"], p["of"]) for p in panels] == [
            (r, of) for of in ("steps", "ranks") for r in ("lora p=1", "rslora p=0.5")
        ]
        for panel in panels:
            rule = panel["rule"].partition(" ")[0]
            for x, column in enumerate(panel["columns"]):
                rank, step = (4, column) if panel["of"] == "steps" else (column, 2)
                cell = cells[(cells["scaling"] == rule) & (cells["rank"] == rank)]["cell_id"].item()
                rows = probes[(probes["cell_id"] == cell) & (probes["step"] == step)].set_index(
                    "layer"
                )[stat]
                for y, layer in enumerate(panel["layers"]):
                    shown, stored = panel["values"][y][x], float(rows[layer])
                    assert shown == pytest.approx(stored, rel=1.1e-3), (
                        panel["rule"],
                        layer,
                        rank,
                        step,
                    )
                    if stored > 0:
                        assert panel["z"][y][x] == pytest.approx(math.log10(stored), abs=5e-4)
                    else:
                        assert panel["z"][y][x] is None, "zero and negative values have no colour"


def test_values_that_are_not_finite_are_marked(exported: Watched) -> None:
    page = exported.show("tab=layers&optimizer=sgd&rules=rslora p=0.5")
    settings = page.locator("#setting option").all_inner_texts()
    chosen(page, "setting", next(text for text in settings if "1e+30" in text))
    assert page.locator("#key .not-finite.any").inner_text().startswith("not finite:")
    marked = page.evaluate(
        "byId('heat').data.filter(t => t.type === 'heatmap' && !t.coloraxis)"
        ".flatMap(t => t.z.flat())"
    )
    broken = page.evaluate(
        "page.heat.panels.flatMap(p => p.values.flat())"
        ".filter(v => v !== undefined && !Number.isFinite(v)).length"
    )
    assert broken > 0
    assert sum(mark in (0, 1) for mark in marked) == broken
    assert "not finite from step" in page.locator("#where").inner_text()
    page.locator("#tabs [data-tab=cells]").click()
    assert "diverged" in page.locator("#cells tbody").inner_text()
    assert exported.errors == []


def test_a_click_on_a_layer_shows_its_curves_and_its_fit(exported: Watched, trained: Path) -> None:
    page = exported.show("tab=layers&optimizer=adamw&seed=0&step=1")
    place = page.evaluate(
        """() => { const box = byId('heat').getBoundingClientRect();
            const { xaxis, yaxis } = byId('heat')._fullLayout;
            return [box.x + xaxis._offset + xaxis.c2p(2), box.y + yaxis._offset + yaxis.c2p(3),
                    page.heat.rows[3].name, page.heat.panels[0].columns[2]]; }"""
    )
    x, y, layer, step = place
    page.mouse.move(x, y)
    page.wait_for_selector("#tip:not([hidden])")
    assert layer in page.locator("#tip").inner_text()
    page.mouse.click(x, y)
    exported.until("page.view.layer !== 'mean over layers'")
    page.evaluate("rendering")
    assert page.locator("#layer").input_value() == layer
    assert page.evaluate("page.view.step") == step

    tables = study.load(trained)
    cells = tables.cells.query("optimizer == 'adamw' and seed == 0").set_index("cell_id")
    rows = tables.probes.query("site == 'adapter_grad' and batch == 'train' and layer == @layer")
    curves = page.evaluate("page.curves.map(c => [c.cells[0].cell_id, c.x, c.y])")
    assert {cell for cell, *_ in curves} == set(cells.index)
    for cell, steps, values in curves:
        stored = rows[rows["cell_id"] == cell].set_index("step")["norm"]
        assert values == pytest.approx([float(stored[s]) for s in steps], rel=1.1e-3)
    for rule in ("lora", "rslora"):
        ids = cells[cells["scaling"] == rule]
        norms = [
            float(rows[(rows["cell_id"] == i) & (rows["step"] == step)]["norm"].item())
            for i in ids.index
        ]
        slope = np.polyfit(np.log(ids["rank"]), np.log(norms), 1)[0]
        name = {"lora": "LoRA", "rslora": "rsLoRA"}[rule]
        assert f"{name} {slope:.2f}".replace("-", "−") in page.locator("#fit-title").inner_text()


def test_every_control_changes_the_charts_and_the_address_restores_it(
    offline: Any, file: Path
) -> None:
    page = offline.open(file.as_uri() + "#tab=layers")
    wanted = {
        "optimizer": "sgd",
        "site": "adapter_out",
        "stat": "m4",
        "batch": "train",
        "kind": "q_proj",
    }
    wanted |= {"seed": "1", "rank": "2", "order": "kind"}
    before = page.evaluate("JSON.stringify(page.heat.panels.map(p => p.values))")
    for name, value in wanted.items():
        chosen(page, name, value)
        after = page.evaluate("JSON.stringify(page.heat.panels.map(p => p.values))")
        assert name == "order" or after != before, name
        before = after
    setting = page.locator("#setting").input_value()
    chosen(page, "layer", page.locator("#layer option").last.get_attribute("value"))
    page.locator("#step").fill("1")
    page.uncheck("#rules input[value='lora p=1']")
    page.evaluate("rendering")
    assert {panel["rule"] for panel in heat(page)} == {"rslora p=0.5"}
    address = parse_qs(page.url.partition("#")[2])
    assert {name: address[name] for name in wanted} == {
        name: [value] for name, value in wanted.items()
    }

    fields = (
        "site",
        "stat",
        "batch",
        "kind",
        "order",
        "optimizer",
        "setting",
        "seed",
        "rank",
        "step",
        "layer",
    )
    state = {name: page.locator(f"#{name}").input_value() for name in fields}
    assert state["setting"] == setting
    shown = heat(page)
    again = offline.open(page.url.replace("small.html#", "small.html?again#"))
    assert {name: again.locator(f"#{name}").input_value() for name in fields} == state
    assert heat(again) == shown
    assert offline.errors == []


def test_the_keyboard_controls_the_heat_map_and_the_table(exported: Watched) -> None:
    page = exported.show("tab=layers&step=1&rank=4")
    page.focus("#heat")
    for key in ("ArrowDown", "ArrowDown", "ArrowRight", "PageUp"):
        page.keyboard.press(key)
        page.evaluate("rendering")
    assert page.evaluate(
        "[page.view.layer === page.view.layers[1].name, page.view.step, page.view.rank]"
    ) == [
        True,
        2,
        8,
    ]
    page.focus("#tabs [data-tab=layers]")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    page.evaluate("rendering")
    page.locator("#cells thead button", has_text="rank").focus()
    page.keyboard.press("Enter")
    page.keyboard.press("Enter")
    assert page.locator("#cells th[aria-sort='descending']").inner_text() == "rank ↓"
    ranks = [float(text) for text in page.locator("#cells tbody td:nth-child(3)").all_inner_texts()]
    assert ranks == sorted(ranks, reverse=True)


def test_charts_can_be_downloaded(exported: Watched, tmp_path: Path) -> None:
    page = exported.show("tab=layers")
    for chart, rows in (("heat", 14 * 2 * (3 + 3)), ("layer-fit", 6), ("layer-curves", 2 * 3 * 3)):
        with page.expect_download() as waiting:
            page.locator(f".tools[data-chart={chart}] button", has_text="CSV").click()
        waiting.value.save_as(tmp_path / "table.csv")
        assert len(list(csv.reader((tmp_path / "table.csv").open()))) == rows + 1, chart
    with page.expect_download() as waiting:
        page.locator(".tools[data-chart=heat] button", has_text="PNG").click()
    waiting.value.save_as(tmp_path / "picture.png")
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")
    assert waiting.value.suggested_filename == "small-heat-adapter_grad-norm.png"
    page.locator("#tabs [data-tab=cells]").click()
    with page.expect_download() as waiting:
        page.locator(".tools[data-chart=cells] button", has_text="CSV").click()
    waiting.value.save_as(tmp_path / "table.csv")
    assert len(list(csv.reader((tmp_path / "table.csv").open()))) == 20 + 1


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (1920, "dark")])
def test_it_fits_the_screen_light_and_dark(
    browser: Any, file: Path, width: int, scheme: str
) -> None:
    context = browser.new_context(viewport={"width": width, "height": 1000}, color_scheme=scheme)
    page = context.new_page()
    page.goto(file.as_uri())
    page.wait_for_selector("body[data-ready]")
    for tab in ("layers", "losses", "cells", "findings"):
        page.locator(f"#tabs [data-tab={tab}]").click()
        page.evaluate("rendering")
        widths = "[document.documentElement.scrollWidth, byId('main').scrollWidth]"
        assert max(page.evaluate(widths)) <= width, tab
    assert page.evaluate("document.documentElement.dataset.theme") == scheme
    contrast = page.evaluate(
        """() => { const light = colour => {
                const c = colour.match(/[0-9.]+/g).slice(0, 3).map(v => v / 255)
                    .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
                return 0.2126 * c[0] + 0.7152 * c[1] + 0.0722 * c[2]; };
            const panel = document.querySelector('section');
            const back = light(getComputedStyle(panel).backgroundColor);
            return ['h2', 'h2 small', '.green', '.yellow', '.red', '.legend', '#key']
                .map(name => document.querySelector(name)).filter(Boolean)
                .map(node => light(getComputedStyle(node).color))
                .map(ink => (Math.max(ink, back) + 0.05) / (Math.min(ink, back) + 0.05)); }"""
    )
    assert len(contrast) >= 5
    assert min(contrast) >= 4.5, "WCAG AA for small text"
    context.close()


def test_names_from_the_data_are_never_markup(
    offline: Any, by_hand: Callable[..., CellWriter], one_step: Callable[..., None], tmp_path: Path
) -> None:
    layer = "</script><script>alert(1)</script>.<b>q_proj"
    cell_id = "<img src=x onerror=alert(2)>"
    writer = by_hand(cell_id, rank=4)
    for step in (0, 1):
        one_step(writer, step, {layer: 1.0 + step, "model.layers.0.v_proj": 2.0})
    writer.close("failed", error="<script>alert(3)</script> & co", steps_done=1)
    other = by_hand("plain", rank=8)
    one_step(other, 0, {layer: 0.5, "model.layers.0.v_proj": 1.0})
    other.close("complete", steps_done=0)
    export([tmp_path / "results/odd"], tmp_path / "odd.html")
    page = offline.open((tmp_path / "odd.html").as_uri() + "#tab=layers&step=0")
    chosen(page, "layer", layer)
    assert page.locator("#layer option:checked").inner_text() == f"0: {layer}"
    assert page.locator("#kind option").all_inner_texts()[1] == "<b>q_proj"
    ticks = page.locator("#heat .ytick").all_text_contents()
    assert "0 <b>q_proj" in ticks, "Plotly does not interpret markup"
    page.locator("#tabs [data-tab=cells]").click()
    row = page.locator("#cells tbody tr", has_text="failed")
    assert cell_id in row.inner_text()
    assert "<script>alert(3)</script> & co" in row.inner_text()
    assert page.locator("img").count() == 0
    assert offline.errors == [], "no script ran"
    assert len(offline.requests) == 1


def test_a_file_stays_below_the_limit(file: Path, trained: Path, tmp_path: Path) -> None:
    most = file.stat().st_size - 20_000
    inside, there = export([trained], tmp_path / "some.html", most)
    assert 1 < inside < there
    assert (tmp_path / "some.html").stat().st_size <= most
