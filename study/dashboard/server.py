"""``study dashboard``: the page served from this machine, following the study while it is trained.

The page asks for ``overview`` every second or two, which costs nothing while its ETag holds, and then for the steps
that it does not have. All state is on disk, so a server that was stopped is started again under an open page.
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
from study.dashboard.following import Following
from study.dashboard.overview import fingerprint, overview
from study.dashboard.probes import Quantity
from study.dashboard.verdicts import Verdicts
from study.errors import StudyError

LOCAL = ("127.0.0.1", "localhost")
LOOK_EVERY, LOOK_AT_LEAST_EVERY = 1.0, 2.5
"""Seconds between looks at the disk; where a look takes long, ten times as long, so that training is hardly slowed."""


def serve(study_dir: Path, host: str, port: int, ready: Callable[[str], None]) -> None:
    """Serve until interrupted; ``ready`` is told the address. Port 0 is any free one.

    Raises :class:`StudyError` where the folder holds no study or the address can't be had.
    """
    app = application(Following(study_dir), LOCAL if host in LOCAL else ("*",))
    listening = socket.socket()
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
        listening.listen()  # now, so that a browser that is quicker than the application waits for it
    except OSError as error:
        raise StudyError(
            f"can't serve on {host}:{port} ({error.strerror}): choose another --port or --host"
        ) from None
    ready(f"http://{host}:{listening.getsockname()[1]}/")
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1))
    with contextlib.suppress(KeyboardInterrupt):
        server.run(sockets=[listening])


def application(study: Following, hosts: tuple[str, ...]) -> Starlette:
    """The ASGI application. Only requests that name one of ``hosts`` are answered, so that no other site's page can
    read a study by pointing its own name at this machine."""
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
        asked = request.query_params
        quantity = Quantity(*(asked.get(name, "") for name in Quantity._fields))
        try:
            had = {
                cell: (int(revision), int(steps))
                for cell, revision, steps in json.loads(asked.get("had", "[]"))
            }
        except (ValueError, TypeError):
            return Response("had=[[cell, revision, steps], ...]", status_code=400)
        return Response(watched.values(quantity, had), media_type="application/octet-stream")

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
    """A followed study and its overview, kept up to date from a thread while the application runs."""

    def __init__(self, study: Following) -> None:
        self.study, self.verdicts = study, Verdicts()
        self.lock = threading.Lock()
        self._describe()

    @contextlib.asynccontextmanager
    async def lifespan(self, app: Starlette) -> AsyncIterator[None]:
        """Look at the disk now and then, for as long as the application runs."""
        watching = asyncio.create_task(self._watch())
        yield
        watching.cancel()

    def values(self, quantity: Quantity, had: dict[str, tuple[int, int]]) -> bytes:
        with self.lock:
            return self.study.message(quantity, had)

    async def _watch(self) -> None:
        while True:
            began = time.monotonic()
            await asyncio.to_thread(self._look)
            await asyncio.sleep(
                min(max(LOOK_EVERY, 10 * (time.monotonic() - began)), LOOK_AT_LEAST_EVERY)
            )

    def _look(self) -> None:
        with self.lock:
            if self.study.look():
                self._describe()

    def _describe(self) -> None:
        page = overview(self.study, self.verdicts, live=True)
        self.page, self.etag = json.dumps(page, allow_nan=False).encode(), fingerprint(page)
