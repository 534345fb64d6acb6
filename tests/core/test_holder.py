"""Who has a hold in hand, and whether they still run."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import sys
import threading
import weakref
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import anyio.to_thread
import pytest
import uvloop
from greenlet import getcurrent, greenlet

from leakguard import Hold, Scope
from leakguard.core.endings import on_done
from leakguard.core.holder import Holder, TaskHolder, current_holder, current_work
from leakguard.core.scope import scopes_around
from leakguard.core.tasks import (
    context_among_referents,
    context_of,
    loop_ref,
    other_tasks,
    runs_elsewhere,
)
from leakguard.core.watch import WATCH
from tests.core.fakes import installed, make_guard, take
from tests.support import PATIENCE, drain_watch


@pytest.fixture
def scope() -> Any:  # a generator fixture
    guard = installed()
    with guard.scope("job") as scope:
        yield scope
    guard.uninstall()


def in_thread(function: Callable[[], Any]) -> threading.Thread:
    """Run a function in a thread, in a copy of the context."""
    context = contextvars.copy_context()
    thread = threading.Thread(target=context.run, args=(function,), name="worker")
    thread.start()
    return thread


def test_the_one_who_opened_the_scope_is_nobody_else(scope: Scope) -> None:
    """Its own thread is no holder to wait for."""
    assert current_holder(scope) is None


def test_a_task_is_a_holder_while_it_runs(scope: Scope) -> None:
    """A child task runs until it is done, and says so."""
    ended: list[Hold] = []

    async def main() -> None:
        go_on = asyncio.Event()
        took = asyncio.Event()
        holders: list[Holder | None] = []

        async def work() -> None:
            holders.append(current_holder(scope))
            took.set()
            await go_on.wait()

        task = asyncio.create_task(work(), name="worker")
        await took.wait()
        (holder,) = holders
        assert holder is not None
        assert str(holder).startswith("task 'worker' (test_a_task_is_a_holder_while_it_runs.")
        assert holder.running()
        hold, dropped = take(make_guard()), take(make_guard())
        for one in (hold, hold, dropped):
            holder.on_end(one, ended.append)
        gone = weakref.ref(dropped)
        del dropped, one
        gc.collect()
        assert gone() is None
        go_on.set()
        await task
        await asyncio.sleep(0)
        assert not holder.running()
        del task
        gc.collect()
        assert ended == [hold]
        holder.on_end(take(make_guard()), ended.append)
        assert not holder.running()
        assert ended == [hold]

    asyncio.run(main())


def test_a_scope_s_own_task_is_nobody_else() -> None:
    """The task that opened the scope is no holder, until the scope has ended."""

    async def main() -> None:
        guard = installed()
        async with guard.scope("job") as scope:
            assert current_holder(scope) is None
            assert scope.opened_by == current_work()
        assert current_holder(scope) is not None
        guard.uninstall()

    asyncio.run(main())


class Worker:
    """Work for a thread that takes a hold and waits."""

    def __init__(self, scope: Scope) -> None:
        self.scope = scope
        self.holder: Holder | None = None
        self.took = threading.Event()
        self.go_on = threading.Event()
        self.error: Exception | None = None

    def work(self) -> None:
        """Take a hold in a helper, and go on without it on the stack."""
        self.take()
        self.wait()

    def wait(self) -> None:
        """Tell that it has been taken, and wait."""
        self.took.set()
        assert self.go_on.wait(PATIENCE)

    def work_and_fail(self) -> None:
        """Do so, and raise."""
        self.work()
        raise ValueError("failed")

    def take(self) -> None:
        """Take a hold."""
        self.holder = current_holder(self.scope)
        assert current_holder(self.scope) is not None  # the same work


@pytest.mark.parametrize("runner", ["thread", "executor"])
def test_a_thread_is_a_holder_while_its_work_runs(scope: Scope, runner: str) -> None:
    """Work in a copied context runs until the function that the thread runs has returned."""
    worker = Worker(scope)
    ended: list[str] = []
    WATCH.start()
    with ThreadPoolExecutor(1) as executor:
        if runner == "thread":
            join = in_thread(worker.work).join
        else:
            join = executor.submit(contextvars.copy_context().run, worker.work).result
        assert worker.took.wait(PATIENCE)
        assert worker.holder is not None
        if runner == "thread":
            assert str(worker.holder) == "thread 'worker'"
        assert worker.holder.running()
        hold = take(make_guard())
        for _ in range(2):
            worker.holder.on_end(hold, lambda _: ended.append(threading.current_thread().name))
        worker.go_on.set()
        join()
        del join
    gc.collect()
    drain_watch()
    assert ended == ["leakguard"]
    assert not worker.holder.running()
    worker.holder.on_end(hold, lambda _: ended.clear())
    assert ended == ["leakguard"]


def test_a_thread_that_has_ended_is_named_by_its_number(scope: Scope) -> None:
    """Its name went with it."""
    holders: list[Holder | None] = []
    thread = in_thread(lambda: holders.append(current_holder(scope)))
    thread.join(PATIENCE)
    assert str(holders[0]) == f"thread {thread.ident}"


def test_a_holder_and_its_work_have_one_number(scope: Scope) -> None:
    """So that who waits for a connection is found among those who have one."""

    def numbers() -> tuple[int, int]:
        holder = current_holder(scope)
        assert holder is not None
        return holder.number, current_work()

    async def work() -> tuple[int, int]:
        return numbers()

    async def main() -> None:
        found = await asyncio.gather(work(), work(), asyncio.to_thread(numbers))
        assert all(number == same for number, same in found)
        assert len(set(found)) == 3

    asyncio.run(main())


def test_a_thread_s_work_runs_while_the_thread_runs_a_greenlet(scope: Scope) -> None:
    """As that of an event loop of its own: the greenlet's stack is all there is to see of it."""
    worker = Worker(scope)

    def work() -> None:
        worker.take()
        greenlet(worker.wait).switch()

    thread = in_thread(work)
    assert worker.took.wait(PATIENCE)
    assert worker.holder is not None
    assert worker.holder.running()
    worker.go_on.set()
    thread.join(PATIENCE)
    assert not worker.holder.running()


def test_where_there_are_no_greenlets_none_is_looked_at(
    scope: Scope, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The library is optional."""
    monkeypatch.delitem(sys.modules, "greenlet")
    worker = Worker(scope)
    thread = in_thread(worker.work)
    assert worker.took.wait(PATIENCE)
    worker.go_on.set()
    thread.join(PATIENCE)
    assert worker.holder is not None
    assert not worker.holder.running()


@pytest.mark.parametrize("how", ["anyio", "asyncio"])
def test_a_traceback_does_not_keep_a_thread_s_work_running(scope: Scope, how: str) -> None:
    """An exception's frames keep the copied context alive, and the work has ended all the same.

    Also while the same thread of the pool runs the same function again, for somebody else.
    """

    async def run(worker: Worker) -> None:
        function = worker.work_and_fail
        try:
            if how == "anyio":
                await anyio.to_thread.run_sync(function, limiter=limiter)
            else:
                await asyncio.to_thread(function)
        except ValueError as error:
            worker.error = error

    async def main() -> None:
        first, second = Worker(scope), Worker(scope)
        first.go_on.set()
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
        await run(first)
        assert first.holder is not None
        assert not first.holder.running()
        again = asyncio.create_task(run(second))
        assert await watching(second.took)
        assert second.holder is not None
        assert second.holder.running()
        assert not first.holder.running()
        second.go_on.set()
        await again
        assert not second.holder.running()

    async def watching(event: threading.Event) -> bool:
        """Wait in a thread that is not the pool's."""
        loop, done = asyncio.get_running_loop(), asyncio.Event()

        def wait() -> None:
            assert event.wait(PATIENCE)
            loop.call_soon_threadsafe(done.set)

        threading.Thread(target=wait).start()
        await asyncio.wait_for(done.wait(), PATIENCE)
        return True

    limiter: Any = None

    async def with_limiter() -> None:
        nonlocal limiter
        limiter = anyio.CapacityLimiter(1)
        await main()

    asyncio.run(with_limiter())


def test_a_deep_stack_has_an_outermost_frame_all_the_same(scope: Scope) -> None:
    """However deep the stack: work runs while it runs."""
    worker = Worker(scope)

    def deep(levels: int) -> None:
        if levels:
            deep(levels - 1)
        else:
            worker.work()

    thread = in_thread(lambda: deep(200))
    assert worker.took.wait(PATIENCE)
    assert worker.holder is not None
    assert worker.holder.running()
    worker.go_on.set()
    thread.join()
    assert not worker.holder.running()


def test_the_tasks_that_a_scope_started_are_known(scope: Scope) -> None:
    """Child tasks, and those of scopes inside; not those from before, nor the current one."""

    async def main() -> None:
        end = asyncio.Event()

        async def work() -> None:
            await end.wait()

        async def nested() -> None:
            async with scope.guard.scope("nested"):
                await end.wait()

        outside = contextvars.Context().run(asyncio.create_task, work())
        inside = {asyncio.create_task(work()), asyncio.create_task(nested())}
        await asyncio.sleep(0)
        others = other_tasks(asyncio.get_running_loop())
        assert {task for task in others if scope in scopes_around(task)} == inside
        end.set()
        await asyncio.gather(outside, *inside)

    asyncio.run(main())


def test_a_loop_is_known_where_one_runs() -> None:
    """Outside of a loop there is none to refer to."""

    async def main() -> None:
        ref = loop_ref()
        assert ref is not None
        assert ref() is asyncio.get_running_loop()

    asyncio.run(main())
    assert loop_ref() is None


def test_a_context_that_runs_one_function_after_the_other_tells_them_apart(scope: Scope) -> None:
    """A copy may be kept and used again: what runs in it now is running, whatever ran before."""
    first, second = Worker(scope), Worker(scope)
    first.go_on.set()
    context = contextvars.copy_context()
    with ThreadPoolExecutor(1) as executor:
        failed = executor.submit(context.run, first.work_and_fail)
        assert isinstance(failed.exception(), ValueError)  # its frames stay where they are
        future = executor.submit(context.run, second.work)
        assert second.took.wait(PATIENCE)
        assert first.holder is not None
        assert not first.holder.running()
        assert second.holder is not None
        assert second.holder.running()
        second.go_on.set()
        future.result()
    assert not second.holder.running()


def test_work_that_goes_on_far_outside_of_who_took_the_hold_runs(scope: Scope) -> None:
    """However deep in the stack a hold was taken, its work runs until the outermost has ended."""
    worker = Worker(scope)

    def take_deep_down(levels: int) -> None:
        if levels:
            take_deep_down(levels - 1)
        else:
            worker.take()

    def work() -> None:
        take_deep_down(200)
        worker.took.set()
        assert worker.go_on.wait(PATIENCE)

    thread = in_thread(work)
    assert worker.took.wait(PATIENCE)
    assert worker.holder is not None
    assert worker.holder.running()
    worker.go_on.set()
    thread.join()
    assert not worker.holder.running()


def test_the_task_of_another_thread_s_loop_is_not_touched(scope: Scope) -> None:
    """Asyncio's tasks belong to their thread: their end is found by looking."""
    holders: list[Holder | None] = []
    ended: list[Hold] = []
    took, go_on = threading.Event(), threading.Event()

    async def work() -> None:
        holders.append(current_holder(scope))
        took.set()
        await asyncio.to_thread(go_on.wait, PATIENCE)

    thread = in_thread(lambda: asyncio.run(work(), debug=True))
    assert took.wait(PATIENCE)
    (holder,) = holders
    assert holder is not None
    assert holder.running()
    hold = take(make_guard())
    holder.on_end(hold, ended.append)
    go_on.set()
    thread.join()
    assert not holder.running()
    assert ended == []


def test_a_task_s_context_is_found_without_being_told() -> None:
    """Python 3.11 does not tell; other contexts that the task refers to are not its own."""

    async def main() -> None:
        own = contextvars.copy_context()
        task = asyncio.get_running_loop().create_task(asyncio.sleep(0), context=own)
        task.add_done_callback(lambda _: None, context=contextvars.Context())
        task.add_done_callback(lambda _: None, context=contextvars.Context())
        assert context_of(task) is own
        assert context_among_referents(task) is own
        await task

    asyncio.run(main())


def test_a_task_that_tells_its_context_is_asked() -> None:
    """As Python's own do from 3.12 on."""
    context = contextvars.Context()

    class Telling:
        """Something like a task."""

        def get_context(self) -> contextvars.Context:
            """Tell."""
            return context

    assert context_of(Telling()) is context  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]  # like one


def test_what_refers_to_no_context_has_none() -> None:
    """Another implementation of tasks may keep it elsewhere: nothing is guessed."""

    class Other:
        """Something like a task."""

    assert context_among_referents(Other()) is None  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]  # like one


def test_work_that_goes_on_keeps_nothing_of_a_hold_that_is_gone() -> None:
    """It may take and return any number of connections."""

    async def main() -> None:
        endless = asyncio.create_task(asyncio.Event().wait())
        hold, other = take(make_guard()), take(make_guard())

        def callback(_: Hold) -> None:
            """Do nothing."""

        kept = weakref.ref(callback)
        on_done(endless, hold, callback)
        on_done(endless, other, print)
        del hold, callback
        gc.collect()
        assert kept() is None
        endless.cancel()

    asyncio.run(main())


def test_the_end_of_a_task_is_told_outside_of_any_request() -> None:
    """Neither in the task's context nor in that of whoever asked, which would be kept as long."""
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable")
    seen: list[str | None] = []

    async def main() -> None:
        variable.set("of the task")
        task = asyncio.create_task(asyncio.sleep(0))
        variable.set("of the request")
        hold = take(make_guard())
        on_done(task, hold, lambda _: seen.append(variable.get(None)))
        await asyncio.wait([task])
        await asyncio.sleep(0)

    asyncio.run(main())
    assert seen == [None]


def test_what_a_thread_s_work_takes_in_a_greenlet_is_that_work_s(scope: Scope) -> None:
    """A greenlet's stack ends where it starts; a frame outside of it tells where the work does."""
    found: list[tuple[Holder, bool]] = []

    def work() -> None:
        inner = greenlet(current_holder)
        inner.gr_context = getcurrent().gr_context  # as SQLAlchemy's have it
        holder = inner.switch(scope, sys._getframe())  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]  # documented
        found.append((holder, holder.running()))

    in_thread(work).join(PATIENCE)
    [(holder, running)] = found
    assert running
    assert not holder.running()


def test_a_loop_that_runs_in_another_thread_runs_elsewhere() -> None:
    """Its work may go on while this thread waits; that of its own loop, or of none, does not."""
    loops: list[asyncio.AbstractEventLoop] = []
    runs, end = threading.Event(), threading.Event()

    async def work() -> None:
        loops.append(asyncio.get_running_loop())
        assert not runs_elsewhere(loops)
        runs.set()
        await asyncio.to_thread(end.wait, PATIENCE)

    async def beside() -> bool:
        return runs_elsewhere(loops)

    thread = in_thread(lambda: asyncio.run(work()))
    assert runs.wait(PATIENCE)
    assert runs_elsewhere(loops)
    assert asyncio.run(beside())
    end.set()
    thread.join(PATIENCE)
    assert not runs_elsewhere(loops)
    assert not runs_elsewhere([])


class Nameless(Coroutine[Any, Any, None]):
    """A coroutine of somebody's own, as extension modules make them."""

    def send(self, value: object) -> Any:
        """End at once."""
        raise StopIteration

    def throw(self, *error: Any) -> Any:
        """End at once."""
        raise StopIteration

    def close(self) -> None:
        """Do nothing."""

    def __await__(self) -> Any:
        return iter(())


def test_a_task_whose_loop_is_closed_runs_no_more() -> None:
    """It will never go on, so that nobody is left who could give back what it has."""
    loop = asyncio.new_event_loop()
    task: Any = loop.create_task(asyncio.Event().wait())
    holder = TaskHolder(task)
    loop.run_until_complete(asyncio.sleep(0))
    assert holder.running()  # the loop is only stopped
    loop.close()
    assert not holder.running()
    assert holder.stranded
    assert not task.done()
    task._log_destroy_pending = False  # noqa: SLF001  (it is destroyed, as it is meant to be)


def test_a_loop_that_cannot_be_closed_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """As one of the user's that has not all that loops have."""

    def is_closed() -> bool:
        raise NotImplementedError

    async def main() -> None:
        task = asyncio.current_task()
        assert task is not None
        with monkeypatch.context() as patched:
            patched.setattr(asyncio.get_running_loop(), "is_closed", is_closed)
            assert TaskHolder(task).running()

    asyncio.run(main())


def test_a_task_of_a_function_without_a_name_has_its_own() -> None:
    """More is not known of it."""

    async def main() -> None:
        task = asyncio.create_task(Nameless(), name="worker")
        assert str(TaskHolder(task)) == "task 'worker'"
        await task

    asyncio.run(main())


def test_the_next_work_in_the_same_frame_is_not_mistaken_for_the_last(scope: Scope) -> None:
    """A thread of a pool runs one function again and again, often at the same address."""
    ended: list[Holder] = []
    with ThreadPoolExecutor(1) as executor:
        for _ in range(20):
            worker = Worker(scope)
            future = executor.submit(contextvars.copy_context().run, worker.work)
            assert worker.took.wait(PATIENCE)
            assert worker.holder is not None
            assert worker.holder.running()
            assert not any(holder.running() for holder in ended)
            ended.append(worker.holder)
            worker.go_on.set()
            future.result()


@pytest.mark.parametrize("loop_of", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_a_callback_has_ended_when_the_loop_goes_on(
    scope: Scope, loop_of: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    """Uvloop calls it without a Python frame of its own, right from whoever runs the loop."""
    running: list[bool] = []

    async def main() -> None:
        called = asyncio.Event()
        holders: list[Holder] = []

        def callback() -> None:
            holder = current_holder(scope)
            assert holder is not None
            holders.append(holder)
            running.append(holder.running())
            called.set()

        context = contextvars.copy_context()  # which outlives the callback, as others copy it
        asyncio.get_running_loop().call_soon(callback, context=context)
        await called.wait()
        running.append(holders[0].running())
        del context

    def run() -> None:
        with asyncio.Runner(loop_factory=loop_of) as runner:
            runner.run(main())

    in_thread(run).join(PATIENCE)
    assert running == [True, False]
