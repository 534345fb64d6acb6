"""The laboratory: engines, an application under watch, requests to it, and what is kept of it."""

from __future__ import annotations

import asyncio
import inspect
import socket
import threading
from collections.abc import (
    AsyncGenerator,
    Awaitable,
    Callable,
    Coroutine,
    Generator,
    MutableMapping,
)
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any, Final, TypedDict, TypeVar

import httpx
import uvicorn
from fastapi import FastAPI
from sqlalchemy import Engine, create_engine, event
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import AsyncAdaptedQueuePool
from websockets.asyncio.client import connect

from leakguard import FindingKind, LeakGuard, LeakGuardMiddleware
from leakguard.core.settings import Mode
from leakguard.core.watch import WATCH
from tests.scenarios.databases import Database, Driver
from tests.support import PATIENCE, Recorder, drivers_ended

T = TypeVar("T")
Message = MutableMapping[str, Any]
AsgiScope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
AsgiApp = Callable[[AsgiScope, Receive, Send], Awaitable[None]]

HEADER: Final = "x-lab"
"""The header by which the server knows whose application is meant."""
_RESOLVABLE: Final = (FindingKind.LEAKED, FindingKind.HELD, FindingKind.OUTLIVES_SCOPE)


class Times(TypedDict):
    """The settings of a guard that are seconds."""

    late_after: float
    held_after: float


class LoopRecorder(Recorder):
    """A recorder that coroutines can wait on."""

    def __init__(self) -> None:
        super().__init__()
        self._loop = asyncio.get_running_loop()
        self._news = asyncio.Event()

    async def until(self, condition: Callable[[], object]) -> None:
        """Wait until `condition()` is true; it is looked at whenever something is told."""
        async with asyncio.timeout(PATIENCE):
            while not condition():
                self._news.clear()
                await self._news.wait()

    def _keep(self, told: list[Any], subject: object) -> None:
        super()._keep(told, subject)
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._news.set)


class Bench:
    """What all copies of a scenario share: the guard, the engines, the server."""

    def __init__(
        self,
        driver: Driver,
        database: Database,
        mode: Mode,
        times: Times,
        copies: int,
    ) -> None:
        self.driver = driver
        self.database = database
        self.copies = copies
        self.recorder = LoopRecorder()
        self.guard = LeakGuard(mode=mode.value, observers=[self.recorder], **times)
        self.address: tuple[str, int] | None = None
        self.engines: list[Engine | AsyncEngine] = []
        self.kept: list[object] = []
        """What leaks is kept here: the garbage collector must not decide a test."""
        self.at_end: list[Callable[[], object]] = []
        """What closes it."""
        self.labs = [Lab(self, number) for number in range(copies)]
        self._shared: dict[str, Any] = {}
        self._threads = set(threading.enumerate())

    # --- engines ----------------------------------------------------------------------------------

    def engine(self, **options: Any) -> Engine:
        """Make an engine for the driver."""
        engine = create_engine(self.database.url(self.driver), **self._options(options))
        self.engines.append(engine)
        return engine

    def async_engine(self, **options: Any) -> AsyncEngine:
        """Make an asynchronous engine for the driver."""
        engine = create_async_engine(self.database.url(self.driver), **self._options(options))
        self.engines.append(engine)
        return engine

    def shared(self, name: str, make: Callable[[], T]) -> T:
        """Return the one object of a name, made when it is first asked for."""
        if name not in self._shared:
            self._shared[name] = make()
        found: T = self._shared[name]
        return found

    def _options(self, options: dict[str, Any]) -> dict[str, Any]:
        defaults: dict[str, Any] = {}
        if self.driver.database == "SQLite":
            # Writers wait for one another; pools that belong to a thread are closed by another.
            defaults["connect_args"] = {"timeout": 60, "check_same_thread": False}
            if self.driver.form == "async":  # not the default before SQLAlchemy 2.0.38
                defaults["poolclass"] = AsyncAdaptedQueuePool
        if self.copies > 1 and "poolclass" not in options:
            # A scenario that takes two connections must not starve its copies.
            defaults |= {"pool_size": self.copies, "max_overflow": 2 * self.copies}
        return defaults | options

    # --- requests ---------------------------------------------------------------------------------

    async def __call__(self, scope: AsgiScope, receive: Receive, send: Send) -> None:
        """Hand a request to the application of the copy that it is for."""
        headers = dict(scope["headers"])
        lab = self.labs[int(headers.get(HEADER.encode(), b"0"))]
        await lab.asgi(scope, receive, send)

    @asynccontextmanager
    async def in_process(self) -> AsyncGenerator[None, None]:
        """Watch; requests are made without a server."""
        with self.guard:
            yield

    @asynccontextmanager
    async def serving(self) -> AsyncGenerator[None, None]:
        """Watch; requests go to a real server, which runs in this loop."""
        with self.guard, socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            listener.listen(128)
            self.address = listener.getsockname()
            server = _Server(_config(self))
            task = asyncio.create_task(server.serve([listener]))
            try:
                yield
            finally:
                server.should_exit = True
                await task

    # --- the end ----------------------------------------------------------------------------------

    async def over(self, findings: int) -> None:
        """Wait until every scope has ended and as many findings as are expected were made."""
        recorder = self.recorder
        await recorder.until(self._scopes_closed)
        try:
            await recorder.until(lambda: len(recorder.findings) >= findings)
        except TimeoutError:
            return  # the comparison says what is missing
        await self._watch_is_idle()

    def _scopes_closed(self) -> bool:
        return len(self.recorder.scopes_closed) == len(self.recorder.scopes_opened)

    async def nothing_out(self) -> None:
        """See that everything is given back, and that there was something to give back.

        An outer middleware may still be at it: the client has its answer before.
        """
        with suppress(TimeoutError):
            await self.recorder.until(lambda: not self.guard.open_holds())
        assert self.guard.open_holds() == ()
        acquired = [hold.resource for hold in self.recorder.holds_acquired]
        assert acquired.count("connection") >= self.copies

    async def close(self) -> None:
        """Close everything that was kept, the latest first, and the engines."""
        for close in reversed(self.at_end):
            closing = close()
            if inspect.isawaitable(closing):
                await closing
        recorder = self.recorder
        out = {finding.hold for finding in recorder.findings if finding.kind in _RESOLVABLE}
        await recorder.until(lambda: out <= {finding.hold for finding in recorder.resolutions})
        with suppress(TimeoutError):  # a thread may give its connection back before its session
            await recorder.until(lambda: not self.guard.open_holds())
        await self._watch_is_idle()
        self.out = self._checked_out()
        for engine in self.engines:
            disposing = engine.dispose()
            if disposing is not None:
                await disposing
        await drivers_ended(self._threads)

    def all_back(self) -> None:
        """See that no hold is open, and that the pools say the same."""
        assert self.guard.open_holds() == ()
        assert not any(self.out), f"connections out by pool: {self.out}"

    def _checked_out(self) -> list[int]:
        pools: list[Any] = [engine.pool for engine in self.engines]
        return [pool.checkedout() for pool in pools if hasattr(pool, "checkedout")]

    async def _watch_is_idle(self) -> None:
        """Wait until the watch has done what it was given so far."""
        if WATCH.started:
            done = threading.Event()
            WATCH.post(done.set)
            assert await asyncio.to_thread(done.wait, PATIENCE)


class Lab:
    """What one copy of a scenario works with."""

    def __init__(self, bench: Bench, number: int) -> None:
        self.bench = bench
        self.guard = bench.guard
        self.recorder = bench.recorder
        self.database = bench.database
        self.app = FastAPI()
        self._number = number
        self._outside: list[tuple[Any, dict[str, Any]]] = []
        self._asgi: AsgiApp | None = None

    # --- the database -----------------------------------------------------------------------------

    @property
    def engine(self) -> Engine:
        """The engine of the driver under test."""
        return self.bench.shared("engine", self.bench.engine)

    @property
    def async_engine(self) -> AsyncEngine:
        """The asynchronous engine of the driver under test."""
        return self.bench.shared("async engine", self.bench.async_engine)

    def make_engine(self, **options: Any) -> Engine:
        """Make another engine, with options."""
        return self.bench.engine(**options)

    def make_async_engine(self, **options: Any) -> AsyncEngine:
        """Make another asynchronous engine, with options."""
        return self.bench.async_engine(**options)

    def obstacle(self, **options: Any) -> Obstruction:
        """Put something in the way of a statement, before the engine, with options, connects."""
        if self.bench.driver.form == "async":
            return Obstruction(self, self.make_async_engine(**options).sync_engine)
        return Obstruction(self, self.make_engine(**options))

    # --- the application --------------------------------------------------------------------------

    @property
    def asgi(self) -> AsgiApp:
        """The application behind the middleware, which is added when it is first asked for."""
        if self._asgi is None:
            self.app.add_middleware(LeakGuardMiddleware, guard=self.guard)
            for middleware, options in self._outside:
                self.app.add_middleware(middleware, **options)
            self._asgi = self.app
        return self._asgi

    def inside(self, middleware: Any, **options: Any) -> None:
        """Put a middleware between leakguard's and the application."""
        self.app.add_middleware(middleware, **options)

    def outside(self, middleware: Any, **options: Any) -> None:
        """Put a middleware around leakguard's."""
        self._outside.append((middleware, options))

    def replace_app(self, app: AsgiApp) -> None:
        """Use an ASGI application that has leakguard's middleware already, or wants none."""
        self._asgi = app

    # --- requests ---------------------------------------------------------------------------------

    async def get(
        self, path: str = "/leak", status: int = 200, *, method: str = "GET", raises: bool = False
    ) -> httpx.Response:
        """Make a request, in process or to the server, and see that it is answered with `status`.

        With `raises`, what leaves the application is raised, which only shows in process.
        """
        async with self.client(raises=raises) as client:
            response = await client.request(method, path)
        assert response.status_code == status, response.text
        return response

    def client(self, *, raises: bool = False) -> httpx.AsyncClient:
        """Return a client of the application."""
        options: dict[str, Any] = {"base_url": "http://test"}
        if self.bench.address is None:
            options["transport"] = httpx.ASGITransport(self.asgi, raise_app_exceptions=raises)
        else:
            host, port = self.bench.address
            options["base_url"] = f"http://{host}:{port}"
        return httpx.AsyncClient(**options, headers=self._headers, timeout=PATIENCE, verify=False)  # noqa: S501  (there is no TLS here; its certificates take long to load)

    def get_sync(self, path: str) -> httpx.Response:
        """Make a request to the server from a thread."""
        host, port = self._address
        url = f"http://{host}:{port}{path}"
        return httpx.get(url, headers=self._headers, timeout=PATIENCE, verify=False)  # noqa: S501  (there is no TLS here; its certificates take long to load)

    def websocket(self, path: str) -> connect:
        """Connect a WebSocket to the server: a block whose value is the connection."""
        host, port = self._address
        return connect(f"ws://{host}:{port}{path}", additional_headers=self._headers)

    async def leave(self, path: str, reached: asyncio.Event) -> None:
        """Make a request to the server, and disconnect when `reached` is set."""
        _, writer = await asyncio.open_connection(*self._address)
        header = f"{HEADER}: {self._number}"
        writer.write(f"GET {path} HTTP/1.1\r\nHost: test\r\n{header}\r\n\r\n".encode())
        await patiently(reached.wait())
        writer.close()
        await writer.wait_closed()

    async def cancel(self, path: str, reached: asyncio.Event) -> asyncio.Task[httpx.Response]:
        """Make a request in process, and cancel it when `reached` is set; give its task."""
        task = asyncio.create_task(self.get(path))
        await patiently(reached.wait())
        task.cancel()
        return task

    async def lifespan(self) -> Callable[[], Coroutine[Any, Any, None]]:
        """Start the application; what is given ends it."""
        inbox: asyncio.Queue[Message] = asyncio.Queue()
        outbox: asyncio.Queue[Message] = asyncio.Queue()
        scope: AsgiScope = {"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}}
        task = asyncio.ensure_future(self.asgi(scope, inbox.get, outbox.put))

        async def stage(name: str) -> None:
            await inbox.put({"type": f"lifespan.{name}"})
            assert (await patiently(outbox.get()))["type"] == f"lifespan.{name}.complete"

        async def end() -> None:
            await stage("shutdown")
            await task

        await stage("startup")
        return end

    # --- waiting ----------------------------------------------------------------------------------

    async def until(self, condition: Callable[[], object]) -> None:
        """Wait until `condition()` is true; it is looked at whenever an observer is told."""
        await self.recorder.until(condition)

    async def ended(self) -> None:
        """Wait until every scope that was opened has ended."""
        opened = len(self.recorder.scopes_opened)
        await self.recorder.until(lambda: len(self.recorder.scopes_closed) >= opened)

    async def until_held(self) -> None:
        """Wait until a connection is reported as held."""
        await self.until(lambda: FindingKind.HELD in self.recorder.kinds)

    @property
    def late(self) -> float:
        """Seconds that are more than `late_after`: whoever sleeps that long is late for sure."""
        return self.guard.settings.late_after * 2

    # --- what leaks -------------------------------------------------------------------------------

    def keep(self, kept: T, close: Callable[[], object] | None = None) -> T:
        """Keep an object, as a global would; it is closed when the verdicts have been compared."""
        self.bench.kept.append(kept)
        closing: Any = kept
        self.bench.at_end.append(closing.close if close is None else close)
        return kept

    def keep_unterminated(self, connection: Any) -> None:
        """Keep a driver's connection that SQLAlchemy drops where it cannot terminate it.

        Where it can it does so, and aiosqlite hangs if it is closed at that moment, too.
        """
        if not self.async_engine.dialect.has_terminate:
            self.keep(connection)

    @property
    def _headers(self) -> dict[str, str]:
        return {HEADER: str(self._number)}

    @property
    def _address(self) -> tuple[str, int]:
        assert self.bench.address is not None, "the scenario needs `served=True`"
        return self.bench.address


class Obstruction:
    """An engine, and a statement that does not end on it before it is let go."""

    def __init__(self, lab: Lab, engine: Engine) -> None:
        self._obstacle = lab.database.obstacle(engine)
        self.statement = self._obstacle.statement
        self.running = asyncio.Event()
        """Set when the statement has been sent."""
        self._loop = asyncio.get_running_loop()
        self.engine = engine
        event.listen(engine, "before_cursor_execute", self._noticed)
        lab.bench.at_end.append(self.let_go)

    @property
    def async_engine(self) -> AsyncEngine:
        """The asynchronous engine that it is for."""
        return AsyncEngine(self.engine)

    def let_go(self) -> None:
        """Let the statement end."""
        self._obstacle.remove()

    def _noticed(self, *arguments: Any) -> None:
        if arguments[2] == str(self.statement):
            self._loop.call_soon_threadsafe(self.running.set)


def _config(app: Any) -> uvicorn.Config:
    return uvicorn.Config(
        app, log_level="critical", lifespan="off", timeout_graceful_shutdown=int(PATIENCE)
    )


class _Server(uvicorn.Server):
    """A server that leaves the signals of the process alone."""

    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield


async def patiently(awaited: Awaitable[T]) -> T:
    """Wait for something, but not for ever."""
    return await asyncio.wait_for(awaited, PATIENCE)
