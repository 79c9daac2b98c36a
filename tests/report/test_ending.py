"""What ``study report`` prints: what was found, and what to open."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from study.analysis import load_tables
from study.cli import cli
from study.figures import FIGURES
from study.report import answer

OnDisk = Callable[..., Path]


@pytest.fixture(autouse=True)
def _few_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that can be drawn and one that can't."""
    few = {name: FIGURES[name] for name in ("grad_norm_vs_rank", "learning_rate_basins")}
    monkeypatch.setattr("study.figures.FIGURES", few)


@pytest.fixture
def folder(on_disk: OnDisk) -> Path:
    return on_disk(ranks=(4, 32), seeds=(0, 1, 2))


def test_a_report_ends_with_what_was_found_and_what_to_open(
    folder: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)  # after make study, without activate
    monkeypatch.setattr("sys.argv", [".venv/bin/study"])
    result = CliRunner().invoke(cli, ["report", str(folder)], catch_exceptions=False)
    text = result.output
    assert result.exit_code == 0, text
    said = [one.message for one in caplog.records if one.name.startswith("study")]
    assert said == [], "no list of figures that could not be drawn"
    assert not re.search(r"no figure|\brows?\b|\.parquet|nan", text)
    lines = text.splitlines()
    assert lines[0].startswith("analyzing the cells")
    assert lines[-2:] == [
        f"# open in a browser: {folder / 'report.html'}",
        f".venv/bin/study dashboard {folder}    # every layer, in a browser",
    ]
    unwrapped = re.sub(r"\n  ", " ", text)
    assert re.search("# figure: .*plots/known/grad_norm_vs_rank.png", text)
    assert "shrinks to" in text.split("# figure: ")[1], "the table"
    sentences = [line.removeprefix("- ") for line in unwrapped.splitlines() if line[:2] == "- "]
    assert sentences == answer(load_tables(folder))
    assert max(len(line) for line in lines[1:-2] if not line.startswith("# figure")) <= 100
