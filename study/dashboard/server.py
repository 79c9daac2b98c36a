"""``study dashboard``: serve the page from this machine and follow the study while it trains.

The page requests ``progress`` and ``overview`` every second or two; an unchanged ETag makes the
latter cheap. Then it requests the values of the quantity that it shows. All state is on disk, so an
open page continues when the server is restarted.
"""

import asyncio
import contextlib
import hmac
import logging
import os
import secrets
import socket
import time
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import platformdirs
import psutil
import uvicorn
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import (
    FileResponse,
    HTMLResponse,
    JSONResponse,
    PlainTextResponse,
    Response,
)
from starlette.routing import Mount, Route
from uvicorn.protocols.http.h11_impl import H11Protocol

from study.dashboard.document import PLOTLY, Page, live_document
from study.dashboard.studies import is_running, read_studies, state_of
from study.dashboard.values import Measured
from study.errors import StudyError, one_line, printable, unknown

MOST_NAMED = 3
"""Quantities that an answer names."""
LOCAL = ("127.0.0.1", "localhost")
EVERY_ADDRESS = "0.0.0.0"
MOST_CONNECTIONS = 48
"""At a time. A browser keeps up to six. The next ones are told that the server is busy."""
MOST_WAIT = 10.0
"""Seconds in which a connection must send a whole request."""
KEY_BYTES = 32
REFRESH_EVERY, TIMES_AS_LONG = 1.0, 10
"""Seconds between refreshes: at least so many, and at least so many times as long as the last one
took, so that training is hardly slowed."""
READ_AGAIN_AFTER = 30.0
"""Seconds after which running cells are read again though no file has changed: a process may have
died."""

_log = logging.getLogger(__name__)


class Ahead(NamedTuple):
    """What running sweeps have still to train. ``waiting``: cells that have not begun;
    ``seconds_left``: None if that is not known."""

    waiting: int = 0
    seconds_left: float | None = None


LookAhead = Callable[[Path], Ahead]
"""What the sweeps in the folder of a study have still to train. The command passes it in: sweeps
belong to :mod:`study.sweeps`, which the dashboard does not import."""


def nothing_ahead(study_dir: Path) -> Ahead:
    """For a page without sweeps."""
    return Ahead()


def serve(
    folders: Sequence[Path],
    host: str,
    port: int,
    ready: Callable[[str], None],
    look_ahead: LookAhead = nothing_ahead,
) -> None:
    """Serve the studies in ``folders`` until interrupted. Port 0 means any free port.

    ``ready`` gets the address of the page. ``look_ahead`` says what running sweeps have still to
    train. Raises :class:`StudyError` if a folder holds no study, or if the address is not
    available.
    """
    token = token_of(folders)
    app = application(folders, hosts_of(host), token, look_ahead)
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
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            log_level="error",
            timeout_graceful_shutdown=1,
            limit_concurrency=MOST_CONNECTIONS,
            http=_Impatient,
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
    folders: Sequence[Path],
    hosts: Sequence[str],
    token: str,
    look_ahead: LookAhead = nothing_ahead,
) -> Starlette:
    """The ASGI application below ``/token/``, for requests whose Host header is in ``hosts``.

    Raises :class:`StudyError` if a folder holds no study.
    """
    watched = _Watched(folders, look_ahead)
    guards = [
        Middleware(TrustedHostMiddleware, allowed_hosts=list(hosts), www_redirect=False),
        Middleware(GZipMiddleware, compresslevel=1),
    ]
    return Starlette(
        routes=[Mount(f"/{token}", routes=_pages(watched))],
        middleware=guards,
        lifespan=watched.lifespan,
        exception_handlers={404: nothing_here},
    )


def _pages(watched: "_Watched") -> list[Route]:
    """What is below the token."""

    def document(request: Request) -> Response:
        return HTMLResponse(live_document(watched.page.title))

    def plotly(request: Request) -> Response:
        day = {"Cache-Control": "max-age=86400"}
        return FileResponse(PLOTLY, media_type="text/javascript", headers=day)

    def overview(request: Request) -> Response:
        page = watched.page
        headers = {"ETag": f'"{page.version}"', "Cache-Control": "no-cache"}
        if page.version in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=headers)
        return Response(watched.text, media_type="application/json", headers=headers)

    def progress(request: Request) -> Response:
        return JSONResponse(watched.progress(), headers={"Cache-Control": "no-store"})

    def values(request: Request) -> Response:
        page = watched.page
        asked = Measured(*(request.query_params.get(name, "") for name in Measured._fields))
        if asked not in page.quantities:
            some = map(" ".join, page.quantities[:MOST_NAMED])
            return PlainTextResponse(f"{unknown('quantity', ' '.join(asked), some)}\n", 400)
        return Response(page.message(asked), media_type="application/octet-stream")

    return [
        Route("/", document),
        Route("/plotly.js", plotly),
        Route("/overview", overview),
        Route("/progress", progress),
        Route("/values", values),
    ]


def nothing_here(request: Request, error: Exception | None) -> Response:
    """The answer to a request without the token."""
    text = "Open the address that study dashboard printed: it ends with a token.\n"
    return PlainTextResponse(text, status_code=404)


class _Watched:
    """The page on the studies in ``folders``, made again in a thread when their files change."""

    def __init__(self, folders: Sequence[Path], look_ahead: LookAhead) -> None:
        self.folders, self.look_ahead = folders, look_ahead
        self.state = ""
        self._read()
        self._look()

    @contextlib.asynccontextmanager
    async def lifespan(self, app: Starlette) -> AsyncIterator[None]:
        """Refresh for as long as the application runs."""
        watching = asyncio.create_task(self._watch())
        yield
        watching.cancel()

    def progress(self) -> dict[str, Any]:
        """What sweeps have still to train as of now."""
        waiting, left = self.ahead
        if left is not None:
            left = max(0.0, left - (time.monotonic() - self.looked_at))
        return {"waiting": waiting, "seconds_left": left}

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
        times = [one.seconds_left for one in found if one.seconds_left is not None]
        self.ahead = Ahead(sum(one.waiting for one in found), max(times, default=None))
        self.looked_at = time.monotonic()

    def _read(self) -> None:
        state = state_of(self.folders)  # before the files: a change meanwhile is seen next time
        studies = read_studies(self.folders)
        self.page = Page(studies, live=True, state=state)
        self.text = self.page.text()
        self.state, self.read_at = state, time.monotonic()
        self.runs = any(map(is_running, studies))
