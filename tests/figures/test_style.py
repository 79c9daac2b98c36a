"""Style: colours for colour-blind readers and grey prints; atomic, reproducible files."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread

from study.figures import FIGURES, save, style
from study.figures.selection import Rule

LORA, RSLORA, POWER = Rule.of("lora", None), Rule.of("rslora", None), Rule.of("power", 0.75)
RANKS = [4.0 * 2**k for k in range(10)]

# Machado, Oliveira & Fernandes 2009, severity 1.0, on linear RGB.
BLINDNESS = {
    "none": np.eye(3),
    "deuteranopia": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "protanopia": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "tritanopia": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.303900],
    ],
}


def lab(colours: np.ndarray, blindness: str = "none") -> np.ndarray:
    """CIELAB (D65) of sRGB colours as seen with ``blindness``; the first coordinate is L*."""
    rgb = np.asarray(colours)[..., :3]
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4) @ np.transpose(
        BLINDNESS[blindness]
    )
    to_xyz = [
        [0.4124564, 0.3575761, 0.1804375],
        [0.2126729, 0.7151522, 0.0721750],
        [0.0193339, 0.1191920, 0.9503041],
    ]
    xyz = np.clip(linear, 0, 1) @ np.transpose(to_xyz) / [0.95047, 1.0, 1.08883]
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.stack(
        [116 * f[..., 1] - 16, 500 * (f[..., 0] - f[..., 1]), 200 * (f[..., 1] - f[..., 2])],
        axis=-1,
    )


def shades(rule: Rule) -> np.ndarray:
    return np.array([style.shade(rule, rank, RANKS) for rank in RANKS])


@pytest.mark.parametrize("rule", [LORA, RSLORA, POWER])
def test_lightness_falls_evenly_with_the_log_of_the_rank(rule: Rule) -> None:
    lightness = lab(shades(rule))[:, 0]
    steps = -np.diff(lightness)
    assert steps.min() > 4, "two neighbouring ranks look alike in a grey print"
    assert steps.max() < 1.3 * steps.min()
    assert lightness.max() < 62, "every rank must be visible on white: a contrast of 3:1"


@pytest.mark.parametrize("blindness", list(BLINDNESS))
@pytest.mark.parametrize("pair", [(LORA, RSLORA), (LORA, POWER), (RSLORA, POWER)])
def test_rules_stay_apart_for_the_colour_blind(blindness: str, pair: tuple[Rule, Rule]) -> None:
    one, other = (lab(shades(rule), blindness) for rule in pair)
    assert np.linalg.norm(one - other, axis=1).min() > 15
    one, other = (lab(style.tint(rule, [LORA, RSLORA, POWER]), blindness) for rule in pair)
    assert np.linalg.norm(one - other) > 25


# saving


@pytest.fixture(scope="module")
def figure(small: SimpleNamespace) -> Figure:
    return FIGURES["grad_norm_vs_rank"](small)


def test_saves_png_and_pdf_with_embedded_truetype_fonts(figure: Figure, tmp_path: Path) -> None:
    png, pdf = save(figure, tmp_path / "plots" / "new", "grad")
    assert (png.name, pdf.name) == ("grad.png", "grad.pdf")
    assert sorted(path.name for path in png.parent.iterdir()) == ["grad.pdf", "grad.png"]
    assert imread(png).shape[1] == int(6.75 * style.DPI)
    assert style.DPI >= 200
    page = pdf.read_bytes()
    assert b"/FontFile2" in page
    assert b"/Type3" not in page
    assert b"CreationDate" not in page


def test_the_same_figure_gives_the_same_bytes(
    figure: Figure, small: SimpleNamespace, tmp_path: Path
) -> None:
    first = [path.read_bytes() for path in save(figure, tmp_path, "a")]
    again = [path.read_bytes() for path in save(FIGURES["grad_norm_vs_rank"](small), tmp_path, "b")]
    saved_twice = [path.read_bytes() for path in save(figure, tmp_path, "c")]
    assert first == again == saved_twice
