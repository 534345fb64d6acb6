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

from leakguard import CallSite, FindingKind, Hold, Scope
from leakguard.core.guard import Guard
from leakguard.core.hold import SessionHold
from leakguard.core.holder import other_tasks
from leakguard.core.judge import Judge
from leakguard.core.scope import current_scope
from leakguard.core.watch import WATCH
from tests.core.fakes import (
    FakeConnection,
    FakeSession,
    construct,
    ended_scope,
    here,
    installed,
    make_guard,
    take,
)
from tests.support import PATIENCE, Recorder
from tests.support import settle as settle_watch

LEAKED = FindingKind.LEAKED
OUTLIVES = FindingKind.OUTLIVES_SCOPE


@pytest.fixture
def guard(recorder: Recorder) -> Iterator[Guard]:
    guard = installed(recorder, late_after=PATIENCE)
    yield guard
    guard.uninstall()


@pytest.fixture
def hasty(recorder: Recorder) -> Iterator[Guard]:
    """Give a guard that waits for other work hardly at all."""
    guard = installed(recorder, late_after=0.01)
    yield guard
    guard.uninstall()


async def settle() -> None:
    """Let what is ready run."""
    for _ in range(5):
        await asyncio.sleep(0)


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
            await settle()
        assert recorder.kinds == [OUTLIVES]
        assert recorder.findings[0].evidence.holder == "task 'child' (Child.work)"
        child.go_on.set()
        await task
        await settle()

    asyncio.run(main())
    assert recorder.kinds == ([OUTLIVES] if returns else [OUTLIVES, LEAKED])
    if returns:
        recorder.wait_for(lambda: recorder.resolutions)
    else:
        assert "left by task 'child' (Child.work), which has ended" in str(recorder.findings[1])


def test_an_end_that_nobody_tells_is_looked_for(hasty: Guard, recorder: Recorder) -> None:
    """A loop that is closed tells nothing of its tasks' end; the watch looks now and then."""

    async def main() -> None:
        child = Child(hasty)
        async with hasty.scope("job"):
            children.append(asyncio.create_task(child.work(returns=False)))
            await settle()

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
            await settle()
        assert recorder.kinds == []
        go_on.set()
        await task
        await settle()

    asyncio.run(main())
    assert recorder.kinds == ([] if returns else [LEAKED])


def test_a_close_during_the_wait_that_no_event_told_of_counts(
    guard: Guard, recorder: Recorder
) -> None:
    """The library is asked again when the wait is over."""

    async def main() -> None:
        go_on = asyncio.Event()
        async with guard.scope("job") as scope:
            hold = take(guard, scope)
            task = asyncio.create_task(go_on.wait())
            await settle()
        hold.is_open = False
        go_on.set()
        await task
        await settle()
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
            await settle()
        assert recorder.kinds == []
        await asyncio.to_thread(recorder.wait_for, lambda: recorder.findings)
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
            await settle()
        child.go_on.set()
        await task
        await settle()
        assert recorder.kinds == [OUTLIVES]
        await asyncio.to_thread(recorder.wait_for, lambda: len(recorder.findings) == 2)
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
            await settle()
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
        await settle()
        assert child.hold is not None
        child.go_on.set()
        await task
        await settle()

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
        await settle()
        child.go_on.set()
        await task
        await settle()
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
            await settle()
        guard.uninstall()
        child.go_on.set()
        await task
        await settle()

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
            await settle()
        leave(guard)
        endless.cancel()

    asyncio.run(main())
    assert recorder.kinds == []
    assert not guard.installed


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
            await settle()
        async with guard.scope("job"):
            held = asyncio.create_task(child.work(returns=True))
            await settle()
        returned.give_back()
        assert recorder.kinds == [FindingKind.UNCLOSED_SESSION, OUTLIVES]
        guard.settle()
        assert recorder.findings[2].hold is taken
        assert taken.waited is None
        endless.cancel()
        child.go_on.set()
        await held
        await job.end()

    asyncio.run(main())
    unclosed = FindingKind.UNCLOSED_SESSION
    assert recorder.kinds == [unclosed, OUTLIVES, LEAKED, unclosed]
    guard.uninstall()


def test_the_last_of_the_other_tasks_decides(guard: Guard, recorder: Recorder) -> None:
    """While one of them runs, it may give the connection back, and the verdict waits."""

    async def main() -> None:
        go_on = [asyncio.Event() for _ in range(3)]
        async with guard.scope("job") as scope:
            take(guard, scope)
            tasks = [asyncio.create_task(event.wait()) for event in go_on]
            await settle()
        for event, task in zip(go_on, tasks, strict=True):
            assert recorder.kinds == []
            event.set()
            await task
            await settle()

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
def many_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have any number of tasks count as many."""
    monkeypatch.setattr("leakguard.core.looks.MANY", -1)


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Give a list of the loops whose tasks are looked at."""
    loops: list[object] = []

    def look(loop: asyncio.AbstractEventLoop) -> list[asyncio.Task[object]]:
        loops.append(loop)
        return other_tasks(loop)

    monkeypatch.setattr("leakguard.core.looks.other_tasks", look)
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
                assert hold in guard._judge._waits  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]  # it is waited for
                hold.give_back()
        await asyncio.to_thread(settle_watch)
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
        assert hold.waited == 0.01
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


@pytest.mark.usefixtures("many_tasks")
def test_a_look_at_sessions_asks_what_became_of_each() -> None:
    """One whose connection was lost, or whose holder runs, is not unclosed besides."""
    bench = Bench()
    bench.end_with_sessions()
    assert bench.kinds == [FindingKind.UNCLOSED_SESSION]
    lost, held, collected, _ = bench.end_with_sessions(4)
    assert len(bench.looks) == 1
    lost.connection_lost = True
    held.holder = FakeHolder()
    collected.collected = True
    bench.look()
    assert bench.now == 105.0
    kinds = [FindingKind.UNCLOSED_SESSION, None, None]
    assert bench.kinds == [*kinds, FindingKind.UNCLOSED_SESSION, FindingKind.UNCLOSED_SESSION]
    assert bench.looks == []


@pytest.mark.usefixtures("many_tasks")
def test_what_is_looked_at_later_has_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of sessions beyond it nothing is said; one look comes after the other."""
    monkeypatch.setattr("leakguard.core.session_judge._LIMIT", 2)
    bench = Bench()
    for after in (0.0, 0.0, 1.0, 0.0):
        bench.now += after
        bench.end_with_sessions()
    bench.look()
    bench.look()
    assert bench.now == 106.0
    assert bench.kinds == [FindingKind.UNCLOSED_SESSION] * 3
    assert bench.looks == []


@pytest.mark.usefixtures("many_tasks")
def test_after_forgetting_sessions_are_looked_at_as_ever() -> None:
    """Whoever forgets may have lost the look that was planned, as the child of a fork has."""
    bench = Bench()
    bench.end_with_sessions()
    bench.end_with_sessions()
    assert len(bench.looks) == 1
    bench.looks.clear()
    bench.judge.forget()
    bench.end_with_sessions()
    bench.look()
    assert bench.kinds == [FindingKind.UNCLOSED_SESSION] * 2
    assert bench.looks == []


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


class FakeHolder:
    """Work that runs until the test says otherwise, and whose end nobody tells."""

    def __init__(self) -> None:
        self.goes_on = True
        self.callbacks: dict[Hold, Callable[[Hold], None]] = {}

    def running(self) -> bool:
        """Say what the test said."""
        return self.goes_on

    def on_end(self, hold: Hold, callback: Callable[[Hold], None]) -> None:
        """Keep it for the test."""
        self.callbacks[hold] = callback

    def tell(self) -> None:
        """Say that the work has ended, whether or not it has."""
        for hold, callback in self.callbacks.items():
            callback(hold)


class Bench:
    """A judge with a clock that stands still and with jobs that the test does."""

    def __init__(self) -> None:
        self.now = 100.0
        self.looks: list[tuple[float, Callable[[], None]]] = []
        self.kinds: list[FindingKind | None] = []
        self.gone: list[Hold] = []
        self.judge = Judge(
            5.0,
            lambda _, verdict: self.kinds.append(verdict.kind),
            self.gone.append,
            lambda when, job: self.looks.append((when, job)),
            lambda: self.now,
        )
        guard = make_guard()
        self.scope = ended_scope(guard)
        self.hold = FakeConnection(guard, self.scope)
        self.holder = FakeHolder()
        self.hold.holder = self.holder
        self.scope.open_holds[self.hold] = None

    def end_with_sessions(self, count: int = 1) -> list[FakeSession]:
        """End the scope with sessions of its own that are open."""
        sessions = [FakeSession(self.hold.guard, self.scope) for _ in range(count)]
        for session in sessions:
            session.holder = None
        self.scope.open_holds = dict.fromkeys(sessions)
        asyncio.run(self.close())
        return sessions

    async def close(self) -> None:
        """End the scope in a loop."""
        self.judge.close(self.scope)

    def look(self) -> None:
        """Do what is due next."""
        when, job = min(self.looks, key=lambda look: look[0])
        self.looks.remove((when, job))
        self.now = when
        job()


def test_work_whose_end_nobody_tells_is_looked_at_until_it_has_ended() -> None:
    """One look at a time, less and less often, and announced once."""
    bench = Bench()
    bench.judge.close(bench.scope)
    looked_at: list[float] = []
    for _ in range(9):
        bench.look()
        assert bench.kinds == [OUTLIVES]
        assert len(bench.looks) == 1
        looked_at.append(bench.now - 100.0)
    assert looked_at == [1.0, 3.0, 7.0, 15.0, 31.0, 63.0, 123.0, 183.0, 243.0]
    bench.holder.goes_on = False
    bench.look()
    assert bench.kinds == [OUTLIVES, LEAKED]
    assert bench.looks == []
    assert len(bench.holder.callbacks) == 1


def test_what_is_allowed_is_not_looked_at() -> None:
    """Nothing will be said of it, whatever becomes of it."""
    bench = Bench()
    bench.hold.allowed = "streams the export"
    bench.judge.close(bench.scope)
    assert bench.looks == []
    assert not bench.holder.callbacks


def test_an_end_that_is_told_too_early_changes_nothing() -> None:
    """The holder is asked, and no second look is planned beside the first."""
    bench = Bench()
    bench.judge.close(bench.scope)
    bench.holder.tell()
    assert bench.kinds == [OUTLIVES]
    assert len(bench.looks) == 1
    bench.holder.goes_on = False
    bench.holder.tell()
    assert bench.kinds == [OUTLIVES, LEAKED]
    bench.look()
    assert bench.kinds == [OUTLIVES, LEAKED]


def test_a_look_finds_what_was_closed_without_a_word() -> None:
    """Whoever keeps the books is told then, and nothing was lost."""
    bench = Bench()
    bench.judge.close(bench.scope)
    bench.hold.is_open = False
    bench.look()
    assert bench.gone == [bench.hold]
    assert bench.kinds == [OUTLIVES]


def test_a_look_after_the_return_finds_nothing_to_do() -> None:
    """Somebody else has told of it."""
    bench = Bench()
    bench.judge.close(bench.scope)
    bench.hold.is_open = False
    bench.hold.released_monotonic = 0.0
    bench.look()
    assert bench.gone == []
    assert bench.kinds == [OUTLIVES]


def test_the_deadline_for_other_work_comes_before_a_later_look() -> None:
    """It counts from the end of the holder, by the judge's clock, and holds."""

    async def main() -> None:
        bench = Bench()
        await with_endless_work(bench)

    async def with_endless_work(bench: Bench) -> None:
        endless = contextvars.copy_context().run(start_within, bench.scope)
        bench.judge.close(bench.scope)
        assert [when for when, _ in bench.looks] == [101.0]
        bench.now = 100.5
        bench.holder.goes_on = False
        bench.holder.tell()
        assert bench.kinds == [OUTLIVES]
        bench.look()  # too early: the other work has five seconds
        assert bench.kinds == [OUTLIVES]
        bench.look()
        assert bench.now == 105.5
        assert bench.kinds == [OUTLIVES, LEAKED]
        assert bench.hold.waited == 5.0
        endless.cancel()

    asyncio.run(main())


@pytest.mark.usefixtures("many_tasks")
def test_the_deadline_for_other_work_does_not_wait_for_the_look() -> None:
    """Where there are many tasks, one look serves all; who waits for it waits from the end on."""

    async def main() -> None:
        bench = Bench()
        endless = contextvars.copy_context().run(start_within, bench.scope)
        for scope, count in ((ended_scope(bench.hold.guard), 1), (bench.scope, 2)):
            holds = [FakeConnection(bench.hold.guard, scope) for _ in range(count)]
            for hold in holds:
                hold.holder = None
            scope.open_holds = dict.fromkeys(holds)
            bench.judge.close(scope)
        assert bench.kinds == [LEAKED]  # after a look that saw how many tasks there are
        assert len(bench.looks) == 1
        bench.look()
        assert bench.kinds == [LEAKED, None, None]
        assert [when for when, _ in bench.looks] == [105.0, 105.0]
        while bench.looks:
            bench.look()
        assert bench.now == 105.0
        assert bench.kinds == [LEAKED, None, None, LEAKED, LEAKED]
        endless.cancel()

    asyncio.run(main())


def test_work_that_has_ended_was_not_given_up() -> None:
    """That the verdict waited is worth saying only where somebody was still at work."""
    bench = Bench()
    bench.holder.goes_on = False

    async def main() -> None:
        other = contextvars.copy_context().run(start_within, bench.scope)
        bench.judge.close(bench.scope)
        assert bench.kinds == [None]
        bench.now = 105.0
        other.cancel()
        await settle()

    asyncio.run(main())
    assert bench.kinds == [None, LEAKED]
    assert bench.hold.waited is None


def test_what_is_collected_is_lost_whoever_runs() -> None:
    """The work that took it can give it back no more."""
    bench = Bench()
    bench.judge.close(bench.scope)
    bench.hold.collected = True
    bench.judge.collected(bench.hold)
    assert bench.kinds == [OUTLIVES, LEAKED]


def test_who_constructed_the_session_outside_has_time_to_close_it() -> None:
    """An outer middleware may be about to, and is no task that could be looked at."""
    bench = Bench()
    bench.hold.holder = None
    bench.hold.session = construct(bench.hold.guard)
    bench.judge.close(bench.scope)
    assert bench.kinds == [None]
    bench.look()
    assert bench.now == 105.0
    assert bench.kinds == [None, LEAKED]
    assert bench.hold.waited == 5.0


def test_what_is_dismissed_is_waited_for_no_more() -> None:
    """Nor does it matter to anything else that is dismissed whether it was waited for."""
    bench = Bench()
    bench.judge.close(bench.scope)
    bench.judge.dismiss(FakeConnection(bench.hold.guard))
    bench.judge.dismiss(bench.hold)
    bench.holder.goes_on = False
    bench.look()
    assert bench.kinds == [OUTLIVES]
    assert bench.gone == []


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


def start_within(scope: Scope) -> asyncio.Task[object]:
    """Start a task that never ends in the context of a scope."""
    current_scope.set(scope)
    return asyncio.create_task(asyncio.Event().wait())
