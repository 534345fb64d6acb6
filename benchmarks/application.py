"""One application in one way: answers blocks of requests, as many as it is told to on its input.

`benchmarks.requests` starts one of these for each way. It prints the CPU time of a request, in
microseconds, for each block.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from importlib import import_module
from typing import Any

from fastapi import Depends, FastAPI
from sqlalchemy import create_engine, event, text
from sqlalchemy.engine import Engine
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session
from sqlalchemy.pool import AsyncAdaptedQueuePool, Pool, QueuePool

from leakguard import LeakGuardMiddleware

QUERY = text("SELECT 1")
_ASGI: dict[str, Any] = {
    "type": "http",
    "http_version": "1.1",
    "method": "GET",
    "path": "/item",
    "raw_path": b"/item",
    "root_path": "",
    "scheme": "http",
    "query_string": b"",
    "headers": [(b"host", b"example")],
    "client": ("127.0.0.1", 1),
    "server": ("127.0.0.1", 80),
}
_WARM_UP = 300
"""Requests before the first that counts: routes, caches and metrics are there by then."""


# --- what a request does --------------------------------------------------------------------------


def nothing(app: FastAPI, statements: int) -> None:  # noqa: ARG001  (as the others)
    """Do no database work."""

    @app.get("/item")
    async def item() -> int:
        return 1


def sync(app: FastAPI, statements: int) -> None:
    """Use a session of a dependency, both in threads."""
    engine = create_engine(
        "sqlite://", poolclass=QueuePool, connect_args={"check_same_thread": False}
    )

    def get_db() -> Iterator[Session]:
        with Session(engine) as db:
            yield db

    @app.get("/item")
    def item(db: Session = Depends(get_db)) -> int:
        for _ in range(statements):
            db.execute(QUERY).scalar()
        return 1


def asynchronous(app: FastAPI, statements: int) -> None:
    """Use an asynchronous session of a dependency."""
    engine = create_async_engine(
        "sqlite+aiosqlite:///file:bench?mode=memory&cache=shared&uri=true",
        poolclass=AsyncAdaptedQueuePool,  # as with a server: SQLAlchemy's choice for this has one
    )

    async def get_db() -> AsyncIterator[AsyncSession]:
        async with AsyncSession(engine) as db:
            yield db

    @app.get("/item")
    async def item(db: AsyncSession = Depends(get_db)) -> int:
        for _ in range(statements):
            (await db.execute(QUERY)).scalar()
        return 1


WORK: dict[str, Callable[[FastAPI, int], None]] = {
    "nothing": nothing,
    "sync": sync,
    "async": asynchronous,
}


# --- what watches it ------------------------------------------------------------------------------


def peer(module: str) -> Any:
    """Return a module of another library, which need not be installed."""
    return import_module(module)


def drop(envelope: object) -> None:
    """Do nothing with what Sentry wants to send."""


class Empty:
    """A middleware that does nothing."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Hand on."""
        await self.app(scope, receive, send)


def bare(app: FastAPI) -> None:
    """Have nothing."""


def floor(app: FastAPI) -> None:
    """Have an empty middleware, and listeners that do nothing: less is not possible."""
    app.add_middleware(Empty)
    targets: list[tuple[Any, str]] = [
        *((Pool, name) for name in ("connect", "checkout", "checkin", "close", "detach")),
        (Session, "after_begin"),
        (Engine, "do_execute"),
    ]
    for target, name in targets:
        event.listen(target, name, lambda *_: None)


def production(app: FastAPI) -> None:
    """Have leakguard as in production, with its metrics."""
    app.add_middleware(LeakGuardMiddleware, mode="production")


def development(app: FastAPI) -> None:
    """Have leakguard as in development."""
    app.add_middleware(LeakGuardMiddleware, mode="development")


def correlation_id(app: FastAPI) -> None:
    """Have asgi-correlation-id."""
    app.add_middleware(peer("asgi_correlation_id").CorrelationIdMiddleware)


def instrumentator(app: FastAPI) -> None:
    """Have prometheus-fastapi-instrumentator."""
    peer("prometheus_fastapi_instrumentator").Instrumentator().instrument(app)


def starlette_exporter(app: FastAPI) -> None:
    """Have starlette_exporter."""
    app.add_middleware(peer("starlette_exporter").PrometheusMiddleware)


def opentelemetry(app: FastAPI) -> None:
    """Have OpenTelemetry's instrumentation of FastAPI and SQLAlchemy; its spans go nowhere."""
    instrumentation = "opentelemetry.instrumentation"
    peer("opentelemetry.trace").set_tracer_provider(
        peer("opentelemetry.sdk.trace").TracerProvider()
    )
    peer(f"{instrumentation}.sqlalchemy").SQLAlchemyInstrumentor().instrument()
    peer(f"{instrumentation}.fastapi").FastAPIInstrumentor.instrument_app(app)


def sentry(app: FastAPI) -> None:  # noqa: ARG001  (it finds the application by itself)
    """Have Sentry with its SQLAlchemy integration, traces, and a transport that drops."""
    peer("sentry_sdk").init(
        dsn="http://key@127.0.0.1:9/1",
        transport=drop,
        traces_sample_rate=1.0,
        integrations=[peer("sentry_sdk.integrations.sqlalchemy").SqlalchemyIntegration()],
    )


WAYS: dict[str, Callable[[FastAPI], None]] = {
    "bare": bare,
    "bare, again": bare,  # what the machine makes of the same
    "floor": floor,
    "leakguard, production": production,
    "leakguard, development": development,
    "asgi-correlation-id": correlation_id,
    "prometheus-fastapi-instrumentator": instrumentator,
    "starlette_exporter": starlette_exporter,
    "OpenTelemetry": opentelemetry,
    "Sentry": sentry,
}
LAST = ("Sentry",)
"""Ways that have to be there before the application is made."""


# --- the requests ---------------------------------------------------------------------------------


def make(way: str, work: str, statements: int) -> FastAPI:
    """Make the application."""
    early = way in LAST
    if early:
        WAYS[way](FastAPI())
    app = FastAPI()
    if not early:
        WAYS[way](app)  # first: some instrument the engines that are made from then on
    WORK[work](app, statements)
    return app


async def answer(app: FastAPI, requests: int) -> None:
    """Answer requests one after the other."""

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        statuses.add(message.get("status", 200))

    statuses: set[int] = set()
    for _ in range(requests):
        await app({**_ASGI, "state": {}}, receive, send)
    if statuses != {200}:
        raise SystemExit(f"the application answered with {statuses}")


def main() -> None:
    """Answer the blocks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("way", choices=WAYS)
    parser.add_argument("work", choices=WORK)
    parser.add_argument("statements", type=int)
    arguments = parser.parse_args()
    app = make(arguments.way, arguments.work, arguments.statements)
    loop = asyncio.new_event_loop()
    loop.run_until_complete(answer(app, _WARM_UP))
    gc.collect()
    gc.freeze()
    print("ready", flush=True)
    for line in sys.stdin:
        requests = int(line)
        began = time.process_time_ns()
        loop.run_until_complete(answer(app, requests))
        print((time.process_time_ns() - began) / requests / 1000, flush=True)


if __name__ == "__main__":
    main()
