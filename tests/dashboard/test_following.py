"""Following a study on disk, and the application that serves it, without a browser."""

import builtins
import itertools
import json
import math
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from matplotlib.colors import to_hex
from starlette.testclient import TestClient

import study
from study import cli
from study.dashboard import following, probes
from study.dashboard.following import FollowedStudy
from study.dashboard.overview import configuration, overview
from study.dashboard.probes import Quantity
from study.dashboard.server import application
from study.dashboard.studies import Studies
from study.dashboard.verdicts import Verdicts
from study.errors import StudyError
from study.figures import style
from study.figures.selection import Rule
from study.store import CellWriter
from study.vocabulary.quantities import MOMENTS, TRAIN

NORM = Quantity("adapter_grad", "norm", TRAIN)
LAYER = "model.layers.0.q_proj"


def header(message: bytes) -> dict[str, Any]:
    length = int.from_bytes(message[:4], "little")
    return json.loads(message[4 : 4 + length])


@pytest.mark.parametrize("kept_rows", [probes.KEPT_ROWS, 0], ids=["small", "large"])
def test_a_finished_cell_is_never_read_again(
    kept_rows: int,
    by_hand: Callable[..., CellWriter],
    one_step: Callable[..., None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(probes, "KEPT_ROWS", kept_rows)
    done, running = by_hand("done", rank=4), by_hand("running", rank=8)
    for writer in (done, running):
        one_step(writer, 0, {LAYER: 1.0})
    done.close("complete", steps_done=0)
    followed = FollowedStudy(tmp_path / "results/odd")
    fitted = Verdicts()
    overview(followed, fitted, live=True)
    followed.values_message(NORM, {})

    read: list[str] = []
    for module in (following, probes):
        whole = module.load_cell_table

        def watched(folder: Path, *rest: Any, whole: Any = whole, **named: Any) -> Any:
            read.append(folder.name)
            return whole(folder, *rest, **named)

        monkeypatch.setattr(module, "load_cell_table", watched)
    assert not followed.refresh()
    one_step(running, 1, {LAYER: 2.0})
    assert followed.refresh()
    overview(followed, fitted, live=True)
    message = header(followed.values_message(NORM, {"done": (0, 1), "running": (0, 1)}))
    assert set(read) == {"running"}
    assert [(block["cell"], block["start"], block["steps"]) for block in message["blocks"]] == [
        ("running", 1, [1])
    ]
    running.close("complete", steps_done=1)
    assert followed.refresh()
    assert (
        header(followed.values_message(NORM, {"done": (0, 1), "running": (0, 2)}))["blocks"] == []
    ), "the cell ended without new steps"


def test_cells_packed_together_are_those_packed_alone(
    by_hand: Callable[..., CellWriter],
    one_step: Callable[..., None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two layouts, a value that is not finite, a layer that one cell lacks, and large tables."""
    other = "model.layers.1.q_proj"
    for n, name in enumerate(("aa", "bb", "cc", "dd", "ee")):
        writer = by_hand(name, rank=4 + n)
        for step in range(2 + (n == 2)):
            one_step(writer, step, {LAYER: 10.0 ** (n - step), other: math.nan})
        writer.close("complete", steps_done=1)
    study_dir = tmp_path / "results/odd"
    quantity = Quantity("adapter_out", "rms", TRAIN)
    messages = []
    for kept, together in ((2000, 1 << 20), (2000, 1), (0, 1 << 20)):
        monkeypatch.setattr(probes, "KEPT_ROWS", kept)
        monkeypatch.setattr(following, "PACKED_TOGETHER", together)
        followed = FollowedStudy(study_dir)
        followed.instance = "same"
        messages += [followed.values_message(quantity, {}), followed.values_message(NORM, {})]
        assert len({id(cell.probes.layout) for cell in followed.followed.values()}) == 2
    assert messages[:2] == messages[2:4] == messages[4:]
    assert [len(b["steps"]) for b in header(messages[0])["blocks"]] == [2, 2, 3, 2, 2]


def test_a_restarted_cell_is_sent_again_from_the_start(
    by_hand: Callable[..., CellWriter], one_step: Callable[..., None], tmp_path: Path
) -> None:
    writer = by_hand("aaa")
    for step in range(3):
        one_step(writer, step, {LAYER: 1.0})
    writer.close("failed", steps_done=2)
    followed = FollowedStudy(tmp_path / "results/odd")
    one_step(by_hand("aaa"), 0, {LAYER: 9.0})
    assert followed.refresh()
    assert [
        (b["revision"], b["start"], b["steps"])
        for b in header(followed.values_message(NORM, {"aaa": (0, 3)}))["blocks"]
    ] == [(1, 0, [0])]


def test_verdicts_equal_those_of_the_analysis(trained: Path) -> None:
    tables = study.load(trained)
    found = study.analysis.analyze(tables.cells, tables.metrics, tables.probes)
    whole = study.analysis.headline(found.exponents)
    rows, note, *_ = Verdicts().of(FollowedStudy(trained))
    columns = ["optimizer", "rule", "quantity", "batch", "step", "estimate", "verdict"]
    columns += ["seeds", "ranks"]
    assert note == ""
    assert set(whole["batch"]) == {"train", "heldout"}
    assert rows.reset_index(drop=True)[columns].astype(str).equals(whole[columns].astype(str))
    assert rows["predicted"].to_numpy(float) == pytest.approx(
        whole["predicted"].to_numpy(float), nan_ok=True
    )


def test_a_word_on_held_out_inputs_is_corrected_as_in_the_analysis(
    by_hand: Callable[..., CellWriter], tmp_path: Path
) -> None:
    """It is one of the many words on these inputs, of which the page shows two."""
    draw = np.random.default_rng(0)
    for rank, seed in itertools.product((4, 16, 64), range(3)):
        writer = by_hand(f"{rank}-{seed}", rank=rank, seed=seed)
        where = {"step": 5, "layer": LAYER, "block": 0, "kind": "q_proj", "nonfinite": 0.0}
        rows = [
            where
            | {"site": site, "batch": batch, "d_in": 8, "d_out": 8}
            | {stat: rank**-0.1 * math.exp(0.03 * draw.standard_normal()) for stat in MOMENTS}
            for site in ("adapter_out", "adapter_in", "layer_out")
            for batch in ("train", "heldout")
        ]
        writer.append("probes", pd.DataFrame(rows))
        writer.append("metrics", pd.DataFrame([{"step": 5, "tokens": 9, "loss": 2.0, "lr": 1e-4}]))
        writer.close("complete", steps_done=5)
    tables = study.load(tmp_path / "results/odd")
    whole = study.analysis.headline(
        study.analysis.analyze(tables.cells, tables.metrics, tables.probes).exponents
    )
    rows = Verdicts().of(FollowedStudy(tmp_path / "results/odd")).rows
    p_values = ["p_stable", "p_slope", "p_beyond"]
    assert list(rows["batch"]) == list(whole["batch"]) == ["heldout", "train"]
    assert rows[p_values].to_numpy() == pytest.approx(whole[p_values].to_numpy(), rel=1e-9)


def test_the_main_settings_are_one_short_line_and_the_rest_is_elsewhere(
    trained: Path, jsonl: Path
) -> None:
    found = overview(FollowedStudy(trained), Verdicts(), live=False)["configuration"]
    assert found["main"] == [
        *("model tiny", f"data {jsonl}", "2 steps", "batch size 2", "AdamW, SGD"),
        *("learning rate 0.0001, 0.01, 1e+30", "alpha 16", "init kaiming", "targets all-linear"),
        *("float32", "seed 0, 1"),
    ]
    assert found["rest"]["sequence_length"] == "24"
    assert {"model_sha256", "probes_every"} < set(found["rest"])
    assert not {"model", "lr", "rank"} & set(found["rest"])


def test_many_values_of_a_setting_are_counted(trained: Path) -> None:
    cells = FollowedStudy(trained).cells().assign(seed=range(20))
    assert "seed 20 values from 0 to 19" in configuration(cells)["main"]


def test_a_note_says_why_there_are_no_verdicts(
    by_hand: Callable[..., CellWriter], tmp_path: Path
) -> None:
    writer = by_hand("aaa")
    page = overview(FollowedStudy(tmp_path / "results/odd"), Verdicts(), live=True)
    assert page["verdicts"] == []
    assert "two ranks" in page["verdict_notes"][0]
    json.dumps(page, allow_nan=False)
    writer.close("failed", error="x")


def test_no_study_is_a_one_line_error(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="no study in"):
        FollowedStudy(tmp_path)


def test_the_server_answers_only_for_its_own_name_and_only_with_news(trained: Path) -> None:
    with TestClient(
        application(Studies([trained]), ("127.0.0.1",), "t"), base_url="http://127.0.0.1/t"
    ) as client:
        first = client.get("/overview")
        assert first.json()["counts"]["complete"] == 18
        again = client.get("/overview", headers={"If-None-Match": first.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")
        assert client.get("/overview", headers={"Host": "evil.example"}).status_code == 400
        assert client.get("/values", params={"have": "no"}).status_code == 400
        message = client.get("/values", params=NORM._asdict()).content
        assert len(header(message)["blocks"]) == 20
        assert "plotly.js v" in client.get("/plotly.js").text[:200]
        assert client.get("/").text.startswith("<!doctype html>")


def test_serving_to_other_machines_prints_a_warning(
    trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from study.dashboard import server

    asked: list[Any] = []
    monkeypatch.setattr(server, "serve", lambda *arguments: asked.append(arguments[:3]))
    quiet = CliRunner().invoke(cli.cli, ["dashboard", str(trained)])
    loud = CliRunner().invoke(
        cli.cli, ["dashboard", str(trained), "--host", "0.0.0.0", "--port", "8080"]
    )
    assert asked == [((trained,), "127.0.0.1", 0), ((trained,), "0.0.0.0", 8080)]
    assert quiet.output == ""
    assert "warning: anyone who reaches 0.0.0.0 and has the whole address" in loud.output


def test_a_missing_extra_is_a_one_line_error(
    trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name.partition(".")[0] == "uvicorn":
            raise ModuleNotFoundError("No module named 'uvicorn'", name="uvicorn")
        return real(name, *rest)

    monkeypatch.delitem(sys.modules, "study.dashboard.server")
    monkeypatch.setattr(builtins, "__import__", without)
    result = CliRunner().invoke(cli.cli, ["dashboard", str(trained)])
    assert isinstance(result.exception, StudyError)
    assert str(result.exception) == "study dashboard needs uvicorn: pip install '.[dashboard]'"


def test_a_taken_port_is_a_one_line_error(trained: Path) -> None:
    from study.dashboard.server import serve

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(StudyError, match=f"cannot serve on 127.0.0.1:{port}"):
            serve([trained], "127.0.0.1", port, lambda *address: pytest.fail(str(address)))


def test_a_rule_has_the_colours_of_the_figures(trained: Path) -> None:
    rules = {
        rule["id"]: rule
        for rule in overview(FollowedStudy(trained), Verdicts(), live=False)["rules"]
    }
    for scaling, p in (("lora", 1.0), ("rslora", 0.5)):
        drawn = {
            r: to_hex(style.shade(Rule.of(scaling, p), r, [2.0, 4.0, 8.0])) for r in (2.0, 4.0, 8.0)
        }
        assert rules[f"{scaling} p={p:g}"]["shades"]["light"] == {
            f"{rank:g}": shade for rank, shade in drawn.items()
        }
