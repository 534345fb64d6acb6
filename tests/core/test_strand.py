"""Trio's tasks and gevent's greenlets are holders, although they share one thread.

Neither library is a dependency of the tests: what is asked of them is imitated, on real coroutines
and greenlets.
"""

from __future__ import annotations

import contextvars
import gc
import sys
import threading
from collections.abc import Callable, Generator
from types import SimpleNamespace, coroutine
from typing import Any

import pytest
from greenlet import getcurrent, greenlet

from leakguard import FindingKind, Hold
from leakguard.core.holder import Holder, current_holder, current_work
from leakguard.core.scope import Scope, current_scope
from leakguard.core.stacks import frames_of
from leakguard.core.strand import current_strand
from leakguard.core.workers import Workers
from tests.core.fakes import FakeConnection, installed, take
from tests.support import PATIENCE, Recorder, drain_watch

Work = Callable[[Callable[[], None]], None]
LEAKED, OUTLIVES = FindingKind.LEAKED, FindingKind.OUTLIVES_SCOPE


@coroutine
def pause() -> Generator[None, None, None]:
    """Let others run."""
    yield


class Trio:
    """Runs one task at a time, each step when the test says so."""

    def __init__(self) -> None:
        self.running: Any = None
        self.name = "task 'Trio.start.<locals>.work' of trio"

    def current_task(self) -> Any:
        """Return the task that runs."""
        if self.running is None:
            raise RuntimeError("must be called from async context")
        return SimpleNamespace(coro=self.running)

    def start(self, before: Callable[[], None], after: Callable[[], None]) -> Callable[[], None]:
        """Do the first step, and give what does the second."""

        async def work() -> None:
            before()
            await pause()
            after()

        task = [work()]
        context = contextvars.copy_context()

        def step() -> None:
            outer, self.running = self.running, task[0]
            try:
                context.run(task[0].send, None)
            except StopIteration:
                task.clear()
            finally:
                self.running = outer

        step()
        return step


class GreenletOfGevent(greenlet):
    """What `gevent.spawn` starts."""

    name = "Greenlet-0"


class Gevent:
    """Switches between greenlets when the test says so."""

    name = "greenlet 'Greenlet-0'"
    Greenlet = GreenletOfGevent
    getcurrent = staticmethod(getcurrent)

    def start(self, before: Callable[[], None], after: Callable[[], None]) -> Callable[[], None]:
        """Do the first step, and give what does the second."""

        def work() -> None:
            before()
            here = getcurrent().parent
            assert here is not None
            here.switch()
            after()

        spawned = GreenletOfGevent(lambda: contextvars.copy_context().run(work))
        spawned.gr_context = contextvars.copy_context()
        spawned.switch()
        return spawned.switch


@pytest.fixture(params=["trio.lowlevel", "gevent"])
def library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Trio | Gevent:
    """Return a library that somebody has imported, who has not imported the other one."""
    for name in ("trio.lowlevel", "gevent"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    library = Trio() if request.param == "trio.lowlevel" else Gevent()
    monkeypatch.setitem(sys.modules, request.param, library)
    return library


@pytest.mark.parametrize("returns", [True, False])
def test_a_strand_that_outlives_its_scope_is_waited_for(
    library: Trio | Gevent, recorder: Recorder, returns: bool
) -> None:
    """It shares the thread of the one that opened the scope, and is another one all the same."""
    guard = installed(recorder)
    taken: list[Any] = []

    def give_back() -> None:
        hold = taken.pop()
        if returns:
            hold.give_back()

    with guard.scope("request") as scope:
        end = library.start(lambda: taken.append(take(guard, current_scope.get())), give_back)
        assert taken[0].scope is scope
    assert recorder.kinds == [OUTLIVES]
    assert recorder.findings[0].evidence.outlived_by == library.name
    end()
    del end
    gc.collect()
    if returns:
        recorder.wait_for(lambda: recorder.resolutions)
    else:
        recorder.wait_for(lambda: recorder.kinds == [OUTLIVES, LEAKED])
    guard.uninstall()


def test_a_strand_and_its_work_have_one_number(library: Trio | Gevent) -> None:
    """So that who waits for a connection is found among those who have one."""
    found: list[tuple[Holder | None, int]] = []

    def look() -> None:
        found.append((current_holder(None), current_work()))

    end = library.start(look, look)
    end()
    [number] = {holder.number for holder, _ in found if holder is not None}
    assert [work for _, work in found] == [number, number]
    assert number != current_work()


def test_a_strand_tells_where_it_waits(library: Trio | Gevent) -> None:
    """Not where it runs: a greenlet does not tell; and nowhere once it has ended."""
    holders: list[Holder | None] = []
    end = library.start(lambda: holders.append(current_holder(None)), lambda: None)
    [holder] = holders
    assert holder is not None
    names = [frame.f_code.co_name for frame in frames_of(holder.stack())]
    assert "work" in names
    end()
    del end
    gc.collect()
    assert holder.stack() == []


def test_the_strand_of_a_scope_tells_where_it_waits(library: Trio | Gevent) -> None:
    """What the scope's own work has, it has in no thread of its own; nowhere once it has ended."""
    guard = installed()
    holds: list[FakeConnection] = []

    def open_scope() -> None:
        holds.append(FakeConnection(guard, Scope(guard, "request", "http")))

    end = library.start(open_scope, lambda: None)
    [stack] = Workers().stacks(holds[0])
    assert "work" in [frame.f_code.co_name for frame in frames_of(stack)]
    end()
    del end
    gc.collect()
    assert list(Workers().stacks(holds[0])) == []
    guard.uninstall()


def test_the_end_of_a_strand_is_told_when_it_goes(library: Trio | Gevent) -> None:
    """To whoever asked, and by the watch."""
    guard = installed()
    holders: list[Holder | None] = []
    ended: list[tuple[Hold, str]] = []

    def note(hold: Hold) -> None:
        ended.append((hold, threading.current_thread().name))

    with guard.scope("request") as scope:
        end = library.start(lambda: holders.append(current_holder(scope)), lambda: None)
    hold = take(guard)
    (holder,) = holders
    assert holder is not None
    holder.on_end(hold, note)
    drain_watch()
    assert ended == []
    end()
    del end
    gc.collect()
    drain_watch()
    assert ended == [(hold, "leakguard")]
    guard.uninstall()


def test_the_strand_that_opened_the_scope_is_nobody_else(
    library: Trio | Gevent, recorder: Recorder
) -> None:
    """What it leaves when it ends its scope is lost at once."""
    guard = installed(recorder, late_after=100 * PATIENCE)

    def request() -> None:
        with guard.scope("request") as scope:
            take(guard, scope)

    end = library.start(request, lambda: None)
    assert recorder.kinds == [LEAKED]
    end()
    guard.uninstall()


def test_outside_of_its_strands_there_is_none(library: Trio | Gevent) -> None:
    """The thread's own work is no strand, nor is what shares it in another way."""
    assert current_strand() is None
    assert greenlet(current_strand).switch() is None


def test_where_nobody_uses_such_a_library_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in most programs."""
    for name in ("trio.lowlevel", "gevent"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    assert current_strand() is None


@pytest.mark.parametrize("name", ["trio.lowlevel", "gevent"])
def test_a_library_that_is_still_being_imported_is_not_asked(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another thread may be in the middle of it."""
    monkeypatch.setitem(sys.modules, name, SimpleNamespace())
    assert current_strand() is None
