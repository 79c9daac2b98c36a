"""Exponents by bits: one marker per number of bits, from the table."""

from types import SimpleNamespace

import numpy as np
import pytest

from study.figures.bits import exponents_by_bits
from study.figures.selection import Absent

BITS = [{"quant_bits": np.nan}, {"quant_bits": 8.0}, {"quant_bits": 4.0}]


@pytest.fixture(scope="module")
def swept(tiny) -> SimpleNamespace:
    return tiny(settings=BITS)


def test_markers_and_bars_show_the_table(swept, read) -> None:
    figure = exponents_by_bits(swept)
    assert [ax.get_title(loc="left").split()[0] for ax in figure.axes] == ["LoRA", "rsLoRA"]
    rows = swept.exponents[
        swept.exponents["site"].eq("adapter_grad") & swept.exponents["step"].eq(0)
    ]
    for ax, scaling in zip(figure.axes, ("lora", "rslora"), strict=True):
        for bits in (None, 8, 4):
            mine = rows["scaling"].eq(scaling) & rows["quant_bits"].fillna(0).eq(bits or 0)
            (row,) = (row for _, row in rows[mine].iterrows())
            (mark,) = (line for line in ax.lines if line.get_gid() == f"{bits} gradient norm")
            assert mark.get_xdata()[0] == row["exponent"]
            (bar,) = (c for c in ax.collections if c.get_gid() == f"bars {bits} gradient norm")
            np.testing.assert_allclose(bar.get_segments()[0][:, 0], [row["ci_low"], row["ci_high"]])
            (theory,) = (c for c in ax.collections if c.get_gid() == f"theory {bits} gradient norm")
            assert theory.get_segments()[0][0, 0] == row["predicted"]
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["as loaded", "8 bits", "4 bits"]
    assert any("step 0" in text for text in read.texts(figure))


def test_a_study_of_one_base_is_not_enough(tiny) -> None:
    for settings in ([{}], [{"quant_bits": np.nan}], [{"quant_bits": 4.0}]):
        with pytest.raises(Absent, match=r"need a study over model\.quant_bits"):
            exponents_by_bits(tiny(settings=settings))
    with pytest.raises(Absent, match="analyze the study first"):
        exponents_by_bits(tiny(settings=BITS, fitted=False))
