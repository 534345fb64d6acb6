"""Random programs of asyncio tasks: the same model as for threads, with cancellation.

The main task opens and closes scopes; other tasks, started from within them, live for as long as
the program wants, are cancelled while they wait or in the middle of a statement, and take and
return connections of an asynchronous engine. `LEAKGUARD_PROGRAMS` asks for a long run, as in
`test_model`. Notices about sessions are left out: whether one falls while other work goes on
depends on whether the line was found before.
"""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import initialize, precondition, rule
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.pool import AsyncAdaptedQueuePool, NullPool, Pool

from leakguard import FindingKind, LeakGuard
from tests.model.machine import PROGRAMS, Machine, run_programs
from tests.model.machine import Thing as Reference
from tests.model.model import Model, ModelActor, ModelScope
from tests.support import PATIENCE, drivers_ended

QUERY = text("SELECT 1")
TASKS_AT_MOST = 3
Job = Callable[[], Awaitable[object]]


@dataclass(eq=False)
class Actor:
    """A task that does what it is told until it is told to end, or is cancelled."""

    model: ModelActor
    jobs: asyncio.Queue[tuple[Job, asyncio.Future[None]] | None]
    task: asyncio.Task[None] = field(init=False)
    blocks: list[Any] = field(default_factory=list[Any])

    async def do(self, job: Job) -> None:
        """Have it do `job`, and wait for that."""
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.jobs.put_nowait((job, done))
        await asyncio.wait_for(done, PATIENCE)

    async def run(self) -> None:
        """Do the jobs."""
        while (item := await self.jobs.get()) is not None:
            job, done = item
            del item
            try:
                await job()
            except Exception as error:  # noqa: BLE001  (told to the one who waits)
                done.set_exception(error)
            else:
                done.set_result(None)
            del job, done


@dataclass(eq=False)
class Thing(Reference):
    """A connection or session, and whether it can be used."""

    broken: bool = False
    """A statement was cancelled, or it was closed and cannot be used again."""


def has_connection(thing: Thing) -> bool:
    """Return whether it has a connection out."""
    return thing.hold is not None


def is_usable(thing: Thing) -> bool:
    """Return whether statements can be executed through it."""
    return not thing.broken


def is_usable_session(thing: Thing) -> bool:
    """Return whether it is a session through which statements can be executed."""
    return thing.session is not None and not thing.broken


class AsyncPrograms(Machine):
    """Random programs of tasks."""

    things: list[Thing]
    unsaid = frozenset({FindingKind.UNCLOSED_SESSION})

    def __init__(self) -> None:
        super().__init__()
        self.threads_before = set(threading.enumerate())
        self.model = Model(patient=True)
        self.model.others_running = self._others_running
        self.tasks: list[Actor] = []

    def run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """Run one step on the loop."""
        return self.loop.run_until_complete(coroutine)

    @initialize(pool=st.sampled_from([AsyncAdaptedQueuePool, NullPool]))
    def begin(self, pool: type[Pool]) -> None:
        """Make a loop, an engine, and a guard that waits for other work as long as that takes."""
        # Not when it is constructed: Hypothesis makes one program that it never runs.
        self.loop = asyncio.new_event_loop()
        self.main: Actor = self.run(self._start(None))
        options: dict[str, Any] = {} if pool is NullPool else {"max_overflow": 1000}
        self.engine = create_async_engine(
            f"sqlite+aiosqlite:///{self.folder / 'model.db'}", poolclass=pool, **options
        )
        self.model.nests = pool is not NullPool
        observers = [self.recorder]
        self.guard = LeakGuard(mode="testing", observers=observers, late_after=3600).install()

    @property
    def pool(self) -> Pool:
        return self.engine.pool

    # --- scopes and tasks -------------------------------------------------------------------------

    @rule()
    def open_scope(self) -> None:
        """The main task opens a scope."""

        async def enter() -> None:
            block = self.guard.scope(f"scope {len(self.scope_of)}")
            self.main.blocks.append((block, await block.__aenter__()))

        self.run(self.main.do(enter))
        self.scope_of[self.model.opens(self.main.model)] = self.main.blocks[-1][1]

    @precondition(lambda self: self.main.blocks)
    @rule()
    def close_scope(self) -> None:
        """The main task ends its innermost scope, whatever other tasks do."""
        block, _ = self.main.blocks.pop()
        self.run(self.main.do(lambda: block.__aexit__(None, None, None)))
        self.model.closes(self.main.model)

    @precondition(lambda self: len(self.tasks) < TASKS_AT_MOST)
    @rule()
    def start_task(self) -> None:
        """The main task starts another one."""

        async def start() -> None:
            self.tasks.append(await self._start(self.main.model.scope))

        self.run(self.main.do(start))

    @precondition(lambda self: self.tasks)
    @rule(which=st.integers(0, 2), cancelled=st.booleans())
    def end_task(self, which: int, *, cancelled: bool) -> None:
        """A task ends, by itself or because it is cancelled."""
        actor = self.tasks.pop(which % len(self.tasks))
        if cancelled:
            actor.task.cancel()
        else:
            actor.jobs.put_nowait(None)
        self.run(self._has_ended(actor))
        self.model.ends(actor.model)

    @precondition(lambda self: self.tasks and self._able(has_connection))
    @rule(who=st.integers(0, 2), which=st.integers(0, 9))
    def cancel_in_a_statement(self, who: int, which: int) -> None:
        """A task is cancelled in the middle of a statement, and ends."""
        actor = self.tasks.pop(who % len(self.tasks))
        thing = self._pick(which, has_connection)
        self.run(self._cancel(actor, thing))
        thing.broken = True
        assert thing.hold is not None
        assert not self.hold_of[thing.hold].open, "SQLAlchemy gives a connection up that is busy"
        self.model.returns(thing.hold)
        thing.hold = thing.proxy = None
        self.model.ends(actor.model)

    async def _cancel(self, actor: Actor, thing: Thing) -> None:
        begun = asyncio.Event()

        async def execute() -> None:
            begun.set()
            await thing.real.execute(QUERY)

        actor.jobs.put_nowait((execute, asyncio.get_running_loop().create_future()))
        await begun.wait()
        actor.task.cancel()
        await self._has_ended(actor)

    async def _start(self, scope: ModelScope | None) -> Actor:
        actor = Actor(ModelActor(scope), asyncio.Queue())
        actor.task = asyncio.create_task(actor.run())
        return actor

    async def _has_ended(self, actor: Actor) -> None:
        await asyncio.wait([actor.task])
        # SQLAlchemy's clean-up tasks belong to the scope, too: the verdict waits for them.
        ours = {one.task for one in (self.main, *self.tasks)} | {asyncio.current_task()}
        while others := [task for task in asyncio.all_tasks() if task not in ours]:
            await asyncio.wait(others, timeout=PATIENCE)
        await asyncio.sleep(0)  # their callbacks run before this

    def _others_running(self, scope: ModelScope) -> bool:
        return any(scope in _around(actor.model.base) for actor in self.tasks if actor.model.alive)

    def _actor(self, who: int) -> Actor:
        return [self.main, *self.tasks][who % (1 + len(self.tasks))]

    # --- taking and using -------------------------------------------------------------------------

    @rule(who=st.integers(0, 3), session=st.booleans())
    def take(self, who: int, *, session: bool) -> None:
        """A task constructs a session or takes a connection."""
        actor, thing = self._actor(who), Thing(None)

        async def make() -> None:
            thing.real = AsyncSession(self.engine) if session else await self.engine.connect()

        self.run(actor.do(make))
        self.things.append(thing)
        if session:
            thing.session = self.model.constructs(actor.model)
            thing.whole = weakref.ref(thing.real.sync_session)
        else:
            self._has_taken(actor, thing)

    @precondition(lambda self: self._able(is_usable))
    @rule(who=st.integers(0, 3), which=st.integers(0, 9))
    def execute(self, who: int, which: int) -> None:
        """A task executes a statement; a session without a connection takes one."""
        actor, thing = self._actor(who), self._pick(which, is_usable)
        self.run(actor.do(lambda: thing.real.execute(QUERY)))
        if thing.hold is None:
            self._has_taken(actor, thing)

    @precondition(lambda self: self._able(is_usable_session))
    @rule(who=st.integers(0, 3), which=st.integers(0, 9))
    def commit(self, who: int, which: int) -> None:
        """A task commits a session, which gives its connection back."""
        thing = self._pick(which, is_usable_session)
        self.run(self._actor(who).do(thing.real.commit))
        self.has_returned(thing)

    @precondition(lambda self: self.things)
    @rule(who=st.integers(0, 3), which=st.integers(0, 9))
    def close(self, who: int, which: int) -> None:
        """A task closes something; a session can be used again."""
        thing = self.things[which % len(self.things)]
        self.run(self._actor(who).do(thing.real.close))
        self.has_returned(thing)
        thing.broken = thing.session is None
        if thing.session is not None:
            self.model.returns(thing.session)

    def _has_taken(self, actor: Actor, thing: Thing) -> None:
        thing.hold = self.model.checks_out(actor.model, self.pool_number, thing.session)
        real = thing.real.sync_session.connection() if thing.session else thing.real.sync_connection
        thing.proxy = weakref.ref(real.connection)

    def _able(self, condition: Callable[[Thing], bool]) -> list[Thing]:
        return [thing for thing in self.things if condition(thing)]

    def _pick(self, which: int, condition: Callable[[Thing], bool]) -> Thing:
        able = self._able(condition)
        return able[which % len(able)]

    # --- losing -----------------------------------------------------------------------------------

    @precondition(lambda self: self.things)
    @rule(which=st.integers(0, 9))
    def drop(self, which: int) -> None:
        """Nobody refers to something any more."""
        thing = self.things.pop(which % len(self.things))
        self.run(_drop(thing))
        self.dropped.append(thing)
        self.see_what_went()

    @precondition(lambda self: self.dropped)
    @rule()
    def collect(self) -> None:
        """The garbage collector runs while the loop does."""
        self.run(_collect())
        self.see_what_went()

    def teardown(self) -> None:
        """Everything ends, everything comes back, and nothing is left."""
        if self.begun:
            try:
                self._end_everything()
            finally:
                self.run(self._shut_down())
                self.loop.close()

    def _end_everything(self) -> None:
        try:
            while self.tasks:
                self.end_task(0, cancelled=False)
            while self.main.blocks:
                self.close_scope()
            self.agree()
            while self.things:
                self.close(0, 0)
                self.drop(0)
            self.run(_collect())
            self.see_what_went()
            self.agree()
            assert self.guard.open_holds() == ()
        finally:
            self.guard.uninstall()

    async def _shut_down(self) -> None:
        for actor in (self.main, *self.tasks):
            actor.task.cancel()
            await asyncio.wait([actor.task])
        for thing in self.things:
            await thing.real.close()
        await self.engine.dispose()
        await drivers_ended(self.threads_before)


async def _drop(thing: Thing) -> None:
    thing.real = None  # what goes at once goes while the loop runs: the driver asks for it


async def _collect() -> None:
    gc.collect()
    await asyncio.sleep(0)


def _around(scope: ModelScope | None) -> list[ModelScope]:
    """List a scope and all those that it is in."""
    return [] if scope is None else [scope, *_around(scope.parent)]


@pytest.mark.usefixtures("quiet_collector")
@pytest.mark.filterwarnings("ignore:The garbage collector:sqlalchemy.exc.SAWarning")
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_the_guard_says_what_the_model_says_of_tasks(tmp_path: Path) -> None:
    """Open holds, findings and resolutions are the model's at every step of every program."""

    class Here(AsyncPrograms):
        folder = tmp_path

    run_programs(Here, programs=max(1, PROGRAMS // 3), steps=30)
