"""Style: colours for colour-blind readers and grey prints; atomic, reproducible files."""

import errno
import os
import subprocess
import sys
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace

import matplotlib
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import imread

from study.figures import FIGURES, save, style
from study.figures.selection import Rule
from study.store import StorageError, files
from study.vocabulary import scaling
from study.vocabulary.quantities import PRIMARY, WEIGHT_CHANGE
from study.vocabulary.scaling import RULES
from tests.figures.checklist import contrast
from tests.figures.test_every_figure import PLAIN

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
    assert min(map(contrast, shades(rule))) >= 3, "every rank must be visible on white"


def test_a_rank_is_equally_light_under_every_rule() -> None:
    lightness = np.array([lab(shades(rule))[:, 0] for rule in (LORA, RSLORA, POWER)])
    assert np.ptp(lightness, axis=0).max() < 2


@pytest.mark.parametrize("blindness", list(BLINDNESS))
@pytest.mark.parametrize("pair", [(LORA, RSLORA), (LORA, POWER), (RSLORA, POWER)])
def test_rules_stay_apart_for_the_colour_blind(blindness: str, pair: tuple[Rule, Rule]) -> None:
    one, other = (lab(shades(rule), blindness) for rule in pair)
    assert np.linalg.norm(one - other, axis=1).min() > 15
    one, other = (lab(style.tint(rule, [LORA, RSLORA, POWER]), blindness) for rule in pair)
    assert np.linalg.norm(one - other) > 25


def test_lora_is_copper_and_rslora_is_blue_green() -> None:
    red, green, blue = shades(LORA)[:, :3].T
    assert (red > green).all()
    assert (green > blue).all()
    red, green, blue = shades(RSLORA)[:, :3].T
    assert (np.minimum(green, blue) > red).all()


def test_rules_have_markers_of_their_own() -> None:
    rules = [LORA, RSLORA, *(Rule.of("power", p) for p in (0.0, 0.25, 0.75, 1.0))]
    assert len({style.marker(rule, rules) for rule in rules}) == len(rules)
    assert len({style.tint(rule, rules) for rule in rules}) == len(rules)


@pytest.fixture
def new_rules(monkeypatch: pytest.MonkeyPatch) -> list[Rule]:
    """Two rules with a row in the vocabulary and no look of their own."""
    for name, p in (("cube", 1 / 3), ("quarter", 0.25)):
        monkeypatch.setitem(RULES, name, scaling.Rule(name.title(), p))
    return [Rule.of("cube", None), Rule.of("quarter", None)]


@pytest.mark.parametrize("blindness", list(BLINDNESS))
def test_new_rules_stay_apart_from_the_others(blindness: str, new_rules: list[Rule]) -> None:
    rules = [LORA, RSLORA, POWER, *new_rules]
    tints = [lab(style.tint(rule, rules), blindness) for rule in rules]
    assert min(np.linalg.norm(a - b) for a, b in combinations(tints, 2)) > 17
    assert len({style.marker(rule, rules) for rule in rules}) == len(rules)
    assert [style.name(rule) for rule in new_rules] == ["Cube", "Quarter"]


def test_a_quantity_without_a_look_gets_a_spare_one() -> None:
    looks = [style.quantity_look(quantity) for quantity in (WEIGHT_CHANGE, *PRIMARY)]
    assert len({colour for colour, _ in looks}) == len({marker for _, marker in looks}) == 5


def test_infinite_rank_is_ink_and_a_single_rank_has_a_shade() -> None:
    assert style.shade(RSLORA, np.inf, [4.0, np.inf]) == matplotlib.colors.to_rgba(style.INK)
    assert style.shade(LORA, 16.0, [16.0]) == style.tint(LORA, [LORA])


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [(-0.5, 2, "−0.50"), (0.5, 2, "0.50"), (-0.001, 2, "0.00"), (-0.0012, 3, "−0.001")],
)
def test_numbers_have_a_true_minus_and_no_negative_zero(
    value: float, digits: int, text: str
) -> None:
    assert style.number(value, digits) == text


@pytest.mark.parametrize(
    ("p", "gamma"),
    [(0.5, "r^{-1/2}"), (0.75, "r^{-3/4}"), (0.6, "r^{-0.6}"), (0.0, "r^{0}"), (-0.5, "r^{0.5}")],
)
def test_the_heading_of_a_panel_has_gamma(p: float, gamma: str) -> None:
    assert gamma in style.title(Rule.of("power", p))


def test_sizes_are_the_columns_of_a_conference_page() -> None:
    assert style.figure(1, 2, ratio=0.5).get_figwidth() == 6.75
    assert style.figure(1, 1, column=style.HALF, ratio=0.5).get_figwidth() == 3.25


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


def test_the_callers_rcparams_have_no_effect_and_are_restored(
    small: SimpleNamespace, tmp_path: Path
) -> None:
    plain = [path.read_bytes() for path in save(FIGURES["descent_vs_rank"](small), tmp_path, "a")]
    with matplotlib.rc_context(
        {"font.size": 30, "axes.facecolor": "black", "lines.linewidth": 9, "pdf.fonttype": 3}
    ):
        before = dict(matplotlib.rcParams)
        garish = [
            path.read_bytes() for path in save(FIGURES["descent_vs_rank"](small), tmp_path, "b")
        ]
        assert dict(matplotlib.rcParams) == before
    assert garish == plain


@pytest.mark.parametrize("name", PLAIN)
def test_a_figure_drawn_later_under_other_rcparams_looks_the_same(
    name: str, small: SimpleNamespace
) -> None:
    canvas = FigureCanvasAgg(FIGURES[name](small))
    canvas.draw()
    plain = np.array(canvas.buffer_rgba())
    with matplotlib.rc_context(
        {"font.size": 30, "xtick.labelsize": 20, "ytick.labelsize": 20, "font.serif": ["cmr10"]}
    ):
        canvas.draw()
    np.testing.assert_array_equal(canvas.buffer_rgba(), plain)


def test_a_failed_save_leaves_the_old_files_and_nothing_else(
    figure: Figure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(figure, tmp_path, "grad")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full_disk(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files, "os", SimpleNamespace(**vars(os) | {"replace": full_disk}))
    with pytest.raises(StorageError, match=r"can't write .*/grad.png: No space left on device"):
        save(figure, tmp_path, "grad")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


SCRIPT = """
import hashlib, pickle, sys
from study.figures import draw_all, save
for name, figure in draw_all(pickle.load(open(sys.argv[1], "rb"))):
    paths = save(figure, sys.argv[2], name)
    print(name, *(hashlib.sha256(path.read_bytes()).hexdigest() for path in paths))
unwanted = ("torch", "matplotlib.pyplot", "transformers", "hydra")
print([name for name in unwanted if name in sys.modules])
"""


def test_other_processes_draw_the_same_bytes_without_torch(tiny, tmp_path: Path) -> None:
    import pickle

    (tmp_path / "tables").write_bytes(pickle.dumps(tiny()))
    outputs = []
    for seed in ("1", "2"):
        command = [sys.executable, "-c", SCRIPT, str(tmp_path / "tables"), str(tmp_path / seed)]
        done = subprocess.run(
            command, env={"PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True
        )
        outputs.append(done.stdout.splitlines())
    assert outputs[0] == outputs[1]
    drawn = [line.split()[0] for line in outputs[0][:-1]]
    assert len(drawn) > 5
    assert drawn == [name for name in FIGURES if name in drawn]
    assert outputs[0][-1] == "[]"
