"""``study dashboard``: serve the page from this machine and follow the study while it trains.

The page requests ``progress`` and ``overview`` every second or two; an unchanged ETag makes the
latter cheap. Then it requests the values of the quantity that it shows. All state is on disk, so an
open page continues when the server is restarted.
"""

import asyncio
import contextlib
import hmac
import logging
import secrets
import socket
import time
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

import platformdirs
import uvicorn
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Mount, Route

from study.dashboard.document import PLOTLY, Page, live_document
from study.dashboard.studies import read_studies, state_of
from study.dashboard.values import Measured
from study.errors import StudyError, one_line, printable
from study.report.page import Pictures
from study.vocabulary.statuses import ENDED

LOCAL = ("127.0.0.1", "localhost")
KEY_BYTES = 32
NOTHING_HERE = "Open the address that study dashboard printed: it ends with a token.\n"
"""The answer to a request without the token."""
REFRESH_EVERY, TIMES_AS_LONG = 1.0, 10
"""Seconds between refreshes: at least this many, and this multiple of the last one's time, so that
training is hardly slowed."""
READ_AGAIN_AFTER = 30.0
"""Seconds after which running cells are read again although no file has changed: a process may have
died."""

_log = logging.getLogger(__name__)


LookAhead = Callable[[Path], tuple[int, float | None]]
"""The cells that the sweeps of a study have not begun, and the seconds left if known. The command
passes it in, because the dashboard does not import :mod:`study.sweeps`."""


def serve(
    folders: Sequence[Path],
    host: str,
    port: int,
    ready: Callable[[str], None],
    look_ahead: LookAhead = lambda study_dir: (0, None),
) -> None:
    """Serve the studies until interrupted. Port 0: any free one. ``ready`` gets the address."""
    token = token_of(folders)
    app = application(folders, token, look_ahead)
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
    ready(f"{address}/{token}/")
    private = [("Referrer-Policy", "no-referrer")]  # the token is a part of the address
    config = uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=1, headers=private)
    with contextlib.suppress(KeyboardInterrupt):
        uvicorn.Server(config).run(sockets=[listening])


def token_of(folders: Sequence[Path]) -> str:
    """The secret part of the address: the same at the next start, if a key can be stored. Raises
    StudyError if other users can read the key."""
    key = secrets.token_bytes(KEY_BYTES)
    path = platformdirs.user_state_path("study") / "dashboard-key"
    with contextlib.suppress(OSError):
        if not path.exists() or path.stat().st_size != KEY_BYTES:  # killed before it was whole
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch(0o600)
            path.write_bytes(key)
        if path.stat().st_mode & 0o077:
            why = f"other users can read {path}, the key of your dashboards' addresses"
            raise StudyError(f"{why}: delete it, and a new one is made")
        key = path.read_bytes()
    named = "\n".join(str(folder.resolve()) for folder in folders)
    return hmac.new(key, named.encode(), "sha256").hexdigest()[:40]


def application(
    folders: Sequence[Path], token: str, look_ahead: LookAhead = lambda study_dir: (0, None)
) -> Starlette:
    """The ASGI application below ``/token/``."""
    watched = _Watched(folders, look_ahead)
    return Starlette(
        routes=[Mount(f"/{token}", routes=watched.routes())],
        middleware=[Middleware(GZipMiddleware, compresslevel=1)],
        lifespan=watched.lifespan,
        exception_handlers={404: lambda request, error: PlainTextResponse(NOTHING_HERE, 404)},
    )


class _Watched:
    """The page on the studies in ``folders``, made again in a thread when their files change."""

    def __init__(self, folders: Sequence[Path], look_ahead: LookAhead) -> None:
        self.folders, self.look_ahead = folders, look_ahead
        self.state, self.drawn = "", Pictures()
        self._read()
        self._look()

    @contextlib.asynccontextmanager
    async def lifespan(self, app: Starlette) -> AsyncIterator[None]:
        watching = asyncio.create_task(self._watch())
        yield
        watching.cancel()

    def routes(self) -> list[Route]:
        return [
            Route("/", self.document),
            Route("/plotly.js", self.plotly),
            Route("/overview", self.overview),
            Route("/progress", self.progress),
            Route("/values", self.values),
        ]

    def document(self, request: Request) -> Response:
        return Response(live_document(self.page.title), media_type="text/html")

    def plotly(self, request: Request) -> Response:
        day = {"Cache-Control": "max-age=86400"}
        return FileResponse(PLOTLY, media_type="text/javascript", headers=day)

    def overview(self, request: Request) -> Response:
        version = self.page.version
        headers = {"ETag": f'"{version}"', "Cache-Control": "no-cache"}
        if version in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=headers)
        return Response(self.text, media_type="application/json", headers=headers)

    def progress(self, request: Request) -> Response:
        waiting, left = self.ahead
        if left is not None:
            left = max(0.0, left - (time.monotonic() - self.looked_at))
        found = {"waiting": waiting, "seconds_left": left}
        return JSONResponse(found, headers={"Cache-Control": "no-store"})

    def values(self, request: Request) -> Response:
        page = self.page  # a refresh may replace it
        asked = Measured(*(request.query_params.get(name, "") for name in Measured._fields))
        if asked not in page.quantities:
            return PlainTextResponse("unknown quantity\n", 400)
        return Response(page.message(asked), media_type="application/octet-stream")

    async def _watch(self) -> None:
        problem = ""
        while True:
            began = time.monotonic()
            try:
                await asyncio.to_thread(self.refresh)
            except Exception as error:  # A file may change or vanish at any moment.
                if (said := f"can't refresh the page ({one_line(error)}): trying again") != problem:
                    _log.warning("%s", printable(said))
                    problem = said
            await asyncio.sleep(max(REFRESH_EVERY, TIMES_AS_LONG * (time.monotonic() - began)))

    def refresh(self) -> None:
        """Make the page again if a file has changed. An error leaves it as it was."""
        self._look()
        late = self.runs and time.monotonic() - self.read_at > READ_AGAIN_AFTER
        if late or state_of(self.folders) != self.state:
            self._read()

    def _look(self) -> None:
        found = [self.look_ahead(folder) for folder in self.folders]
        known = [left for _, left in found if left is not None]
        self.ahead = sum(waiting for waiting, _ in found), max(known, default=None)
        self.looked_at = time.monotonic()

    def _read(self) -> None:
        state = state_of(self.folders)  # before the files: a change meanwhile is seen next time
        studies = read_studies(self.folders, self.drawn)
        self.page = Page(studies, live=True, state=state)
        self.text = self.page.text()
        self.state, self.read_at = state, time.monotonic()
        self.runs = any(not set(one.tables.cells["status"]) <= set(ENDED) for one in studies)
