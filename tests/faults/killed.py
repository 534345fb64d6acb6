"""What is served while its database is killed: healthy routes, leaking ones, and who kept what.

Every route is there for each engine: `/{name}/{engine}/{number}`. The number is the request's own.
The healthy ones close what they opened, whatever happens; the leaking ones keep it for good, so
that no garbage collector takes it. `obstructed` ones run a statement that the kill ends.
"""

# No `from __future__ import annotations`: FastAPI reads the annotations of the routes, which name
# what is local to the function that they are in.

from collections.abc import AsyncIterator, Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Annotated, Any, Final, TypeVar

from fastapi import Depends, FastAPI
from fastapi.responses import StreamingResponse
from sqlalchemy import Engine, TextClause, create_engine, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.orm import Session
from sqlalchemy.pool import QueuePool

from leakguard import LeakGuard, LeakGuardMiddleware, Scope
from leakguard.core.scope import current_scope
from tests.scenarios.databases import Driver, Server

T = TypeVar("T")
QUERY = text("SELECT 1")
ENGINES: Final[dict[str, dict[str, Any]]] = {"plain": {}, "ping": {"pool_pre_ping": True}}
"""The engines that there are of each form, with their options."""

HEALTHY: Final = (
    "sync_ok",
    "sync_error",
    "sync_depends",
    "sync_stream",
    "async_ok",
    "async_error",
    "async_depends",
    "async_stream",
)
LEAKING: Final = (
    "sync_session",
    "sync_raising",
    "sync_raw",
    "async_session",
    "async_raising",
    "async_core",
)
OBSTRUCTED: Final = (
    "sync_obstructed",
    "async_obstructed",
    "async_stream_obstructed",
    "sync_session_obstructed",
    "sync_raw_obstructed",
    "async_session_obstructed",
    "async_core_obstructed",
)


class Mistake(Exception):  # noqa: N818  (what an application raises)
    """The application's own."""


@dataclass
class Planted:
    """What a request kept."""

    name: str
    """The route's."""
    engine: str
    scope: Scope | None
    what: Any
    out: bool = False
    """Whether it has a connection of a pool, as far as the application was told."""
    invalidated: bool = False
    """Whether it had one, and SQLAlchemy said that it gave that up."""
    begun: bool = False
    """Whether it ran the statement that only a crash ends."""

    @property
    def is_session(self) -> bool:
        """Whether it is a session, and not a connection."""
        return isinstance(self.what, Session | AsyncSession)

    @property
    def pool(self) -> str:
        """The name of the pool that it uses."""
        return f"{self.name.partition('_')[0]} {self.engine}"


@dataclass
class Site:
    """The engines, and what was planted: the leaks by the numbers of their requests."""

    database: Server
    engines: dict[str, Engine]
    async_engines: dict[str, AsyncEngine]
    planted: dict[int, Planted] = field(default_factory=dict[int, Planted])
    begun: set[int] = field(default_factory=set[int])
    """The requests that have begun with the statement that only a crash ends."""
    obstructed: TextClause = QUERY
    """That statement."""

    @classmethod
    def on(cls, database: Server, sync: Driver, asynchronous: Driver) -> "Site":
        """Make the engines, which may have any number of connections."""
        url, async_url = database.url(sync), database.url(asynchronous)
        return cls(
            database,
            {
                name: create_engine(url, max_overflow=-1, pool_logging_name=f"sync {name}", **more)
                for name, more in ENGINES.items()
            },
            {
                name: create_async_engine(
                    async_url, max_overflow=-1, pool_logging_name=f"async {name}", **more
                )
                for name, more in ENGINES.items()
            },
        )

    @contextmanager
    def obstructed_statement(self) -> Generator[None]:
        """Have a statement that only a crash ends."""
        obstacle = self.database.obstacle(self.engines["plain"])
        self.obstructed = obstacle.statement
        yield
        obstacle.remove()

    def plant(self, name: str, engine: str, number: int, what: T) -> T:
        """Keep `what` so that nobody gives it back, and note whose it is."""
        assert number not in self.planted
        self.planted[number] = Planted(name, engine, current_scope.get(), what)
        return what

    def took(self, number: int) -> None:
        """Note that what was planted has a connection of the pool."""
        self.planted[number].out = True

    @contextmanager
    def until_killed(self, number: int) -> Generator[None]:
        """Note that the obstructed statement begins, and what becomes of its connection."""
        planted = self.planted.get(number)
        self.begun.add(number)
        try:
            yield
        except DBAPIError as error:
            if planted is not None and error.connection_invalidated:
                planted.out, planted.invalidated = False, True
            raise
        finally:
            if planted is not None:
                planted.begun = True

    def out(self) -> int:
        """Count what the pools say is out."""
        engines = (
            *self.engines.values(),
            *(one.sync_engine for one in self.async_engines.values()),
        )
        pools = [engine.pool for engine in engines]
        return sum(pool.checkedout() for pool in pools if isinstance(pool, QueuePool))

    async def clean_up(self) -> None:
        """Give everything back; to be run on the loop that the application ran on."""
        for planted in self.planted.values():
            with suppress(DBAPIError):  # a dead connection cannot be rolled back, which is told
                closed = planted.what.close()
                if closed is not None:
                    await closed
        for async_engine in self.async_engines.values():
            await async_engine.dispose()
        for engine in self.engines.values():
            engine.dispose()

    def application(self, guard: LeakGuard, around: "Around") -> FastAPI:
        """Make the application, with the middleware between the two halves of `around`."""
        app = FastAPI()
        for install in (
            _healthy,
            _healthy_async,
            _healthy_obstructed,
            _leaking,
            _leaking_obstructed,
        ):
            install(app, self)
        app.add_middleware(around.inside)
        app.add_middleware(LeakGuardMiddleware, guard=guard)
        app.add_middleware(around.outside)
        return app


class Around:
    """Sees whether what leaves the application is what leaves the middleware around it."""

    def __init__(self) -> None:
        self.raised: dict[int, type[BaseException]] = {}
        """By the number of the request."""
        self.changed: list[str] = []
        """What did not pass as it was, and what leakguard raised itself."""

    def inside(self, app: Any) -> Any:
        """Note what leaves the application."""

        async def call(scope: Any, receive: Any, send: Any) -> None:
            try:
                await app(scope, receive, send)
            except BaseException as error:
                scope[_RAISED] = error
                raise

        return call

    def outside(self, app: Any) -> Any:
        """Compare it with what arrives here, and keep neither: its traceback keeps everything."""

        async def call(scope: Any, receive: Any, send: Any) -> None:
            arrived: BaseException | None = None
            try:
                await app(scope, receive, send)
            except BaseException as error:
                arrived = error
                raise
            finally:
                self._compare(scope["path"], scope.pop(_RAISED, None), arrived)
                del arrived

        return call

    def _compare(
        self, path: str, left: BaseException | None, arrived: BaseException | None
    ) -> None:
        if left is not arrived:
            self.changed.append(f"{path}: {left!r} became {arrived!r}")
        if arrived is not None:
            self.raised[int(path.rpartition("/")[2])] = type(arrived)
            if _origin(arrived).startswith("leakguard"):
                self.changed.append(f"{path}: {arrived!r} is leakguard's own")


_RAISED: Final = "tests.raised"


def _origin(error: BaseException) -> str:
    """Give the name of the module that raised an exception."""
    origin, traceback = "", error.__traceback__
    while traceback is not None:
        origin = str(traceback.tb_frame.f_globals.get("__name__"))
        traceback = traceback.tb_next
    return origin


def named(app: FastAPI) -> Callable[[T], T]:
    """Route requests to a function by its name."""

    def register(endpoint: T) -> T:
        function: Any = endpoint
        app.get(f"/{function.__name__}/{{engine}}/{{number}}")(function)
        return endpoint

    return register


# --- healthy --------------------------------------------------------------------------------------


def _healthy(app: FastAPI, site: Site) -> None:
    def sync_db(engine: str) -> Iterator[Session]:
        with Session(site.engines[engine]) as db:
            yield db

    @named(app)
    def sync_ok(engine: str) -> Any:
        with Session(site.engines[engine]) as db:
            return db.scalar(QUERY)

    @named(app)
    def sync_error(engine: str) -> None:
        with Session(site.engines[engine]) as db:
            db.scalar(QUERY)
            raise Mistake

    @named(app)
    def sync_depends(db: Annotated[Session, Depends(sync_db)]) -> Any:
        db.scalar(QUERY)
        db.commit()
        return db.scalar(QUERY)

    @named(app)
    def sync_stream(engine: str) -> StreamingResponse:
        def rows() -> Iterator[str]:
            with Session(site.engines[engine]) as db:
                for _ in range(3):
                    yield str(db.scalar(QUERY))

        return StreamingResponse(rows())


def _healthy_async(app: FastAPI, site: Site) -> None:
    async def async_db(engine: str) -> AsyncIterator[AsyncSession]:
        async with AsyncSession(site.async_engines[engine]) as db:
            yield db

    @named(app)
    async def async_ok(engine: str) -> Any:
        async with AsyncSession(site.async_engines[engine]) as db:
            return await db.scalar(QUERY)

    @named(app)
    async def async_error(engine: str) -> None:
        async with AsyncSession(site.async_engines[engine]) as db:
            await db.scalar(QUERY)
            raise Mistake

    @named(app)
    async def async_depends(db: Annotated[AsyncSession, Depends(async_db)]) -> Any:
        await db.scalar(QUERY)
        await db.commit()
        return await db.scalar(QUERY)

    @named(app)
    async def async_stream(db: Annotated[AsyncSession, Depends(async_db)]) -> StreamingResponse:
        async def rows() -> AsyncIterator[str]:
            for _ in range(3):
                yield str(await db.scalar(QUERY))

        return StreamingResponse(rows())


def _healthy_obstructed(app: FastAPI, site: Site) -> None:
    @named(app)
    def sync_obstructed(engine: str, number: int) -> None:
        with Session(site.engines[engine]) as db, site.until_killed(number):
            db.execute(site.obstructed)

    @named(app)
    async def async_obstructed(engine: str, number: int) -> None:
        async with AsyncSession(site.async_engines[engine]) as db:
            with site.until_killed(number):
                await db.execute(site.obstructed)

    @named(app)
    async def async_stream_obstructed(engine: str, number: int) -> StreamingResponse:
        async def rows() -> AsyncIterator[str]:
            async with AsyncSession(site.async_engines[engine]) as db:
                yield str(await db.scalar(QUERY))
                with site.until_killed(number):
                    yield str(await db.scalar(site.obstructed))

        return StreamingResponse(rows())


# --- leaking --------------------------------------------------------------------------------------


def _leaking(app: FastAPI, site: Site) -> None:
    @named(app)
    def sync_session(engine: str, number: int) -> None:
        new = Session(site.engines[engine])  # created sync_session
        db = site.plant("sync_session", engine, number, new)
        db.execute(QUERY)  # taken sync_session
        site.took(number)

    @named(app)
    def sync_raising(engine: str, number: int) -> None:
        new = Session(site.engines[engine])  # created sync_raising
        db = site.plant("sync_raising", engine, number, new)
        db.execute(QUERY)  # taken sync_raising
        site.took(number)
        raise Mistake

    @named(app)
    def sync_raw(engine: str, number: int) -> None:
        taken = site.engines[engine].raw_connection()  # taken sync_raw
        site.plant("sync_raw", engine, number, taken)
        site.took(number)

    @named(app)
    async def async_session(engine: str, number: int) -> None:
        new = AsyncSession(site.async_engines[engine])  # created async_session
        db = site.plant("async_session", engine, number, new)
        await db.execute(QUERY)  # taken async_session
        site.took(number)

    @named(app)
    async def async_raising(engine: str, number: int) -> None:
        new = AsyncSession(site.async_engines[engine])  # created async_raising
        db = site.plant("async_raising", engine, number, new)
        await db.execute(QUERY)  # taken async_raising
        site.took(number)
        raise Mistake

    @named(app)
    async def async_core(engine: str, number: int) -> None:
        taken = await site.async_engines[engine].connect()  # taken async_core
        site.plant("async_core", engine, number, taken)
        site.took(number)


def _leaking_obstructed(app: FastAPI, site: Site) -> None:
    @named(app)
    def sync_session_obstructed(engine: str, number: int) -> None:
        new = Session(site.engines[engine])  # created sync_session_obstructed
        db = site.plant("sync_session_obstructed", engine, number, new)
        db.execute(QUERY)  # taken sync_session_obstructed
        site.took(number)
        with site.until_killed(number):
            db.execute(site.obstructed)

    @named(app)
    def sync_raw_obstructed(engine: str, number: int) -> None:
        taken = site.engines[engine].raw_connection()  # taken sync_raw_obstructed
        site.plant("sync_raw_obstructed", engine, number, taken)
        site.took(number)
        with site.until_killed(number):
            taken.cursor().execute(str(site.obstructed))

    @named(app)
    async def async_session_obstructed(engine: str, number: int) -> None:
        new = AsyncSession(site.async_engines[engine])  # created async_session_obstructed
        db = site.plant("async_session_obstructed", engine, number, new)
        await db.execute(QUERY)  # taken async_session_obstructed
        site.took(number)
        with site.until_killed(number):
            await db.execute(site.obstructed)

    @named(app)
    async def async_core_obstructed(engine: str, number: int) -> None:
        taken = await site.async_engines[engine].connect()  # taken async_core_obstructed
        site.plant("async_core_obstructed", engine, number, taken)
        site.took(number)
        with site.until_killed(number):
            await taken.execute(site.obstructed)
