"""The server over HTTP: who gets an answer, how long a client may wait, and what it costs."""

import http.client
import re
import socket
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
import pytest

from study.dashboard import server

CLIENTS = 120
OTHER = "evil.example"


def answer(address: str, path: str, host: str = "") -> tuple[int, bytes]:
    """The status and the body of a request to the server at ``address``."""
    place = urlsplit(address)
    connection = http.client.HTTPConnection("127.0.0.1", place.port, timeout=60)
    headers = {"Host": host or f"127.0.0.1:{place.port}", "Accept-Encoding": "gzip"}
    connection.request("GET", path, headers=headers)
    response = connection.getresponse()
    found = response.status, response.read()
    connection.close()
    return found


def test_only_the_whole_address_shows_the_study(servers: Any, trained: Path) -> None:
    address = servers.start(trained)
    token = urlsplit(address).path
    assert len(token) > 30
    for page in ("", "overview", "plotly.js", "progress"):
        assert answer(address, token + page)[0] == 200
        status, said = answer(address, f"/{page}")
        assert status == 404
        assert said == b"Open the address that study dashboard printed: it ends with a token.\n"
    assert answer(address, token.upper())[0] == 404
    servers.stop()
    again = servers.start(trained, "--port", str(urlsplit(address).port))
    assert again == address, "an open page goes on"
    [key] = servers.state.rglob("dashboard-key")
    assert key.stat().st_mode & 0o777 == 0o600


def test_other_names_of_the_machine_are_refused(servers: Any, trained: Path) -> None:
    address = servers.start(trained, "--host", "0.0.0.0")
    page = urlsplit(address).path
    for host in ("127.0.0.1", "localhost:8000", socket.gethostname(), "0.0.0.0"):
        assert answer(address, page, host)[0] == 200
    assert answer(address, page, OTHER)[0] == 400


def test_a_client_that_sends_no_request_is_closed(servers: Any, trained: Path) -> None:
    """One that says nothing, one that stops within its headers, and one after an answer."""
    address = servers.start(trained)
    begun = f"GET {urlsplit(address).path} HTTP/1.1\r\nHost: 127.0.0.1\r\n".encode()
    for said in (b"", begun, begun + b"\r\n" + begun):
        with socket.create_connection(("127.0.0.1", urlsplit(address).port)) as client:
            client.sendall(said)
            client.settimeout(server.MOST_WAIT + 20)
            began = time.monotonic()
            while client.recv(1 << 16):
                pass
            assert time.monotonic() - began < server.MOST_WAIT + 10


def test_many_requests_at_once_cost_little_memory(servers: Any, trained: Path) -> None:
    address = servers.start(trained)
    page = urlsplit(address).path
    answer(address, f"{page}plotly.js")
    [process] = servers.running
    before = peak(process.pid)
    with ThreadPoolExecutor(CLIENTS) as pool:
        found = list(pool.map(lambda _: answer(address, f"{page}plotly.js")[0], range(CLIENTS)))
    assert set(Counter(found)) <= {200, 503}
    assert answer(address, page)[0] == 200
    assert peak(process.pid) - before < 100, "MB; 480 without a limit"


def peak(pid: int) -> float:
    """MB of memory that a process had at most."""
    if not psutil.LINUX:
        pytest.skip("reads /proc")
    status = Path(f"/proc/{pid}/status").read_text()
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert found
    return int(found[1]) / 1024


def test_the_address_for_the_browser_works_once(trained: Path) -> None:
    from starlette.testclient import TestClient

    from study.dashboard.studies import Studies

    app = server.application(Studies([trained]), ["127.0.0.1"], "secret", once="abc")
    client = TestClient(app, base_url="http://127.0.0.1", follow_redirects=False)
    assert client.get("/?once=ab").status_code == 404
    first = client.get("/?once=abc")
    assert (first.status_code, first.headers["location"]) == (307, "/secret/")
    assert client.get("/?once=abc").status_code == 404
