"""The one line, on a real server: leaks are named, and correct applications are left in peace."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from fastapi import FastAPI
from sqlalchemy import Engine
from sqlalchemy.ext.asyncio import create_async_engine
from websockets.sync.client import connect

from leakguard import CallSite, Finding, FindingKind, LeakGuard, LeakGuardMiddleware
from tests.applications import shop as shop_module
from tests.applications.shop import PassOn, Shop, make_app
from tests.fastapi_version import EXITS_BEFORE_RESPONSE
from tests.support import PATIENCE, Recorder, line_marked, serving


@pytest.fixture
def shop(engine: Engine, tmp_path: Path) -> Shop:
    url = f"sqlite+aiosqlite:///{tmp_path / 'async.db'}"
    return Shop(engine, create_async_engine(url, pool_logging_name="async"))


@pytest.fixture(params=["alone", "inside BaseHTTPMiddleware", "outside BaseHTTPMiddleware"])
def app(request: pytest.FixtureRequest, shop: Shop, guard: LeakGuard) -> FastAPI:
    """Return the application with leakguard, alone or beside middleware that starts tasks."""
    app = make_app(shop)
    if request.param == "outside BaseHTTPMiddleware":
        app.add_middleware(PassOn)
    app.add_middleware(LeakGuardMiddleware, guard=guard)
    if request.param == "inside BaseHTTPMiddleware":
        app.add_middleware(PassOn)
    return app


@pytest.fixture
def url(app: FastAPI) -> Iterator[str]:
    with serving(app) as url:
        yield url


def lines(finding: Finding) -> tuple[int | None, int | None]:
    """Return the lines that a finding names: of the construction, and of the checkout."""
    hold = finding.hold
    assert hold is not None
    for site in (hold.created_at, hold.acquired_at):
        assert site is None or site.file == shop_module.__file__
    return _line(hold.created_at), _line(hold.acquired_at)


def _line(site: CallSite | None) -> int | None:
    return None if site is None else site.line


def marked(created: str | None, checkout: str) -> tuple[int | None, int]:
    created_line = created and line_marked(shop_module, f"{created} created")
    return created_line or None, line_marked(shop_module, f"{checkout} checkout")


LEAKS = [
    # path, route, status, exception, constructed in, checked out in
    ("dependency/7", "dependency/{item_id}", 500, "ValueError", "dependency", "dependency"),
    (
        "dependency-http-error/7",
        "dependency-http-error/{item_id}",
        404,
        None,
        "dependency",
        "http error",
    ),
    (
        "async-dependency/7",
        "async-dependency/{item_id}",
        500,
        "ValueError",
        "async dependency",
        "async dependency",
    ),
    ("sync-endpoint", "sync-endpoint", 200, None, "sync endpoint", "sync endpoint"),
    ("async-endpoint", "async-endpoint", 200, None, "async endpoint", "async endpoint"),
    ("core", "core", 200, None, None, "core"),
    ("async-core", "async-core", 200, None, None, "async core"),
    ("raw", "raw", 200, None, None, "raw"),
    ("background", "background", 200, None, "background", "background"),
    ("stream", "stream", 200, None, "stream", "stream"),
]


@pytest.mark.parametrize(
    "path, route, status, exception, created, checkout",
    LEAKS,
    ids=[leak[0].partition("/")[0] for leak in LEAKS],
)
def test_a_leak_is_named(  # noqa: PLR0913, PLR0917  (the columns of the table above)
    url: str,
    recorder: Recorder,
    path: str,
    route: str,
    status: int,
    exception: str | None,
    created: str | None,
    checkout: str,
) -> None:
    """The request that leaks is named once, with its route, its status and both lines."""
    assert httpx.get(f"{url}/leaks/{path}").status_code == status
    recorder.wait_for(lambda: recorder.scopes_closed)
    (finding,) = recorder.findings
    scope = finding.scope
    assert scope is not None
    assert finding.kind is FindingKind.LEAKED
    assert lines(finding) == marked(created, checkout)
    assert scope.name == f"GET /leaks/{route}"
    assert (scope.status, scope.exception) == (status, exception)


def test_a_dropped_connection_is_named(url: str, recorder: Recorder) -> None:
    """A connection that nobody refers to any more by the end of the request is reclaimed."""
    httpx.get(f"{url}/leaks/dropped")
    recorder.wait_for(lambda: recorder.scopes_closed)
    (finding,) = recorder.findings
    assert finding.kind is FindingKind.RECLAIMED
    assert lines(finding) == marked(None, "dropped")


def test_a_leak_of_a_websocket_is_named(url: str, recorder: Recorder) -> None:
    """A WebSocket connection is a scope of its own, with its route's template."""
    with connect(f"ws://{urlsplit(url).netloc}/leaks/websocket/attic") as websocket:
        assert websocket.recv() == "attic"
    recorder.wait_for(lambda: recorder.scopes_closed)
    (finding,) = recorder.findings
    assert finding.kind is FindingKind.LEAKED
    assert lines(finding) == marked("websocket", "websocket")
    assert finding.scope is not None
    assert finding.scope.name == "WEBSOCKET /leaks/websocket/{room}"


def test_a_leak_is_named_when_the_client_disconnects(
    plain_app: FastAPI, shop: Shop, recorder: Recorder
) -> None:
    """A client that goes away ends the request, and the report says that it was cancelled."""
    with serving(plain_app) as url:
        address = urlsplit(url)
        with socket.create_connection((address.hostname, address.port or 80)) as client:
            client.sendall(b"GET /leaks/disconnect HTTP/1.1\r\nHost: test\r\n\r\n")
            assert shop.reached.wait(PATIENCE)
        recorder.wait_for(lambda: recorder.scopes_closed)
    (finding,) = recorder.findings
    assert finding.kind is FindingKind.LEAKED
    assert lines(finding) == marked("disconnect", "disconnect")
    assert "cancelled" in str(finding).splitlines()[0]


async def cancel_request(app: FastAPI, path: str, shop: Shop) -> None:
    """Start a request in process and cancel it when its handler waits."""

    async def receive() -> dict[str, Any]:
        await asyncio.Event().wait()
        raise AssertionError

    async def send(message: object) -> None:
        raise AssertionError(message)

    scope: dict[str, Any] = {
        "type": "http",
        "method": "GET",
        "path": path,
        "headers": [],
        "query_string": b"",
    }
    task = asyncio.create_task(app(scope, receive, send))
    assert await asyncio.to_thread(shop.reached.wait, PATIENCE)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.fixture
def plain_app(shop: Shop, guard: LeakGuard) -> FastAPI:
    app = make_app(shop)
    app.add_middleware(LeakGuardMiddleware, guard=guard)
    return app


def test_a_leak_is_named_when_the_request_is_cancelled(
    plain_app: FastAPI, shop: Shop, recorder: Recorder
) -> None:
    """A cancelled request is judged like any other, and the report says that it was cancelled."""

    async def main() -> None:
        async with shop.lifespan(plain_app):
            await cancel_request(plain_app, "/leaks/cancelled", shop)

    asyncio.run(main())
    (finding,) = recorder.findings
    assert finding.kind is FindingKind.LEAKED
    assert lines(finding) == marked("cancelled", "cancelled")
    assert finding.scope is not None
    assert finding.scope.cancelled
    assert finding.hint.cause is not None
    assert "cancelled" in finding.hint.cause


def test_a_cancelled_request_that_cleans_up_is_clean(
    plain_app: FastAPI, shop: Shop, recorder: Recorder
) -> None:
    """Clean-up that a cancellation sets off counts, though it runs in a task of its own."""

    async def main() -> None:
        async with shop.lifespan(plain_app):
            await cancel_request(plain_app, "/clean/cancelled", shop)

    asyncio.run(main())
    assert recorder.findings == []


CLEAN = [
    "dependency/1",
    "dependency/0",
    "async-dependency/1",
    "async-dependency/0",
    "begin",
    # Where dependencies exit first, these use a session that has been closed, and leak.
    *([] if EXITS_BEFORE_RESPONSE else ["background", "stream"]),
]


@pytest.mark.parametrize("mode", ["production", "development", "testing"])
def test_correct_applications_are_left_in_peace(
    shop: Shop, mode: str, recorder: Recorder, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing is found and nothing is logged, in any mode, also with many requests at once."""

    async def requests(url: str) -> None:
        async with httpx.AsyncClient() as client:
            await asyncio.gather(*(client.get(f"{url}/clean/{path}") for path in CLEAN * 8))

    app = make_app(shop)
    app.add_middleware(LeakGuardMiddleware, mode=mode, observers=[recorder], late_after=PATIENCE)
    with serving(app) as url:
        asyncio.run(requests(url))
        with connect(f"ws://{urlsplit(url).netloc}/clean/websocket/attic") as websocket:
            assert websocket.recv() == "attic"
        recorder.wait_for(lambda: len(recorder.scopes_closed) == len(CLEAN) * 8 + 1)
    assert recorder.findings == []
    assert [record for record in caplog.records if record.name == "leakguard"] == []


def test_a_leak_is_resolved_when_it_is_closed_later(
    url: str, shop: Shop, recorder: Recorder
) -> None:
    """A connection that comes back after its request is told as resolved, with the time."""
    httpx.get(f"{url}/leaks/sync-endpoint")
    recorder.wait_for(lambda: recorder.findings)
    shop.kept.pop().close()
    recorder.wait_for(lambda: recorder.resolutions)
    assert recorder.resolutions == recorder.findings
    (finding,) = recorder.findings
    assert finding.resolved
    assert finding.resolution is not None
    assert finding.resolution.startswith("given back ")
