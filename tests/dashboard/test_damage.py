"""The dashboard goes on when files are damaged, deleted, made again or not readable."""

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from study.dashboard import probes, server, studies
from study.dashboard.export import export
from study.dashboard.following import FollowedStudy
from study.dashboard.overview import overview
from study.dashboard.probes import Quantity
from study.dashboard.server import application
from study.dashboard.studies import Studies
from study.dashboard.verdicts import Verdicts
from study.vocabulary.quantities import TRAIN

NORM = Quantity("adapter_grad", "norm", TRAIN)
LAYER = "model.layers.0.q_proj"
Odd = Callable[..., Path]


@pytest.fixture
def odd(by_hand: Callable[..., Any], one_step: Callable[..., None], tmp_path: Path) -> Odd:
    """``odd("a", "b", steps=2)`` writes complete cells and returns the study's folder."""

    def write(*cells: str, steps: int = 2, norm: float = 1.0) -> Path:
        for rank, name in enumerate(cells, 2):
            writer = by_hand(name, rank=rank)
            for step in range(steps):
                one_step(writer, step, {LAYER: norm * rank})
            writer.close("complete", steps_done=steps - 1)
        return tmp_path / "results/odd"

    return write


def states(study: FollowedStudy) -> dict[str, str]:
    page = overview(study, Verdicts(), live=True)
    json.dumps(page, allow_nan=False)
    found = {cell["cell_id"]: cell["status"] for cell in page["cells"]}
    assert page["counts"]["unreadable"] == len(page["unreadable"])
    return found | {cell["cell_id"]: cell["note"] for cell in page["unreadable"]}


def blocks(study: FollowedStudy, have: dict[str, tuple[int, int]] | None = None) -> list[Any]:
    message = study.values_message(NORM, have or {})
    length = int.from_bytes(message[:4], "little")
    found = json.loads(message[4 : 4 + length])["blocks"]
    return [(block["cell"], block["revision"], block["steps"]) for block in found]


def flip(path: Path, at: float = 0.5) -> None:
    content = bytearray(path.read_bytes())
    content[int(at * len(content))] ^= 0xFF
    path.write_bytes(content)


DAMAGE: dict[str, Callable[[Path], Any]] = {
    "an empty record": lambda cell: (cell / "record.json").write_text(""),
    "half a record": lambda cell: (cell / "record.json").write_text('{"cell_id": "b", '),
    "a list": lambda cell: (cell / "record.json").write_text("[]"),
    "a deep record": lambda cell: (cell / "record.json").write_text("[" * 100_000),
    "bytes": lambda cell: (cell / "record.json").write_bytes(b"\xff\x00" * 50),
    "an unknown rule": lambda cell: (cell / "record.json").write_text(
        (cell / "record.json").read_text().replace('"lora"', '"<b>"')
    ),
    "a folder": lambda cell: (
        (cell / "record.json").unlink(),
        (cell / "record.json").mkdir(),
    ),
    "a link to itself": lambda cell: (
        (cell / "record.json").unlink(),
        (cell / "record.json").symlink_to("record.json"),
    ),
    "no probes": lambda cell: (cell / "probes.parquet").unlink(),
    "cut probes": lambda cell: (cell / "probes.parquet").write_bytes(b"PAR1"),
    "no metrics": lambda cell: (cell / "metrics.parquet").unlink(),
    "a changed byte": lambda cell: flip(cell / "metrics.parquet"),
    "a changed footer": lambda cell: flip(cell / "probes.parquet", 0.97),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_cell_is_unreadable_and_the_others_are_followed(
    odd: Odd, caplog: pytest.LogCaptureFixture, damage: Callable[[Path], Any]
) -> None:
    folder = odd("a", "b")
    study = FollowedStudy(folder)
    assert states(study) == {"a": "complete", "b": "complete"}
    damage(folder / "cells/b")
    odd("c")
    assert study.refresh()
    found = states(study)
    assert {name for name, state in found.items() if state == "complete"} == {"a", "c"}
    assert "\n" not in found["b"]
    assert not study.refresh()
    [line] = [line for line in caplog.messages if "unreadable" in line]
    assert line.startswith(f"cell b of {folder} is unreadable: ")
    assert [cell for cell, *_ in blocks(study)] == ["a", "c"]

    shutil.rmtree(folder / "cells/b")
    odd("b", steps=3)
    assert study.refresh()
    assert states(study)["b"] == "complete"
    assert blocks(study, {"a": (0, 2), "b": (0, 2), "c": (0, 2)}) == [("b", 1, [0, 1, 2])], (
        "a page that has the old steps gets all of the new cell"
    )


def test_all_cells_unreadable_is_a_page_without_charts(odd: Odd) -> None:
    folder = odd("a")
    (folder / "cells/a/record.json").write_text("")
    study = FollowedStudy(folder)
    assert set(states(study)) == {"a"}
    assert study.quantities() == []


def test_a_study_that_is_deleted_and_made_again_is_followed(odd: Odd) -> None:
    study = FollowedStudy(folder := odd("a", "b"))
    shutil.rmtree(folder)
    assert study.refresh()
    assert states(study) == {}
    assert not study.refresh()
    odd("b", norm=5.0)
    assert study.refresh()
    assert blocks(study, {"b": (0, 2)}) == [("b", 1, [0, 1])]


def test_a_folder_that_can_not_be_read_keeps_what_is_shown(
    odd: Odd, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    study = FollowedStudy(odd("a"))

    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    with monkeypatch.context() as patched:
        patched.setattr("study.dashboard.following.os.scandir", refuse)
        assert not study.refresh()
        assert not study.refresh()
    assert [line for line in caplog.messages if "Permission denied" in line] == caplog.messages
    assert len(caplog.messages) == 1
    assert states(study) == {"a": "complete"}


def test_a_table_that_vanishes_between_two_refreshes_costs_its_values(
    odd: Odd, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probes, "KEPT_ROWS", 0, raising=False)  # as if the tables were large
    study = FollowedStudy(folder := odd("a", "b"))
    (folder / "cells/b/probes.parquet").write_bytes(b"PAR1")
    assert [cell for cell, *_ in blocks(study)] == ["a"]
    assert study.refresh(), "the page must learn of it"
    assert "probes.parquet" in states(study)["b"]


def test_the_watcher_survives_any_error_and_tries_again(
    odd: Odd, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder = odd("a")
    watched = server._Watched(Studies([folder]))
    odd("b")
    with monkeypatch.context() as patched, caplog.at_level(logging.WARNING):
        patched.setattr(studies, "overview", lambda *_, **__: {}["of a race"])
        watched._refresh()
        watched._refresh()
    assert len(caplog.messages) == 1
    assert json.loads(watched.page)["counts"]["complete"] == 1
    watched._refresh()
    assert json.loads(watched.page)["counts"]["complete"] == 2


QUERIES = {
    "infinity": '[["a", Infinity, 0]]',
    "minus infinity": '[["a", 0, -Infinity]]',
    "NaN": '[["a", NaN, 0]]',
    "negative": '[["a", -1, 0]]',
    "a fraction": '[["a", 0.5, 0]]',
    "a text": '[["a", "0", "1"]]',
    "huge": f'[["a", {"9" * 400}, 0]]',
    "too long to read": f'[["a", {"9" * 5000}, 0]]',
    "a boolean": '[["a", true, false]]',
    "no cell": "[[1, 2, 3]]",
    "too few": '[["a", 1]]',
    "an object": '{"a": [0, 1]}',
    "a number": "5",
    "nothing": "null",
    "empty": "",
    "no JSON": "a,0,1",
    "deep": "[" * 20_000,
    "not Unicode": '[["\\ud800", 0.0, 0]]',
}


@pytest.fixture
def client(odd: Odd) -> TestClient:
    followed = Studies([odd("a")])
    return TestClient(application(followed, ("127.0.0.1",), "t"), base_url="http://127.0.0.1/t")


@pytest.mark.parametrize("have", QUERIES.values(), ids=QUERIES)
def test_a_wrong_query_is_refused_in_a_line(client: TestClient, have: str) -> None:
    answer = client.get("/values", params={**NORM._asdict(), "have": have})
    assert answer.status_code == 400
    assert answer.text.startswith("have=")
    assert answer.text.count("\n") == 1
    assert len(answer.text) < 200


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("had=Infinity", "unknown parameter 'had': choose from site, stat, batch, have"),
        ("", "no site is given"),
        ("site=adapter_grad&stat=norm", "no batch is given"),
        ("site=x&site=x&stat=norm&batch=train", "site is given 2 times"),
        ("site=adapter_grad&stat=norm&batch=train&have=[]&have=[]", "have is given 2 times"),
        ("site=adapter_grad&stat=step&batch=train", "unknown quantity 'adapter_grad step train'"),
        ("site=../../x&stat=%00&batch=%ff", "unknown quantity"),
        ("site=adapter_grad&stat=norm&batch=" + "x" * 50_000, "unknown quantity"),
    ],
)
def test_a_wrong_quantity_is_refused_in_a_line(client: TestClient, query: str, said: str) -> None:
    answer = client.get(f"/values?{query}")
    assert (answer.status_code, answer.text.count("\n")) == (400, 1)
    assert said in answer.text


@pytest.mark.parametrize(
    ("method", "path", "code"),
    [
        ("GET", "/overview?x=1&x=Infinity&%ff", 200),
        ("GET", "/?have=<script>", 200),
        ("GET", "/plotly.js?..%2f", 200),
        ("GET", "/../../etc/passwd", 404),
        ("GET", "/values/", 307),
        ("POST", "/values", 405),
        ("DELETE", "/overview", 405),
        ("PUT", "/", 405),
    ],
)
def test_other_requests(client: TestClient, method: str, path: str, code: int) -> None:
    answer = client.request(method, path, follow_redirects=False)
    assert answer.status_code == code
    assert "<script>" not in answer.text.split("<style>")[0]
    assert client.request(method, path, headers={"Host": "evil.example"}).status_code == 400


def test_a_question_for_a_cell_that_is_gone_is_answered(client: TestClient) -> None:
    have = json.dumps([["gone", 7, 2**53 - 1], ["a", 0, 1]])
    answer = client.get("/values", params={**NORM._asdict(), "have": have})
    assert answer.status_code == 200


def test_the_page_lists_unreadable_cells(offline: Any, odd: Odd, tmp_path: Path) -> None:
    folder = odd("a", "b", "c")
    (folder / "cells/b/record.json").write_text("<b>{")
    export([folder], tmp_path / "some.html")
    page = offline.open((tmp_path / "some.html").as_uri() + "#tab=cells")
    assert page.locator("#counts").inner_text().endswith("1 unreadable")
    row = page.locator("#cells tbody tr", has_text="unreadable").inner_text()
    assert "b" in row.split()
    assert "record.json" in row
    assert page.locator("#cells tbody tr").count() == 3
    assert page.locator("#tabs [data-tab=layers]").is_visible()
    assert offline.errors == []


def test_a_page_without_a_readable_cell_has_no_charts(
    offline: Any, odd: Odd, tmp_path: Path
) -> None:
    folder = odd("a")
    (folder / "cells/a/record.json").write_text("")
    export([folder], tmp_path / "none.html")
    page = offline.open((tmp_path / "none.html").as_uri() + "#tab=cells")
    assert not page.locator("#tabs [data-tab=layers]").is_visible()
    assert not page.locator("#choices").is_visible()
    page.locator("#cells th button", has_text="cell").click()
    page.locator("#theme").click()
    assert page.locator("#cells tbody tr").count() == 1
    assert offline.errors == []
