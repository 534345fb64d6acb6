"""Who has the connections of a pool at the moment, and who waits."""

from __future__ import annotations

import asyncio
import sys

from leakguard import Finding, FindingKind, Hold
from leakguard.core.exhaustion import Exhaustion, Limits, PoolUsers, Use
from leakguard.core.guard import Guard
from leakguard.core.scope import Scope
from leakguard.core.stacks import Stack, first_site
from leakguard.core.survey import Waiter, survey
from leakguard.core.workers import Workers
from tests.core.fakes import FakeConnection, installed, make_guard, site_at, take
from tests.support import Recorder, drain_watch

LIMITS = Limits(5, 10, 4.0)
GET_DB = site_at("app/db.py", 12, "get_db")
PAY = site_at("app/pay.py", 41, "charge")


class Busy(FakeConnection):
    """A connection on which a statement runs."""

    seconds: float

    @property
    def executing(self) -> bool:
        return True

    @property
    def executing_for(self) -> float:
        return self.seconds


def busy(guard: Guard, seconds: float) -> Busy:
    """Make one whose statement has run for so long."""
    one = Busy(guard, None, GET_DB)
    one.seconds = seconds
    return one


def surveyed(
    *holds: FakeConnection,
    waiters: tuple[Waiter, ...] = (),
    out: int | None = 0,
    limits: Limits = LIMITS,
) -> Exhaustion:
    """Survey a pool."""
    return survey(holds, waiters, limits, out, Workers())


class Elsewhere:
    """A holder that is a task of some loop."""

    number = 1

    def __init__(self, loop: asyncio.AbstractEventLoop | None, *, runs: bool = True) -> None:
        self.loop = loop
        self._runs = runs

    def running(self) -> bool:
        """Run, or have ended."""
        return self._runs

    def stack(self) -> Stack:
        """Be nowhere."""
        return []

    def on_end(self, hold: Hold, callback: object) -> None:
        """Never end."""


def test_every_connection_is_in_some_use() -> None:
    """A leak is one whatever else is true of it; what waits for more is not merely idle."""
    guard = installed()
    with guard.scope("leaky") as scope:
        leaked = take(guard, scope, GET_DB)
    scope = Scope(guard, "GET /", "http")
    waiting = FakeConnection(guard, scope, GET_DB)
    idle, in_use = FakeConnection(guard, None, GET_DB), FakeConnection(guard, None, GET_DB)
    idle.used_monotonic = idle.last_used - 1.5
    in_use.used_monotonic = in_use.last_used - 0.5
    found = surveyed(
        *(leaked, waiting, busy(guard, 1.0), busy(guard, 5.0), idle, in_use),
        waiters=(Waiter(scope, 4.0, PAY, work=1),),
        out=6,
    )
    assert {one.use: one.who for one in found.holders} == {
        Use.LEAKED: "leaky",
        Use.WAITING: "GET /",
        Use.EXECUTING: "no request context",
        Use.LONG_STATEMENT: "no request context",
        Use.IDLE: "no request context",
        Use.IN_USE: "no request context",
    }
    assert found.waiters == (PoolUsers("GET /", PAY, None, 1, 4.0),)
    assert (found.out, found.waiting, found.unknown) == (6, 1, 0)
    guard.uninstall()


def test_work_that_waits_is_not_all_of_its_scope() -> None:
    """Of twelve tasks with a connection each, those that have theirs wait for nobody."""
    scope = Scope(make_guard(), "job", "job")
    hold = FakeConnection(scope.guard, scope)

    def uses(*waiters: Waiter) -> list[Use | None]:
        return [one.use for one in surveyed(hold, waiters=waiters).holders]

    for holder, work, use in (
        (None, 2, Use.WAITING),  # the scope's own work waits for what it started
        (Elsewhere(None), 1, Use.WAITING),
        (Elsewhere(None), 2, Use.IN_USE),
        (Elsewhere(None), None, Use.IN_USE),
        (Elsewhere(None, runs=False), 2, Use.WAITING),  # as of a dependency that a thread ran
    ):
        hold.holder = holder
        assert uses(Waiter(scope, 4.0, PAY, work)) == [use]
    hold.holder = None
    assert uses(Waiter(Scope(scope.guard, "job", "job"), 4.0, PAY, 2)) == [Use.IN_USE]
    assert uses(Waiter(None, 4.0, PAY, 2)) == [Use.IN_USE]


def test_what_is_kept_after_its_scope_is_not_merely_idle() -> None:
    """Though it is no finding: somebody may yet give it back, or it is allowed or ignored."""

    def every(_: Finding) -> bool:
        return True

    guard = installed(ignore=[every])
    with guard.scope("GET /") as scope:
        kept = take(guard, scope, GET_DB)
        assert [one.use for one in surveyed(kept).holders] == [Use.IN_USE]
    kept.used_monotonic = kept.last_used - 60
    assert [one.use for one in surveyed(kept).holders] == [Use.KEPT]
    # What work takes that goes on after its scope, it has not kept from there.
    taken = take(guard, scope, GET_DB)
    taken.acquired_monotonic = (scope.closed_at or 0.0) + 1
    assert [one.use for one in surveyed(taken).holders] == [Use.IN_USE]
    guard.uninstall()


def test_where_nobody_follows_statements_none_is_called_idle() -> None:
    """Nothing tells whether one runs."""
    hold = FakeConnection(make_guard(held_after=None, statements=False), None)
    hold.used_monotonic = hold.last_used - 60
    assert [one.use for one in surveyed(hold).holders] == [Use.OUT]


def test_what_was_reported_as_held_has_not_leaked(recorder: Recorder) -> None:
    """Its owner may yet give it back."""
    guard = installed(recorder, held_after=0.01)
    hold = take(guard)
    recorder.wait_for(lambda: recorder.kinds == [FindingKind.HELD])
    drain_watch()  # whose the report is
    assert surveyed(hold).count(Use.LEAKED) == 0
    guard.uninstall()


def test_the_shorter_the_time_out_the_sooner_a_connection_is_idle() -> None:
    """A quarter of the time-out, or a second where that is not known."""
    hold = FakeConnection(make_guard(), None)
    hold.used_monotonic, hold.released_monotonic = 10.0, 10.5
    for timeout, use in (
        (1.0, Use.IDLE),
        (2.0, Use.IDLE),
        (2.1, Use.IN_USE),
        (30.0, Use.IN_USE),
        (None, Use.IN_USE),
    ):
        found = surveyed(hold, limits=Limits(5, 10, timeout), out=None)
        assert [one.use for one in found.holders] == [use]


def test_a_statement_is_long_if_others_have_waited_for_all_of_it() -> None:
    """By the time-out, or a second where that is not known."""
    guard = make_guard()
    for timeout, use in ((1.0, Use.LONG_STATEMENT), (30.0, Use.EXECUTING)):
        found = surveyed(busy(guard, 1.5), limits=Limits(5, 10, timeout))
        assert [one.use for one in found.holders] == [use]
    found = surveyed(busy(guard, 1.5), limits=Limits(None, None, None))
    assert [one.use for one in found.holders] == [Use.LONG_STATEMENT]


class Committing(FakeConnection):
    """A connection whose owner is in the database without a statement."""

    def occupied_by(self, stack: Stack) -> bool:
        return bool(stack)


def test_whoever_is_in_the_database_is_not_idle() -> None:
    """As in a commit, which takes long."""
    frame = sys._getframe()  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]  # documented

    class There(Elsewhere):
        def stack(self) -> Stack:
            return [frame]

    hold = Committing(make_guard(), None)
    hold.used_monotonic = hold.last_used - 60
    assert [one.use for one in surveyed(hold).holders] == [Use.IDLE]
    hold.holder = There(None)
    assert [one.use for one in surveyed(hold).holders] == [Use.EXECUTING]


def test_where_most_of_those_are_who_have_them() -> None:
    """But of a leak it does not matter any more."""
    here = sys._getframe()  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]  # documented

    class There(Elsewhere):
        def stack(self) -> Stack:
            return [here]

    guard = installed()
    with guard.scope("leaky") as scope:
        leaked = take(guard, scope, GET_DB)
    holds = [FakeConnection(guard, None, GET_DB) for _ in range(3)]
    for hold in (leaked, *holds[:2]):
        hold.holder = There(None)
    places = {one.use: one.now_at for one in surveyed(leaked, *holds).holders}
    now_at = places[Use.IN_USE]
    assert now_at is not None
    assert now_at.function == "test_where_most_of_those_are_who_have_them"
    assert places[Use.LEAKED] is None
    guard.uninstall()


def test_of_where_somebody_is_no_more_is_kept_than_the_settings_say() -> None:
    """As of every other place."""
    here = sys._getframe()  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]  # documented

    class There(Elsewhere):
        def stack(self) -> Stack:
            return [here, here]

    hold = FakeConnection(make_guard(frames=1), None, GET_DB)
    hold.holder = There(None)
    [users] = surveyed(hold).holders
    assert users.now_at is not None
    assert len(users.now_at.frames) == 1


def test_what_is_alike_is_told_once() -> None:
    """With the longest time, and the place where most of them are."""
    guard = make_guard()
    holds = [FakeConnection(guard, None, GET_DB) for _ in range(3)]
    holds.append(FakeConnection(guard, None, PAY))
    holds[1].used_monotonic = holds[1].acquired_monotonic
    holds[1].acquired_monotonic -= 60
    found = surveyed(*holds)
    assert [(one.count, one.site) for one in found.holders] == [(3, GET_DB), (1, PAY)]
    assert 60 <= found.holders[0].longest < 70
    assert found.count(Use.IN_USE) == 4
    assert found.count(Use.LEAKED) == 0
    assert found.largest(Use.LEAKED) is None


def test_what_is_being_opened_is_out() -> None:
    """The pool counts it, and nobody has it yet: no more of them than the pool has besides."""
    hold = FakeConnection(make_guard(), None, GET_DB)
    opening = Waiter(None, 0.1, PAY, has_one=True)
    found = surveyed(hold, waiters=(opening, opening), out=2)
    assert [(one.use, one.count) for one in found.holders] == [(Use.OPENING, 1), (Use.IN_USE, 1)]
    assert (found.holders[0].who, found.holders[0].site) == ("no request context", PAY)
    assert (found.limits, found.waiting, found.blocks_loop) == (LIMITS, 0, False)
    assert surveyed(hold, waiters=(opening,), out=1).count(Use.OPENING) == 0
    opening = Waiter(Scope(make_guard(), "GET /", "http"), 0.1, PAY, has_one=True)
    assert [one.who for one in surveyed(waiters=(opening,), out=1).holders] == ["GET /"]


def test_of_a_pool_that_does_not_count_what_is_out_nothing_is_guessed() -> None:
    """Out is what was seen to be checked out."""
    opening = Waiter(None, 0.1, PAY, has_one=True)
    hold = FakeConnection(make_guard(), None, GET_DB)
    for holds in ((), (hold,)):
        found = surveyed(*holds, waiters=(opening,), out=None)
        assert (found.out, found.count(Use.OPENING)) == (len(holds), 0)


def test_of_very_many_connections_the_places_are_not_all_looked_for() -> None:
    """The caller waits, and has waited for long."""

    class Counted(Elsewhere):
        def stack(self) -> Stack:
            looked_at.append(self)
            return []

    looked_at: list[Elsewhere] = []
    guard = make_guard()
    holds = [FakeConnection(guard, None) for _ in range(300)]
    for hold in holds:
        hold.holder = Counted(None)
    assert surveyed(*holds).out == 300
    assert len(looked_at) == 200


def test_who_needs_a_loop() -> None:
    """A task of it, which has what it did not leak."""
    guard = installed()

    async def main() -> None:
        loop = asyncio.get_running_loop()
        with guard.scope("job") as scope:
            hold = take(guard, scope)
            assert hold.needs(loop)
            hold.holder = Elsewhere(None)
            assert not hold.needs(loop)
            hold.holder = Elsewhere(None, runs=False)  # a thread that ran a dependency
            assert hold.needs(loop)
            hold.holder = Elsewhere(loop)
            assert hold.needs(loop)
            hold.holder = None
        assert not hold.needs(loop)
        assert not FakeConnection(guard, None).needs(loop)

    asyncio.run(main())
    guard.uninstall()


def test_a_place_is_the_first_that_is_the_user_s() -> None:
    """Nowhere, if none is."""
    assert first_site([], 1) is None
    assert first_site([[]], 1) is None
