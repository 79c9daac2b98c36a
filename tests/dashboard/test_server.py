"""The server over HTTP: who gets an answer, how long a client may wait, and what it costs."""

import http.client
import json
import shutil
import socket
import time
from urllib.parse import urlsplit

import pytest
from starlette.testclient import TestClient

from study.dashboard import server
from study.errors import StudyError

from .conftest import PATIENCE, written


@pytest.fixture
def small(tmp_path):
    return written(tmp_path / "odd", "a", "b")


def answer(address, path):
    """The status and the body of a request to the server at ``address``."""
    place = urlsplit(address)
    connection = http.client.HTTPConnection("127.0.0.1", place.port, timeout=PATIENCE)
    connection.request("GET", path, headers={"Accept-Encoding": "identity"})
    response = connection.getresponse()
    found = response.status, response.read()
    connection.close()
    return found


def test_only_the_whole_address_shows_the_study_which_may_be_damaged_deleted_and_made_again(
    servers, tmp_path
):
    folder = written(tmp_path / "odd", "a")
    address = servers.start(folder)
    token = urlsplit(address).path
    assert len(token) > 30
    for page in ("", "overview", "plotly.js", "progress"):
        assert answer(address, token + page)[0] == 200
        status, said = answer(address, f"/{page}")
        assert status == 404
        assert said == b"Open the address that study dashboard printed: it ends with a token.\n"
    assert answer(address, token.upper())[0] == 404
    [key] = servers.state.rglob("dashboard-key")
    assert key.stat().st_mode & 0o777 == 0o600

    def until(status, number):
        deadline = time.monotonic() + PATIENCE
        while True:
            [shown] = json.loads(answer(address, f"{token}overview")[1])["pages"]
            if shown["counts"][status] == number:
                return
            assert time.monotonic() < deadline, shown["counts"]
            time.sleep(0.2)

    written(folder, "b")
    until("complete", 2)
    (folder / "cells/b/record.json").write_text("{")
    until("unreadable", 1)
    shutil.rmtree(folder)
    until("complete", 0)
    written(folder, "c", "d", "e")
    until("complete", 3)


def test_without_a_stored_key_every_start_has_another_token(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    (tmp_path / "study").write_text("no key can be stored")
    assert server.token_of([tmp_path]) != server.token_of([tmp_path])


def test_a_key_that_other_users_can_read_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    token = server.token_of([tmp_path])
    assert server.token_of([tmp_path]) == token
    [key] = tmp_path.rglob("dashboard-key")
    key.chmod(0o644)
    with pytest.raises(StudyError, match=r"other users can read .*: delete it"):
        server.token_of([tmp_path])


def test_a_page_is_there_before_the_first_cell_and_names_no_address_to_others(servers, tmp_path):
    folder = tmp_path / "live"
    folder.mkdir()
    address = urlsplit(servers.start(folder, first="import logging"))
    connection = http.client.HTTPConnection("127.0.0.1", address.port, timeout=PATIENCE)
    connection.request("GET", address.path)
    response = connection.getresponse()
    assert (response.status, response.getheader("Referrer-Policy")) == (200, "no-referrer")
    connection.close()

    def counts():
        _, text = answer(address.geturl(), f"{address.path}overview")
        return json.loads(text)["pages"][0]["counts"]

    assert not any(counts().values())
    written(folder, "a")
    deadline = time.monotonic() + PATIENCE
    while counts().get("complete") != 1:
        assert time.monotonic() < deadline
        time.sleep(0.2)


@pytest.fixture
def client(small):
    app = server.application([small], "t")
    return TestClient(app, base_url="http://127.0.0.1/t")


def test_an_overview_is_sent_only_with_news(client):
    first = client.get("/overview")
    assert first.json()["pages"][0]["counts"]["complete"] == 2
    again = client.get("/overview", headers={"If-None-Match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")


def test_a_quantity_that_was_not_measured_is_refused_in_a_line(client):
    for query in ("", "site=../../x&stat=%00&batch=%ff", "site=x&site=y&stat=z"):
        answer = client.get(f"/values?{query}")
        assert (answer.status_code, answer.text.count("\n")) == (400, 1)
        assert "unknown quantity" in answer.text


def test_a_taken_port_is_a_one_line_error(small):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(StudyError, match=f"cannot serve on 127.0.0.1:{port}"):
            server.serve([small], "127.0.0.1", port, lambda *shown: pytest.fail(str(shown)))
