"""The pages of the site: their code runs, their commands exist, and each is short."""

import re
import shlex
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from matplotlib.colors import to_hex

from docs.site import front
from docs.words import USER_GROUPS, below, counts, prose
from study.cli import cli
from study.config.compose import CONF, parse
from study.figures import style

DOCS = Path(__file__).parents[1] / "docs"
PAGES = sorted(DOCS.glob("*.md"))
MOST_WORDS = {"a page": 1_700, "user groups": 12_000, "all pages": 40_000}
"""Outside code, formulas and tables."""
SYMBOL = re.compile(r"[\u0370-\u03ff]|r_sign|p\\\*")
TEMPLATES = "findings", "index"
"""Pages that are made of README.md and FINDINGS.md."""


def blocks(page, language):
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.M | re.S)


def commands(page):
    """The words after ``study`` of every command in a page's blocks, without ``...``."""
    lines = (
        "\n".join(blocks(page, "bash")).replace("\\\n", " ").replace("--cfg job", "").splitlines()
    )
    words = [shlex.split(line, comments=True) for line in lines]
    found = [each[1:] for each in words if each[:1] == ["study"]]
    return [[word for word in each if "..." not in word] for each in found]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_begins_with_the_reader(page):
    """It says what *you* can do, and its first 60 words hold no symbol: none was named yet."""
    if page.stem not in TEMPLATES:
        text = re.sub(r"^# .*$", "", page.read_text(), count=1, flags=re.MULTILINE)
        start = " ".join(prose(text).split()[:60])
        assert re.search(r"\b[Yy]our?\b", start)
        assert SYMBOL.findall(start) == []


def test_pages_are_short():
    number = counts()
    assert {name: count for name, count in number.items() if count > MOST_WORDS["a page"]} == {}
    assert sum(number[name] for name in below("index", USER_GROUPS)) <= MOST_WORDS["user groups"]
    assert sum(number.values()) <= MOST_WORDS["all pages"]


def test_the_front_has_a_picture_for_each_screen():
    pictures = re.findall(r"^```{image} (\S+)\n:alt: .+\n:class: (.*)$", front("README.md"), re.M)
    assert [screen for _, screen in pictures] == ["on-wide", "on-narrow"]
    assert all((DOCS / path).exists() for path, _ in pictures)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_command_of_a_page_is_accepted(page):
    """Nothing runs: options are parsed, and the configuration of ``study train`` is composed."""
    root = cli.make_context("study", [], resilient_parsing=True)
    for name, *words in commands(page):
        command = cli.get_command(root, name)
        assert command is not None, name
        command.make_context(name, list(words), parent=root)
        if name == "train" and not any(word.startswith("--config-dir") for word in words):
            # The first cell of a sweep is a valid cell. Launchers may not be installed.
            own = [word for word in words if not re.match(r"-|launcher|hydra[./]", word)]
            first = []
            for override in OverridesParser.create().parse_overrides(own):
                value = next(override.sweep_iterator()) if override.is_sweep_override() else None
                key, line = override.get_key_element(), override.input_line
                first.append(str(line) if value is None else f"{key}={value}")
            with initialize_config_dir(str(CONF), version_base="1.3"):
                parse(compose("config", first))


def test_long_lines_of_code_are_not_cut():
    style = (DOCS / "_static/site.css").read_text()
    assert re.search(r"\.highlight pre \{[^}]*white-space: pre-wrap", style)


def test_an_experiment_in_a_file_of_ones_own(tmp_path):
    [text] = blocks(DOCS / "sweeps.md", "yaml")
    file = tmp_path / "experiment" / "ranks.yaml"
    file.parent.mkdir()
    file.write_text(text)
    with initialize_config_dir(str(CONF), version_base="1.3"):
        found = compose("config", [f"hydra.searchpath=[file://{tmp_path}]", "experiment=ranks"])
    assert (found.name, parse(found).train.steps) == ("ranks", 20)


def test_the_theory_of_the_page_is_that_of_the_code():
    names = {}
    found = blocks(DOCS / "theory.md", "python")
    assert len(found) == 5
    for block in found:
        exec(compile(block, "docs/theory.md", "exec"), names)


@pytest.mark.parametrize("figure", ["learning_rate_basins", "loss_curves"])
def test_the_recipe_for_a_figure_runs(figure, here, monkeypatch, caplog):
    Path("results").symlink_to(DOCS.parent / "results")
    monkeypatch.setattr("study.figures.style.PAPER", dict(style.PAPER))
    [recipe] = blocks(DOCS / "paper-figures.md", "python")
    recipe, names = recipe.replace("learning_rate_basins", figure), {}
    exec(compile(recipe, "docs/paper-figures.md", "exec"), names)
    drawn = [one for one in names["figure"].findobj() if one.get_gid()]
    of_ranks = [one for one in drawn if not str(one.get_gid()).startswith(("other", "band"))]
    assert len(of_ranks) >= 6
    assert {to_hex(one.get_color()) for one in of_ranks} == {"#bbbbbb", "#777777", "#000000"}
    bands = [one for one in drawn if str(one.get_gid()).startswith("band")]
    assert {to_hex(one.get_facecolor()[0]) for one in bands} <= {*names["colours"].values()}
    assert "findfont" not in caplog.text
    assert Path("plots/paper/basins.pdf").stat().st_size > 10_000
