"""What the judge plans, does and leaves, by a clock that stands still."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable

import pytest

from leakguard import FindingKind, Hold
from leakguard.core.judge import Judge
from leakguard.core.stacks import Stack
from tests.core.fakes import (
    FakeConnection,
    FakeSession,
    construct,
    ended_scope,
    let_tasks_run,
    make_guard,
    start_within,
)

LEAKED = FindingKind.LEAKED
OUTLIVES = FindingKind.OUTLIVES_SCOPE


class FakeHolder:
    """Work that runs until the test says otherwise, and whose end nobody tells."""

    number = 1

    loop = None

    def __init__(self) -> None:
        self.goes_on = True
        self.callbacks: dict[Hold, Callable[[Hold], None]] = {}

    def running(self) -> bool:
        """Return what the test said."""
        return self.goes_on

    def stack(self) -> Stack:
        """Be nowhere."""
        return []

    def on_end(self, hold: Hold, callback: Callable[[Hold], None]) -> None:
        """Keep it for the test."""
        self.callbacks[hold] = callback

    def tell(self) -> None:
        """Say that the work has ended, whether or not it has."""
        for hold, callback in self.callbacks.items():
            callback(hold)


class JudgeBench:
    """A judge with a clock that stands still and with jobs that the test does."""

    def __init__(self) -> None:
        self.now = 100.0
        self.planned: list[tuple[float, Callable[[], None]]] = []
        self.kinds: list[FindingKind | None] = []
        self.gone: list[Hold] = []
        self.judge = Judge(
            5.0,
            lambda _, verdict: self.kinds.append(verdict.kind),
            self.gone.append,
            lambda when, job: self.planned.append((when, job)),
            lambda: self.now,
        )
        guard = make_guard()
        self.scope = ended_scope(guard)
        self.hold = FakeConnection(guard, self.scope)
        self.holder = FakeHolder()
        self.hold.holder = self.holder
        self.scope.open_connections[self.hold] = None

    def end_with_sessions(self, count: int = 1) -> list[FakeSession]:
        """End the scope with sessions of its own that are open."""
        sessions = [FakeSession(self.hold.guard, self.scope) for _ in range(count)]
        for session in sessions:
            session.holder = None
        self.scope.open_connections, self.scope.open_sessions = {}, dict.fromkeys(sessions)
        asyncio.run(self.close())
        return sessions

    def end_with_connection(self) -> None:
        """End the scope with a connection of its own that is out."""
        self.scope.open_connections = {FakeConnection(self.hold.guard): None}
        asyncio.run(self.close())

    async def close(self) -> None:
        """End the scope in a loop."""
        self.judge.close(self.scope)

    def do_next(self) -> None:
        """Do what is due next."""
        when, job = min(self.planned, key=lambda plan: plan[0])
        self.planned.remove((when, job))
        self.now = when
        job()


@pytest.mark.usefixtures("many_tasks")
def test_a_look_at_sessions_asks_what_became_of_each() -> None:
    """One whose connection was lost, or whose holder runs, is not unclosed besides."""
    bench = JudgeBench()
    bench.end_with_sessions()
    assert bench.kinds == [FindingKind.UNCLOSED_SESSION]
    lost, held, collected, _ = bench.end_with_sessions(4)
    assert len(bench.planned) == 1
    lost.connection_lost = True
    held.holder = FakeHolder()
    collected.collected = True
    bench.do_next()
    assert bench.now == 105.0
    kinds = [FindingKind.UNCLOSED_SESSION, None, None]
    assert bench.kinds == [*kinds, FindingKind.UNCLOSED_SESSION, FindingKind.UNCLOSED_SESSION]
    assert bench.planned == []


@pytest.mark.usefixtures("many_tasks")
def test_what_is_looked_at_later_has_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of sessions beyond it nothing is said; one look comes after the other."""
    monkeypatch.setattr("leakguard.core.session_judge._LIMIT", 2)
    bench = JudgeBench()
    for after in (0.0, 0.0, 1.0, 0.0):
        bench.now += after
        bench.end_with_sessions()
    bench.do_next()
    bench.do_next()
    assert bench.now == 106.0
    assert bench.kinds == [FindingKind.UNCLOSED_SESSION] * 3
    assert bench.planned == []


@pytest.mark.usefixtures("many_tasks")
def test_after_forgetting_sessions_are_looked_at_as_ever() -> None:
    """Whoever forgets may have lost the look that was planned, as the child of a fork has."""
    bench = JudgeBench()
    bench.end_with_sessions()
    bench.end_with_sessions()
    assert len(bench.planned) == 1
    bench.planned.clear()
    bench.judge.forget()
    bench.end_with_sessions()
    bench.do_next()
    assert bench.kinds == [FindingKind.UNCLOSED_SESSION] * 2
    assert bench.planned == []


@pytest.mark.usefixtures("many_tasks")
def test_after_forgetting_connections_are_looked_at_as_ever() -> None:
    """Whoever forgets may have lost the look that was planned, as the child of a fork has."""
    bench = JudgeBench()
    bench.end_with_connection()
    bench.end_with_connection()
    assert len(bench.planned) == 1
    bench.planned.clear()
    bench.judge.forget()
    bench.end_with_connection()
    assert len(bench.planned) == 1
    bench.do_next()
    assert bench.kinds == [LEAKED, LEAKED]
    assert bench.planned == []


def test_a_session_is_left_to_the_handler_of_its_scope_s_exception() -> None:
    """It is outside of the scope, and may yet close the session."""
    bench = JudgeBench()
    bench.scope.handled_outside = True
    bench.end_with_sessions()
    assert bench.kinds == [None]
    assert bench.planned == []


def test_work_whose_end_nobody_tells_is_looked_at_until_it_has_ended() -> None:
    """One look at a time, less and less often, and announced once."""
    bench = JudgeBench()
    bench.judge.close(bench.scope)
    looked_at: list[float] = []
    for _ in range(9):
        bench.do_next()
        assert bench.kinds == [OUTLIVES]
        assert len(bench.planned) == 1
        looked_at.append(bench.now - 100.0)
    assert looked_at == [1.0, 3.0, 7.0, 15.0, 31.0, 63.0, 123.0, 183.0, 243.0]
    bench.holder.goes_on = False
    bench.do_next()
    assert bench.kinds == [OUTLIVES, LEAKED]
    assert bench.planned == []
    assert len(bench.holder.callbacks) == 1


def test_what_is_allowed_is_not_looked_at() -> None:
    """Nothing will be said of it, whatever becomes of it."""
    bench = JudgeBench()
    bench.hold.allowed = "streams the export"
    bench.judge.close(bench.scope)
    assert bench.planned == []
    assert not bench.holder.callbacks


def test_an_end_that_is_told_too_early_changes_nothing() -> None:
    """The holder is asked, and no second look is planned beside the first."""
    bench = JudgeBench()
    bench.judge.close(bench.scope)
    bench.holder.tell()
    assert bench.kinds == [OUTLIVES]
    assert len(bench.planned) == 1
    bench.holder.goes_on = False
    bench.holder.tell()
    assert bench.kinds == [OUTLIVES, LEAKED]
    bench.do_next()
    assert bench.kinds == [OUTLIVES, LEAKED]


def test_a_look_finds_what_was_closed_without_a_word() -> None:
    """Whoever keeps the books is told then, and nothing was lost."""
    bench = JudgeBench()
    bench.judge.close(bench.scope)
    bench.hold.is_open = False
    bench.do_next()
    assert bench.gone == [bench.hold]
    assert bench.kinds == [OUTLIVES]


def test_a_look_after_the_return_finds_nothing_to_do() -> None:
    """Somebody else has told of it."""
    bench = JudgeBench()
    bench.judge.close(bench.scope)
    bench.hold.is_open = False
    bench.hold.released_monotonic = 0.0
    bench.do_next()
    assert bench.gone == []
    assert bench.kinds == [OUTLIVES]


def test_the_deadline_for_other_work_comes_before_a_later_look() -> None:
    """It counts from the end of the holder, by the judge's clock, and holds."""

    async def main() -> None:
        bench = JudgeBench()
        await with_endless_work(bench)

    async def with_endless_work(bench: JudgeBench) -> None:
        endless = contextvars.copy_context().run(start_within, bench.scope)
        bench.judge.close(bench.scope)
        assert [when for when, _ in bench.planned] == [101.0]
        bench.now = 100.5
        bench.holder.goes_on = False
        bench.holder.tell()
        assert bench.kinds == [OUTLIVES]
        bench.do_next()  # too early: the other work has five seconds
        assert bench.kinds == [OUTLIVES]
        bench.do_next()
        assert bench.now == 105.5
        assert bench.kinds == [OUTLIVES, LEAKED]
        assert bench.hold.waited_for_return == 5.0
        endless.cancel()

    asyncio.run(main())


@pytest.mark.usefixtures("many_tasks")
def test_the_deadline_for_other_work_does_not_wait_for_the_look() -> None:
    """Where there are many tasks, one look serves all; who waits for it waits from the end on."""

    async def main() -> None:
        bench = JudgeBench()
        endless = contextvars.copy_context().run(start_within, bench.scope)
        for scope, count in ((ended_scope(bench.hold.guard), 1), (bench.scope, 2)):
            holds = [FakeConnection(bench.hold.guard, scope) for _ in range(count)]
            for hold in holds:
                hold.holder = None
            scope.open_connections = dict.fromkeys(holds)
            bench.judge.close(scope)
        assert bench.kinds == [LEAKED]  # after a look that saw how many tasks there are
        assert len(bench.planned) == 1
        bench.do_next()
        assert bench.kinds == [LEAKED, None, None]
        assert [when for when, _ in bench.planned] == [105.0, 105.0]
        while bench.planned:
            bench.do_next()
        assert bench.now == 105.0
        assert bench.kinds == [LEAKED, None, None, LEAKED, LEAKED]
        endless.cancel()

    asyncio.run(main())


def test_the_deadline_for_other_work_is_planned_once() -> None:
    """However often there is a look before it, as at the end of each of the other tasks."""

    async def main() -> None:
        bench = JudgeBench()
        bench.hold.holder = None
        contexts = [contextvars.copy_context() for _ in range(3)]
        tasks = [context.run(start_within, bench.scope) for context in contexts]
        bench.judge.close(bench.scope)
        for task in tasks:
            assert bench.kinds == [None]
            assert [when for when, _ in bench.planned] == [105.0]
            task.cancel()
            await let_tasks_run()
        assert bench.kinds == [None, LEAKED]

    asyncio.run(main())


def test_work_that_has_ended_was_not_given_up() -> None:
    """That the verdict waited is worth saying only where somebody was still at work."""
    bench = JudgeBench()
    bench.holder.goes_on = False

    async def main() -> None:
        other = contextvars.copy_context().run(start_within, bench.scope)
        bench.judge.close(bench.scope)
        assert bench.kinds == [None]
        bench.now = 105.0
        other.cancel()
        await let_tasks_run()

    asyncio.run(main())
    assert bench.kinds == [None, LEAKED]
    assert bench.hold.waited_for_return is None


def test_what_is_collected_is_lost_whoever_runs() -> None:
    """The work that took it can give it back no more."""
    bench = JudgeBench()
    bench.judge.close(bench.scope)
    bench.hold.collected = True
    bench.judge.collected(bench.hold)
    assert bench.kinds == [OUTLIVES, LEAKED]


def test_who_constructed_the_session_outside_has_time_to_close_it() -> None:
    """An outer middleware may be about to, and is no task that could be looked at."""
    bench = JudgeBench()
    bench.hold.holder = None
    bench.hold.session = construct(bench.hold.guard)
    bench.judge.close(bench.scope)
    assert bench.kinds == [None]
    bench.do_next()
    assert bench.now == 105.0
    assert bench.kinds == [None, LEAKED]
    assert bench.hold.waited_for_return == 5.0


@pytest.mark.usefixtures("many_tasks")
def test_what_one_look_has_excused_the_next_one_leaves_alone() -> None:
    """It has its time, however many others are looked at meanwhile."""
    bench = JudgeBench()
    bench.end_with_connection()
    assert bench.kinds == [LEAKED]
    bench.hold.holder = None
    bench.scope.open_connections = {bench.hold: None}

    async def main() -> None:
        other = contextvars.copy_context().run(start_within, bench.scope)
        await bench.close()
        bench.do_next()
        assert bench.kinds == [LEAKED, None]
        other.cancel()
        await let_tasks_run()
        next_scope = ended_scope(bench.hold.guard)
        next_scope.open_connections = {FakeConnection(bench.hold.guard): None}
        bench.judge.close(next_scope)
        bench.do_next()
        assert bench.kinds == [LEAKED, None, LEAKED]
        assert bench.now < 101
        bench.do_next()
        assert bench.now == 105.0
        bench.do_next()
        assert bench.kinds == [LEAKED, None, LEAKED, LEAKED]

    asyncio.run(main())


def test_what_is_dismissed_is_waited_for_no_more() -> None:
    """Nor does it matter to anything else that is dismissed whether it was waited for."""
    bench = JudgeBench()
    bench.judge.close(bench.scope)
    bench.judge.stop_waiting(FakeConnection(bench.hold.guard))
    bench.judge.stop_waiting(bench.hold)
    bench.holder.goes_on = False
    bench.do_next()
    assert bench.kinds == [OUTLIVES]
    assert bench.gone == []


def test_work_that_is_seen_to_run_after_the_wait_is_checked_until_it_has_ended() -> None:
    """Whether a thread runs is a guess in doubt, so that it may seem to begin again."""
    bench = JudgeBench()
    bench.holder.goes_on = False
    bench.scope.handled_outside = True
    bench.judge.close(bench.scope)
    assert bench.kinds == [None]
    bench.holder.goes_on = True
    bench.do_next()
    assert (bench.now, bench.kinds) == (105.0, [None])
    bench.holder.goes_on = False
    bench.do_next()
    assert bench.kinds == [None, LEAKED]


def test_nothing_is_said_of_what_work_has_taken_after_its_scope_while_it_runs() -> None:
    """It was not out when the scope ended, so that it does not outlive it."""
    bench = JudgeBench()
    bench.judge.outlived(bench.scope, bench.hold)
    bench.do_next()
    assert (bench.now, bench.kinds) == (101.0, [])
    bench.holder.goes_on = False
    bench.do_next()
    assert (bench.now, bench.kinds) == (103.0, [LEAKED])


def test_work_that_leaves_what_it_took_after_its_scope_is_named() -> None:
    """Also where nobody has looked at it while it ran."""
    bench = JudgeBench()
    bench.judge.outlived(bench.scope, bench.hold)
    bench.holder.goes_on = False
    bench.do_next()
    assert bench.kinds == [LEAKED]
    assert bench.hold.outlived_by == str(bench.holder)


def test_what_the_scope_s_own_work_took_as_another_thread_ended_it_is_judged_at_once() -> None:
    """There is no other work that could be waited for, or named."""
    bench = JudgeBench()
    bench.hold.holder = None
    bench.judge.outlived(bench.scope, bench.hold)
    assert bench.kinds == [LEAKED]
    assert bench.hold.outlived_by is None
    assert bench.planned == []


def test_what_is_allowed_after_its_scope_is_not_looked_at() -> None:
    """As during the scope: nothing will be said of it, whatever becomes of it."""
    bench = JudgeBench()
    bench.hold.allowed = "streams the export"
    bench.judge.outlived(bench.scope, bench.hold)
    assert bench.planned == []
    assert not bench.holder.callbacks


def test_other_work_on_the_loop_may_give_back_what_a_callback_of_it_took() -> None:
    """A callback is no task: which loop it ran on is known from the moment at which it took it."""

    async def main() -> None:
        bench = JudgeBench()
        other = contextvars.copy_context().run(start_within, bench.scope)
        bench.judge.outlived(bench.scope, bench.hold)
        bench.holder.goes_on = False
        bench.holder.tell()
        assert bench.kinds == []
        other.cancel()
        await let_tasks_run()
        assert bench.kinds == [LEAKED]

    asyncio.run(main())


def test_one_check_is_planned_for_all_that_work_takes_after_its_scope() -> None:
    """It may take connections many times a second."""
    bench = JudgeBench()
    holds = [FakeConnection(bench.hold.guard, bench.scope) for _ in range(3)]
    for hold in holds:
        hold.holder = bench.holder
        bench.judge.outlived(bench.scope, hold)
    assert [when for when, _ in bench.planned] == [101.0]
    bench.holder.goes_on = False
    bench.do_next()
    assert bench.kinds == [LEAKED] * 3
    assert bench.planned == []


def test_a_check_leaves_what_was_taken_a_moment_ago_to_the_next_one() -> None:
    """Whoever took it has its time, and no check comes sooner than a second after the last."""
    bench = JudgeBench()
    for bench.now in (100.0, 100.6):
        hold = FakeConnection(bench.hold.guard, bench.scope)
        hold.holder = bench.holder
        bench.judge.outlived(bench.scope, hold)
    bench.holder.goes_on = False
    bench.do_next()
    assert (bench.now, bench.kinds) == (101.0, [LEAKED])
    bench.do_next()
    assert (bench.now, bench.kinds) == (102.0, [LEAKED, LEAKED])
    assert bench.planned == []
