"""What the connections of an exhausted pool are out for, and what follows from it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from leakguard import Finding, FindingKind
from leakguard.core.exhaustion import Conclusion, Exhaustion, Limits, PoolUsers, Use
from leakguard.core.finding import Hint
from leakguard.core.pool_diagnosis import diagnose_pool
from leakguard.core.register import make_pool_finding
from leakguard.core.report import repetition
from leakguard.core.scope import Scope
from tests.core.fakes import make_guard, site_at
from tests.support import Recorder

LIMITS = Limits(5, 10, 4.0)
GET_DB = site_at("app/db.py", 12, "get_db")
PAY = site_at("app/pay.py", 41, "charge")


def exhaustion(
    *groups: PoolUsers, blocks_loop: bool = False, threads: int | None = None
) -> Exhaustion:
    """Make one in which 15 connections are out, and 25 checkouts wait."""
    waiting = (PoolUsers("GET /", PAY, None, 25, 4.0),)
    return Exhaustion(LIMITS, 15, groups, waiting, blocks_loop, threads)


def group(use: Use, count: int = 15, longest: float = 3.0) -> PoolUsers:
    """Make a group of connections."""
    return PoolUsers("GET /items", GET_DB, use, count, longest, PAY)


# --- the conclusion -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "found, conclusion, cause, fix",
    [
        (
            exhaustion(group(Use.LEAKED, 11), group(Use.IDLE, 4)),
            Conclusion.LEAKS,
            (
                "leaks: 11 of 15 connections were never given back, most of them from app/db.py:12 "
                "in get_db"
            ),
            (
                "close what that line opens, as the report on the leak says; a larger pool only "
                "runs dry later"
            ),
        ),
        (
            exhaustion(group(Use.WAITING)),
            Conclusion.NESTED,
            (
                "no leak: 15 of 15 connections are held by work that waits for a second one of the "
                "same pool, so none of it goes on"
            ),
            (
                "pass the session on instead of opening another one, or give the inner work an "
                "engine of its own"
            ),
        ),
        (
            exhaustion(group(Use.IDLE)),
            Conclusion.IDLE,
            (
                "no leak: 15 of 15 connections are out and idle, most of them while their owners "
                "are at app/pay.py:41 in charge"
            ),
            (
                "give the connection back before the slow part, by commit() or close(), and take it"
                " again afterwards"
            ),
        ),
        (
            exhaustion(group(Use.IDLE, 9), group(Use.LEAKED, 6)),
            Conclusion.IDLE,
            (
                "mostly no leaks (6 of 15 leaked): 9 of 15 connections are out and idle, most of "
                "them while their owners are at app/pay.py:41 in charge"
            ),
            (
                "give the connection back before the slow part, by commit() or close(), and take it"
                " again afterwards"
            ),
        ),
        (
            exhaustion(group(Use.LONG_STATEMENT, 8), group(Use.EXECUTING, 7)),
            Conclusion.STATEMENTS,
            (
                "no leak: 8 of 15 connections are running a statement that takes longer than others"
                " wait; 40 wanted one at the same time, and the pool has 15 (size 5, overflow 10)"
            ),
            (
                "make these statements faster, or give them an engine of their own, so that they do"
                " not take the connections of all others; or raise pool_size or max_overflow, as "
                "far as the database allows, or let fewer requests run at once, as with a semaphore"
                " or --limit-concurrency"
            ),
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
                "threads run at once: AnyIO's limiter allows 40 "
                "(anyio.to_thread.current_default_thread_limiter().total_tokens)"
            ),
        ),
        (
            exhaustion(group(Use.IN_USE)),
            Conclusion.CONCURRENCY,
            (
                "no leak: more concurrency than connections: 40 wanted one at the same time, and "
                "the pool has 15 (size 5, overflow 10)"
            ),
            (
                "raise pool_size or max_overflow, as far as the database allows, or let fewer "
                "requests run at once, as with a semaphore or --limit-concurrency"
            ),
        ),
        (
            exhaustion(group(Use.EXECUTING, 14), group(Use.LONG_STATEMENT, 1)),
            Conclusion.CONCURRENCY,
            (
                "no leak: more concurrency than connections: 40 wanted one at the same time, and "
                "the pool has 15 (size 5, overflow 10)"
            ),
            (
                "raise pool_size or max_overflow, as far as the database allows, or let fewer "
                "requests run at once, as with a semaphore or --limit-concurrency"
            ),
        ),
        (
            exhaustion(group(Use.OUT)),
            Conclusion.CONCURRENCY,
            (
                "no leak: more concurrency than connections: 40 wanted one at the same time, and "
                "the pool has 15 (size 5, overflow 10)"
            ),
            (
                "raise pool_size or max_overflow, as far as the database allows, or let fewer "
                "requests run at once, as with a semaphore or --limit-concurrency; whether "
                "connections are idle meanwhile is known where held_after is set"
            ),
        ),
        (
            exhaustion(group(Use.KEPT, 1), group(Use.KEPT, 9)),
            Conclusion.KEPT,
            (
                "10 of 15 connections are kept after the end of the scope that took them, most of "
                "them from app/db.py:12 in get_db"
            ),
            (
                "let the work that goes on after a request open and close a session of its own, for"
                " as short as it needs it; what allow() or ignore= exempt takes connections from "
                "all others"
            ),
        ),
        (
            exhaustion(),
            Conclusion.UNKNOWN,
            "not known: no checkout was seen of 15 of 15 connections",
            (
                "install the guard before the first checkout of the process: add the middleware, or"
                " call install(), where the engine is made"
            ),
        ),
        (
            exhaustion(group(Use.IDLE, 1), group(Use.IN_USE, 2)),
            Conclusion.UNKNOWN,
            "not known: no checkout was seen of 12 of 15 connections",
            (
                "install the guard before the first checkout of the process: add the middleware, or"
                " call install(), where the engine is made"
            ),
        ),
        (
            exhaustion(group(Use.IDLE, 8)),
            Conclusion.IDLE,
            (
                "no leak that is known (7 of 15 unknown): 8 of 15 connections are out and idle, "
                "most of them while their owners are at app/pay.py:41 in charge"
            ),
            (
                "give the connection back before the slow part, by commit() or close(), and take it"
                " again afterwards"
            ),
        ),
        (
            exhaustion(group(Use.IDLE), blocks_loop=True),
            Conclusion.BLOCKED_LOOP,
            (
                "no leak: this synchronous checkout stopped the event loop, and with it the "
                "requests that have the connections and would have given them back"
            ),
            "make the function def instead of async def, or use AsyncSession",
        ),
        (
            exhaustion(group(Use.LEAKED), blocks_loop=True),
            Conclusion.LEAKS,
            (
                "leaks: 15 of 15 connections were never given back, most of them from app/db.py:12 "
                "in get_db"
            ),
            (
                "close what that line opens, as the report on the leak says; a larger pool only "
                "runs dry later"
            ),
        ),
    ],
)
def test_what_explains_most_connections_is_the_conclusion(
    found: Exhaustion, conclusion: Conclusion, cause: str, fix: str
) -> None:
    """With the numbers that it rests on, and what to do."""
    assert found.conclusion is conclusion
    assert diagnose_pool(found) == Hint(cause, fix)


def test_a_conclusion_can_do_without_facts() -> None:
    """Pools of a class of the user's may say nothing of what they allow."""
    limits = Limits(None, None, None)
    bare = Exhaustion(limits, 0, (), (), blocks_loop=True, threads=None)
    assert bare.conclusion is Conclusion.UNKNOWN
    assert bare.main_group is None
    assert diagnose_pool(bare).cause == "not known: no checkout was seen of any connection"
    leak = PoolUsers("GET /", None, Use.LEAKED, 1, 1.0)
    leaks = Exhaustion(limits, 1, (leak,), (), blocks_loop=False, threads=None)
    assert diagnose_pool(leaks).cause == (
        "leaks: 1 of 1 connection was never given back, from an unknown line"
    )
    idle = PoolUsers("GET /", None, Use.IDLE, 1, 1.0)
    waste = Exhaustion(limits, 1, (idle,), (), blocks_loop=False, threads=None)
    assert diagnose_pool(waste).cause == "no leak: 1 of 1 connection is out and idle"
    used = PoolUsers("GET /", None, Use.IN_USE, 1, 1.0)
    busy = Exhaustion(limits, 1, (used,), (), blocks_loop=False, threads=None)
    assert (diagnose_pool(busy).cause or "").endswith("and the pool has no more")
    unlimited = Exhaustion(Limits(5, None, 1.0), 1, (used,), (), blocks_loop=False, threads=None)
    assert (diagnose_pool(unlimited).cause or "").endswith("the pool has 5")


def test_a_stopped_loop_is_the_cause_of_what_it_keeps_from_going_on() -> None:
    """Not so where nobody of the loop would give the connections back."""
    for use, conclusion in (
        (Use.KEPT, Conclusion.KEPT),
        (Use.WAITING, Conclusion.BLOCKED_LOOP),
        (Use.EXECUTING, Conclusion.BLOCKED_LOOP),
    ):
        assert exhaustion(group(use), blocks_loop=True).conclusion is conclusion


def test_the_group_that_the_conclusion_is_about() -> None:
    """The largest of those that it counts."""
    leaks = exhaustion(group(Use.LEAKED, 8), group(Use.LEAKED, 3), group(Use.IDLE, 4))
    assert leaks.main_group == group(Use.LEAKED, 8)


# --- the finding ----------------------------------------------------------------------------------


def test_the_same_cause_is_the_same_mistake() -> None:
    """Whatever the numbers; another cause, or another line, is another one."""
    made = [
        make_pool_finding(found, None, "main", waited).fingerprint
        for found, waited in (
            (exhaustion(group(Use.LEAKED)), 4.0),
            (exhaustion(group(Use.LEAKED, 12)), 4.1),
            (exhaustion(group(Use.IDLE, 15)), 4.0),
            (exhaustion(PoolUsers("GET /", PAY, Use.LEAKED, 15, 1.0)), 4.0),
        )
    ]
    assert made[0] == made[1]
    assert len(set(made)) == 3


def test_a_finding_that_is_ignored_explains_the_error_all_the_same(recorder: Recorder) -> None:
    """It is told to nobody else."""

    def of_main(finding: Finding) -> bool:
        return finding.pool == "main"

    guard = make_guard(recorder, ignore=[of_main])
    finding = guard.exhausted(exhaustion(group(Use.LEAKED)), None, "main", 4.0)
    assert finding.kind is FindingKind.POOL_EXHAUSTED
    assert finding.count == 1
    told = guard.exhausted(exhaustion(group(Use.LEAKED)), None, "other", 4.0)
    again = guard.exhausted(exhaustion(group(Use.LEAKED)), None, "other", 4.0)
    assert (told.count, again.count) == (1, 2)
    assert recorder.findings == [told, again]


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
        "                    1 x unknown: no checkout of them was seen\n"
        "  waiting           25 x GET /, from app/pay.py:41 in charge: for up to 4.0 s\n"
        "                    1 x no request context, from an unknown line: for up to 2.0 s\n"
        "  likely cause      "
    ) in text
    facts = make_pool_finding(found, None, "main", 4.0).to_dict()
    assert (facts["pool_out"], facts["pool_size"], facts["pool_overflow"]) == (15, 5, 10)
    assert len(facts["holders"]) == 13
    assert facts["conclusion"] == "idle"
    assert facts["holders"][0]["use"] == "leaked"
    assert facts["holders"][0]["site"]["line"] == 12
    assert facts["holders"][0]["now_at"]["function"] == "charge"
    assert facts["holders"][1]["now_at"] is None
    assert (facts["waiters"][0]["who"], facts["waiters"][0]["count"]) == ("GET /", 25)
    assert (facts["waiters"][0]["use"], facts["waiters"][0]["longest"]) == (None, 4.0)
    assert facts["held_for"] is None
    assert facts["waited"] == 4.0


def test_one_is_told_in_the_singular() -> None:
    """As the only connection of a pool, for which one request waits."""
    waiting = (PoolUsers("GET /", PAY, None, 1, 4.0),)
    found = Exhaustion(Limits(1, 0, 4.0), 1, (), waiting, blocks_loop=False, threads=None)
    text = str(make_pool_finding(found, None, "main", 4.0))
    assert "1 connection out, size 1, overflow 0; 1 checkout waiting\n" in text
    boundless = replace(found, limits=Limits(1, None, 4.0))
    assert ", size 1, overflow unlimited; " in str(make_pool_finding(boundless, None, "main", 4.0))
    kept = Exhaustion(
        Limits(1, 0, 4.0), 1, (group(Use.KEPT, 1),), waiting, blocks_loop=False, threads=None
    )
    assert diagnose_pool(kept).cause == (
        "1 of 1 connection is kept after the end of the scope that took it, "
        "from app/db.py:12 in get_db"
    )


def test_a_report_on_a_pool_of_which_nothing_is_known() -> None:
    """Nobody saw who has its connections, and its class does not say how many there are."""
    waiting = (PoolUsers("GET /", PAY, None, 1, 4.0),)
    found = Exhaustion(Limits(None, None, None), 3, (), waiting, blocks_loop=False, threads=None)
    text = str(make_pool_finding(found, None, "main", 4.0))
    assert "  pool              3 connections out; 1 checkout waiting\n" in text
    assert "  held by           3 x unknown: no checkout of them was seen\n" in text


def test_as_many_groups_are_shown_as_there_is_room_for() -> None:
    """And no line for "others" where there are none."""
    groups = [PoolUsers(f"GET /{number}", None, Use.IDLE, 1, 0.5) for number in range(11)]
    waiting = (PoolUsers("GET /", PAY, None, 1, 4.0),)
    for shown, others in ((10, False), (11, True)):
        found = Exhaustion(
            LIMITS, shown, tuple(groups[:shown]), waiting, blocks_loop=False, threads=None
        )
        assert ("others" in str(make_pool_finding(found, None, "main", 4.0))) is others


def test_a_finding_on_a_pool_belongs_to_the_scope_that_waited(recorder: Recorder) -> None:
    """With how long it waited; it has no hold, and so was held for no time."""
    guard = make_guard(recorder)
    scope = Scope(guard, "GET /", "http")
    finding = guard.exhausted(exhaustion(group(Use.IDLE)), scope, "main", 4.2)
    assert (finding.scope, finding.pool) == (scope, "main")
    assert (finding.evidence.waited, finding.evidence.held_for) == (4.2, 0.0)


def test_how_often_a_pool_was_exhausted_is_told_with_its_cause() -> None:
    """There is no line of a hold to tell."""
    finding = make_pool_finding(exhaustion(group(Use.LEAKED)), None, "main", 4.0)
    line = repetition(finding, 3)
    assert line.startswith('pool_exhausted: 3 more times of pool "main", 1 since ')
    assert "; likely cause: leaks: 15 of 15 connections were never given back, " in line
