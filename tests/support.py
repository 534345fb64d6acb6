"""Real parts for tests: a recorder, a server on a socket, and markers in source files."""

from __future__ import annotations

import asyncio
import inspect
import re
import socket
import threading
import time
from collections.abc import Callable, Collection, Generator
from contextlib import contextmanager
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

import httpx
import uvicorn
from sqlalchemy.ext.asyncio import AsyncEngine

from leakguard import Finding, FindingKind, LeakGuard, Observer, Scope
from leakguard.core.guard import Guard
from leakguard.core.hold import Hold
from leakguard.core.watch import WATCH

PATIENCE = 10.0
"""Seconds after which a wait for an event means that the test has failed."""


def core_of(guard: LeakGuard) -> Guard:
    """Return what does the work behind the public guard: the `guard` of its scopes and holds."""
    return guard._guard  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]


class Recorder(Observer):
    """An observer that keeps everything it is told, and that a test can wait on."""

    def __init__(self) -> None:
        self.scopes_opened: list[Scope] = []
        self.scopes_closed: list[Scope] = []
        self.holds_acquired: list[Hold] = []
        self.holds_released: list[Hold] = []
        self.findings: list[Finding] = []
        self.resolutions: list[Finding] = []
        self._told = threading.Condition()

    def scope_opened(self, scope: Scope) -> None:
        self._keep(self.scopes_opened, scope)

    def scope_closed(self, scope: Scope) -> None:
        self._keep(self.scopes_closed, scope)

    def acquired(self, hold: Hold) -> None:
        self._keep(self.holds_acquired, hold)

    def released(self, hold: Hold) -> None:
        self._keep(self.holds_released, hold)

    def found(self, finding: Finding) -> None:
        self._keep(self.findings, finding)

    def resolved(self, finding: Finding) -> None:
        self._keep(self.resolutions, finding)

    @property
    def kinds(self) -> list[FindingKind]:
        """The kinds of the findings, in order."""
        return [finding.kind for finding in self.findings]

    def wait_for(self, condition: Callable[[], object]) -> None:
        """Wait until `condition()` is true; it is looked at whenever something is told."""
        with self._told:
            assert self._told.wait_for(lambda: bool(condition()), PATIENCE), (
                f"not told within {PATIENCE} s; findings: {self.kinds}"
            )

    def _keep(self, told: list[Any], subject: object) -> None:
        with self._told:
            told.append(subject)
            self._told.notify_all()


def line_marked(where: ModuleType | FunctionType | type, marker: str) -> int:
    """Return the number of the one line of a module, class or function that ends in `# marker`."""
    lines, first = inspect.getsourcelines(where)
    found = [
        number
        for number, line in enumerate(lines, max(first, 1))
        if line.rstrip().endswith(f"# {marker}")
    ]
    assert len(found) == 1, f"{len(found)} lines are marked # {marker}"
    return found[0]


def drain_watch() -> None:
    """Wait until the watch has done what was posted so far."""
    assert WATCH.drain(PATIENCE)


def patiently(condition: Callable[[], object], seconds: float = PATIENCE) -> None:
    """Ask again and again until `condition()` is true: of what is in another process."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.02)


async def drivers_ended(before: Collection[threading.Thread]) -> None:
    """Wait for the threads that aiosqlite started since `before`: they need the loop to end."""
    for thread in set(threading.enumerate()).difference(before):
        if _AIOSQLITE.match(thread.name):
            await asyncio.to_thread(thread.join, PATIENCE)


async def driver_ended(engine: AsyncEngine, connection: Any) -> None:
    """Wait until a collected connection of aiosqlite's is closed: not every SQLAlchemy does it.

    Where it does, another close() may wait for ever: for a thread that has ended meanwhile.
    """
    if engine.dialect.has_terminate:
        await asyncio.to_thread(connection._thread.join, PATIENCE)  # noqa: SLF001  (no public way)
    else:
        await connection.close()


_AIOSQLITE = re.compile(r"Thread-\d+( \(_connection_worker_thread\))?$")
"""How its threads are called, now and before 0.22."""


@contextmanager
def serving(app: Any, **config: Any) -> Generator[str, None, None]:
    """Serve an application with a real uvicorn on a free loopback port; give its base URL."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(128)
        port = listener.getsockname()[1]
        server = uvicorn.Server(uvicorn.Config(app, log_level="critical", **config))
        started = threading.Event()
        startup = server.startup

        async def startup_and_tell(sockets: list[socket.socket] | None = None) -> None:
            await startup(sockets=sockets)
            started.set()

        server.startup = startup_and_tell  # type: ignore[method-assign]
        thread = threading.Thread(target=lambda: asyncio.run(server.serve([listener])), daemon=True)
        thread.start()
        try:
            assert started.wait(PATIENCE), "the server did not start"
            yield f"http://127.0.0.1:{port}"
        finally:
            server.should_exit = True
            thread.join(PATIENCE)
            assert not thread.is_alive(), "the server did not stop"


def fetch(app: Any, path: str, *, raises: bool = True) -> httpx.Response:
    """Send one GET request to an ASGI application, without a server.

    An exception of the application's is raised, unless `raises` is false.
    """

    async def get() -> httpx.Response:
        transport = httpx.ASGITransport(app, raise_app_exceptions=raises)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await client.get(path)

    return asyncio.run(get())


def database(folder: Path) -> str:
    """Return the URL of a SQLite file in `folder`, without driver."""
    return f"/{folder / 'test.db'}"
