"""Very many requests, and what leakguard holds in memory before and after."""

from __future__ import annotations

import asyncio
import gc
import logging
import tempfile
import tracemalloc
import weakref
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

from sqlalchemy import Engine, create_engine, text
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

import leakguard
from leakguard import FindingKind, History, LeakGuard, LeakGuardMiddleware, Log
from tests.load.client import call
from tests.support import drain_watch

QUERY = text("SELECT 1")
OURS = str(Path(leakguard.__file__).parent / "*")
REMEMBERED = 48
"""How many findings the history keeps: full before the first look, and of each kind a third."""
BATCH = 50
"""After so many leaking requests their connections come back, or are lost to the collector."""
ENGINES_EVERY = 500
"""After so many requests the application has another engine, as one per tenant would be."""


@dataclass(frozen=True)
class Plan:
    """How many requests of either kind."""

    clean: int
    leaking: int
    warm_up: int = 400
    """Of each kind, before the first look: whatever has a bound is full by then."""


@dataclass(frozen=True)
class Look:
    """What leakguard holds at one moment."""

    size: int
    """Bytes that were allocated in its files."""
    objects: Counter[str]
    """Its objects by class."""
    leaks: int
    """How many connections were found to have leaked."""


@dataclass
class Outcome:
    """The two looks, and what else of the application's is still there."""

    before: Look
    after: Look
    seconds: float
    alive: Counter[str]
    """What was made of engines, sessions and so on and did not die."""
    died: Counter[str]

    @property
    def leaks(self) -> int:
        """How many requests of the plan were found to leak."""
        return self.after.leaks - self.before.leaks - REMEMBERED

    @property
    def grown(self) -> int:
        """How many bytes leakguard holds more than after the warm-up."""
        return self.after.size - self.before.size

    @property
    def more_objects(self) -> Counter[str]:
        """Which objects there are more of than after the warm-up."""
        return self.after.objects - self.before.objects


class Local:
    """Something in a local variable: alive while its frame is."""


@dataclass
class Census:
    """Weak references to what the application made; the dead are counted and dropped."""

    refs: list[tuple[str, weakref.ref[Any]]] = field(default_factory=list[Any])
    died: Counter[str] = field(default_factory=Counter[str])

    def note(self, *things: object) -> None:
        """Follow them."""
        self.refs += [(type(thing).__name__, weakref.ref(thing)) for thing in things]

    def alive(self) -> Counter[str]:
        """Count who is still there."""
        self.died.update(name for name, ref in self.refs if ref() is None)
        self.refs = [(name, ref) for name, ref in self.refs if ref() is not None]
        return Counter(name for name, _ in self.refs)


class Site:
    """An application with healthy and leaking routes on engines that come and go."""

    def __init__(self, folder: Path, guard: LeakGuard, history: History) -> None:
        self.history = history
        self.census = Census()
        self._file = folder / "endurance.db"
        self._kept: list[Any] = []
        self._batches = 0
        self.engine = self._make_engine()
        self.async_engine = create_async_engine(f"sqlite+aiosqlite:///{self._file}")
        names = ("clean", "clean_async", "leak_session", "leak_raw", "leak_error")
        routes = [Route(f"/{name}/{{number}}", getattr(self, name)) for name in names]
        self.app = LeakGuardMiddleware(Starlette(routes=routes), guard=guard)

    def renew(self) -> None:
        """Take another engine; nobody refers to the old one any more."""
        self.engine.dispose()
        self.engine = self._make_engine()

    def settle_leaks(self) -> None:
        """Close what leaked, or lose it."""
        kept, self._kept = self._kept, []
        self._batches += 1
        if self._batches % 2:
            for one in kept:
                one.close()
        del kept
        gc.collect()

    async def clean(self, request: Request) -> Response:
        """Close the session in time."""
        local = Local()
        with Session(self.engine) as session:
            session.execute(QUERY)
            self.census.note(local, session, session.connection(), *_tasks())
        return PlainTextResponse("")

    async def clean_async(self, request: Request) -> Response:
        """Close the asynchronous session in time."""
        async with AsyncSession(self.async_engine) as session:
            await session.execute(QUERY)
            self.census.note(Local(), session, session.sync_session, *_tasks())
        return PlainTextResponse("")

    async def leak_session(self, request: Request) -> Response:
        """Keep the session."""
        local = Local()
        session = Session(self.engine)
        session.execute(QUERY)
        self._kept.append(session)
        self.census.note(local, session, session.connection(), *_tasks())
        return PlainTextResponse("")

    async def leak_raw(self, request: Request) -> Response:
        """Keep a raw connection."""
        connection = self.engine.raw_connection()
        self._kept.append(connection)
        self.census.note(Local(), connection, *_tasks())
        return PlainTextResponse("")

    async def leak_error(self, request: Request) -> Response:
        """Raise before the session is closed."""
        session = Session(self.engine)
        self._kept.append(session)
        session.execute(QUERY)
        self.census.note(Local(), session, *_tasks())
        raise KeyError

    def _make_engine(self) -> Engine:
        engine = create_engine(
            f"sqlite:///{self._file}",
            max_overflow=-1,
            connect_args={"check_same_thread": False},
            pool_logging_name="main",
        )
        self.census.note(engine, engine.pool)
        return engine


def run(plan: Plan) -> Outcome:
    """Send the requests of a plan, and look before and after."""
    _be_quiet()
    with tempfile.TemporaryDirectory() as folder:
        history = History(limit=REMEMBERED)
        with LeakGuard(mode="development", observers=[Log(), history]) as guard:
            tracemalloc.start()
            try:
                return asyncio.run(_run(plan, Site(Path(folder), guard, history)))
            finally:
                tracemalloc.stop()


async def _run(plan: Plan, site: Site) -> Outcome:
    await _send(site, plan.warm_up, plan.warm_up)
    before = await _look(site)
    begun = perf_counter()
    await _send(site, plan.clean, plan.leaking)
    seconds = perf_counter() - begun
    after = await _look(site)
    await site.async_engine.dispose()
    alive = site.census.alive()
    return Outcome(before, after, seconds, alive, site.census.died)


async def _send(site: Site, clean: int, leaking: int) -> None:
    """Send both kinds evenly mixed, each in a task of its own, as a server does."""
    leaks = ("leak_session", "leak_raw", "leak_error")
    total, sent = clean + leaking, 0
    for number in range(total):
        leak = (number + 1) * leaking // total > sent
        name = leaks[sent % 3] if leak else "clean_async" if number % 10 == 0 else "clean"
        sent += leak
        await asyncio.create_task(call(site.app, f"/{name}/{number}"))
        if leak and sent % BATCH == 0:
            site.settle_leaks()
        if number % ENGINES_EVERY == 0:
            site.renew()
            site.census.alive()


async def _look(site: Site) -> Look:
    """Count, when all is done that was to be done, and the history has the same as ever."""
    await _send(site, 0, REMEMBERED)
    for _ in range(2):
        site.settle_leaks()
    site.renew()
    drain_watch()
    for _ in range(3):  # SQLAlchemy's finalizers bring some of its own back once
        gc.collect()
    drain_watch()
    mine = tracemalloc.take_snapshot().filter_traces(
        [tracemalloc.Filter(inclusive=True, filename_pattern=OURS)]
    )
    size = sum(one.size for one in mine.statistics("filename"))
    groups = site.history.groups.values()
    leaks = sum(group.count for group in groups if group.first.kind is FindingKind.LEAKED)
    return Look(size, Counter(_own_objects()), leaks)


def _own_objects() -> list[str]:
    kinds: list[type[Any]] = [type(one) for one in gc.get_objects()]
    return [kind.__qualname__ for kind in kinds if str(kind.__module__).startswith("leakguard.")]


def _tasks() -> list[asyncio.Task[Any]]:
    task = asyncio.current_task()
    return [] if task is None else [task]


def _be_quiet() -> None:
    for name in ("leakguard", "sqlalchemy.pool"):
        logger = logging.getLogger(name)
        logger.propagate = False
        logger.addHandler(logging.NullHandler())
