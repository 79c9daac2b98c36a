"""``study dashboard``: serve the page from this machine and follow the study while it trains.

The page requests ``overview`` every second or two; an unchanged ETag makes that cheap. Then it
requests the steps that it lacks. All state is on disk, so an open page continues when the server is
restarted.
"""

import asyncio
import contextlib
import json
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import uvicorn
from plotly.offline import get_plotlyjs
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from study.dashboard.document import live_document
from study.dashboard.following import FollowedStudy
from study.dashboard.overview import fingerprint, overview
from study.dashboard.probes import Quantity
from study.dashboard.verdicts import Verdicts
from study.errors import StudyError

LOCAL = ("127.0.0.1", "localhost")
REFRESH_EVERY, REFRESH_AT_LEAST_EVERY = 1.0, 2.5
"""Seconds between refreshes. The pause is ten times as long as the refresh took, between these
limits, so that training is hardly slowed."""


def serve(study_dir: Path, host: str, port: int, ready: Callable[[str], None]) -> None:
    """Serve until interrupted. ``ready`` gets the address. Port 0 means any free port.

    Raises :class:`StudyError` if the folder holds no study, or if the address is not available.
    """
    app = application(FollowedStudy(study_dir), LOCAL if host in LOCAL else ("*",))
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
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1))
    with contextlib.suppress(KeyboardInterrupt):
        server.run(sockets=[listening])


def application(study: FollowedStudy, hosts: tuple[str, ...]) -> Starlette:
    """The ASGI application. It answers only requests whose Host header is in ``hosts``.

    Otherwise another site could read the study by resolving its own name to this machine (DNS
    rebinding).
    """
    watched = _Watched(study)

    def page(request: Request) -> Response:
        return HTMLResponse(live_document(f"{study.folder.resolve().name}: dashboard"))

    def plotly(request: Request) -> Response:
        return Response(
            get_plotlyjs(), media_type="text/javascript", headers={"Cache-Control": "max-age=86400"}
        )

    def overview_(request: Request) -> Response:
        headers = {"ETag": f'"{watched.etag}"', "Cache-Control": "no-cache"}
        if watched.etag in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=headers)
        return Response(watched.page, media_type="application/json", headers=headers)

    def values(request: Request) -> Response:
        query = request.query_params
        quantity = Quantity(*(query.get(name, "") for name in Quantity._fields))
        try:
            have = {
                cell: (int(revision), int(steps))
                for cell, revision, steps in json.loads(query.get("have", "[]"))
            }
        except (ValueError, TypeError):
            return Response("expected have=[[cell, revision, steps], ...]", status_code=400)
        return Response(watched.values(quantity, have), media_type="application/octet-stream")

    routes = [
        Route("/", page),
        Route("/plotly.js", plotly),
        Route("/overview", overview_),
        Route("/values", values),
    ]
    guards = [
        Middleware(TrustedHostMiddleware, allowed_hosts=list(hosts)),
        Middleware(GZipMiddleware, compresslevel=1),
    ]
    return Starlette(routes=routes, middleware=guards, lifespan=watched.lifespan)


class _Watched:
    """A study and its overview, refreshed in a thread while the application runs."""

    def __init__(self, study: FollowedStudy) -> None:
        self.study, self.verdicts = study, Verdicts()
        self.lock = threading.Lock()
        self._describe()

    @contextlib.asynccontextmanager
    async def lifespan(self, app: Starlette) -> AsyncIterator[None]:
        """Refresh for as long as the application runs."""
        watching = asyncio.create_task(self._watch())
        yield
        watching.cancel()

    def values(self, quantity: Quantity, have: dict[str, tuple[int, int]]) -> bytes:
        with self.lock:
            return self.study.values_message(quantity, have)

    async def _watch(self) -> None:
        while True:
            began = time.monotonic()
            await asyncio.to_thread(self._refresh)
            pause = max(REFRESH_EVERY, 10 * (time.monotonic() - began))
            await asyncio.sleep(min(pause, REFRESH_AT_LEAST_EVERY))

    def _refresh(self) -> None:
        with self.lock:
            if self.study.refresh():
                self._describe()

    def _describe(self) -> None:
        page = overview(self.study, self.verdicts, live=True)
        self.page, self.etag = json.dumps(page, allow_nan=False).encode(), fingerprint(page)
