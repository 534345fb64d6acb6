"""Stages: what a test or a fixture has to give back."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from collections.abc import Callable, Iterable

import pytest
from sqlalchemy import Connection, Engine
from sqlalchemy.orm import Session

from leakguard import LeakGuard
from leakguard.core.finding import Finding
from leakguard.core.scope import AMBIENT
from leakguard.core.watch import WATCH
from leakguard.testing.stages import Stages
from leakguard.testing.watch import TestWatch
from tests.support import PATIENCE


class Waited(threading.Condition):
    """A condition that tells that somebody waits for it."""

    def __init__(self) -> None:
        super().__init__()
        self.awaited = threading.Event()

    def wait(self, timeout: float | None = None) -> bool:
        self.awaited.set()
        return super().wait(timeout)


@pytest.mark.parametrize("at_the_end", [False, True])
def test_a_request_that_a_server_has_yet_to_end_is_waited_for(at_the_end: bool) -> None:
    """The client may be ahead of it; how it ends is part of the test."""
    stages = Stages()
    told = stages._told = Waited()  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]  # to know when
    stages.start()
    began = threading.Event()
    ended: list[bool] = []

    async def serve() -> None:
        with guard.scope("a request"):
            began.set()
            await asyncio.to_thread(told.awaited.wait, PATIENCE)
        ended.append(True)

    with LeakGuard(mode="testing", observers=[]) as guard:
        stage = stages.begin("a test", "test")
        server = threading.Thread(target=asyncio.run, args=(serve(),))
        server.start()
        assert began.wait(PATIENCE)
        if not at_the_end:
            assert stages.findings(stage) == []
            assert not stage.requests
        stages.end(stage)
        assert not stage.requests
        server.join()
    stages.stop()
    assert ended == [True]


class Work:
    """A request that leaves its connection to a task, which closes it when it may go on."""

    def __init__(self, guard: LeakGuard, engine: Engine) -> None:
        self._guard = guard
        self._engine = engine
        self.handed_over = threading.Event()
        self.closed = False

    async def run(self, go_on: Callable[[], object]) -> None:
        async with self._guard.scope("a request"):
            clean_up = asyncio.create_task(self._close(self._engine.connect(), go_on))
        self.handed_over.set()
        await clean_up

    async def _close(self, connection: Connection, go_on: Callable[[], object]) -> None:
        await asyncio.to_thread(go_on)
        self.closed = True
        connection.close()


@pytest.mark.parametrize("at_the_end", [False, True])
def test_a_verdict_that_waits_for_a_server_is_waited_for(engine: Engine, at_the_end: bool) -> None:
    """Its tasks may be about to give a connection back, and need no more than a moment."""
    stages = Stages()
    told = stages._told = Waited()  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]  # to know when
    stages.start()
    with LeakGuard(mode="testing", observers=[]) as guard:
        stage = stages.begin("a test", "test")
        work = Work(guard, engine)
        run = work.run(lambda: told.awaited.wait(PATIENCE))
        server = threading.Thread(target=asyncio.run, args=(run,))
        server.start()
        assert work.handed_over.wait(PATIENCE)
        findings = stages.end(stage) if at_the_end else stages.findings(stage)
        assert findings == []
        assert work.closed
        if not at_the_end:
            stages.end(stage)
        server.join()
    stages.stop()


class Slow(Stages):
    """Hears of a finding late: the thread that tells of it waits."""

    def __init__(self) -> None:
        super().__init__()
        self.told_of_one, self.go_on = threading.Event(), threading.Event()

    def found(self, finding: Finding) -> None:
        self.told_of_one.set()
        self.go_on.wait(PATIENCE)
        super().found(finding)


def test_what_the_collector_did_is_waited_for(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of what was taken outside of any test; the thread that tells of it may be at it."""
    stages = Slow()
    stages.start()
    drain = WATCH.drain

    def drain_meanwhile(timeout: float) -> bool:
        stages.go_on.set()
        return drain(timeout)

    monkeypatch.setattr(WATCH, "drain", drain_meanwhile)
    engine.raw_connection()  # and nobody keeps it
    gc.collect()
    assert stages.told_of_one.wait(PATIENCE)
    [(name, finding)] = stages.take_rest()
    assert (name, finding.kind.value) == ("", "reclaimed")
    stages.stop()


def test_a_loop_does_not_wait_for_its_own_tasks(engine: Engine) -> None:
    """They cannot go on meanwhile."""
    stages = Stages()
    told = stages._told = Waited()  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]  # to know when
    stages.start()
    go_on = threading.Event()

    async def ask() -> None:
        await asyncio.to_thread(work.handed_over.wait, PATIENCE)
        assert stages.findings(stage) == []
        go_on.set()

    async def main() -> None:
        await asyncio.gather(work.run(lambda: go_on.wait(PATIENCE)), ask())

    with LeakGuard(mode="testing", observers=[]) as guard:
        stage = stages.begin("a test", "test")
        work = Work(guard, engine)
        asyncio.run(main())
        assert stages.end(stage) == []
    stages.stop()
    assert not told.awaited.is_set()


def test_no_fixture_is_asked_for_a_session_without_a_connection(engine: Engine) -> None:
    """To look through all that fixtures have takes its time."""
    stages = Stages()
    stages.start()
    asked: list[list[object]] = []

    def refers_to(things: Iterable[object]) -> set[int]:
        asked.append(list(things))
        return set()

    fixture = stages.begin("a fixture", "fixture")
    stages.leave(fixture)
    test = stages.begin("a test", "test")
    session = Session(engine)
    assert [one.kind.value for one in stages.end(test, [(fixture, refers_to)])] == [
        "unclosed_session"
    ]
    assert asked == []
    test = stages.begin("another test", "test")
    connection = session.connection()
    assert [one.kind.value for one in stages.end(test, [(fixture, refers_to)])] == ["leaked"]
    assert len(asked) == 1
    session.close()
    del connection
    stages.end(fixture)
    stages.stop()


def test_a_fixture_keeps_no_test_that_asked_for_it() -> None:
    """It outlives the first one by far."""
    stages = Stages()
    stages.start()
    test = stages.begin("a test", "test")
    fixture = stages.begin("a fixture", "fixture")
    stages.leave(fixture)
    stages.end(test)
    gone = weakref.ref(test)
    del test
    gc.collect()
    assert gone() is None
    stages.enter(fixture)
    stages.end(fixture)
    stages.stop()
    assert AMBIENT.scope is None


def test_a_watch_that_is_paused_sees_nothing(engine: Engine) -> None:
    """And neither does one that has not begun, because nobody has imported SQLAlchemy."""
    watch = TestWatch()
    with watch.paused():
        pass
    watch.start()
    part = watch.begin("a test", "test")
    with watch.paused():
        forgotten = engine.connect()
    leaked = engine.connect()
    [finding] = watch.end(part)
    watch.stop()
    assert finding.hold is not None
    assert finding.hold.subject is leaked.connection
    forgotten.close()
    leaked.close()


def test_what_watches_runs_before_the_first_test(engine: Engine) -> None:
    """A test may count the threads, or replace them."""
    stages = Stages()
    stages.start()
    assert WATCH.started
    stages.stop()


def test_of_a_run_within_another_one_each_finds_its_own(engine: Engine) -> None:
    """As where a plugin's own tests run pytest in the same process."""
    outer, inner = Stages(), Stages()
    outer.start()
    inner.start()
    stage = inner.begin("a test", "test")
    connection = engine.connect()
    assert len(inner.end(stage)) == 1
    inner.stop()
    assert outer.take_rest() == []
    outer.stop()
    connection.close()


def test_what_is_parked_keeps_no_other_test_waiting(engine: Engine) -> None:
    """Though its loop goes on in another thread by then."""
    stages = Stages()
    told = stages._told = Waited()  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]  # to know when
    stages.start()
    loop = asyncio.new_event_loop()

    async def begin() -> asyncio.Task[None]:
        connection = engine.connect()

        async def clean_up() -> None:
            await go_on.wait()
            connection.close()

        task = asyncio.create_task(clean_up())
        await asyncio.sleep(0)
        return task

    go_on = asyncio.Event()
    stage = stages.begin("a test", "test")
    task = loop.run_until_complete(begin())
    assert stages.end(stage) == []
    running = threading.Event()
    loop.call_soon(running.set)
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    assert running.wait(PATIENCE)
    stage = stages.begin("another test", "test")
    stage.eventful = True
    assert stages.end(stage) == []
    assert not told.awaited.is_set()
    loop.call_soon_threadsafe(loop.stop)
    thread.join(PATIENCE)
    go_on.set()
    loop.run_until_complete(task)
    loop.close()
    assert stages.take_rest() == []
    stages.stop()
