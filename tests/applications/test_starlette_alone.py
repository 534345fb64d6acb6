"""Starlette without FastAPI, on a real server: leaks are named, correct code is left in peace."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from sqlalchemy import Engine, text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.orm import Session
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware, RequestResponseEndpoint
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Mount, Route, Router, WebSocketRoute
from starlette.websockets import WebSocket
from websockets.sync.client import connect

from leakguard import FindingKind, LeakGuard, LeakGuardMiddleware
from tests.support import Recorder, line_marked, serving

QUERY = text("SELECT 1")
HERE = sys.modules[__name__]


class Database:
    """What the handlers work with, and what they keep."""

    def __init__(self, engine: Engine, async_engine: AsyncEngine) -> None:
        self.engine = engine
        self.async_engine = async_engine
        self.kept: list[Any] = []
        """What leaks is kept here: the garbage collector shall not decide a test."""

    @asynccontextmanager
    async def lifespan(self, _: Starlette) -> AsyncGenerator[dict[str, Database], None]:
        """Hand itself to the requests; close at the end what leaked, on the loop of its driver."""
        yield {"database": self}
        for kept in self.kept:
            closing = kept.close()
            if closing is not None:
                await closing
        await self.async_engine.dispose()


# --- handlers that leak ---------------------------------------------------------------------------


def sync_session(request: Request) -> Response:
    database = request.state.database
    db = Session(database.engine)  # sync created
    database.kept.append(db)
    db.execute(QUERY)  # sync checkout
    return PlainTextResponse("fine")


async def async_session(request: Request) -> Response:
    database = request.state.database
    db = AsyncSession(database.async_engine)  # async created
    database.kept.append(db)
    await db.execute(QUERY)  # async checkout
    raise ValueError(request.path_params["item_id"])


def background(request: Request) -> Response:
    database = request.state.database

    def work() -> None:
        db = Session(database.engine)  # background created
        database.kept.append(db)
        db.execute(QUERY)  # background checkout

    return PlainTextResponse("fine", background=BackgroundTask(work))


async def stream(request: Request) -> Response:
    database = request.state.database

    async def rows() -> AsyncIterator[bytes]:
        db = AsyncSession(database.async_engine)  # stream created
        database.kept.append(db)
        await db.execute(QUERY)  # stream checkout
        yield b"row"

    return StreamingResponse(rows())


async def websocket(websocket: WebSocket) -> None:
    database = websocket.state.database
    await websocket.accept()
    db = AsyncSession(database.async_engine)  # websocket created
    database.kept.append(db)
    await db.execute(QUERY)  # websocket checkout
    await websocket.send_text(websocket.path_params["room"])
    await websocket.close()


# --- the same, done right -------------------------------------------------------------------------


def clean_sync_session(request: Request) -> Response:
    with Session(request.state.database.engine) as db:
        db.execute(QUERY)
    return PlainTextResponse("fine")


async def clean_async_session(request: Request) -> Response:
    async with AsyncSession(request.state.database.async_engine) as db:
        await db.execute(QUERY)
        raise ValueError(request.path_params["item_id"])


def clean_background(request: Request) -> Response:
    db = Session(request.state.database.engine)
    db.execute(QUERY)
    return PlainTextResponse("fine", background=BackgroundTask(db.close))


async def clean_stream(request: Request) -> Response:
    async def rows() -> AsyncIterator[bytes]:
        async with AsyncSession(request.state.database.async_engine) as db:
            for _ in range(3):
                await db.execute(QUERY)
                yield b"row"

    return StreamingResponse(rows())


async def clean_websocket(websocket: WebSocket) -> None:
    await websocket.accept()
    async with AsyncSession(websocket.state.database.async_engine) as db:
        await db.execute(QUERY)
        await websocket.send_text(websocket.path_params["room"])
    await websocket.close()


# --- the application ------------------------------------------------------------------------------


class PassOn(BaseHTTPMiddleware):
    """Middleware of the kind that runs the rest of the application in a task of its own."""

    async def dispatch(self, request: Request, call_next: RequestResponseEndpoint) -> Response:
        """Do nothing but pass the request on."""
        return await call_next(request)


ROUTES = [
    Mount(
        "/leaks",
        routes=[
            Route("/sync", sync_session),
            Mount("/tenants/{tenant}", Router([Route("/async/{item_id:int}", async_session)])),
            Route("/background", background),
            Route("/stream", stream),
            WebSocketRoute("/websocket/{room}", websocket),
        ],
    ),
    Mount(
        "/clean",
        routes=[
            Route("/sync", clean_sync_session),
            Route("/async/{item_id:int}", clean_async_session),
            Route("/background", clean_background),
            Route("/stream", clean_stream),
            WebSocketRoute("/websocket/{room}", clean_websocket),
        ],
    ),
]


@pytest.fixture
def database(engine: Engine, tmp_path: Path) -> Database:
    return Database(engine, create_async_engine(f"sqlite+aiosqlite:///{tmp_path / 'async.db'}"))


@pytest.fixture(params=["alone", "inside BaseHTTPMiddleware", "outside BaseHTTPMiddleware"])
def url(request: pytest.FixtureRequest, database: Database, guard: LeakGuard) -> Iterator[str]:
    """Serve the application with leakguard, alone or beside middleware that starts tasks."""
    middleware = [Middleware(LeakGuardMiddleware, guard=guard)]
    if request.param == "inside BaseHTTPMiddleware":
        middleware.insert(0, Middleware(PassOn))
    if request.param == "outside BaseHTTPMiddleware":
        middleware.append(Middleware(PassOn))
    app = Starlette(routes=ROUTES, middleware=middleware, lifespan=database.lifespan)
    with serving(app) as url:
        yield url


def websocket_says(url: str, path: str) -> str | bytes:
    with connect(f"ws://{urlsplit(url).netloc}{path}") as websocket:
        return websocket.recv()


def leaked_at(recorder: Recorder, marker: str) -> str:
    """See that one leak was found, at the marked lines; give the name of its scope."""
    recorder.wait_for(lambda: recorder.scopes_closed)
    (finding,) = recorder.findings
    hold, scope = finding.hold, finding.scope
    assert finding.kind is FindingKind.LEAKED
    assert hold is not None
    assert scope is not None
    assert hold.created_at is not None
    assert hold.acquired_at is not None
    assert hold.created_at.line == line_marked(HERE, f"{marker} created")
    assert hold.acquired_at.line == line_marked(HERE, f"{marker} checkout")
    return f"{scope.name} {scope.status}"


@pytest.mark.parametrize(
    "path, marker, name",
    [
        ("/leaks/sync", "sync", "GET /leaks/sync 200"),
        ("/leaks/tenants/acme/async/7", "async", "GET /leaks/tenants/{tenant}/async/{item_id} 500"),
        ("/leaks/background", "background", "GET /leaks/background 200"),
        ("/leaks/stream", "stream", "GET /leaks/stream 200"),
    ],
)
def test_a_leak_is_named(url: str, recorder: Recorder, path: str, marker: str, name: str) -> None:
    """The request that leaks is named once, with its route, its status and both lines."""
    httpx.get(url + path)
    assert leaked_at(recorder, marker) == name


def test_a_leak_of_a_websocket_is_named(url: str, recorder: Recorder) -> None:
    """A WebSocket connection is a scope of its own, with the whole template."""
    assert websocket_says(url, "/leaks/websocket/attic") == "attic"
    assert leaked_at(recorder, "websocket").startswith("WEBSOCKET /leaks/websocket/{room}")


CLEAN = {"sync": 200, "async/7": 500, "background": 200, "stream": 200}


def test_correct_code_is_left_in_peace(
    url: str, recorder: Recorder, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing is found and nothing is logged, also with many requests at once."""

    async def requests() -> list[int]:
        async with httpx.AsyncClient() as client:
            paths = [f"{url}/clean/{path}" for path in CLEAN]
            answers = await asyncio.gather(*(client.get(path) for path in paths * 8))
        return [answer.status_code for answer in answers]

    assert asyncio.run(requests()) == list(CLEAN.values()) * 8
    assert websocket_says(url, "/clean/websocket/attic") == "attic"
    recorder.wait_for(lambda: len(recorder.scopes_closed) == len(CLEAN) * 8 + 1)
    assert recorder.findings == []
    assert [record for record in caplog.records if record.name == "leakguard"] == []
