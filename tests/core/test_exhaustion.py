"""Who has the connections of an exhausted pool, and what that means."""

from __future__ import annotations

import asyncio

import pytest

from leakguard import Finding, FindingKind, Hold
from leakguard.core.exhaustion import (
    Conclusion,
    Exhaustion,
    Limits,
    PoolUsers,
    Use,
    Waiter,
    advise,
    conclude,
    main_group,
    survey,
)
from leakguard.core.hold import ConnectionHold
from leakguard.core.register import make_pool_finding
from leakguard.core.report import repetition
from leakguard.core.scope import NO_EVENTS, Scope
from leakguard.core.stacks import Stack, first_site
from tests.core.fakes import FakeConnection, installed, make_guard, site_at, take

LIMITS = Limits(5, 10, 4.0)
GET_DB = site_at("app/db.py", 12, "get_db")
PAY = site_at("app/pay.py", 41, "charge")


class Busy(FakeConnection):
    """A connection on which a statement runs."""

    __slots__ = ()

    @property
    def executing(self) -> bool:
        return True


def surveyed(*holds: FakeConnection, waiters: tuple[Waiter, ...] = (), out: int = 0) -> Exhaustion:
    """Survey a pool in which nothing is special."""
    return survey(holds, waiters, LIMITS, out=out, blocks_loop=False, threads=None)


def exhaustion(
    *groups: PoolUsers, blocks_loop: bool = False, threads: int | None = None
) -> Exhaustion:
    """Make one in which 15 connections are out, and 25 checkouts wait."""
    waiting = (PoolUsers("GET /", PAY, None, 25, 4.0),)
    return Exhaustion(LIMITS, 15, groups, waiting, blocks_loop, threads)


def group(use: Use, count: int = 15, longest: float = 3.0) -> PoolUsers:
    """Make a group of connections."""
    return PoolUsers("GET /items", GET_DB, use, count, longest, PAY)


# --- the survey -----------------------------------------------------------------------------------


def test_every_connection_is_in_some_use() -> None:
    """A leak is one whatever else is true of it; what waits for more is not merely idle."""
    guard = installed()
    with guard.scope("leaky") as scope:
        leaked = take(guard, scope, GET_DB)
    scope = Scope(guard, "GET /", "http", NO_EVENTS)
    waiting = FakeConnection(guard, scope, GET_DB)
    executing = Busy(guard, None, GET_DB)
    idle, in_use = FakeConnection(guard, None, GET_DB), FakeConnection(guard, None, GET_DB)
    idle.used_monotonic -= 1.5
    in_use.used_monotonic -= 0.5
    found = surveyed(
        *(leaked, waiting, executing, idle, in_use), waiters=(Waiter(scope, 4.0, PAY),), out=5
    )
    assert {one.use: one.who for one in found.holders} == {
        Use.LEAKED: "leaky",
        Use.WAITING: "GET /",
        Use.EXECUTING: "no request context",
        Use.IDLE: "no request context",
        Use.IN_USE: "no request context",
    }
    assert found.waiters == (PoolUsers("GET /", PAY, None, 1, 4.0),)
    assert (found.out, found.waiting) == (5, 1)
    guard.uninstall()


def test_the_shorter_the_time_out_the_sooner_a_connection_is_idle() -> None:
    """A quarter of the time-out, or a second where that is not known."""
    hold = FakeConnection(make_guard(), None)
    hold.used_monotonic -= 0.5
    for timeout, use in ((1.0, Use.IDLE), (30.0, Use.IN_USE), (None, Use.IN_USE)):
        limits = Limits(5, 10, timeout)
        found = survey([hold], [], limits, out=None, blocks_loop=False, threads=None)
        assert [one.use for one in found.holders] == [use]


def test_what_is_alike_is_told_once() -> None:
    """With the longest time, and the place where most of them are."""
    guard = make_guard()
    holds = [FakeConnection(guard, None, GET_DB) for _ in range(3)]
    holds.append(FakeConnection(guard, None, PAY))
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
    assert found.waiting == 0
    assert surveyed(hold, waiters=(opening,), out=1).count(Use.OPENING) == 0


def test_of_very_many_connections_the_places_are_not_all_looked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The caller waits, and has waited for long."""
    looked_at: list[object] = []

    def look(hold: ConnectionHold, _: object) -> None:
        looked_at.append(hold)

    monkeypatch.setattr("leakguard.core.exhaustion._LOOKED_AT", 2)
    monkeypatch.setattr("leakguard.core.exhaustion._now_at", look)
    guard = make_guard()
    assert surveyed(*(FakeConnection(guard, None) for _ in range(5))).out == 5
    assert len(looked_at) == 2


class Elsewhere:
    """A holder that is a task of some loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop | None) -> None:
        self.loop = loop

    def running(self) -> bool:
        """Run."""
        return True

    def stack(self) -> Stack:
        """Be nowhere."""
        return []

    def on_end(self, hold: Hold, callback: object) -> None:
        """Never end."""


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
            hold.holder = Elsewhere(loop)
            assert hold.needs(loop)
            hold.holder = None
        assert not hold.needs(loop)
        assert not FakeConnection(guard, None).needs(loop)

    asyncio.run(main())
    guard.uninstall()


def test_one_is_told_in_the_singular() -> None:
    """As the only connection of a pool, for which one request waits."""
    waiting = (PoolUsers("GET /", PAY, None, 1, 4.0),)
    found = Exhaustion(Limits(1, 0, 4.0), 1, (), waiting, blocks_loop=False, threads=None)
    assert "1 connection out, size 1, overflow 0; 1 checkout waiting\n" in str(
        make_pool_finding(found, None, "main", 4.0)
    )


def test_how_often_a_pool_was_exhausted_is_told_with_its_cause() -> None:
    """There is no line of a hold to tell."""
    finding = make_pool_finding(exhaustion(group(Use.LEAKED)), None, "main", 4.0)
    assert "pool_exhausted: 3 more times by leaks: 15 of 15 connections" in repetition(finding, 3)


def test_a_place_is_the_first_that_is_the_user_s() -> None:
    """Nowhere, if none is."""
    assert first_site([], 1) is None
    assert first_site([[]], 1) is None


# --- the conclusion -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "found, conclusion, cause, fix",
    [
        (
            exhaustion(group(Use.LEAKED, 11), group(Use.IDLE, 4)),
            Conclusion.LEAKS,
            (
                "leaks: 11 of 15 connections were never given back, most of them from "
                "app/db.py:12 in get_db"
            ),
            "close what that line opens",
        ),
        (
            exhaustion(group(Use.WAITING)),
            Conclusion.NESTED,
            "no leak: 15 of 15 connections are held by work that waits for a second one",
            "pass the session on",
        ),
        (
            exhaustion(group(Use.IDLE)),
            Conclusion.IDLE,
            (
                "no leak: 15 of 15 connections are out and idle, most of them while their owners "
                "are at app/pay.py:41 in charge"
            ),
            "give the connection back before the slow part",
        ),
        (
            exhaustion(group(Use.IDLE, 9), group(Use.LEAKED, 6)),
            Conclusion.IDLE,
            "mainly no leak, besides 6 leaked: 9 of 15 connections are out and idle",
            "give the connection back before the slow part",
        ),
        (
            exhaustion(group(Use.EXECUTING, longest=9.0)),
            Conclusion.STATEMENTS,
            (
                "no leak: 15 of 15 connections are running statements, and are out for up to "
                "9.0 s; 40 wanted one at the same time, and the pool has 15 (size 5, overflow 10)"
            ),
            "make these statements faster",
        ),
        (
            exhaustion(group(Use.EXECUTING, 8), group(Use.IN_USE, 7), threads=40),
            Conclusion.CONCURRENCY,
            (
                "no leak: more concurrency than connections: 40 wanted one at the same time, and "
                "the pool has 15 (size 5, overflow 10)"
            ),
            (
                "raise pool_size or max_overflow, as far as the database allows, or let fewer "
                "threads run at once: AnyIO's limiter allows 40"
            ),
        ),
        (
            exhaustion(group(Use.IN_USE)),
            Conclusion.CONCURRENCY,
            "no leak: more concurrency than connections",
            "or let fewer requests run at once",
        ),
        (
            exhaustion(),
            Conclusion.CONCURRENCY,
            "no leak: more concurrency than connections",
            "raise pool_size",
        ),
        (
            exhaustion(group(Use.IDLE), blocks_loop=True),
            Conclusion.BLOCKED_LOOP,
            "no leak: this synchronous checkout stopped the event loop",
            "make the function that waits def instead of async def",
        ),
        (
            exhaustion(group(Use.LEAKED), blocks_loop=True),
            Conclusion.LEAKS,
            "leaks: 15 of 15 connections",
            "close what that line opens",
        ),
    ],
)
def test_what_explains_most_connections_is_the_conclusion(
    found: Exhaustion, conclusion: Conclusion, cause: str, fix: str
) -> None:
    """With the numbers that it rests on, and what to do."""
    assert conclude(found) is conclusion
    hint = advise(found, conclusion)
    assert (hint.cause or "").startswith(cause)
    assert hint.fix.startswith(fix) or fix in hint.fix


@pytest.mark.parametrize("conclusion", Conclusion)
def test_a_conclusion_can_do_without_facts(conclusion: Conclusion) -> None:
    """Nothing is known of connections that were taken before anybody looked."""
    bare = Exhaustion(Limits(None, None, None), 3, (), (), blocks_loop=False, threads=None)
    assert advise(bare, conclusion).fix
    assert main_group(bare, conclusion) is None
    assert conclude(bare) is Conclusion.CONCURRENCY
    assert advise(bare, Conclusion.LEAKS).cause == (
        "leaks: 0 of 3 connections were never given back, most of them from an unknown line"
    )
    assert (advise(bare, Conclusion.CONCURRENCY).cause or "").endswith("and the pool has no more")
    unlimited = Exhaustion(Limits(5, None, 1.0), 3, (), (), blocks_loop=False, threads=None)
    assert (advise(unlimited, Conclusion.CONCURRENCY).cause or "").endswith("the pool has 5")


# --- the finding ----------------------------------------------------------------------------------


def test_the_same_cause_is_the_same_mistake() -> None:
    """Whatever the numbers; another cause, or another line, is another one."""
    made = [
        make_pool_finding(found, None, "main", 4.0).fingerprint
        for found in (
            exhaustion(group(Use.LEAKED)),
            exhaustion(group(Use.LEAKED, 12)),
            exhaustion(group(Use.IDLE)),
            exhaustion(PoolUsers("GET /", PAY, Use.LEAKED, 15, 1.0)),
        )
    ]
    assert made[0] == made[1]
    assert len(set(made)) == 3


def test_a_finding_that_is_ignored_explains_the_error_all_the_same() -> None:
    """It is told to nobody else."""

    def of_main(finding: Finding) -> bool:
        return finding.pool == "main"

    guard = make_guard(ignore=[of_main])
    finding = guard.exhausted(exhaustion(group(Use.LEAKED)), None, "main", 4.0)
    assert finding.kind is FindingKind.POOL_EXHAUSTED
    assert finding.count == 1
    told = guard.exhausted(exhaustion(group(Use.LEAKED)), None, "other", 4.0)
    again = guard.exhausted(exhaustion(group(Use.LEAKED)), None, "other", 4.0)
    assert (told.count, again.count) == (1, 2)


def test_the_whole_report_on_a_pool() -> None:
    """Those who have its connections, those who wait, and what follows from it."""
    others = [PoolUsers(f"GET /{number}", None, Use.IDLE, 1, 0.5) for number in range(12)]
    found = Exhaustion(
        LIMITS,
        15,
        (group(Use.LEAKED, 2), *others),
        (
            PoolUsers("GET /", PAY, None, 25, 4.0),
            PoolUsers("no request context", None, None, 1, 2.0),
        ),
        blocks_loop=False,
        threads=None,
    )
    text = str(make_pool_finding(found, None, "main", 4.0))
    assert text.startswith(
        "pool_exhausted: code outside of any scope (no request context) waited 4.0 s in vain for a "
        'connection of pool "main"\n'
        "  pool              15 connections out, size 5, overflow 10; 26 checkouts waiting\n"
        "  held by           2 x GET /items, from app/db.py:12 in get_db: leaked, for up to 3.0 s, "
        "now at app/pay.py:41 in charge\n"
        "                    1 x GET /0, from an unknown line: idle, for up to 500 ms\n"
    )
    assert (
        "                    3 x others, from 3 lines\n"
        "                    1 x nobody knows: taken before leakguard was installed\n"
        "  waiting           25 x GET /, from app/pay.py:41 in charge: for up to 4.0 s\n"
        "                    1 x no request context, from an unknown line: for up to 2.0 s\n"
        "  likely cause      "
    ) in text
    facts = make_pool_finding(found, None, "main", 4.0).to_dict()
    assert (facts["pool_out"], facts["pool_size"], facts["pool_overflow"]) == (15, 5, 10)
    assert len(facts["holders"]) == 13
    assert facts["waiters"][0].startswith("25 x GET /")
    assert facts["held_for"] is None
    assert facts["waited"] == 4.0
