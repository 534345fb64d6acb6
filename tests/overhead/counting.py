"""Counts the calls of Python functions that one request makes, and the objects kept for it."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import sys
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import CodeType, FrameType, FunctionType, ModuleType, SimpleNamespace
from typing import Any, NamedTuple

from prometheus_client import CollectorRegistry
from sqlalchemy import Engine, create_engine, text
from sqlalchemy.orm import Session

import leakguard
from leakguard import LeakGuard, LeakGuardMiddleware, Observer, Prometheus
from leakguard.core.guard import Guard
from leakguard.sources.sqlalchemy.checkouts import Checkouts
from leakguard.sources.sqlalchemy.pools import PoolFacts

_PACKAGE = str(Path(leakguard.__file__).parent)
_QUERY = text("SELECT 1")
_ASGI: dict[str, Any] = {"type": "http", "method": "GET", "path": "/", "headers": []}
_TIMES = 50
"""How many requests go before the one that is counted: whatever is remembered is so by then."""
_REPEATED = 20


class Counts(NamedTuple):
    """What one clean request costs."""

    calls: int
    """Calls of leakguard's own functions for a request with one session and one statement."""
    per_statement: int
    """Further calls for each further statement."""
    without_database: int
    """Calls for a request that takes nothing."""
    objects: int
    """Objects that are kept of a job with a session and a connection, while they are out."""
    size: int
    """Bytes that these have."""


class Counting:
    """Counts the calls of leakguard's own functions in the threads that ask for it."""

    def __init__(self) -> None:
        self.calls = 0
        self.active = False

    @contextmanager
    def here(self) -> Generator[None]:
        """Count what this thread calls in the block, if it is time to count."""
        if not self.active:
            yield
            return
        sys.setprofile(self._note)
        try:
            yield
        finally:
            sys.setprofile(None)

    def _note(self, frame: FrameType, event: str, _: object) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(_PACKAGE):
            self.calls += 1


class Bench:
    """An application with one engine, whose requests use a session in a thread, or nothing."""

    def __init__(self, folder: Path) -> None:
        self.engine: Engine = create_engine(
            f"sqlite:///{folder / 'overhead.db'}", connect_args={"check_same_thread": False}
        )
        self.counting = Counting()
        self.statements = 1

    def work(self) -> None:
        """Use a session, as a dependency and its endpoint do."""
        with self.counting.here(), Session(self.engine) as db:
            for _ in range(self.statements):
                db.execute(_QUERY)

    async def with_session(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer after work in a thread, as a framework does with functions that are `def`."""
        context = contextvars.copy_context()
        await asyncio.get_running_loop().run_in_executor(self._thread, context.run, self.work)
        await self.without(scope, receive, send)

    async def without(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer at once, as the function that a router has found."""
        scope.update(endpoint=count, route=SimpleNamespace(path="/"))
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    def calls(self, guard: LeakGuard, app: Callable[..., Any]) -> int:
        """Return how many functions of leakguard's one request calls.

        Of several the least: now and then one has a look at what is out planned, for many.
        """
        return min(self._run(LeakGuardMiddleware(app, guard=guard)) for _ in range(_REPEATED))

    def held(self, guard: LeakGuard) -> tuple[int, int]:
        """Return what leakguard keeps of a job with a session and a connection, while they are out.

        That is how many objects, and how many bytes they have.
        """
        with guard.scope("job") as scope, Session(self.engine) as db:
            db.execute(_QUERY)
            kept = _owned_by([scope, *guard.open_holds()])
        return len(kept), sum(map(sys.getsizeof, kept))

    def _run(self, app: Any) -> int:
        async def receive() -> Any:
            return {"type": "http.request", "body": b""}

        async def send(message: Any) -> None:
            pass

        async def main() -> None:
            self.counting.active = False
            for _ in range(_TIMES):
                await app({**_ASGI}, receive, send)
            gc.collect()
            self.counting.active = True
            asgi = {**_ASGI}
            with self.counting.here():
                await app(asgi, receive, send)
            self.counting.active = False

        self.counting.calls = 0
        gc.disable()
        try:
            with ThreadPoolExecutor(1) as self._thread:
                asyncio.run(main())
        finally:
            gc.enable()
        return self.counting.calls


def _owned_by(roots: list[object]) -> list[object]:
    """List what is there for these objects alone: what they refer to, but for what others share."""
    owned: dict[int, object] = {}
    todo = list(roots)
    while todo:
        one = todo.pop()
        if id(one) not in owned and not isinstance(one, _SHARED):
            owned[id(one)] = one
            todo += gc.get_referents(one)
    return list(owned.values())


_SHARED = (type, ModuleType, FunctionType, CodeType, Guard, PoolFacts, Checkouts, str, int, bool)
"""What a hold or scope refers to, and does not have for itself."""


def count(folder: Path, mode: str) -> Counts:
    """Count what a guard does in a mode; in production with the metrics that it has there."""
    bench = Bench(folder)
    registry = CollectorRegistry()
    observers: list[Observer] = [Prometheus(registry=registry)] if mode == "production" else []
    with LeakGuard(mode=mode, observers=observers) as guard:
        calls = bench.calls(guard, bench.with_session)
        without = bench.calls(guard, bench.without)
        bench.statements = 11
        per_statement, rest = divmod(bench.calls(guard, bench.with_session) - calls, 10)
        assert rest == 0
        bench.statements = 1
    with LeakGuard(mode=mode, observers=[]) as guard:
        objects, size = bench.held(guard)
    bench.engine.dispose()
    return Counts(calls, per_statement, without, objects, size)
