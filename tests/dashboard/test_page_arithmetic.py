"""The numbers that the page gets, against those of the tables."""

import base64
import json
import math
from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import Browser

from study.analysis import load_tables
from study.dashboard.document import PARTS
from study.dashboard.values import Measured, Values, rounded

READ = """([bytes, steps, width]) => {
    const raw = Uint8Array.from(atob(bytes), letter => letter.charCodeAt(0));
    const floats = new Float32Array(raw.buffer);
    const values = new CellValues([...Array(steps).keys()], floats, width);
    const finite = value => (Number.isFinite(value) ? value : String(value));
    const word = value => (value === undefined ? "missing" : finite(value));
    return values.steps.map(s => [...Array(width).keys()].map(l => word(values.at(s, l))));
}"""


def read(browser: Browser, values: np.ndarray, missing: np.ndarray) -> list[list[object]]:
    page = browser.new_page()
    page.add_script_tag(content=(PARTS / "values.js").read_text())
    page.add_script_tag(content=(PARTS / "view.js").read_text())
    text = base64.b64encode(rounded(values, missing).tobytes()).decode()
    found = page.evaluate(READ, [text, *values.shape])
    page.close()
    return found


def test_every_kind_of_value_survives(browser: Browser) -> None:
    values = np.array([[0.0, 1e-38, -2.5, math.nan], [math.inf, -math.inf, 1e38, math.nan]])
    missing = np.array([[False] * 4, [False, False, False, True]])
    first, second = read(browser, values, missing)
    assert [first[0], first[3]] == [0, "NaN"]
    assert [second[0], second[1], second[3]] == ["Infinity", "-Infinity", "missing"]
    assert [first[1], first[2], second[2]] == pytest.approx([1e-38, -2.5, 1e38], rel=2**-12)


def test_exponents_are_those_of_the_table(trained: Path) -> None:
    tables = load_tables(trained)
    values = Values({"": tables.probes}, {"": tables.exponents})
    message = values.message(Measured("adapter_grad", "norm", "train"))
    header = json.loads(message[4 : 4 + int.from_bytes(message[:4], "little")])
    rows = tables.exponents.query("site == 'adapter_grad' and stat == 'norm' and batch == 'train'")
    known = rows[rows["exponent"].notna() & (rows["layer"] != "median")]
    place = {layer.name: str(n) for n, layer in enumerate(values.layers)}
    for row in known.itertuples():
        of_layer = place.get(str(row.layer), str(row.kind))
        sent = header["lines"][row.curve_id][str(row.step)][of_layer]
        wanted = [row.exponent, row.ci_low, row.ci_high, row.seeds, row.ranks]
        wanted = [None if math.isnan(one) else pytest.approx(one, abs=1e-4) for one in wanted]
        assert sent == wanted
    assert len(known) == sum(len(of) for c in header["lines"].values() for of in c.values()) > 20
