"""A results folder from somebody else: what W&B is told to do with it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from study.errors import StudyError
from study.store import CellWriter
from study.tracking.names import artifact_name
from study.tracking.publish import tracker_of

SOUND = {"name": "wandb", "mode": "offline", "project": "study", "entity": None, "sites": "all"}
Tracked = Callable[[Any], Path]


@pytest.fixture
def tracked(tmp_path: Path) -> Tracked:
    """``tracked(settings)`` writes a study of one cell with these settings of its tracker."""

    def write(settings: Any) -> Path:
        record = {
            "cell_id": "a" * 12,
            "study": "known",
            "model": "m",
            "data": "d",
            "gamma": 1.0,
            "config": {
                "adapter": {"rank": 4, "scaling": "lora", "alpha": 16.0},
                "optimizer": {"name": "sgd", "lr": 1e-3},
                "train": {"steps": 1},
                "data": {},
                "seed": 0,
                "tracker": settings,
            },
        }
        folder = tmp_path / "results/known"
        CellWriter.open(folder / "cells" / ("a" * 12), "", record).close("complete")
        return folder

    return write


def test_files_go_to_the_study_and_not_where_a_record_says(tracked: Tracked) -> None:
    folder = tracked(SOUND | {"dir": "/home/somebody/.ssh"})
    found = tracker_of(folder)
    assert found is not None
    assert (found.project, found.dir) == ("study", str(folder))


@pytest.mark.parametrize(
    "wrong",
    [
        {"mode": "shout"},
        {"project": 5},
        {"entity": ["x"]},
        {"api_key": "x"},
    ],
    ids=lambda wrong: next(iter(wrong)),
)
def test_settings_that_can_not_be_used_are_a_line(tracked: Tracked, wrong: dict[str, Any]) -> None:
    with pytest.raises(StudyError, match="tracker settings in the records of") as error:
        tracker_of(tracked(SOUND | wrong))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("settings", [None, "wandb", 5, {}, {"name": "none"}, ["wandb"]])
def test_other_settings_are_no_tracker(tracked: Tracked, settings: Any) -> None:
    assert tracker_of(tracked(settings)) is None


def test_an_unreadable_record_does_not_matter(tracked: Tracked) -> None:
    folder = tracked(SOUND)
    (folder / "cells/b").mkdir()
    (folder / "cells/b/record.json").write_text(json.dumps([1]))
    assert tracker_of(folder) is not None


@pytest.mark.parametrize(
    "study", ["quick", "a/b", "[red]x", "模型", "x" * 300, "..", "a b\n", "\udcff"]
)
def test_every_study_has_an_artifact_that_wandb_accepts(study: str) -> None:
    validators = pytest.importorskip("wandb.sdk.artifacts._validators")
    name = artifact_name(study, "exponents")
    assert validators.validate_artifact_name(name) == name
    assert name.isascii()
    assert artifact_name("quick", "figures") == "quick-figures"


def test_two_studies_have_two_artifacts() -> None:
    assert artifact_name("a b", "figures") != artifact_name("a_b", "figures")
