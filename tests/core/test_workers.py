"""Who may be at work with a hold: whoever acquired it first, then the rest of its scope."""

from __future__ import annotations

import asyncio
import contextvars
import threading

from leakguard.core.holder import TaskHolder
from leakguard.core.scope import Scope, current_scope
from leakguard.core.stacks import Stack, frames_of
from leakguard.core.workers import Workers
from tests.core.fakes import FakeConnection, FakeSession, let_tasks_run, make_guard
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
