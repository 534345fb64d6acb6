"""Random programs: whatever they do, the guard says what a small model says, at every step.

Programs open and close scopes, take connections in every way, lose, return, invalidate, detach
and reuse them, from the main thread, from threads with and without a copy of its context, and from
work on a thread pool. `tests/model/model.py` is the model. A few hundred programs run by default;
for a long run:

    LEAKGUARD_PROGRAMS=20000 ./scripts/test tests/model -o faulthandler_timeout=0

`--hypothesis-seed=N` repeats a run. A failure prints the program that fails; only a long run takes
the minutes that it needs to find the shortest one.
"""

from __future__ import annotations

import contextvars
import gc
import queue
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import initialize, precondition, rule
from sqlalchemy import Connection, create_engine, text
from sqlalchemy.orm import Session
from sqlalchemy.pool import NullPool, Pool, PoolProxiedConnection, QueuePool, StaticPool

from leakguard import LeakGuard, allow
from tests.model.machine import PROGRAMS, Machine, run_programs
from tests.model.machine import Thing as Reference
from tests.model.model import Model, ModelActor
from tests.support import PATIENCE

QUERY = text("SELECT 1")
WORKERS_AT_MOST = 3


class Worker:
    """A thread that does what it is told until it is told to end."""

    def __init__(self, context: contextvars.Context | None) -> None:
        """Start it in `context`, or without one."""
        self._jobs: queue.SimpleQueue[tuple[Callable[[], Any], Future[Any]] | None]
        self._jobs = queue.SimpleQueue()
        target = self._run if context is None else contextvars.Context.run
        arguments = () if context is None else (context, self._run)
        self._thread = threading.Thread(target=target, args=arguments, daemon=True)
        self._thread.start()

    def do(self, job: Callable[[], Any]) -> None:
        """Have it do `job`, and wait for that."""
        done: Future[Any] = Future()
        self._jobs.put((job, done))
        done.result(PATIENCE)

    def end(self) -> None:
        """End it, and wait for that."""
        self._jobs.put(None)
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive()

    def _run(self) -> None:
        while (item := self._jobs.get()) is not None:
            job, done = item
            del item
            try:
                job()
            except BaseException as error:  # noqa: BLE001  (told to the one who waits)
                done.set_exception(error)
            else:
                done.set_result(None)
            del job, done


@dataclass(eq=False)
class Actor:
    """Who does something: the main thread, or a worker; with its side of the model."""

    model: ModelActor
    worker: Worker | None = None
    blocks: list[Any] = field(default_factory=list[Any])

    def do(self, job: Callable[[], Any]) -> None:
        """Do it in the actor's thread."""
        if self.worker is None:
            job()
        else:
            self.worker.do(job)


@dataclass(eq=False)
class Thing(Reference):
    """A connection or session, and how it was taken."""

    how: str = "session"
    invalid: bool = False
    """A `Connection` that was invalidated, and may be used again after a rollback."""
    savepoint: Any = None
    ended: bool = False

    @property
    def usable(self) -> bool:
        """Whether statements can be executed through it."""
        return self.real is not None and not self.ended and self.how != "raw"


class Programs(Machine):
    """Random programs of threads."""

    things: list[Thing]
    pools = st.sampled_from([QueuePool, QueuePool, NullPool, StaticPool])

    def __init__(self) -> None:
        super().__init__()
        self.main = Actor(ModelActor())
        self.actors = [self.main]
        self.executor = ThreadPoolExecutor(1)

    @initialize(pool=pools, mode=st.sampled_from(["testing", "production"]))
    def begin(self, pool: type[Pool], mode: str) -> None:
        """Make an engine and a guard."""
        self.shares = pool is StaticPool
        options: dict[str, Any] = {"max_overflow": 1000} if pool is QueuePool else {}
        self.engine = create_engine(
            f"sqlite:///{self.folder / 'model.db'}",
            poolclass=pool,
            connect_args={"check_same_thread": False},
            **options,
        )
        self.model = Model(nests=pool is QueuePool)
        self.guard = LeakGuard(mode=mode, observers=[self.recorder], late_after=0.0).install()

    @property
    def pool(self) -> Pool:
        return self.engine.pool

    # --- scopes and threads -----------------------------------------------------------------------

    @rule(who=st.integers(0, 3))
    def open_scope(self, who: int) -> None:
        """An actor opens a scope."""
        actor = self._actor(who)
        block = self.guard.scope(f"scope {len(self.scope_of)}")
        actor.do(lambda: actor.blocks.append((block, block.__enter__())))
        self.scope_of[self.model.opens(actor.model)] = actor.blocks[-1][1]

    @precondition(lambda self: any(actor.blocks for actor in self.actors))
    @rule(who=st.integers(0, 3), failed=st.booleans())
    def close_scope(self, who: int, *, failed: bool) -> None:
        """An actor ends its innermost scope, with or without an exception."""
        able = [actor for actor in self.actors if actor.blocks]
        self._close_innermost(able[who % len(able)], KeyError() if failed else None)

    def _close_innermost(self, actor: Actor, error: Exception | None) -> None:
        block, _ = actor.blocks.pop()
        actor.do(lambda: block.__exit__(None if error is None else type(error), error, None))
        self.model.closes(actor.model)

    @precondition(lambda self: len(self.actors) <= WORKERS_AT_MOST)
    @rule(copied=st.booleans())
    def start_thread(self, *, copied: bool) -> None:
        """A thread begins, with or without a copy of the main thread's context."""
        context = contextvars.copy_context() if copied else None
        base = self.main.model.scope if copied else None
        self.actors.append(Actor(ModelActor(base), Worker(context)))

    @precondition(lambda self: len(self.actors) > 1)
    @rule(which=st.integers(0, 2))
    def end_thread(self, which: int) -> None:
        """A thread ends, after its own scopes."""
        actor = self.actors.pop(1 + which % (len(self.actors) - 1))
        while actor.blocks:
            self._close_innermost(actor, None)
        assert actor.worker is not None
        actor.worker.end()
        self.model.ends(actor.model)

    def _actor(self, who: int) -> Actor:
        return self.actors[who % len(self.actors)]

    # --- taking -----------------------------------------------------------------------------------

    hows = st.sampled_from(["session", "session", "connection", "raw"])

    @rule(who=st.integers(0, 3), how=hows, allowed=st.sampled_from([False] * 5 + [True]))
    def take(self, who: int, how: str, *, allowed: bool) -> None:
        """An actor constructs a session or takes a connection, perhaps on purpose."""
        actor = self._actor(who)
        thing = Thing(None, how=how)
        actor.do(lambda: self._make(thing, allowed=allowed))
        self._made(actor.model, thing, allowed=allowed)

    @rule(copied=st.booleans(), how=hows)
    def take_in_a_job(self, how: str, *, copied: bool) -> None:
        """Work on a thread pool takes something and ends."""
        job = ModelActor(self.main.model.scope if copied else None)
        thing = Thing(None, how=how)
        self._in_a_job(lambda: self._make(thing, allowed=False), copied=copied)
        self._made(job, thing, allowed=False)
        self.model.ends(job)

    def _in_a_job(self, job: Callable[[], None], *, copied: bool) -> None:
        run = contextvars.copy_context().run if copied else contextvars.Context().run
        self.executor.submit(run, job).result(PATIENCE)

    def _make(self, thing: Thing, *, allowed: bool) -> None:
        exempt: AbstractContextManager[None] = allow("on purpose") if allowed else nullcontext()
        with exempt:
            if thing.how == "session":
                thing.real = Session(self.engine)
            elif thing.how == "connection":
                thing.real = self.engine.connect()
            else:
                thing.real = self.engine.raw_connection()

    def _made(self, actor: ModelActor, thing: Thing, *, allowed: bool) -> None:
        self.things.append(thing)
        thing.whole = weakref.ref(thing.real)
        if thing.how == "session":
            thing.session = self.model.constructs(actor, allowed=allowed)
        else:
            self._has_taken(actor, thing, allowed=allowed)

    def _has_taken(self, actor: ModelActor, thing: Thing, *, allowed: bool = False) -> None:
        pool = self.pool_number
        thing.hold = self.model.checks_out(actor, pool, thing.session, allowed=allowed)
        thing.proxy = weakref.ref(_proxy(thing))
        thing.invalid = False

    # --- using ------------------------------------------------------------------------------------

    @precondition(lambda self: self._usable())
    @rule(who=st.integers(0, 3), which=st.integers(0, 9))
    def execute(self, who: int, which: int) -> None:
        """An actor executes a statement; what has no connection takes one, as often as it wants."""
        actor, thing = self._actor(who), self._pick(which)
        actor.do(lambda: _execute(thing))
        self._has_executed(actor.model, thing)

    @precondition(lambda self: self._usable())
    @rule(which=st.integers(0, 9), copied=st.booleans())
    def execute_in_a_job(self, which: int, *, copied: bool) -> None:
        """Work on a thread pool executes a statement and ends."""
        thing = self._pick(which)
        job = ModelActor(self.main.model.scope if copied else None)
        self._in_a_job(lambda: _execute(thing), copied=copied)
        self._has_executed(job, thing)
        self.model.ends(job)

    @precondition(lambda self: not self.shares and self._usable())
    @rule(who=st.integers(0, 3), which=st.integers(0, 9))
    def begin_savepoint(self, who: int, which: int) -> None:
        """An actor begins a savepoint."""
        actor, thing = self._actor(who), self._pick(which)
        if not thing.invalid:
            actor.do(lambda: _begin_savepoint(thing))
            self._has_executed(actor.model, thing)

    @precondition(lambda self: any(one.savepoint is not None for one in self.things))
    @rule(who=st.integers(0, 3), which=st.integers(0, 9), kept=st.booleans())
    def end_savepoint(self, who: int, which: int, *, kept: bool) -> None:
        """An actor ends a savepoint, one way or the other: its connection stays out."""
        able = [one for one in self.things if one.savepoint is not None]
        thing = able[which % len(able)]
        savepoint, thing.savepoint = thing.savepoint, None
        if savepoint.is_active:
            self._actor(who).do(savepoint.commit if kept else savepoint.rollback)

    @precondition(lambda self: self._usable())
    @rule(who=st.integers(0, 3), which=st.integers(0, 9), kept=st.booleans())
    def end_transaction(self, who: int, which: int, *, kept: bool) -> None:
        """An actor commits or rolls back: a session gives its connection back, others keep it."""
        thing = self._pick(which)
        thing.savepoint = None
        kept = kept and not thing.invalid
        self._actor(who).do(thing.real.commit if kept else thing.real.rollback)
        if thing.how == "session":
            self.has_returned(thing)

    def _usable(self) -> bool:
        return any(thing.usable for thing in self.things)

    def _pick(self, which: int) -> Thing:
        able = [thing for thing in self.things if thing.usable]
        return able[which % len(able)]

    def _has_executed(self, actor: ModelActor, thing: Thing) -> None:
        if thing.hold is None:
            self._has_taken(actor, thing)

    # --- giving back ------------------------------------------------------------------------------

    @precondition(lambda self: self.things)
    @rule(
        who=st.integers(0, 3), which=st.integers(0, 9), ending=st.sampled_from(["close", "reset"])
    )
    def close(self, who: int, which: int, ending: str) -> None:
        """An actor closes something, perhaps for the second time; sessions can be used on."""
        thing = self.things[which % len(self.things)]
        if thing.ended and thing.how == "raw":
            return
        thing.savepoint = None
        method = ending if thing.how == "session" else "close"
        self._actor(who).do(getattr(thing.real, method))
        self.has_returned(thing)
        if thing.session is not None:
            self.model.returns(thing.session)
        else:
            thing.ended = True

    @precondition(lambda self: self._removable())
    @rule(who=st.integers(0, 3), which=st.integers(0, 9))
    def invalidate(self, who: int, which: int) -> None:
        """An actor invalidates a connection, or a session with what it has."""
        able = self._removable()
        thing = able[which % len(able)]
        thing.savepoint = None
        self._actor(who).do(thing.real.invalidate)
        self.has_returned(thing)
        thing.invalid, thing.ended = thing.how == "connection", thing.how == "raw"
        if thing.session is not None:
            self.model.returns(thing.session)

    @precondition(lambda self: self._removable())
    @rule(who=st.integers(0, 3), which=st.integers(0, 9))
    def detach(self, who: int, which: int) -> None:
        """An actor takes a connection out of its pool for good, which does not close it."""
        able = self._removable()
        thing = able[which % len(able)]
        self._actor(who).do(lambda: _detach(thing))
        assert thing.hold is not None
        thing.hold.detached = True

    def _removable(self) -> list[Thing]:
        """What has a connection that is nobody else's."""
        pooled = [hold for hold in self.connections_out() if not hold.detached]
        if self.shares and len(pooled) > 1:
            return []
        return [one for one in self.things if one.hold is not None and not one.hold.detached]

    @precondition(lambda self: not self.shares or not self.connections_out())
    @rule()
    def dispose(self) -> None:
        """The engine gets a new pool, whatever is out of the old one."""
        self.engine.dispose()
        self.pool_number = object()

    # --- losing -----------------------------------------------------------------------------------

    @precondition(lambda self: self.things)
    @rule(which=st.integers(0, 9))
    def drop(self, which: int) -> None:
        """Nobody refers to something any more: some go at once, most wait for the collector."""
        thing = self.things.pop(which % len(self.things))
        thing.real = thing.savepoint = None
        self.dropped.append(thing)
        self.see_what_went()

    @precondition(lambda self: self.dropped)
    @rule()
    def collect(self) -> None:
        """The garbage collector runs."""
        gc.collect()
        self.see_what_went()
        assert not self.dropped, "something else refers to what was dropped"

    def teardown(self) -> None:
        """Everything ends, everything comes back, and nothing is left."""
        if not self.begun:
            return
        try:
            self._end_everything()
        finally:
            self.guard.uninstall()
            self.engine.dispose()
            self.executor.shutdown()

    def _end_everything(self) -> None:
        while len(self.actors) > 1:
            self.end_thread(0)
        while self.main.blocks:
            self._close_innermost(self.main, None)
        self.agree()
        while self.things:
            self.close(0, 0, "close")
            self.drop(0)
        gc.collect()
        self.see_what_went()
        self.agree()
        assert self.guard.open_holds() == ()


def _proxy(thing: Thing) -> PoolProxiedConnection:
    real = thing.real
    if isinstance(real, Session):
        return real.connection().connection
    if isinstance(real, Connection):
        return real.connection
    return cast("PoolProxiedConnection", real)


def _execute(thing: Thing) -> None:
    if thing.invalid:
        thing.real.rollback()
    thing.real.execute(QUERY)


def _begin_savepoint(thing: Thing) -> None:
    thing.savepoint = thing.real.begin_nested()
    thing.real.execute(QUERY)


def _detach(thing: Thing) -> None:
    connection = thing.real.connection() if thing.how == "session" else thing.real
    connection.detach()


@pytest.mark.usefixtures("quiet_collector")
@pytest.mark.filterwarnings("ignore:unclosed database:ResourceWarning")
def test_the_guard_says_what_the_model_says(tmp_path: Path) -> None:
    """Open holds, findings and resolutions are the model's at every step of every program."""

    class Here(Programs):
        folder = tmp_path

    run_programs(Here, programs=PROGRAMS, steps=40)
