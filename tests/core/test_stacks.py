"""Where work is now: tasks that wait in every usual way, tasks that run, and threads."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import sys
import threading
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Awaitable,
    Callable,
    Generator,
    Iterator,
)
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from types import FrameType, coroutine
from typing import Any

import anyio
import anyio.to_thread
import pytest
from greenlet import greenlet
from sqlalchemy.util import await_only, greenlet_spawn

from leakguard.core.holder import TaskHolder, current_holder
from leakguard.core.stacks import (
    call_site,
    chain_stack,
    frames_of,
    is_on_stack,
    task_stack,
    thread_stack,
)
from tests.core.fakes import let_tasks_run
from tests.support import PATIENCE, line_marked

HERE = sys.modules[__name__]
Work = Callable[[asyncio.Event], Awaitable[object]]


async def waiting(end: asyncio.Event) -> None:
    await end.wait()  # waits


async def numbers(end: asyncio.Event) -> AsyncIterator[int]:
    yield 1
    await end.wait()  # in the generator
    yield 2


async def reading(end: asyncio.Event) -> None:
    async for _ in numbers(end):
        pass


async def in_a_task(end: asyncio.Event) -> None:
    await asyncio.create_task(waiting(end))


async def in_a_group(end: asyncio.Event) -> None:
    async with asyncio.TaskGroup() as group:  # the group
        group.create_task(waiting(end))


async def entering(end: asyncio.Event) -> None:
    @asynccontextmanager
    async def block() -> AsyncGenerator[None]:
        await end.wait()  # on entry
        yield

    async with block():
        pass


async def in_greenlet(end: asyncio.Event) -> None:
    def function() -> None:
        await_only(end.wait())  # in the greenlet

    ended = greenlet(len)
    ended.switch("")
    await greenlet_spawn(function)
    assert ended.dead


async def shielded(end: asyncio.Event) -> None:
    await asyncio.shield(waiting(end))  # behind a shield


async def old_style(end: asyncio.Event) -> None:
    class Waiting:
        def __await__(self) -> Any:
            return (yield from end.wait().__await__())  # by hand

    await Waiting()


@coroutine
def by_generator(end: asyncio.Event) -> Generator[Any, None, None]:
    other = waiting(end)  # it is among the variables, and nobody awaits it
    yield from end.wait().__await__()  # in the old way
    other.close()


async def by_generators(end: asyncio.Event) -> None:
    await by_generator(end)


async def with_another_one(end: asyncio.Event) -> AsyncIterator[int]:
    other = waiting(end)  # so it is here
    await end.wait()  # in this generator
    other.close()
    yield 1


async def reading_with_another_one(end: asyncio.Event) -> None:
    async for _ in with_another_one(end):
        pass


@pytest.mark.parametrize(
    "work, marker",
    [
        (waiting, "waits"),
        (by_generators, "in the old way"),
        (reading_with_another_one, "in this generator"),
        (reading, "in the generator"),
        (in_a_task, "waits"),
        (in_a_group, "the group"),
        (entering, "on entry"),
        (in_greenlet, "in the greenlet"),
        (shielded, "behind a shield"),
        (old_style, "by hand"),
    ],
)
def test_a_task_is_where_its_chain_of_awaits_ends(work: Work, marker: str) -> None:
    """At the user's innermost line, whatever stands between it and what it waits for."""

    async def main() -> None:
        end = asyncio.Event()

        async def run() -> None:
            await work(end)

        task = asyncio.create_task(run())
        await let_tasks_run()
        site = call_site(task_stack(task), 12)
        end.set()
        await task
        assert site is not None
        assert site.line == line_marked(HERE, marker)
        assert site.frames[-1].function.endswith("run")
        assert task_stack(task) == []

    asyncio.run(main())


def test_a_task_that_waits_for_a_thread_is_where_the_thread_is() -> None:
    """In a thread of AnyIO's runs what is not `async` of a Starlette application."""
    begun, end = threading.Event(), threading.Event()

    def work() -> None:
        begun.set()
        end.wait(PATIENCE)  # in the thread

    async def main() -> None:
        async def run() -> None:
            await anyio.to_thread.run_sync(work)

        task = asyncio.create_task(run())
        await asyncio.to_thread(begun.wait, PATIENCE)
        site = call_site(task_stack(task), 12)
        end.set()
        await task
        assert site is not None
        assert site.line == line_marked(HERE, "in the thread")

    asyncio.run(main())


def test_a_task_that_runs_is_where_its_thread_is() -> None:
    """As one that blocks its event loop."""
    begun, end = threading.Event(), threading.Event()
    tasks: list[asyncio.Task[None]] = []

    def block() -> None:
        begun.set()
        end.wait(PATIENCE)  # blocks

    async def blocking() -> None:
        block()

    async def main() -> None:
        tasks.append(asyncio.create_task(blocking()))
        await tasks[0]

    thread = threading.Thread(target=lambda: asyncio.run(main()))
    thread.start()
    assert begun.wait(PATIENCE)
    site = call_site(task_stack(tasks[0]), 12)
    end.set()
    thread.join(PATIENCE)
    assert site is not None
    assert site.line == line_marked(HERE, "blocks")


def test_a_coroutine_of_a_generator_s_that_runs_is_where_its_thread_is() -> None:
    """As those from before `async def`."""
    begun, end = threading.Event(), threading.Event()

    def block() -> None:
        begun.set()
        end.wait(PATIENCE)  # blocks, too

    @coroutine
    def work() -> Generator[None, None, None]:
        block()
        yield

    running: Any = work()
    thread = threading.Thread(target=running.send, args=(None,))
    thread.start()
    assert begun.wait(PATIENCE)
    site = call_site(chain_stack(running), 12)
    end.set()
    thread.join(PATIENCE)
    assert site is not None
    assert site.line == line_marked(HERE, "blocks, too")


def test_a_coroutine_that_runs_in_no_thread_is_nowhere() -> None:
    """It stopped between two looks at it."""

    class Running:
        cr_running = True
        cr_frame = None

    assert chain_stack(Running()) == []
    assert chain_stack(None) == []


def test_one_that_went_on_to_wait_meanwhile_is_where_it_waits() -> None:
    """It ran when it was looked at, and waits by the time its thread is."""

    class GoesOn:
        """A coroutine that runs, in a thread that is through with it, until one looks again."""

        cr_frame = sys._getframe()  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]  # documented
        cr_await = None

        def __init__(self) -> None:
            self._runs = iter([True])

        @property
        def cr_running(self) -> bool:
            return next(self._runs, False)

    work = GoesOn()
    assert chain_stack(work) == [work.cr_frame]


def test_a_chain_of_tasks_is_followed_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be a circle: two tasks that wait for each other, and never end."""
    monkeypatch.setattr("leakguard.core.stacks._LONGEST_CHAIN", 10)

    async def main() -> None:
        async def wait_for(task: asyncio.Task[Any]) -> None:
            await task

        end = asyncio.Event()
        task: asyncio.Task[Any] = asyncio.create_task(waiting(end))
        for _ in range(20):
            task = asyncio.create_task(wait_for(task))
        await let_tasks_run()
        assert 0 < len(task_stack(task)) <= 10
        end.set()
        await task

    asyncio.run(main())


def test_a_thread_that_has_ended_is_nowhere() -> None:
    """Its number may even be another one's by then."""
    assert thread_stack(0) == []
    assert call_site([], 1) is None
    assert frames_of([]) == []


def test_a_stack_that_cannot_be_followed_to_its_end_might_hold_the_frame() -> None:
    """A generator that yields while its thread's stack is walked has forgotten its caller."""

    def numbers() -> Iterator[FrameType]:
        yield sys._getframe()  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]  # documented

    suspended = numbers()
    cut_off = next(suspended)
    assert cut_off.f_back is None
    assert is_on_stack(0, cut_off.f_code, [cut_off])
    here = sys._getframe()  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]  # documented
    assert here.f_back is not None
    assert is_on_stack(id(here), here.f_code, [here])
    assert is_on_stack(id(here.f_back), here.f_back.f_code, [here])
    assert not is_on_stack(0, here.f_code, [here])
    assert not is_on_stack(id(here), here.f_back.f_code, [here])
    assert not is_on_stack(0, here.f_code, [])


def test_holders_tell_where_they_are() -> None:
    """A task's and a thread's."""

    async def in_asyncio() -> int:
        end = asyncio.Event()
        task = asyncio.create_task(waiting(end))
        holder = TaskHolder(task)
        await let_tasks_run()
        site = call_site(holder.stack(), 1)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        del task
        await let_tasks_run()
        gc.collect()
        assert holder.stack() == []
        assert site is not None
        return site.line

    assert asyncio.run(in_asyncio()) == line_marked(HERE, "waits")

    holder = current_holder(None)
    assert holder is not None
    names = [frame.f_code.co_name for frame in frames_of(holder.stack())]
    assert "test_holders_tell_where_they_are" in names


def test_a_thread_that_does_something_else_is_no_place_of_the_holder_s() -> None:
    """What it took is not what the thread works on by then."""
    with ThreadPoolExecutor(1) as pool:
        context = contextvars.copy_context()
        holder = pool.submit(context.run, current_holder, None).result()
        assert holder is not None
        begun, end = threading.Event(), threading.Event()

        def other() -> None:
            begun.set()
            end.wait(PATIENCE)

        pool.submit(other)
        assert begun.wait(PATIENCE)
        assert holder.stack() == []
        end.set()
