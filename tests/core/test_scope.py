"""Scopes nest, end, and keep little."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import threading
from typing import Any, NamedTuple
from weakref import ref

import pytest

from leakguard import Scope, SettingsError, allow
from leakguard.core.scope import (
    EventLog,
    current_scope,
    nearest_open,
    scopes_around,
)
from leakguard.core.trace import Trace
from tests.core.fakes import construct, installed, make_guard, take
from tests.support import PATIENCE


def test_scopes_nest() -> None:
    """The innermost one is current, and its parent is again afterwards."""
    guard = installed()
    with guard.scope("outer") as outer:
        with guard.scope("inner", type="test") as inner:
            assert current_scope.get() is inner
            assert inner.parent is outer
        assert current_scope.get() is outer
    assert current_scope.get() is None
    assert (outer.type, inner.type) == ("job", "test")
    assert repr(inner) == "<Scope test 'inner'>"
    assert (inner.route, inner.method, inner.trace_id, inner.endpoint) == (None,) * 4
    guard.uninstall()


class Span(NamedTuple):
    """What OpenTelemetry knows a span by."""

    trace_id: int
    span_id: int


def test_a_scope_names_its_trace_as_it_is_written_everywhere() -> None:
    """In hexadecimal digits, with the zeros before; the span is there while others need it."""

    def span() -> None:
        """Be something that can be referred to."""

    scope = Scope(make_guard(), "GET /", "http")
    scope.trace = Trace(Span(0x4BF92F, 0xF067AA), ref(span))
    assert scope.trace_id == "0" * 26 + "4bf92f"
    assert scope.span_id == "0" * 10 + "f067aa"
    assert scope.trace.span() is span


def test_a_scope_may_be_left_in_another_context() -> None:
    """A fixture that is a generator may be resumed in a context that it did not start in."""
    guard = installed()
    block = guard.scope("fixture")
    entered = contextvars.copy_context()
    scope = entered.run(block.__enter__)
    entered.copy().run(block.__exit__, None, None, None)
    assert scope.closed_at is not None


def test_scopes_may_end_in_the_order_in_which_they_began() -> None:
    """As in two generators: each is current until it ends, and none of them afterwards."""
    guard = installed()
    first, second = guard.scope("first"), guard.scope("second")
    first.__enter__()
    inner = second.__enter__()
    first.__exit__(None, None, None)
    assert current_scope.get() is inner
    second.__exit__(None, None, None)
    assert current_scope.get() is None
    guard.uninstall()


def test_work_that_outlives_its_scope_stays_in_it() -> None:
    """Also after a scope of its own."""
    guard = installed()
    with guard.scope("job") as job:
        started = contextvars.copy_context()

    def work() -> Scope | None:
        with guard.scope("inner"):
            pass
        return current_scope.get()

    assert started.run(work) is job
    guard.uninstall()


def test_a_scope_left_in_a_copy_of_its_context_is_not_current_there() -> None:
    """In the copy its parent is current again; where it was never current nothing changes."""
    guard = installed()
    for elsewhere in (True, False):
        scope = Scope(guard, "fixture", "test")
        entered = contextvars.copy_context()
        entered.run(guard.open_scope, scope)
        copy = contextvars.copy_context() if elsewhere else entered.copy()
        copy.run(guard.close_scope, scope)
        assert copy.get(current_scope) is None
    guard.uninstall()


def test_in_a_copy_of_its_context_its_parent_is_current_again() -> None:
    """As where it was entered."""
    guard = installed()
    with guard.scope("test") as parent:
        block = guard.scope("fixture")
        entered = contextvars.copy_context()
        entered.run(block.__enter__)
        copy = entered.copy()
        copy.run(block.__exit__, None, None, None)
        assert copy.get(current_scope) is parent
    guard.uninstall()


def test_a_block_of_another_request_is_foreign_to_the_scopes_within_this_one_too() -> None:
    """It exempts nothing there either, while a block of their own does."""
    guard = installed()
    block = allow("streams the export of another request")
    with block, guard.scope("request") as request:
        request.foreign_block = block
        with guard.scope("job") as job:
            for acquire in (take, construct):
                assert acquire(guard, job).allowed is None
                with allow("keeps a lock"):
                    assert acquire(guard, job).allowed == "keeps a lock"
    guard.uninstall()


def test_work_stays_in_the_scope_that_it_outlives_with_one_of_its_own() -> None:
    """Although that one began when the scope had not ended."""
    guard = installed()
    block = guard.scope("job")
    job = block.__enter__()
    opened, ended = threading.Event(), threading.Event()
    innermost: list[Scope | None] = []

    def work() -> None:
        with guard.scope("inner"):
            opened.set()
            assert ended.wait(PATIENCE)
        innermost.append(current_scope.get())

    thread = threading.Thread(target=contextvars.copy_context().run, args=(work,))
    thread.start()
    assert opened.wait(PATIENCE)
    block.__exit__(None, None, None)
    ended.set()
    thread.join(PATIENCE)
    assert innermost == [job]
    guard.uninstall()


def test_a_scope_knows_which_of_its_holds_are_connections() -> None:
    """They are few where sessions may be many, and are looked through at every checkout."""
    guard = installed()
    with guard.scope("job") as scope:
        session, hold = construct(guard, scope), take(guard, scope)
        assert list(scope.open_sessions) == [session]
        assert list(scope.open_connections) == [hold]
        hold.give_back()
        assert list(scope.open_connections) == []
        guard.released(session)
    guard.uninstall()


def test_a_task_whose_context_is_unknown_was_started_by_nobody() -> None:
    """Other implementations of tasks may not tell: nothing is guessed."""

    class Other:
        """Something like a task."""

    other: Any = Other()
    assert list(scopes_around(other)) == []


def test_a_task_s_scopes_are_those_around_them_too() -> None:
    """All of them may yet get back what the task has."""
    guard = installed()

    async def main() -> None:
        async with guard.scope("test") as outer, guard.scope("job") as inner:
            task = asyncio.create_task(asyncio.sleep(0))
        assert list(scopes_around(task)) == [inner, outer]
        await task

    asyncio.run(main())
    guard.uninstall()


def test_a_job_that_starts_its_successor_makes_no_chain() -> None:
    """However many jobs follow each other, each from within the one before, none is kept."""
    guard = installed()

    async def job(left: int) -> None:
        async with guard.scope(f"job {left}"):
            if left:
                successors.append(asyncio.create_task(job(left - 1)))
                await asyncio.sleep(0)

    async def main() -> None:
        await job(50)
        while successors:
            await successors.pop()
        gc.collect()
        chain = [one for one in gc.get_objects() if isinstance(one, Scope)]
        assert len([scope for scope in chain if scope.guard is guard]) <= 3

    successors: list[asyncio.Task[None]] = []
    asyncio.run(main())
    guard.uninstall()


def test_the_nearest_open_one() -> None:
    """Scopes that have ended are passed over."""
    guard = installed()
    with guard.scope("outer") as outer:
        with guard.scope("middle") as middle, guard.scope("inner") as inner:
            assert nearest_open(inner) is inner
        assert nearest_open(inner) is outer
        assert middle.closed_at is not None
    assert nearest_open(inner) is None
    guard.uninstall()


def test_events_are_kept_up_to_a_bound() -> None:
    """The first ones are kept."""
    log = EventLog()
    for number in range(EventLog.LIMIT + 7):
        log.add(f"step {number}")
    assert [event.what for event in log.all()] == [f"step {n}" for n in range(EventLog.LIMIT)]
    assert all(event.at >= 0 for event in log.all())


def test_an_event_tells_its_time_from_the_beginning(monkeypatch: pytest.MonkeyPatch) -> None:
    """In seconds after the scope opened."""
    clock = iter([100.0, 100.0, 102.5])
    monkeypatch.setattr("leakguard.core.scope.monotonic", lambda: next(clock))
    log = EventLog()
    log.add("first")
    log.add("second")
    assert [event.at for event in log.all()] == [0.0, 2.5]


def test_no_events_are_kept_where_the_settings_say_so() -> None:
    """There is no log to add them to."""
    guard = installed(events=False)
    with guard.scope("job") as scope:
        take(guard, scope).give_back()
    assert scope.event_log is None
    assert scope.events == ()
    guard.uninstall()


def test_a_duration_stands_still_at_the_end() -> None:
    """While it is open it grows; afterwards it is what it was."""
    guard = installed()
    with guard.scope("job") as scope:
        first = scope.duration
        assert scope.duration >= first >= 0
    assert scope.closed_at is not None
    assert scope.duration == scope.closed_at - scope.opened_at
    guard.uninstall()


@pytest.mark.parametrize("name, type_", [("", "job"), (7, "job"), ("job", ""), ("job", None)])
def test_a_scope_needs_a_name_and_a_type(name: object, type_: object) -> None:
    """Both are strings of at least one character."""
    guard = installed()
    setting, value = ("type", type_) if name == "job" else ("name", name)
    with pytest.raises(SettingsError) as raised:
        guard.scope(name, type=type_)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]  # the mistake
    assert str(raised.value) == (
        f"{setting}={value!r} is not allowed: must be a string of at least one character"
    )
    guard.uninstall()
