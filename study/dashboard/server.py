"""``study dashboard``: serve the page from this machine and follow the study while it trains.

The page requests ``progress`` and ``overview`` every second or two; an unchanged ETag makes the
latter cheap. Then it requests the steps that it lacks. All state is on disk, so an open page
continues when the server is restarted.
"""

import asyncio
import contextlib
import json
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import uvicorn
from plotly.offline import get_plotlyjs
from starlette.applications import Starlette
from starlette.datastructures import QueryParams
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from study.dashboard.ahead import Ahead, LookAhead, ahead_of, nothing_ahead
from study.dashboard.document import live_document
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
REFRESH_EVERY, REFRESH_AT_LEAST_EVERY = 1.0, 2.5
"""Seconds between refreshes. The pause is ten times as long as the refresh took, between these
limits, so that training is hardly slowed."""


def serve(
    folders: Sequence[Path],
    host: str,
    port: int,
    ready: Callable[[str], None],
    look_ahead: LookAhead = nothing_ahead,
) -> None:
    """Serve the studies in ``folders`` until interrupted. Port 0 means any free port.

    ``ready`` gets the address. ``look_ahead`` says what running sweeps have still to train. Raises
    :class:`StudyError` if a folder holds no study, or if the address is not available.
    """
    app = application(Studies(folders), LOCAL if host in LOCAL else ("*",), look_ahead)
    listening = socket.socket()
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
        listening.listen()  # Before the application starts, so that an early browser waits.
    except OSError as error:
        raise StudyError(
            f"cannot serve on {host}:{port} ({error.strerror}): choose another --port or --host"
        ) from None
    ready(f"http://{host}:{listening.getsockname()[1]}/")
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            log_level="warning",
            timeout_graceful_shutdown=1,
            http="h11",
            h11_max_incomplete_event_size=MOST_BYTES_OF_A_QUERY,
        )
    )
    with contextlib.suppress(KeyboardInterrupt):
        server.run(sockets=[listening])


def application(
    studies: Studies, hosts: tuple[str, ...], look_ahead: LookAhead = nothing_ahead
) -> Starlette:
    """The ASGI application. It answers only requests whose Host header is in ``hosts``.

    Otherwise another site could read the study by resolving its own name to this machine (DNS
    rebinding).
    """
    watched = _Watched(studies, look_ahead)

    def page(request: Request) -> Response:
        return HTMLResponse(live_document(f"{studies.title}: dashboard"))

    def plotly(request: Request) -> Response:
        return Response(
            get_plotlyjs(), media_type="text/javascript", headers={"Cache-Control": "max-age=86400"}
        )

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

    routes = [
        Route("/", page),
        Route("/plotly.js", plotly),
        Route("/overview", overview_),
        Route("/progress", progress),
        Route("/values", values),
    ]
    guards = [
        Middleware(TrustedHostMiddleware, allowed_hosts=list(hosts)),
        Middleware(GZipMiddleware, compresslevel=1),
    ]
    return Starlette(routes=routes, middleware=guards, lifespan=watched.lifespan)


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
