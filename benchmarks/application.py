"""One application in one way, which answers blocks of requests and takes the CPU time of each.

`benchmarks.requests` starts one of these for each way.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import resource
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import closing
from importlib import import_module
from importlib.metadata import version
from typing import Any, NamedTuple, TypeVar

from fastapi import Depends, FastAPI
from prometheus_client import generate_latest
from sqlalchemy import create_engine, event, text
from sqlalchemy.engine import Engine
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session
from sqlalchemy.pool import AsyncAdaptedQueuePool, Pool, QueuePool

from benchmarks.children import Figures, answer
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
_KEPT = 100
"""How many sessions an application that leaks has at a time."""


# --- what a request does --------------------------------------------------------------------------


Result = TypeVar("Result")


class Workload(NamedTuple):
    """What a request does."""

    work: str
    """A key of `WORK`."""
    statements: int = 1
    depth: int = 0
    """How many functions of the application are between the endpoint and its statements."""
    url: str = ""
    """The database; a SQLite in memory where it is empty."""


def nothing(app: FastAPI, load: Workload) -> None:  # noqa: ARG001  (as the others)
    """Do no database work."""

    @app.get("/item")
    async def item() -> int:
        return 1


_ENOUGH = 40
"""Connections for all threads that AnyIO lets work at once: nobody waits for one, and none is
opened and closed again and again."""


def make_engine(load: Workload, size: int = _ENOUGH) -> Engine:
    """Return an engine whose pool is that of a server database."""
    if load.url:
        return create_engine(load.url, pool_size=size, max_overflow=0)
    return create_engine(
        "sqlite://",
        poolclass=QueuePool,
        pool_size=size,
        max_overflow=0,
        connect_args={"check_same_thread": False},
    )


def sync(app: FastAPI, load: Workload) -> None:
    """Use a session of a dependency, both in threads."""
    engine = make_engine(load)

    def get_db() -> Iterator[Session]:
        with Session(engine) as db:
            yield db

    @app.get("/item")
    def item(db: Session = Depends(get_db)) -> int:
        for _ in range(load.statements):
            deeper(load.depth, lambda: db.execute(QUERY).scalar())
        return 1


def deeper(depth: int, call: Callable[[], Result]) -> Result:
    """Call it from so many frames further down."""
    return deeper(depth - 1, call) if depth else call()


def leaking(app: FastAPI, load: Workload) -> None:
    """Never close the session: it is closed a hundred requests later, that it may go on."""
    engine = make_engine(load, size=2 * _KEPT)
    kept: deque[Session] = deque()

    def get_db() -> Iterator[Session]:
        db = Session(engine)
        kept.append(db)
        if len(kept) > _KEPT:
            kept.popleft().close()
        yield db

    @app.get("/item")
    def item(db: Session = Depends(get_db)) -> int:
        db.execute(QUERY).scalar()
        return 1


def without_session(app: FastAPI, load: Workload) -> None:
    """Use a connection of the driver's, and give it back."""
    engine = make_engine(load)

    @app.get("/item")
    def item() -> int:
        with closing(engine.raw_connection()) as connection:
            connection.cursor().execute("SELECT 1")
        return 1


def dropping(app: FastAPI, load: Workload) -> None:
    """Drop such a connection, which Python takes back at once."""
    engine = make_engine(load)

    @app.get("/item")
    def item() -> int:
        engine.raw_connection().cursor().execute("SELECT 1")
        return 1


def asynchronous(app: FastAPI, load: Workload) -> None:
    """Use an asynchronous session of a dependency."""
    engine = create_async_engine(
        load.url or "sqlite+aiosqlite:///file:bench?mode=memory&cache=shared&uri=true",
        pool_size=_ENOUGH,
        max_overflow=0,
        poolclass=AsyncAdaptedQueuePool,  # as with a server: SQLAlchemy's choice for this has one
    )

    async def get_db() -> AsyncIterator[AsyncSession]:
        async with AsyncSession(engine) as db:
            yield db

    @app.get("/item")
    async def item(db: AsyncSession = Depends(get_db)) -> int:
        for _ in range(load.statements):
            await adeeper(load.depth, lambda: db.execute(QUERY))
        return 1


async def adeeper(depth: int, call: Callable[[], Awaitable[object]]) -> None:
    """Await it from so many coroutines further down."""
    await (adeeper(depth - 1, call) if depth else call())


WORK: dict[str, Callable[[FastAPI, Workload], None]] = {
    "nothing": nothing,
    "sync": sync,
    "async": asynchronous,
    "leaking": leaking,
    "without session": without_session,
    "dropping": dropping,
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
    listen_to_nothing()


def listen_to_nothing() -> None:
    """Have listeners that do nothing, for what leakguard listens to."""
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


_INSTRUMENTATION = "opentelemetry.instrumentation"


def opentelemetry_sqlalchemy(app: FastAPI) -> None:  # noqa: ARG001  (it patches SQLAlchemy)
    """Have OpenTelemetry's instrumentation of SQLAlchemy; its spans go nowhere.

    Of a version that it does not support it logs so, and does nothing: that would be no way.
    """
    trace_to_nowhere()
    instrumentor = peer(f"{_INSTRUMENTATION}.sqlalchemy").SQLAlchemyInstrumentor()
    instrumentor.instrument()
    if not instrumentor.is_instrumented_by_opentelemetry:
        raise SystemExit(f"it does not support SQLAlchemy {version('sqlalchemy')}")


def opentelemetry_fastapi(app: FastAPI) -> None:
    """Have OpenTelemetry's instrumentation of FastAPI; its spans go nowhere."""
    trace_to_nowhere()
    peer(f"{_INSTRUMENTATION}.fastapi").FastAPIInstrumentor.instrument_app(app)


def opentelemetry(app: FastAPI) -> None:
    """Have both."""
    opentelemetry_sqlalchemy(app)
    opentelemetry_fastapi(app)


def trace_to_nowhere() -> None:
    """Have OpenTelemetry make spans that nobody exports."""
    trace = peer("opentelemetry.trace")
    provider = peer("opentelemetry.sdk.trace").TracerProvider
    if not isinstance(trace.get_tracer_provider(), provider):
        trace.set_tracer_provider(provider())


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
    "OpenTelemetry, SQLAlchemy": opentelemetry_sqlalchemy,
    "OpenTelemetry, FastAPI": opentelemetry_fastapi,
    "OpenTelemetry, both": opentelemetry,
    "Sentry": sentry,
}
LAST = ("Sentry",)
"""Ways that have to be there before the application is made."""


# --- the requests ---------------------------------------------------------------------------------


def make(way: str, load: Workload) -> FastAPI:
    """Make the application."""
    early = way in LAST
    if early:
        WAYS[way](FastAPI())
    app = FastAPI()
    if not early:
        WAYS[way](app)  # first: some instrument the engines that are made from then on
    WORK[load.work](app, load)
    return app


async def respond(app: FastAPI, requests: int) -> None:
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


def scrape() -> None:
    """Show the metrics, which counts what is yet to be counted: that is part of what they cost."""
    generate_latest()


def main() -> None:
    """Answer the blocks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("way", choices=WAYS)
    parser.add_argument("work", choices=WORK)
    parser.add_argument("statements", type=int)
    parser.add_argument("depth", type=int)
    parser.add_argument("url")
    arguments = vars(parser.parse_args())
    app = make(arguments.pop("way"), Workload(**arguments))
    loop = asyncio.new_event_loop()
    loop.run_until_complete(respond(app, _WARM_UP))
    gc.collect()
    gc.freeze()

    def block(requests: int) -> Figures:
        began = time.process_time_ns()
        loop.run_until_complete(respond(app, requests))
        scrape()
        micros = (time.process_time_ns() - began) / requests / 1000
        return {"micros": micros, "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss}

    answer(block)


if __name__ == "__main__":
    main()
