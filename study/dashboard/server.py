"""``study dashboard``: serve the page from this machine and follow the study while it trains.

The page requests ``progress`` and ``overview`` every second or two; an unchanged ETag makes the
latter cheap. Then it requests the steps that it lacks. All state is on disk, so an open page
continues when the server is restarted.
"""

import asyncio
import contextlib
import hmac
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import platformdirs
import psutil
import uvicorn
from starlette.applications import Starlette
from starlette.datastructures import QueryParams
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import (
    FileResponse,
    HTMLResponse,
    JSONResponse,
    PlainTextResponse,
    RedirectResponse,
    Response,
)
from starlette.routing import Mount, Route
from uvicorn.protocols.http.h11_impl import H11Protocol

from study.dashboard.ahead import Ahead, LookAhead, ahead_of, nothing_ahead
from study.dashboard.document import PLOTLY, live_document
from study.dashboard.overview import fingerprint
from study.dashboard.probes import Quantity
from study.dashboard.studies import Studies
from study.errors import StudyError, one_line, short, unknown

HAVE = "have"
PARAMETERS = (*Quantity._fields, HAVE)
"""The parameters of ``/values``."""
LARGEST = 2**53
"""The numbers that JavaScript can count to."""
MOST_NAMED = 3
"""Quantities that an answer names."""
MOST_BYTES_OF_A_QUERY = 1 << 20
"""For a page that has the values of 10 000 cells."""
LOCAL = ("127.0.0.1", "localhost")
EVERY_ADDRESS = "0.0.0.0"
MOST_CONNECTIONS = 48
"""At a time. A browser keeps up to six. The next ones are told that the server is busy."""
MOST_WAIT = 10.0
"""Seconds in which a connection must send a whole request."""
KEY_BYTES = 32
REFRESH_EVERY, REFRESH_AT_LEAST_EVERY = 1.0, 2.5
"""Seconds between refreshes. The pause is ten times as long as the refresh took, between these
limits, so that training is hardly slowed."""


def serve(
    folders: Sequence[Path],
    host: str,
    port: int,
    ready: Callable[[str, str], None],
    look_ahead: LookAhead = nothing_ahead,
) -> None:
    """Serve the studies in ``folders`` until interrupted. Port 0 means any free port.

    ``ready`` gets the address of the page, and one that leads there once: a browser's command line,
    which every user of the machine can read, may hold the second one. ``look_ahead`` says what
    running sweeps have still to train. Raises :class:`StudyError` if a folder holds no study, or
    if the address is not available.
    """
    once = secrets.token_urlsafe()
    token = token_of(folders)
    app = application(Studies(folders), hosts_of(host), token, look_ahead, once)
    listening = socket.socket()
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
        listening.listen()  # Before the application starts, so that an early browser waits.
    except OSError as error:
        raise StudyError(
            f"cannot serve on {host}:{port} ({error.strerror}): choose another --port or --host"
        ) from None
    address = f"http://{host}:{listening.getsockname()[1]}"
    ready(f"{address}/{token}/", f"{address}/?once={once}")
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            log_level="error",
            timeout_graceful_shutdown=1,
            limit_concurrency=MOST_CONNECTIONS,
            http=_Impatient,
            h11_max_incomplete_event_size=MOST_BYTES_OF_A_QUERY,
        )
    )
    with contextlib.suppress(KeyboardInterrupt):
        server.run(sockets=[listening])


def hosts_of(host: str) -> list[str]:
    """The Host headers of requests to this address.

    Another site could otherwise send a browser here under its own name (DNS rebinding).
    """
    if host in LOCAL:
        return [*LOCAL]
    if host != EVERY_ADDRESS:
        return [host, *LOCAL]
    addresses = [one.address for found in psutil.net_if_addrs().values() for one in found]
    return [EVERY_ADDRESS, *LOCAL, socket.gethostname(), socket.getfqdn(), *addresses]


def token_of(folders: Sequence[Path]) -> str:
    """The secret part of the address of these studies, for those to whom the user shows it.

    It is the same at the next start, so that an open page continues.
    """
    named = "\n".join(str(folder.resolve()) for folder in folders)
    return hmac.new(_key_of_user(), named.encode(), "sha256").hexdigest()[:40]


def _key_of_user() -> bytes:
    """A random key that only this user can read; a new one if it can't be kept."""
    path = platformdirs.user_state_path("study") / "dashboard-key"
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            new = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with open(new, "wb") as file:
                file.write(secrets.token_bytes(KEY_BYTES))
        key = path.read_bytes()
        if len(key) == KEY_BYTES:
            return key
    return secrets.token_bytes(KEY_BYTES)


class _Impatient(H11Protocol):
    """Closes a connection that sends no whole request in time; uvicorn alone waits for ever."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._expect_a_request()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._expect_a_request()

    def _expect_a_request(self) -> None:
        self.loop.call_later(MOST_WAIT, self._close_unless_asked, self.cycle)

    def _close_unless_asked(self, last: object) -> None:
        if self.cycle is last:
            self.transport.close()


def application(
    studies: Studies,
    hosts: Sequence[str],
    token: str,
    look_ahead: LookAhead = nothing_ahead,
    once: str = "",
) -> Starlette:
    """The ASGI application below ``/token/``, for requests whose Host header is in ``hosts``.

    ``/?once=<once>`` leads there, one time.
    """
    watched = _Watched(studies, look_ahead)

    def page(request: Request) -> Response:
        return HTMLResponse(live_document(f"{studies.title}: dashboard"))

    def plotly(request: Request) -> Response:
        day = {"Cache-Control": "max-age=86400"}
        return FileResponse(PLOTLY, media_type="text/javascript", headers=day)

    def overview_(request: Request) -> Response:
        headers = {"ETag": f'"{watched.etag}"', "Cache-Control": "no-cache"}
        if watched.etag in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=headers)
        return Response(watched.page, media_type="application/json", headers=headers)

    def progress(request: Request) -> Response:
        return JSONResponse(watched.progress(), headers={"Cache-Control": "no-store"})

    def values(request: Request) -> Response:
        try:
            quantity, have = values_query(request.query_params)
            found = watched.values(quantity, have)
        except StudyError as error:
            return PlainTextResponse(f"{error}\n", status_code=400)
        return Response(found, media_type="application/octet-stream")

    unused = {once} - {""}

    async def enter(request: Request) -> Response:
        asked = request.query_params.get("once", "")
        if asked not in unused:
            return nothing_here(request, None)
        unused.discard(asked)
        return RedirectResponse(f"/{token}/")

    pages = [
        Route("/", page),
        Route("/plotly.js", plotly),
        Route("/overview", overview_),
        Route("/progress", progress),
        Route("/values", values),
    ]
    guards = [
        Middleware(TrustedHostMiddleware, allowed_hosts=list(hosts), www_redirect=False),
        Middleware(GZipMiddleware, compresslevel=1),
    ]
    return Starlette(
        routes=[Route("/", enter), Mount(f"/{token}", routes=pages)],
        middleware=guards,
        lifespan=watched.lifespan,
        exception_handlers={404: nothing_here},
    )


def nothing_here(request: Request, error: Exception | None) -> Response:
    """The answer to a request without the token."""
    text = "Open the address that study dashboard printed: it ends with a token.\n"
    return PlainTextResponse(text, status_code=404)


def values_query(query: QueryParams) -> tuple[Quantity, dict[str, tuple[int, int]]]:
    """The quantity that ``/values`` is asked for, and by cell what the page has: the revision and
    the number of steps.

    Raises :class:`StudyError` for anything else.
    """
    names = [name for name, _ in query.multi_items()]
    for name in names:
        if name not in PARAMETERS:
            raise unknown("parameter", name, PARAMETERS)
        if names.count(name) > 1:
            raise StudyError(f"{name} is given {names.count(name)} times: give it once")
    for name in Quantity._fields:
        if name not in query:
            raise StudyError(f"no {name} is given: /overview lists the quantities")
    try:
        have = json.loads(query.get(HAVE, "[]"))
    except (ValueError, RecursionError):
        have = None
    if not isinstance(have, list) or not all(map(_is_entry, have)):
        raise StudyError(f"{HAVE}={short(query[HAVE])}: give [[cell, revision, steps], ...]")
    return Quantity(*(query[name] for name in Quantity._fields)), {c: (r, s) for c, r, s in have}


def _is_entry(entry: Any) -> bool:
    """Whether ``entry`` is ``[cell, revision, steps]``. A boolean is no number here."""
    return (
        isinstance(entry, list)
        and [type(part) for part in entry] == [str, int, int]
        and all(0 <= number < LARGEST for number in entry[1:])
    )


class _Watched:
    """Studies and their overview, refreshed in a thread while the application runs."""

    def __init__(self, studies: Studies, look_ahead: LookAhead = nothing_ahead) -> None:
        self.studies, self.look_ahead = studies, look_ahead
        self.lock = threading.Lock()
        self.outdated = False
        self.ahead, self.looked_at = Ahead(), time.monotonic()
        self._describe()
        self._look()

    @contextlib.asynccontextmanager
    async def lifespan(self, app: Starlette) -> AsyncIterator[None]:
        """Refresh for as long as the application runs."""
        watching = asyncio.create_task(self._watch())
        yield
        watching.cancel()

    def values(self, quantity: Quantity, have: dict[str, tuple[int, int]]) -> bytes:
        """Raises :class:`StudyError` for a quantity that no cell measured."""
        with self.lock:
            if quantity not in (measured := self.studies.quantities()):
                raise unknown("quantity", " ".join(quantity), map(" ".join, measured[:MOST_NAMED]))
            return self.studies.values_message(quantity, have)

    def progress(self) -> dict[str, Any]:
        """What sweeps have still to train as of now."""
        left = self.ahead.seconds_left
        if left is not None:
            left = max(0.0, left - (time.monotonic() - self.looked_at))
        return {"waiting": self.ahead.waiting, "seconds_left": left}

    async def _watch(self) -> None:
        while True:
            began = time.monotonic()
            await asyncio.to_thread(self._refresh)
            pause = max(REFRESH_EVERY, 10 * (time.monotonic() - began))
            await asyncio.sleep(min(pause, REFRESH_AT_LEAST_EVERY))

    def _refresh(self) -> None:
        """An error leaves the page as it was, and the next refresh tries again."""
        with self.lock:
            try:
                self.outdated |= self.studies.refresh()
                if self.outdated:
                    self._describe()
                    self.outdated = False
                self._look()
            except Exception as error:  # A file may change or vanish at any moment.
                self.studies.log(f"can't refresh the page ({one_line(error)}): trying again")

    def _look(self) -> None:
        folders = [study.folder for study in self.studies.followed]
        self.ahead, self.looked_at = ahead_of(folders, self.look_ahead), time.monotonic()

    def _describe(self) -> None:
        page = self.studies.overview(live=True)
        self.page, self.etag = json.dumps(page, allow_nan=False).encode(), fingerprint(page)
