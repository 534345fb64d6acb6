"""When a connection that is out counts as idle, by a clock that stands still."""

from __future__ import annotations

import contextvars
import sys
import threading
from collections.abc import Callable

import pytest

from leakguard import FindingKind, Hold
from leakguard.core.held_judge import HeldJudge
from leakguard.core.scope import Scope
from leakguard.core.stacks import Stack
from leakguard.core.verdict import Verdict
from leakguard.core.workers import Workers
from tests.core.fakes import (
    FakeConnection,
    FakeSession,
    ended_scope,
    installed,
    make_guard,
    take,
)
from tests.support import PATIENCE, Recorder, line_marked


class Watched(FakeConnection):
    """A connection that is used as the test says."""

    __slots__ = ("is_elsewhere", "is_executing", "is_known", "is_occupied")
    is_elsewhere: bool
    is_executing: bool
    is_known: bool
    is_occupied: bool

    @property
    def executing(self) -> bool:
        return self.is_executing

    @property
    def tells_idleness(self) -> bool:
        return self.is_known

    def used_elsewhere(self, workers: Workers) -> bool:
        return workers.once(self, lambda: self.is_elsewhere)

    def occupied_by(self, stack: Stack) -> bool:
        assert stack
        return self.is_occupied


class HeldBench:
    """A judge that reports what is idle for 8 s, and so looks every second."""

    def __init__(self, held_after: float = 8.0) -> None:
        self.now = 100.0
        self.planned: list[tuple[float, Callable[[], None]]] = []
        self.holds: list[Hold] = []
        self.found: list[tuple[Hold, FindingKind | None, float]] = []
        self.judge = HeldJudge(
            held_after,
            lambda: self.holds,
            self.note,
            lambda when, job: self.planned.append((when, job)),
            lambda: self.now,
        )
        self.guard = make_guard()
        self.scope = Scope(self.guard, "GET /", "http")

    def note(self, hold: Hold, verdict: Verdict) -> None:
        """Keep a verdict."""
        self.found.append((hold, verdict.kind, self.now))

    def take(self) -> Watched:
        """Take a connection."""
        hold = Watched(self.guard, self.scope)
        hold.is_executing, hold.is_known, hold.is_occupied = False, True, False
        hold.is_elsewhere = False
        hold.acquired_monotonic = self.now
        self.holds.append(hold)
        if not self.judge.planned:
            self.judge.plan()
        return hold

    def use(self, hold: Watched) -> None:
        """Let a statement begin."""
        hold.used_monotonic = self.now

    def run(self, seconds: float) -> None:
        """Let time pass, and do what is due."""
        end = self.now + seconds
        while self.planned and self.planned[0][0] <= end:
            self.now, job = self.planned.pop(0)
            job()
        self.now = end


def test_it_is_told_once_while_it_is_out() -> None:
    """Exactly then where it was never used: it was idle from the beginning."""
    bench = HeldBench()
    hold = bench.take()
    bench.run(7.9)
    assert bench.found == []
    bench.run(0.2)
    assert bench.found == [(hold, FindingKind.HELD, 108.0)]
    bench.run(100)
    assert len(bench.found) == 1


def test_it_is_never_told_early() -> None:
    """Nobody knows when a statement ended: idle is what is seen so, from then on."""
    bench = HeldBench()
    hold = bench.take()
    bench.run(0.5)
    bench.use(hold)
    bench.run(9.4)
    assert bench.found == []
    bench.run(0.2)
    assert bench.found == [(hold, FindingKind.HELD, 110.0)]


def test_a_long_statement_is_not_idle() -> None:
    """As long as it runs; the time counts from its end."""
    bench = HeldBench()
    hold = bench.take()
    hold.is_executing = True
    bench.run(30)
    assert bench.found == []
    hold.is_executing = False
    bench.run(8)
    assert bench.found == []
    bench.run(1)
    assert [kind for _, kind, _ in bench.found] == [FindingKind.HELD]


def test_every_statement_begins_the_time_anew() -> None:
    """Also a short one between two looks."""
    bench = HeldBench()
    hold = bench.take()
    for _ in range(10):
        bench.run(7.3)
        bench.use(hold)
    assert bench.found == []


def test_who_is_in_the_database_s_code_keeps_it_busy() -> None:
    """As for a commit, which is no statement."""
    bench = HeldBench()
    hold = bench.take()
    hold.is_occupied = True
    bench.run(60)
    assert bench.found == []
    hold.is_occupied = False
    bench.run(7.9)  # the time counts from the last look that found it there
    assert bench.found == []
    bench.run(12)
    assert len(bench.found) == 1


def test_nothing_is_said_where_its_use_cannot_be_noticed() -> None:
    """As of a driver's own connection that tells nothing."""
    bench = HeldBench()
    hold = bench.take()
    hold.is_known = False
    bench.run(60)
    assert bench.found == []
    hold.is_known = True
    bench.run(7)  # nobody knows what was done with it until then
    assert bench.found == []
    bench.run(8)
    assert len(bench.found) == 1


def test_who_uses_it_elsewhere_keeps_it_busy() -> None:
    """As a thread that took it from whoever acquired it."""
    bench = HeldBench()
    hold = bench.take()
    hold.is_elsewhere = True
    bench.run(60)
    assert bench.found == []
    hold.is_elsewhere = False
    bench.run(7)  # the time counts from the last look that found it there
    assert bench.found == []
    bench.run(8)
    assert len(bench.found) == 1


def test_it_says_where_whoever_has_it_is() -> None:
    """As many of the user's lines as the settings keep."""
    bench = HeldBench()
    bench.guard = make_guard(frames=2)
    opened, end = threading.Event(), threading.Event()

    def work() -> None:
        bench.scope = Scope(bench.guard, "job", "job")
        opened.set()
        end.wait(PATIENCE)  # it is here

    def job() -> None:
        work()

    def night() -> None:
        job()

    thread = threading.Thread(target=contextvars.Context().run, args=(night,))
    thread.start()
    assert opened.wait(PATIENCE)
    hold = bench.take()
    hold.holder = None  # as if that thread had taken it
    bench.run(10)
    end.set()
    thread.join(PATIENCE)
    assert hold.now_at is not None
    assert [frame.function.rpartition(".")[2] for frame in hold.now_at.frames] == ["work", "job"]
    assert hold.now_at.line == line_marked(sys.modules[__name__], "it is here")


def exempt_by_allow(hold: Watched) -> None:
    hold.allowed = "on purpose"


def keep_for_life(hold: Watched) -> None:
    hold.lifelong = True


def give_back(hold: Watched) -> None:
    hold.released_monotonic = 101.0


def end_scope(hold: Watched) -> None:
    hold.scope = ended_scope(hold.guard)
    hold.scope.closed_at = hold.acquired_monotonic + 1


@pytest.mark.parametrize("change", [exempt_by_allow, keep_for_life, give_back, end_scope])
def test_what_is_not_judged(change: Callable[[Watched], None]) -> None:
    """What is meant, what an application keeps, what came back, and what has another verdict."""
    bench = HeldBench()
    change(bench.take())
    bench.run(60)
    assert bench.found == []


def test_what_work_takes_that_outlives_its_scope_is_judged() -> None:
    """No other verdict speaks of it: it was not out when the scope ended."""
    bench = HeldBench()
    bench.scope.closed_at = 99.0
    hold = bench.take()
    bench.run(9)
    assert bench.found == [(hold, FindingKind.HELD, 108.0)]


def test_outside_of_a_scope_it_is_judged_too() -> None:
    """Nobody else would ever say anything of it."""
    bench = HeldBench()
    bench.take().scope = None
    bench.run(9)
    assert len(bench.found) == 1


def test_while_nothing_is_out_nobody_looks() -> None:
    """The last look finds nothing; the next checkout plans one."""
    bench = HeldBench()
    hold = bench.take()
    bench.run(0.5)
    bench.holds.remove(hold)
    bench.holds.append(FakeSession(bench.guard))
    bench.run(10)
    assert bench.planned == []
    bench.take()
    assert [when for when, _ in bench.planned] == [111.5]


def test_while_a_look_is_planned_nobody_plans_another_one() -> None:
    """A busy pool would put it off with every checkout."""
    bench = HeldBench()
    bench.take()
    bench.run(0.5)
    bench.take()
    assert [when for when, _ in bench.planned] == [101.0]
    bench.run(1)
    bench.take()
    assert [when for when, _ in bench.planned] == [102.0]


def test_of_two_plans_one_is_carried_out() -> None:
    """Two threads may take the first connections at once."""
    bench = HeldBench()
    bench.take()
    bench.judge.plan()
    assert len(bench.planned) == 2
    bench.run(3)
    assert len(bench.planned) == 1


def test_after_the_end_of_a_guard_nobody_looks() -> None:
    """Also where the watch goes on for others, and the guard is installed again."""
    bench = HeldBench()
    bench.take()
    bench.judge.forget()
    assert not bench.judge.planned
    bench.judge.plan()
    bench.run(3)
    assert len(bench.planned) == 1


@pytest.mark.parametrize("held_after, pause", [(0.0, 0.01), (0.8, 0.1), (3600.0, 5.0)])
def test_the_looks_have_bounds(held_after: float, pause: float) -> None:
    """They are neither so frequent that they cost something, nor so rare that they come late."""
    bench = HeldBench(held_after)
    bench.take()
    assert [when - bench.now for when, _ in bench.planned] == [pytest.approx(pause)]


@pytest.mark.parametrize("way", ["give_back", "collect"])
def test_it_is_resolved_when_it_is_out_no_more(recorder: Recorder, way: str) -> None:
    """Whoever was told of it is told that too, how long it was out, and how it ended."""
    guard = installed(recorder, held_after=0.01)
    hold = take(guard)
    recorder.wait_for(lambda: recorder.kinds)
    getattr(hold, way)()
    recorder.wait_for(lambda: recorder.resolutions)
    finding = recorder.findings[0]
    assert finding.kind is FindingKind.HELD
    assert recorder.resolutions == [finding]
    assert (finding.resolution or "").startswith("given back")
    guard.uninstall()


def test_a_guard_that_is_installed_again_looks_again(recorder: Recorder) -> None:
    """The look that was planned went with the watch of before."""
    guard = installed(recorder, held_after=0.01)
    take(guard)
    guard.uninstall()
    recorder.findings.clear()  # the first may have been told by then
    guard.install()
    hold = take(guard)
    recorder.wait_for(lambda: recorder.kinds == [FindingKind.HELD])
    assert recorder.findings[0].hold is hold
    hold.give_back()
    guard.uninstall()
