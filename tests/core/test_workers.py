"""Who may be at work with a hold: whoever acquired it first, then the rest of its scope."""

from __future__ import annotations

import asyncio
import contextvars
import sys
import threading

from leakguard.core.holder import TaskHolder, current_holder
from leakguard.core.scope import Scope, current_scope
from leakguard.core.stacks import Stack, frames_of, task_stack
from leakguard.core.workers import Workers
from tests.core.fakes import (
    FakeConnection,
    FakeSession,
    let_tasks_run,
    make_guard,
    start_within,
)
from tests.support import PATIENCE


def functions(stacks: list[Stack]) -> list[str]:
    """Name the function of the outermost frame of each stack."""
    return [list(frames_of(stack))[-1].f_code.co_name for stack in stacks]


def test_the_tasks_of_a_scope() -> None:
    """The one that opened it first, and none of another scope; found by one scan."""
    guard = make_guard()
    begun: list[Scope] = []

    async def other(end: asyncio.Event) -> None:
        await end.wait()

    async def opening(end: asyncio.Event) -> None:
        scope = Scope(guard, "GET /", "http")
        current_scope.set(scope)
        begun.append(scope)
        child = asyncio.create_task(other(end))
        await end.wait()
        await child

    async def stranger(end: asyncio.Event) -> None:
        await end.wait()

    async def main() -> None:
        end = asyncio.Event()
        tasks = [asyncio.create_task(work(end)) for work in (stranger, opening)]
        await let_tasks_run()
        [scope] = begun
        hold = FakeConnection(guard, None)
        hold.scope = scope
        workers = Workers()
        for _ in range(2):
            assert functions(list(workers.stacks(hold))) == ["opening", "other"]
        end.set()
        await asyncio.gather(*tasks)
        assert list(Workers().stacks(hold)) == []

    asyncio.run(main())


def test_the_tasks_are_those_of_one_moment() -> None:
    """They are looked through once, for any number of connections."""

    async def main() -> None:
        scope = Scope(make_guard(), "GET /", "http")
        hold = FakeConnection(scope.guard, scope)
        workers = Workers()
        tasks = [start_within(scope)]
        await let_tasks_run()
        found = [len(list(workers.stacks(hold)))]
        tasks.append(start_within(scope))
        await let_tasks_run()
        found += [len(list(one.stacks(hold))) for one in (workers, Workers())]
        assert found == [2, 2, 3]  # with this one
        for task in tasks:
            task.cancel()

    asyncio.run(main())


def test_the_tasks_of_another_thread_s_loop_are_found_too() -> None:
    """It is the watch that looks at what is out."""

    async def main() -> None:
        scope = Scope(make_guard(), "GET /", "http")
        hold = FakeConnection(scope.guard, scope)
        task = start_within(scope)
        await let_tasks_run()
        assert len(await asyncio.to_thread(lambda: list(Workers().stacks(hold)))) == 2
        task.cancel()

    asyncio.run(main())


def test_what_was_found_is_not_looked_for_again() -> None:
    """At the same moment, for any number of connections."""
    workers = Workers()
    numbers = iter(range(3))
    assert [workers.once(what, lambda: next(numbers)) for what in "aba"] == [0, 1, 0]


class Serving(Scope):
    """A request that is served where a function of the test is."""

    def serves(self, stack: Stack) -> bool:
        return functions([stack]) == ["endpoint"]


def test_the_task_that_does_what_the_scope_is_for_comes_first() -> None:
    """As that of an application behind a middleware, before the task that opened the scope."""
    scopes: list[Scope] = []

    async def endpoint(end: asyncio.Event) -> None:
        await end.wait()

    async def middleware(end: asyncio.Event) -> None:
        scopes.append(Serving(make_guard(), "GET /", "http"))
        current_scope.set(scopes[0])
        await asyncio.create_task(endpoint(end))

    async def main() -> None:
        end = asyncio.Event()
        task = asyncio.create_task(middleware(end))
        await let_tasks_run()
        hold = FakeConnection(scopes[0].guard, None)
        hold.scope = scopes[0]
        assert functions(list(Workers().stacks(hold))) == ["endpoint", "middleware"]
        end.set()
        await task

    asyncio.run(main())


def test_the_task_behind_a_frame_is_found() -> None:
    """With all of its stack, from any thread; else there is the frame alone."""

    async def work(end: asyncio.Event) -> None:
        await end.wait()

    async def main() -> None:
        scope, other = (Scope(make_guard(), "GET /", "http") for _ in range(2))
        end = asyncio.Event()
        current_scope.set(scope)
        tasks = [asyncio.create_task(work(end)) for _ in range(2)]
        await let_tasks_run()
        for task in tasks:
            stack = task_stack(task)
            assert len(stack) > 1
            for frame in stack:
                found = await asyncio.to_thread(Workers().task_through, scope, frame)
                assert found == (task, stack)
                assert Workers().task_through(other, frame) == (None, [frame])
        end.set()
        await asyncio.gather(*tasks)

    asyncio.run(main())
    scope = Scope(make_guard(), "nightly import", "job")
    frame = sys._getframe()  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]  # documented
    assert Workers().task_through(scope, frame) == (None, [frame])


def test_whoever_constructed_the_session_comes_after_whoever_took_the_connection() -> None:
    """Both may have it, and neither need be in the scope."""
    guard = make_guard()

    async def took(end: asyncio.Event) -> None:
        await end.wait()

    async def constructed(end: asyncio.Event) -> None:
        await end.wait()

    async def main() -> None:
        end = asyncio.Event()
        tasks = [asyncio.create_task(work(end)) for work in (constructed, took)]
        await let_tasks_run()
        hold = FakeConnection(guard, None)
        hold.session = FakeSession(guard, None)
        hold.session.holder, hold.holder = map(TaskHolder, tasks)
        assert functions(list(Workers().stacks(hold))) == ["took", "constructed"]
        end.set()
        await asyncio.gather(*tasks)

    asyncio.run(main())


def test_the_thread_that_opened_a_scope() -> None:
    """Where there is no loop, a scope is a thread's."""
    guard = make_guard()
    begun: list[Scope] = []
    opened, end = threading.Event(), threading.Event()

    def opening() -> None:
        begun.append(Scope(guard, "nightly import", "job"))
        opened.set()
        end.wait(PATIENCE)

    thread = threading.Thread(target=contextvars.Context().run, args=(opening,))
    thread.start()
    assert opened.wait(PATIENCE)
    hold = FakeConnection(guard, None)
    assert list(Workers().stacks(hold)) == []
    hold.scope = begun[0]
    [stack] = Workers().stacks(hold)
    assert "opening" in [frame.f_code.co_name for frame in frames_of(stack)]
    end.set()
    thread.join(PATIENCE)
    assert list(Workers().stacks(hold)) == []


def test_the_tasks_of_a_scope_around_a_loop() -> None:
    """They are found by the loop of whoever took the connection."""
    guard = make_guard()

    async def commits(end: asyncio.Event) -> None:
        await end.wait()

    async def took() -> list[str]:
        end = asyncio.Event()
        hold = FakeConnection(guard, scope)
        hold.holder = current_holder(scope)
        task = asyncio.create_task(commits(end))
        await let_tasks_run()
        found = functions(list(Workers().stacks(hold)))
        end.set()
        await task
        return found

    scope = Scope(guard, "job", "job")
    token = current_scope.set(scope)
    found = asyncio.run(took())
    current_scope.reset(token)
    assert "commits" in found
