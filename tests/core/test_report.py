"""The wording of every kind of finding, word for word."""

from __future__ import annotations

import dataclasses
import re
from datetime import UTC, datetime, timedelta, timezone

import pytest

from leakguard import Finding, FindingKind, Scope
from leakguard.core.finding import Evidence, Hint, PoolUsage
from leakguard.core.report import (
    advice,
    describe_return,
    headline,
    render,
    repetition,
    resolution,
)
from leakguard.core.words import moment, seconds, shorten
from tests.core.fakes import (
    FakeConnection,
    construct,
    ended_scope,
    make_finding,
    make_guard,
    site_at,
    take,
)

SEEN_AT = datetime.now(UTC).replace(hour=10, minute=2, second=11)
EVIDENCE = Evidence(
    held_for=0.011, idle_for=0.004, in_transaction=True, backend_pid=4711, late_by=3.2
)


def finding(
    kind: FindingKind = FindingKind.LEAKED, *, evidence: Evidence = EVIDENCE, callers: int = 0
) -> Finding:
    """Make a finding with every fact that there can be."""
    guard = make_guard()
    scope = ended_scope(guard)
    scope.status = 500
    site = site_at("app/items.py", 41, "read_item", *[site_at("app/main.py", 7, "main")] * callers)
    hold = take(guard, scope, site)
    hold.session = construct(guard, None, site_at("app/db.py", 12, "get_db"))
    hold.statement_text = "SELECT items.id\n  FROM items"
    return Finding(
        kind=kind,
        hold=hold,
        scope=scope,
        pool="main",
        hint=Hint("get_db forgets", "close it"),
        fingerprint="c0ffee",
        evidence=evidence,
        usage=PoolUsage(14, 15, 11),
        count=37,
        first_seen=SEEN_AT,
        first_scope="POST /orders",
    )


def test_the_whole_report() -> None:
    """One line that can be understood alone, then a block of facts."""
    assert str(finding()) == (
        "leaked: GET /items/{item_id} (500 in 12 ms) did not give back "
        'a connection of pool "main"\n'
        "  session created   app/db.py:12 in get_db\n"
        "  checked out       app/items.py:41 in read_item\n"
        "  last statement    SELECT items.id FROM items\n"
        "  state             transaction open, held 11 ms, idle 4 ms, backend pid 4711\n"
        "  pool              14 of 15 out, 11 of them from app/db.py:12 in get_db\n"
        "  likely cause      get_db forgets\n"
        "  fix               close it\n"
        "  seen              37 times since 10:02:11, first in POST /orders [c0ffee]"
    )


def test_a_report_with_little_to_say(caplog: pytest.LogCaptureFixture) -> None:
    """What is not known is not mentioned."""
    one = finding(evidence=Evidence(held_for=70.0, idle_for=None, in_transaction=False))
    assert one.hold is not None
    one.scope = None
    one.count = 1
    one.usage = PoolUsage(None, None, 0)
    one.hint = Hint(None, "close it")
    one.hold = take(make_guard())
    one.also = (FindingKind.NESTED_CHECKOUT, FindingKind.SYNC_IN_ASYNC)
    one.resolution = "given back 2.0 s later"
    assert render(one) == (
        "leaked: code outside of any scope (no request context) did not give back "
        'a connection of pool "main"\n'
        "  checked out       by code that has no line of the user's on its stack\n"
        "  state             no transaction, held 70.0 s\n"
        "  also              taken while the scope held another connection of the pool; "
        "a synchronous checkout on a thread that runs an event loop\n"
        "  pool              its class does not count connections\n"
        "  fix               close it\n"
        "  seen              for the first time [c0ffee]\n"
        "  resolved          given back 2.0 s later"
    )
    assert caplog.records == []


def test_what_is_seldom_known_is_said_where_it_is() -> None:
    """Where the other connection came from, and for how long somebody was waited for."""
    one = finding(evidence=Evidence(held_for=2.0, idle_for=None, waited_for_return=1.0))
    assert isinstance(one.hold, FakeConnection)
    one.hold.already_held_at = site_at("app/audit.py", 3, "audit")
    text = render(one)
    assert "\n  already held      app/audit.py:3 in audit\n" in text
    assert "\n  state             held 2.0 s, waited 1.0 s for somebody to give it back\n" in text
    assert one.to_dict()["already_held_at"]["line"] == 3
    assert finding().to_dict()["already_held_at"] is None


@pytest.mark.parametrize(
    "usage, words",
    [
        (PoolUsage(14, 15, 11), "14 of 15 out, 11 of them from app/db.py:12 in get_db"),
        (PoolUsage(14, None, 11), "14 of unlimited out, 11 of them from app/db.py:12 in get_db"),
        (
            PoolUsage(None, None, 11),
            "its class does not count connections, 11 known to be out from app/db.py:12 in get_db",
        ),
    ],
)
def test_how_full_the_pool_is_is_said(usage: PoolUsage, words: str) -> None:
    """As far as its class knows."""
    one = finding()
    one.usage = usage
    assert f"\n  pool              {words}\n" in render(one)


def test_work_that_went_on_is_told_from_its_scope() -> None:
    """What took a connection after the scope's end is not the scope, which did nothing wrong."""
    one = finding()
    assert one.hold is not None
    assert one.scope is not None
    assert one.scope.closed_at is not None
    one.hold.acquired_monotonic = one.scope.closed_at + 0.001
    assert headline(one) == (
        "leaked: work started by GET /items/{item_id} (500 in 12 ms) did not give back "
        'a connection of pool "main"'
    )
    one.scope.closed_at = None
    assert headline(one).startswith("leaked: GET /items/{item_id} (500, open for ")
    one.scope.status = None
    assert headline(one).startswith("leaked: GET /items/{item_id} (open for ")


def test_where_a_held_connection_is_kept_is_told() -> None:
    """The line where those who have it are, and the way there."""
    one = finding(FindingKind.HELD)
    assert "  now at            unknown: no task or thread that may have it was found\n" in str(one)
    site = site_at("app/pay.py", 9, "charge", site_at("app/main.py", 7, "main"))
    one.evidence = dataclasses.replace(EVIDENCE, now_at=site)
    told = "  now at            app/pay.py:9 in charge\n    called from     app/main.py:7 in main\n"
    assert told in str(one)
    assert one.to_dict()["now_at"]["line"] == 9
    assert finding().to_dict()["now_at"] is None


def test_a_path_is_no_pattern() -> None:
    """A folder or file may have any name, as that of a template of projects has."""
    one = finding()
    assert isinstance(one.hold, FakeConnection)
    one.hold.session = construct(make_guard(), None, site_at("{slug}/db.py", 12, "get_db"))
    assert "11 of them from {slug}/db.py:12 in get_db\n" in str(one)


def test_the_callers_are_shown_up_to_a_few() -> None:
    """Where the settings keep them, and no more than help."""
    text = render(finding(callers=9))
    assert text.count("    called from     app/main.py:7 in main") == 3


def test_a_finding_on_a_session_has_no_connection_to_describe() -> None:
    """No checkout, no state."""
    one = finding(FindingKind.UNCLOSED_SESSION)
    one.hold = construct(make_guard(), None, site_at("app/db.py", 12, "get_db"))
    text = render(one)
    assert "session created   app/db.py:12 in get_db" in text
    assert "checked out" not in text
    assert "state" not in text


def test_a_finding_on_a_pool_has_no_hold_to_describe(caplog: pytest.LogCaptureFixture) -> None:
    """Only the pool's own facts."""
    one = finding()
    one.hold = None
    text = render(one)
    assert "created" not in text
    assert "  pool              14 of 15 out\n" in text
    one.resolution = "given back 2.0 s later"
    assert resolution(one) == (
        'resolved: leaked connection of pool "main" from an unknown line, GET /items/{item_id} '
        "(500 in 12 ms): given back 2.0 s later [c0ffee]"
    )
    one.usage = None
    one.first_scope = None
    assert "  pool  " not in render(one)
    assert "37 times since 10:02:11 [c0ffee]" in render(one)
    assert caplog.records == []


HEADLINES = {
    FindingKind.LEAKED: 'did not give back a connection of pool "main"',
    FindingKind.RECLAIMED: 'left a connection of pool "main" to the garbage collector',
    FindingKind.POOL_EXHAUSTED: 'waited 1.0 s in vain for a connection of pool "main"',
    FindingKind.HELD: 'holds a connection of pool "main" that has been idle for 100 ms',
    FindingKind.OUTLIVES_SCOPE: (
        "ended while task 'worker' still had a connection of pool \"main\""
    ),
    FindingKind.RETURNED_LATE: (
        'gave a connection of pool "main" back 3.2 s after the last byte of the response'
    ),
    FindingKind.NESTED_CHECKOUT: 'took a connection of pool "main" while it held another one',
    FindingKind.SYNC_IN_ASYNC: (
        'took a connection of the synchronous pool "main" on the event loop\'s thread'
    ),
    FindingKind.UNCLOSED_SESSION: "did not close a session",
}


@pytest.mark.parametrize("kind", FindingKind)
def test_every_kind_has_its_headline(kind: FindingKind) -> None:
    """It can be understood alone."""
    evidence = Evidence(0.1, 0.1, late_by=3.2, outlived_by="task 'worker'", waited=1.0)
    assert headline(finding(kind, evidence=evidence)) == (
        f"{kind}: GET /items/{{item_id}} (500 in 12 ms) {HEADLINES[kind]}"
    )


@pytest.mark.parametrize(
    "kind, words",
    [
        (FindingKind.OUTLIVES_SCOPE, "in the hands of task 'worker'"),
        (FindingKind.LEAKED, "left by task 'worker', which runs no more"),
    ],
)
def test_who_had_it_is_said(kind: FindingKind, words: str) -> None:
    """While they run, and when they have ended."""
    text = render(finding(kind, evidence=Evidence(0.1, 0.1, outlived_by="task 'worker'")))
    assert words in text


def test_a_late_return_without_its_time_is_at_once() -> None:
    """Nothing is guessed."""
    one = finding(FindingKind.RETURNED_LATE, evidence=Evidence(0.1, 0.1))
    assert "0 ms after the last byte of the response" in headline(one)


@pytest.mark.parametrize(
    "status, exception, cancelled, words",
    [
        (200, None, False, "(200 in 12 ms)"),
        (500, "ValueError", False, "(500, ValueError in 12 ms)"),
        (None, "CancelledError", True, "(cancelled in 12 ms)"),
        (None, None, False, "(in 12 ms)"),
    ],
)
def test_how_the_scope_ended_is_said(
    status: int | None, exception: str | None, cancelled: bool, words: str
) -> None:
    """In a few words, with how long it took."""
    one = finding()
    assert one.scope is not None
    one.scope.status, one.scope.exception = status, exception
    one.scope.cancelled = cancelled
    assert f"GET /items/{{item_id}} {words} did" in headline(one)


def test_further_occurrences_are_one_line() -> None:
    """With how many it stands for, how many there were, and where the last was."""
    one = finding()
    assert repetition(one, 1) == (
        'leaked: 1 more time from app/db.py:12 in get_db of pool "main", 37 since 10:02:11, '
        "last in GET /items/{item_id} (500 in 12 ms) [c0ffee]"
    )
    assert repetition(one, 9).startswith("leaked: 9 more times from ")
    one.pool = None  # as of a session
    assert " more time from app/db.py:12 in get_db, 37 since 10:02:11, " in repetition(one, 1)


@pytest.mark.parametrize(
    "collected, lost, words",
    [
        (False, False, "given back"),
        (False, True, "given back"),
        (True, False, "given back by the garbage collector"),
        (True, True, "thrown away by the garbage collector"),
    ],
)
def test_a_return_is_described(collected: bool, lost: bool, words: str) -> None:
    """How it came back, how long after its finding, and how long it was out."""
    one = finding(evidence=Evidence(held_for=1.0, idle_for=None))
    hold = one.hold
    assert hold is not None
    hold.collected = collected
    hold.acquired_monotonic, hold.released_monotonic = 10.0, 13.211

    assert isinstance(hold, FakeConnection)
    hold.is_lost_when_collected = lost
    one.resolution = describe_return(one, hold)
    assert one.resolution == f"{words} 2.2 s later, after 3.2 s out"
    assert resolution(one) == (
        'resolved: leaked connection of pool "main" from app/db.py:12 in get_db, '
        f"GET /items/{{item_id}} (500 in 12 ms): {words} 2.2 s later, after 3.2 s out [c0ffee]"
    )
    assert resolution(one, 3).endswith(" s out, and 3 more like it [c0ffee]")
    one.pool = None
    assert resolution(one).startswith("resolved: leaked connection from app/db.py:12 in get_db, ")


def test_advice_is_short() -> None:
    """For a warning: what happened, why, and what to do."""
    one = finding()
    assert advice(one).splitlines()[1:] == [
        "  likely cause: get_db forgets",
        "  fix: close it",
    ]
    one.hint = Hint(None, "close it")
    assert advice(one) == f"{headline(one)}\n  fix: close it"


def test_a_real_finding_can_be_read() -> None:
    """What the register makes renders without a gap."""
    text = str(make_finding())
    assert re.match(r"leaked: nightly import \(in 12 ms\) did not give back", text)


def test_a_moment_of_another_day_has_its_date() -> None:
    """A process may run for weeks."""
    assert moment(SEEN_AT) == "10:02:11"
    assert moment(datetime(2026, 1, 2, 10, 2, 11, tzinfo=UTC)) == "2026-01-02 10:02:11"


@pytest.mark.parametrize("hours", [-12, 14])
def test_a_moment_of_this_day_has_none_in_any_time_zone(hours: int) -> None:
    """It is today there, where it may be another day here."""
    now = datetime.now(timezone(timedelta(hours=hours)))
    assert moment(now) == f"{now:%H:%M:%S}"


@pytest.mark.parametrize(
    "value, words",
    [
        (0.0004, "0 ms"),
        (0.0126, "13 ms"),
        (0.9994, "999 ms"),
        (0.9996, "1.0 s"),
        (1, "1.0 s"),
        (119.94, "119.9 s"),
        (119.97, "2 min 0 s"),
        (120, "2 min 0 s"),
        (250, "4 min 10 s"),
        (7199.4, "119 min 59 s"),
        (7199.6, "2 h 0 min"),
        (11100, "3 h 5 min"),
    ],
)
def test_durations_read_well(value: float, words: str) -> None:
    """In the unit that a person would use."""
    assert seconds(value) == words


def test_statements_are_one_line_of_bounded_length() -> None:
    """However long the query."""
    assert shorten("SELECT 1\n\tFROM t") == "SELECT 1 FROM t"
    assert shorten("x" * 200) == "x" * 200
    assert len(shorten("x" * 1000)) == 200
    assert shorten("x" * 1000).endswith("…")


class Unreadable(FakeConnection):
    """A connection whose source cannot tell what was last done on it."""

    __slots__ = ()

    @property
    def statement(self) -> str | None:
        raise RuntimeError("no answer")


def test_a_fact_that_cannot_be_told_takes_no_other_with_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The rest of the report is written, and every place that failed is logged once."""
    one = finding()
    guard = make_guard()
    one.hold = Unreadable(guard, None, site_at("app/items.py", 41, "read_item"))
    for _ in range(2):
        assert "last statement" not in render(one)
        assert "checked out       app/items.py:41 in read_item" in render(one)
        facts = one.to_dict()
        assert facts["statement"] is None
        assert facts["acquired_at"]["line"] == 41
    assert [record.getMessage() for record in caplog.records] == [
        (
            "leakguard's report, at 'statement', raised RuntimeError; "
            "the application is not affected. The rest of the report is told."
        )
    ]
    assert caplog.records[0].exc_info is not None


class Nameless(Scope):
    """A scope whose source cannot tell its name."""

    __slots__ = ()

    @property
    def name(self) -> str:
        raise RuntimeError("no answer")


def test_a_scope_that_cannot_be_told_is_said_to_be_one(caplog: pytest.LogCaptureFixture) -> None:
    """What happened is said all the same."""
    one = finding()
    one.scope = Nameless(make_guard(), "", "http")
    assert headline(one) == (
        'leaked: a scope that cannot be told did not give back a connection of pool "main"'
    )
    assert caplog.records[0].getMessage().startswith("leakguard's report, at 'scope', raised ")
