"""What is served while its database is killed: healthy routes and leaking ones.

Each route is there for every engine: `/{name}/{engine}/{number}`, with the request's own number.
All run two statements, so that a crash comes before, between or after them. Where a request is to
be running at the crash, its second statement waits for that.

Healthy routes close what they opened, whatever happens. Leaking ones keep it for good, so that no
garbage collector takes it.
"""

# No `from __future__ import annotations`: FastAPI reads the annotations of the routes, which name
# what is local to the function that they are in.

from collections.abc import AsyncIterator, Generator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from traceback import walk_tb
from typing import Annotated, Any, Final

from fastapi import Depends, FastAPI
from fastapi.responses import StreamingResponse
from sqlalchemy import TextClause, create_engine, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session
from sqlalchemy.pool import QueuePool

from leakguard import LeakGuard, LeakGuardMiddleware, Scope
from leakguard.core.scope import current_scope
from tests.scenarios.databases import Driver, Server

QUERY = text("SELECT 1")
HEALTHY: Final = ("sync_closed", "async_closed", "async_stream")
LEAKING: Final = ("sync_session", "sync_raw", "async_session", "async_core")
ENGINES: Final[dict[str, dict[str, Any]]] = {"plain": {}, "ping": {"pool_pre_ping": True}}
"""The engines of each form, with their options."""


@dataclass
class Kept:
    """What a leaking request keeps, and what its own statements have told it."""

    what: Any
    scope: Scope | None
    connected: bool
    """Whether it has a connection of a pool."""
    given_up: bool = False
    """Whether it had one, and SQLAlchemy said that it gave that up."""

    @property
    def is_session(self) -> bool:
        """Whether it is a session, and not a connection."""
        return isinstance(self.what, Session | AsyncSession)


class Site:
    """The engines, and what became of the requests, by their numbers."""

    def __init__(self, database: Server, sync: Driver, asynchronous: Driver) -> None:
        def options(form: str, engine: str) -> dict[str, Any]:
            # With any number of connections: no request waits for one.
            name = {"max_overflow": -1, "pool_logging_name": f"{form} {engine}"}
            return {**name, **ENGINES[engine]}

        self.engines = {
            engine: create_engine(database.url(sync), **options("sync", engine))
            for engine in ENGINES
        }
        self.async_engines = {
            engine: create_async_engine(database.url(asynchronous), **options("async", engine))
            for engine in ENGINES
        }
        self.waits: dict[int, TextClause] = {}
        """The second statements of the requests that wait for a crash."""
        self.reached: set[int] = set()
        """The requests that have come to their second statement."""
        self.kept: dict[int, Kept] = {}
        self.left: dict[int, str] = {}
        """What was raised, as it left the application."""
        self.arrived: dict[int, str] = {}
        """What was raised, as it arrived outside of leakguard's middleware."""

    def second(self, number: int) -> TextClause:
        """Return the second statement of a request."""
        self.reached.add(number)
        return self.waits.get(number, QUERY)

    @contextmanager
    def keep(self, number: int, what: Any, *, connected: bool) -> Generator[Kept]:
        """Keep `what` for good, and note what becomes of its connection."""
        assert number not in self.kept
        kept = self.kept[number] = Kept(what, current_scope.get(), connected)
        try:
            yield kept
        except DBAPIError as error:
            if error.connection_invalidated:
                kept.given_up, kept.connected = kept.connected, False
            raise

    def out(self) -> int:
        """Count what the pools say is out."""
        engines = [*self.engines.values()]
        engines += [engine.sync_engine for engine in self.async_engines.values()]
        pools = [engine.pool for engine in engines]
        return sum(pool.checkedout() for pool in pools if isinstance(pool, QueuePool))

    async def clean_up(self) -> None:
        """Give everything back; to be run on the loop that the application ran on."""
        for kept in self.kept.values():
            with suppress(DBAPIError):  # a dead connection cannot be rolled back, which is told
                closed = kept.what.close()
                if closed is not None:
                    await closed
        for async_engine in self.async_engines.values():
            await async_engine.dispose()
        for engine in self.engines.values():
            engine.dispose()

    def application(self, guard: LeakGuard) -> FastAPI:
        """Make the application, with a look at what is raised on both sides of the middleware."""
        app = FastAPI()
        _healthy(app, self)
        _leaking_sync(app, self)
        _leaking_async(app, self)
        app.add_middleware(_Noting, raised=self.left)
        app.add_middleware(LeakGuardMiddleware, guard=guard)
        app.add_middleware(_Noting, raised=self.arrived)
        return app


class _Noting:
    """Notes what is raised in which module: not the error, whose traceback keeps everything."""

    def __init__(self, app: Any, raised: dict[int, str]) -> None:
        self._app = app
        self._raised = raised

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            await self._app(scope, receive, send)
        except Exception as error:
            *_, (frame, _) = walk_tb(error.__traceback__)
            number = int(scope["path"].rpartition("/")[2])
            self._raised[number] = f"{frame.f_globals['__name__']}: {error!r}"
            raise


def _healthy(app: FastAPI, site: Site) -> None:
    def sync_db(engine: str) -> Iterator[Session]:
        with Session(site.engines[engine]) as db:
            yield db

    async def async_db(engine: str) -> AsyncIterator[AsyncSession]:
        async with AsyncSession(site.async_engines[engine]) as db:
            yield db

    @app.get("/sync_closed/{engine}/{number}")
    def sync_closed(number: int, db: Annotated[Session, Depends(sync_db)]) -> None:
        db.execute(QUERY)
        db.commit()
        db.execute(site.second(number))

    @app.get("/async_closed/{engine}/{number}")
    async def async_closed(number: int, db: Annotated[AsyncSession, Depends(async_db)]) -> None:
        await db.execute(QUERY)
        await db.commit()
        await db.execute(site.second(number))

    @app.get("/async_stream/{engine}/{number}")
    async def async_stream(engine: str, number: int) -> StreamingResponse:
        async def rows() -> AsyncIterator[str]:
            async with AsyncSession(site.async_engines[engine]) as db:
                yield str(await db.scalar(QUERY))
                yield str(await db.scalar(site.second(number)))

        return StreamingResponse(rows())


def _leaking_sync(app: FastAPI, site: Site) -> None:
    @app.get("/sync_session/{engine}/{number}")
    def sync_session(engine: str, number: int) -> None:
        db = Session(site.engines[engine])  # created sync_session
        with site.keep(number, db, connected=False) as kept:
            db.execute(QUERY)  # taken sync_session
            kept.connected = True
            db.execute(site.second(number))

    @app.get("/sync_raw/{engine}/{number}")
    def sync_raw(engine: str, number: int) -> None:
        connection = site.engines[engine].raw_connection()  # taken sync_raw
        with site.keep(number, connection, connected=True):
            cursor = connection.cursor()
            cursor.execute(str(QUERY))
            cursor.execute(str(site.second(number)))


def _leaking_async(app: FastAPI, site: Site) -> None:
    @app.get("/async_session/{engine}/{number}")
    async def async_session(engine: str, number: int) -> None:
        db = AsyncSession(site.async_engines[engine])  # created async_session
        with site.keep(number, db, connected=False) as kept:
            await db.execute(QUERY)  # taken async_session
            kept.connected = True
            await db.execute(site.second(number))

    @app.get("/async_core/{engine}/{number}")
    async def async_core(engine: str, number: int) -> None:
        connection = await site.async_engines[engine].connect()  # taken async_core
        with site.keep(number, connection, connected=True):
            await connection.execute(QUERY)
            await connection.execute(site.second(number))
