"""Who may still return a connection decides when its verdict falls, and only once."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import threading
import weakref
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager

import pytest

from leakguard import CallSite, FindingKind, Scope, allow
from leakguard.core.guard import Guard
from leakguard.core.hold import SessionHold
from leakguard.core.scope import current_scope
from leakguard.core.tasks import other_tasks
from leakguard.core.watch import WATCH
from tests.core.fakes import (
    FakeConnection,
    FakeSession,
    construct,
    ended_scope,
    here,
    installed,
    let_tasks_run,
    make_guard,
    start_within,
    take,
)
from tests.support import PATIENCE, Recorder, drain_watch

LEAKED = FindingKind.LEAKED
OUTLIVES = FindingKind.OUTLIVES_SCOPE


@pytest.fixture
def guard(recorder: Recorder) -> Iterator[Guard]:
    guard = installed(recorder, late_after=PATIENCE)
    yield guard
    guard.uninstall()


@pytest.fixture
def hasty(recorder: Recorder) -> Iterator[Guard]:
    """Return a guard that waits for other work hardly at all."""
    guard = installed(recorder, late_after=0.01)
    yield guard
    guard.uninstall()


def test_with_nothing_running_the_verdict_falls_at_once(
    guard: Guard, recorder: Recorder, caplog: pytest.LogCaptureFixture
) -> None:
    """In the order of acquisition, sessions last."""
    with guard.scope("job") as scope:
        session = construct(guard, scope, here())
        first, second = take(guard, scope), take(guard, scope)
    assert [finding.hold for finding in recorder.findings] == [first, second, session]
    assert recorder.kinds == [LEAKED, LEAKED, FindingKind.UNCLOSED_SESSION]
    assert caplog.records == []


def test_a_close_that_no_event_told_of_counts(guard: Guard, recorder: Recorder) -> None:
    """The library's word counts more than events."""
    with guard.scope("job") as scope:
        hold = take(guard, scope)
        hold.nested = True
        hold.is_open = False
    assert recorder.kinds == [FindingKind.NESTED_CHECKOUT]
    assert recorder.holds_released == [hold]


def test_a_session_is_judged_by_its_connections(guard: Guard, recorder: Recorder) -> None:
    """One whose connection is lost is not unclosed besides."""
    with guard.scope("job") as scope:
        for collected in (True, False):
            session = construct(guard, scope)
            hold = take(guard, scope)
            hold.session = session
            if collected:
                hold.collect()
    assert recorder.kinds == [FindingKind.RECLAIMED, LEAKED]


def test_a_session_that_was_closed_is_clean(guard: Guard, recorder: Recorder) -> None:
    """Whether an event told of it or not."""
    with guard.scope("job") as scope:
        construct(guard, scope).is_open = False
        guard.released(construct(guard, scope))
    assert recorder.findings == []


class Child:
    """A child task that takes a connection, and goes on until it is told."""

    def __init__(self, guard: Guard) -> None:
        self.guard = guard
        self.go_on = asyncio.Event()
        self.hold: FakeConnection | None = None

    async def work(self, *, returns: bool) -> None:
        """Take a connection of the current scope, and give it back or not."""
        self.hold = take(self.guard, current_scope.get())
        await self.go_on.wait()
        if returns:
            self.hold.give_back()


@pytest.mark.parametrize("returns", [True, False])
def test_the_holder_is_waited_for(guard: Guard, recorder: Recorder, returns: bool) -> None:
    """While it runs the connection outlives its scope; then it is back, or leaked."""

    async def main() -> None:
        child = Child(guard)
        async with guard.scope("job"):
            task = asyncio.create_task(child.work(returns=returns), name="child")
            await let_tasks_run()
        assert recorder.kinds == [OUTLIVES]
        assert recorder.findings[0].evidence.outlived_by == "task 'child' (Child.work)"
        child.go_on.set()
        await task
        await let_tasks_run()

    asyncio.run(main())
    assert recorder.kinds == ([OUTLIVES] if returns else [OUTLIVES, LEAKED])
    if returns:
        recorder.wait_for(lambda: recorder.resolutions)
    else:
        assert "left by task 'child' (Child.work), which runs no more" in str(recorder.findings[1])


def test_an_end_that_nobody_tells_is_looked_for(hasty: Guard, recorder: Recorder) -> None:
    """A loop that is closed tells nothing of its tasks' end; the watch looks now and then."""

    async def main() -> None:
        child = Child(hasty)
        async with hasty.scope("job"):
            children.append(asyncio.create_task(child.work(returns=False)))
            await let_tasks_run()

    children: list[asyncio.Task[None]] = []
    asyncio.run(main())
    recorder.wait_for(lambda: recorder.kinds == [OUTLIVES, LEAKED])


@pytest.mark.parametrize("returns", [True, False])
def test_other_work_of_the_scope_is_waited_for(
    guard: Guard, recorder: Recorder, returns: bool
) -> None:
    """A library may close from a clean-up task, a moment after the scope has ended."""

    async def main() -> None:
        go_on = asyncio.Event()

        async def clean_up(hold: FakeConnection) -> None:
            await go_on.wait()
            if returns:
                hold.give_back()

        async with guard.scope("job") as scope:
            construct(guard, scope)
            task = asyncio.create_task(clean_up(take(guard, scope)))
            await let_tasks_run()
        assert recorder.kinds == []
        go_on.set()
        await task
        await let_tasks_run()

    asyncio.run(main())
    assert recorder.kinds == ([] if returns else [LEAKED])


def test_other_work_on_the_loop_of_the_holder_is_waited_for(
    guard: Guard, recorder: Recorder
) -> None:
    """A database may have an event loop of its own, in a thread, and be closed from there."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    go_on, under_way = threading.Event(), threading.Event()

    async def connect() -> FakeConnection:
        return take(guard, current_scope.get())

    async def clean_up(hold: FakeConnection) -> None:
        under_way.set()
        await asyncio.to_thread(go_on.wait, PATIENCE)
        hold.give_back()

    async def main() -> None:
        async with guard.scope("job"):
            hold = await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(connect(), loop))
            cleaned_up = asyncio.run_coroutine_threadsafe(clean_up(hold), loop)
            await asyncio.to_thread(under_way.wait, PATIENCE)
        go_on.set()
        await asyncio.wrap_future(cleaned_up)

    asyncio.run(main())
    guard.judge_pending()
    assert recorder.findings == []
    loop.call_soon_threadsafe(loop.stop)
    thread.join(PATIENCE)
    loop.close()


def test_a_close_during_the_wait_that_no_event_told_of_counts(
    guard: Guard, recorder: Recorder
) -> None:
    """The library is asked again when the wait is over."""

    async def main() -> None:
        go_on = asyncio.Event()
        async with guard.scope("job") as scope:
            hold = take(guard, scope)
            task = asyncio.create_task(go_on.wait())
            await let_tasks_run()
        hold.is_open = False
        go_on.set()
        await task
        await let_tasks_run()
        assert recorder.holds_released == [hold]

    asyncio.run(main())
    assert recorder.kinds == []


def test_other_work_is_waited_for_no_longer_than_late_after(
    hasty: Guard, recorder: Recorder
) -> None:
    """An endless task that has nothing to do with it does not hide a leak."""

    async def main() -> None:
        async with hasty.scope("job") as scope:
            take(hasty, scope)
            endless = asyncio.create_task(asyncio.Event().wait())
            await let_tasks_run()
        await asyncio.to_thread(recorder.wait_for, lambda: recorder.findings)
        assert recorder.findings[0].evidence.waited_for_return == 0.01
        assert not endless.done()
        endless.cancel()

    asyncio.run(main())
    assert recorder.kinds == [LEAKED]


def test_the_wait_for_others_begins_when_the_holder_ends(hasty: Guard, recorder: Recorder) -> None:
    """First the holder is waited for, without a limit, then the others, for a while."""

    async def main() -> None:
        child = Child(hasty)
        async with hasty.scope("job"):
            task = asyncio.create_task(child.work(returns=False))
            endless = asyncio.create_task(asyncio.Event().wait())
            await let_tasks_run()
        child.go_on.set()
        await task
        await asyncio.to_thread(recorder.wait_for, lambda: len(recorder.findings) == 2)
        assert [finding.evidence.waited_for_return for finding in recorder.findings] == [None, 0.01]
        endless.cancel()

    asyncio.run(main())
    assert recorder.kinds == [OUTLIVES, LEAKED]


def test_what_is_collected_during_the_wait_has_leaked(recorder: Recorder) -> None:
    """Nobody can return it any more: the verdict does not depend on the collector."""
    guard = installed(recorder, late_after=100 * PATIENCE)

    async def main() -> None:
        async with guard.scope("job") as scope:
            hold = take(guard, scope)
            endless = asyncio.create_task(asyncio.Event().wait())
            await let_tasks_run()
        hold.collect()
        await asyncio.to_thread(recorder.wait_for, lambda: recorder.resolutions)
        endless.cancel()

    asyncio.run(main())
    assert recorder.kinds == [LEAKED]
    assert recorder.findings[0].resolved
    guard.uninstall()


@pytest.mark.parametrize("returns", [True, False])
def test_work_that_takes_one_after_its_scope_has_ended_is_followed(
    guard: Guard, recorder: Recorder, returns: bool
) -> None:
    """There is nothing to say while it runs; if it ends without returning it, it has leaked."""

    async def main() -> None:
        child = Child(guard)
        async with guard.scope("job"):
            task = asyncio.create_task(child.work(returns=returns))
        assert child.hold is None
        await let_tasks_run()
        assert child.hold is not None
        child.go_on.set()
        await task
        await let_tasks_run()

    asyncio.run(main())
    assert recorder.kinds == ([] if returns else [LEAKED])


def test_what_such_work_took_others_may_give_back(guard: Guard, recorder: Recorder) -> None:
    """While other work of the scope still runs, the verdict waits as it does for any other."""

    async def main() -> None:
        child = Child(guard)
        others_end = asyncio.Event()
        async with guard.scope("job"):
            task = asyncio.create_task(child.work(returns=False))
            other = asyncio.create_task(others_end.wait())
        await let_tasks_run()
        child.go_on.set()
        await task
        await let_tasks_run()
        assert child.hold is not None
        assert recorder.kinds == []
        child.hold.give_back()
        others_end.set()
        await other

    asyncio.run(main())
    assert recorder.kinds == []


def test_a_session_constructed_after_its_scope_has_ended_is_nothing_to_say(
    guard: Guard, recorder: Recorder
) -> None:
    """Only connections are followed then."""
    with guard.scope("job") as scope:
        pass
    construct(guard, scope)
    assert recorder.findings == []


@pytest.mark.parametrize("returns", [True, False])
def test_a_thread_is_waited_for(hasty: Guard, recorder: Recorder, returns: bool) -> None:
    """Work of a thread in a copy of the context is a holder like a task."""
    took, go_on = threading.Event(), threading.Event()

    def work() -> None:
        hold = take(hasty, scope)
        took.set()
        assert go_on.wait(PATIENCE)
        if returns:
            hold.give_back()

    with hasty.scope("job") as scope:
        context = contextvars.copy_context()
        thread = threading.Thread(target=context.run, args=(work,))
        thread.start()
        assert took.wait(PATIENCE)
    assert recorder.kinds == [OUTLIVES]
    go_on.set()
    thread.join()
    del context, thread
    gc.collect()
    if returns:
        recorder.wait_for(lambda: recorder.resolutions)
    else:
        recorder.wait_for(lambda: recorder.kinds == [OUTLIVES, LEAKED])


def test_a_thread_that_constructed_a_session_may_close_it(guard: Guard, recorder: Recorder) -> None:
    """Nothing is said of the session, and a connection that others took for it is waited for."""
    constructed, go_on = threading.Event(), threading.Event()
    sessions: list[SessionHold] = []

    def work() -> None:
        sessions.extend(construct(guard, scope) for _ in range(2))
        constructed.set()
        assert go_on.wait(PATIENCE)

    with guard.scope("job") as scope:
        thread = threading.Thread(target=contextvars.copy_context().run, args=(work,))
        thread.start()
        assert constructed.wait(PATIENCE)
        hold = take(guard, scope)
        hold.session = sessions[0]
    assert recorder.kinds == [OUTLIVES]
    hold.give_back()
    go_on.set()
    thread.join()
    recorder.wait_for(lambda: recorder.resolutions)
    assert recorder.kinds == [OUTLIVES]


def test_after_an_uninstallation_nothing_is_waited_for(recorder: Recorder) -> None:
    """What the guard was waiting for is forgotten with it."""

    async def main() -> None:
        guard = installed(recorder)
        child = Child(guard)
        async with guard.scope("job"):
            task = asyncio.create_task(child.work(returns=False))
            await let_tasks_run()
        guard.uninstall()
        child.go_on.set()
        await task
        await let_tasks_run()

    asyncio.run(main())
    assert recorder.kinds == [OUTLIVES]


@pytest.mark.parametrize("leave", [Guard.uninstall, Guard.abandon, Guard.__exit__])
def test_what_is_waited_for_is_not_judged_at_an_uninstallation(
    recorder: Recorder, leave: Callable[[Guard], None]
) -> None:
    """Whoever may give it back has not had the time to, and nobody looks afterwards."""
    guard = make_guard(recorder, late_after=100 * PATIENCE)

    async def main() -> None:
        guard.__enter__()
        async with guard.scope("job") as scope:
            take(guard, scope)
            endless = asyncio.create_task(asyncio.Event().wait())
            await let_tasks_run()
        leave(guard)
        endless.cancel()

    asyncio.run(main())
    assert recorder.kinds == []
    assert not guard.installed


def test_what_is_parked_waits_for_as_long_as_it_is(recorder: Recorder) -> None:
    """No other work of its scope runs, and neither the clock nor an end of the wait counts."""
    guard = installed(recorder, late_after=0.0)
    with guard.scope("job") as scope:
        hold = take(guard, scope)
        hold.parked = True
    guard.judge_pending()
    assert recorder.findings == []
    hold.parked = False
    guard.judge_pending()
    assert recorder.kinds == [FindingKind.LEAKED]


@pytest.mark.usefixtures("many_tasks")
def test_all_that_is_waited_for_is_judged_when_nobody_is_left(recorder: Recorder) -> None:
    """As at the end of the process: what came back is not said, nor what other work may close."""
    guard = installed(recorder, late_after=100 * PATIENCE)

    async def main() -> None:
        job = Job(guard, here())
        for going_on in (False, False, True):
            await job.run(going_on=going_on)
        child = Child(guard)
        async with guard.scope("job") as scope:
            taken, returned = take(guard, scope), take(guard, scope)
            endless = asyncio.create_task(asyncio.Event().wait())
            await let_tasks_run()
        async with guard.scope("job"):
            held = asyncio.create_task(child.work(returns=True))
            await let_tasks_run()
        returned.give_back()
        assert recorder.kinds == [FindingKind.UNCLOSED_SESSION, OUTLIVES]
        guard.judge_pending()
        assert recorder.findings[2].hold is taken
        assert taken.waited_for_return is None
        endless.cancel()
        child.go_on.set()
        await held
        await job.end()

    asyncio.run(main())
    unclosed = FindingKind.UNCLOSED_SESSION
    assert recorder.kinds == [unclosed, OUTLIVES, LEAKED, unclosed]
    guard.uninstall()


def test_while_work_of_another_thread_may_give_it_back_nothing_is_decided(guard: Guard) -> None:
    """Until it has come back; whoever wants the verdict waits for that, too."""
    taken: list[FakeConnection] = []
    ended, go_on = threading.Event(), threading.Event()

    async def main() -> None:
        async with guard.scope("job") as scope:
            taken.append(take(guard, scope))
            other = asyncio.create_task(asyncio.Event().wait())
        assert not guard.undecided  # for who is on that loop, and keeps its tasks from going on
        ended.set()
        await asyncio.to_thread(go_on.wait, PATIENCE)
        other.cancel()

    thread = threading.Thread(target=lambda: asyncio.run(main()))
    thread.start()
    assert ended.wait(PATIENCE)
    assert guard.undecided
    taken[0].give_back()
    assert not guard.undecided
    go_on.set()
    thread.join(PATIENCE)


def test_the_last_of_the_other_tasks_decides(guard: Guard, recorder: Recorder) -> None:
    """While one of them runs, it may give the connection back, and the verdict waits."""

    async def main() -> None:
        go_on = [asyncio.Event() for _ in range(3)]
        async with guard.scope("job") as scope:
            take(guard, scope)
            tasks = [asyncio.create_task(event.wait()) for event in go_on]
            await let_tasks_run()
        for event, task in zip(go_on, tasks, strict=True):
            assert recorder.kinds == []
            event.set()
            await task
            await let_tasks_run()

    asyncio.run(main())
    assert recorder.kinds == [LEAKED]


def test_a_connection_that_came_back_and_was_nested_is_told_at_the_end(
    guard: Guard, recorder: Recorder
) -> None:
    """What there is to say about a returned connection waits for the end of its scope."""
    with guard.scope("job") as scope:
        hold = take(guard, scope)
        hold.nested = True
        hold.give_back()
        unremarkable = take(guard, scope)
        unremarkable.give_back()
        assert recorder.findings == []
    assert [finding.hold for finding in recorder.findings] == [hold]
    assert recorder.kinds == [FindingKind.NESTED_CHECKOUT]


class Job:
    """A scope with a session that it leaves open, and perhaps with other work that goes on."""

    def __init__(self, guard: Guard, site: CallSite) -> None:
        self.guard = guard
        self.site = site
        self.session: FakeSession | None = None
        self.go_on = asyncio.Event()
        self.others: list[asyncio.Task[object]] = []

    async def run(self, *, going_on: bool) -> None:
        """Construct the session, start the other work, and end."""
        async with self.guard.scope("job") as scope:
            self.session = construct(self.guard, scope, self.site)
            if going_on:
                self.others.append(asyncio.create_task(self.go_on.wait()))

    async def end(self) -> None:
        """Let the other work end."""
        self.go_on.set()
        await asyncio.gather(*self.others)


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Return a list of the loops whose tasks are looked at."""
    loops: list[object] = []

    def look(loop: asyncio.AbstractEventLoop) -> list[asyncio.Task[object]]:
        loops.append(loop)
        return other_tasks(loop)

    monkeypatch.setattr("leakguard.core.task_scan.other_tasks", look)
    return loops


@contextmanager
def busy(guard: Guard) -> Generator[None, None, None]:
    """Keep the watch at work on something else."""
    go_on = threading.Event()

    def wait() -> None:
        go_on.wait(PATIENCE)

    take(guard)  # it starts the thread
    WATCH.post(wait)
    yield
    go_on.set()


def test_the_tasks_are_looked_at_once_for_all_sessions_of_a_scope(
    guard: Guard, recorder: Recorder, looks: list[object]
) -> None:
    """However many of them are open."""

    async def main() -> None:
        with guard.scope("job") as scope:
            for _ in range(3):
                construct(guard, scope)

    asyncio.run(main())
    assert recorder.kinds == [FindingKind.UNCLOSED_SESSION] * 3
    assert len(looks) == 1


@pytest.mark.usefixtures("many_tasks")
def test_where_there_are_many_tasks_one_look_decides_for_all(
    guard: Guard, recorder: Recorder, looks: list[object]
) -> None:
    """Nothing is looked at for those that are given back by then, or wait for something else."""

    def wait_for_something_else() -> None:
        with guard.scope("in a thread") as scope:
            take(guard, scope).by_older_session = True

    async def main() -> None:
        await asyncio.to_thread(wait_for_something_else)
        with guard.scope("first") as scope:
            first = take(guard, scope)
        assert [finding.hold for finding in recorder.findings] == [first]
        assert len(looks) == 1
        with busy(guard):
            for _ in range(3):
                with guard.scope("healthy") as scope:
                    hold = take(guard, scope)
                assert hold in guard._judge.waits  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]  # it is waited for
                hold.give_back()
        await asyncio.to_thread(drain_watch)
        assert len(looks) == 1
        with busy(guard):
            for _ in range(3):
                with guard.scope("leaky") as scope:
                    take(guard, scope)
            assert len(recorder.findings) == 1
        await asyncio.to_thread(recorder.wait_for, lambda: len(recorder.findings) == 4)
        assert len(looks) == 2

    asyncio.run(main())
    assert recorder.kinds == [LEAKED] * 4


@pytest.mark.usefixtures("many_tasks")
def test_where_there_are_many_tasks_other_work_is_waited_for(
    hasty: Guard, recorder: Recorder
) -> None:
    """As where there are few: no longer than `late_after`."""

    async def main() -> None:
        with hasty.scope("first") as scope:
            take(hasty, scope)
        with hasty.scope("job") as scope:
            hold = take(hasty, scope)
            endless = asyncio.create_task(asyncio.Event().wait())
        await asyncio.to_thread(recorder.wait_for, lambda: len(recorder.findings) == 2)
        assert hold.waited_for_return == 0.01
        endless.cancel()

    asyncio.run(main())
    assert recorder.kinds == [LEAKED] * 2


def test_few_tasks_are_looked_at_each_time(guard: Guard, recorder: Recorder) -> None:
    """So that the verdict falls at once, and other work is an excuse each time."""

    async def main() -> None:
        job = Job(guard, here())
        await job.run(going_on=False)
        await job.run(going_on=True)
        await job.end()
        await job.run(going_on=False)

    asyncio.run(main())
    assert recorder.kinds == [FindingKind.UNCLOSED_SESSION] * 2


@pytest.mark.usefixtures("many_tasks")
@pytest.mark.parametrize("closed", [True, False])
def test_sessions_of_a_line_that_leaves_them_open_are_looked_at_later(
    hasty: Guard, recorder: Recorder, closed: bool
) -> None:
    """Whatever was found there before, one that is closed in the meantime is clean."""

    async def main() -> None:
        job = Job(hasty, here())
        await job.run(going_on=False)
        assert recorder.kinds == [FindingKind.UNCLOSED_SESSION]
        await job.run(going_on=True)
        assert recorder.kinds == [FindingKind.UNCLOSED_SESSION]
        if closed and job.session is not None:
            hasty.released(job.session)
        await job.end()
        job.session = None
        last = Job(hasty, job.site)
        await last.run(going_on=False)
        await asyncio.to_thread(recorder.wait_for, lambda: len(recorder.findings) == expected)

    expected = 2 if closed else 3
    asyncio.run(main())
    assert recorder.kinds == [FindingKind.UNCLOSED_SESSION] * expected


@pytest.mark.usefixtures("many_tasks")
def test_a_look_at_sessions_excuses_those_whose_scopes_go_on(
    hasty: Guard, recorder: Recorder
) -> None:
    """Other tasks of the scope may yet close it; those of another scope will not."""

    async def main() -> None:
        site = here()
        excused, other = Job(hasty, site), Job(hasty, site)
        for job in (excused, excused, other):
            await job.run(going_on=job is excused)
        await asyncio.to_thread(recorder.wait_for, lambda: recorder.findings)
        assert recorder.findings[0].hold is other.session
        await excused.end()

    asyncio.run(main())
    assert recorder.kinds == [FindingKind.UNCLOSED_SESSION]


@pytest.mark.parametrize("going_on", [True, False])
def test_a_session_that_was_collected_can_be_closed_by_nobody(
    guard: Guard, recorder: Recorder, going_on: bool
) -> None:
    """Whatever else is running: it was not closed, and will not be."""

    async def main() -> None:
        async with guard.scope("job") as scope:
            session = construct(guard, scope)
            session.is_open = False
            guard.collected(session)
            other = asyncio.create_task(asyncio.Event().wait() if going_on else asyncio.sleep(0))
        other.cancel()

    asyncio.run(main())
    assert recorder.kinds == [FindingKind.UNCLOSED_SESSION]


def test_work_that_outlives_its_scope_may_take_any_number_of_connections(
    guard: Guard, recorder: Recorder
) -> None:
    """None of those that came back is remembered, however long the work goes on."""
    kept = set(range(20))
    none_kept = threading.Event()

    def forgotten(number: int) -> None:
        kept.discard(number)
        if not kept:
            none_kept.set()

    async def work(scope: Scope, ended: asyncio.Event) -> None:
        await ended.wait()
        for number in tuple(kept):
            hold = take(guard, scope)
            weakref.finalize(hold, forgotten, number)
            hold.give_back()
        recorder.holds_acquired.clear()
        recorder.holds_released.clear()

    async def main() -> None:
        ended = asyncio.Event()
        async with guard.scope("job") as scope:
            task = asyncio.create_task(work(scope, ended))
        ended.set()
        await task
        endless = contextvars.copy_context().run(start_within, scope)
        # The watch looks after a second and lets go of the last of them.
        assert await asyncio.to_thread(none_kept.wait, PATIENCE)
        endless.cancel()

    asyncio.run(main())
    assert recorder.kinds == []


def test_what_is_allowed_is_not_followed_after_its_scope_has_ended(
    guard: Guard, recorder: Recorder
) -> None:
    """Nothing will be said of it, whatever becomes of it."""
    scope = ended_scope(guard)
    with allow("goes on by design"):
        hold = take(guard, scope)
    hold.collect()
    drain_watch()
    assert recorder.findings == []
