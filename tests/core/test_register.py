"""Findings are made from what is known at that moment, and counted by their mistake."""

from __future__ import annotations

from datetime import datetime

import pytest

from leakguard import FindingKind, Severity
from leakguard.core.finding import Evidence, PoolUsage, fingerprint, position
from leakguard.core.register import Register, case_of, make_finding
from tests.core.fakes import (
    FakeConnection,
    construct,
    ended_scope,
    here,
    installed,
    make_guard,
    site_at,
    take,
)
from tests.support import Recorder


def test_the_same_mistake_is_counted(recorder: Recorder) -> None:
    """With when and where it was first seen in this process."""
    guard = installed(recorder)
    before = datetime.now().astimezone()
    for name in ("first", "second", "third"):
        with guard.scope(name) as scope:
            take(guard, scope, site_at("app/items.py", 41, "read_item"))
    assert [finding.count for finding in recorder.findings] == [1, 2, 3]
    assert {finding.first_scope for finding in recorder.findings} == {"first"}
    (first_seen,) = {finding.first_seen for finding in recorder.findings}
    assert before <= first_seen <= datetime.now().astimezone()
    assert len({finding.fingerprint for finding in recorder.findings}) == 1
    guard.uninstall()


def test_different_mistakes_are_counted_apart(recorder: Recorder) -> None:
    """By the line, and by the kind."""
    guard = installed(recorder)
    first, second = (site_at("app/items.py", line, f"read_{line}") for line in (41, 42))
    with guard.scope("job") as scope:
        take(guard, scope, first)
        take(guard, scope, second)
        take(guard, scope, second).collect()
    assert [finding.count for finding in recorder.findings] == [1, 1, 1]
    guard.uninstall()


def test_functions_of_one_name_are_counted_apart(recorder: Recorder) -> None:
    """Two endpoints may be called `read`, and have one fingerprint."""
    guard = installed(recorder)
    with guard.scope("job") as scope:
        for line in (41, 90, 41):
            take(guard, scope, site_at("app/items.py", line, "read"))
    assert [finding.count for finding in recorder.findings] == [1, 1, 2]
    assert len({finding.fingerprint for finding in recorder.findings}) == 1
    guard.uninstall()


def test_what_is_slow_tells_held_connections_apart() -> None:
    """They may all be taken on one line, as by a dependency."""
    hold = FakeConnection(make_guard(), None, here())
    held, leaked = set[str](), set[str]()
    for line in (41, 42, 41):
        hold.now_at = site_at("app/items.py", line, f"read_{line}")
        held.add(make_finding(hold, FindingKind.HELD, ()).fingerprint)
        leaked.add(make_finding(hold, FindingKind.LEAKED, ()).fingerprint)
    assert (len(held), len(leaked)) == (2, 1)


def test_the_register_is_bounded(recorder: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    """The mistake that was not seen for longest is forgotten."""
    monkeypatch.setattr(Register, "LIMIT", 2)
    guard = installed(recorder)
    with guard.scope("job") as scope:
        for name in ("a", "b", "a", "c", "a", "b"):
            take(guard, scope, site_at("app/items.py", 41, name))
    assert [finding.count for finding in recorder.findings] == [1, 1, 2, 1, 3, 1]
    guard.uninstall()


def test_the_evidence_is_gathered() -> None:
    """From the hold, its session and its scope."""
    guard = make_guard()
    scope = ended_scope(guard)
    scope.exception, scope.status, scope.cancelled = "ValueError", 500, True
    scope.endpoint = here().code
    scope.responded_at = 0.0
    session = construct(guard, None, here())
    hold = take(guard, scope, here())
    hold.session = session
    hold.outlived_by = "task 'worker'"
    hold.taken_again = hold.taken_after_close = hold.asynchronous = True
    session.closed_by = site_at("app/db.py", 12, "get_db").code
    hold.now_at = site_at("app/pay.py", 41, "charge")
    case = case_of(hold, FindingKind.LEAKED)
    assert case.constructor is case.acquirer is case.endpoint is here().code
    assert (case.exception, case.status, case.cancelled) == ("ValueError", 500, True)
    assert case.by_session
    assert case.constructed_outside
    assert case.taken_again
    assert case.taken_after_close
    assert case.after_response
    assert case.outlived_by == "task 'worker'"
    assert case.asynchronous
    assert case.closed_by is session.closed_by
    assert case.now is hold.now_at.code
    assert case.scope_type == "http"


@pytest.mark.parametrize(
    "status, responded_at, responding",
    [(None, None, False), (200, None, True), (200, 1.0, False)],
)
def test_a_response_is_sent_from_its_status_to_its_last_byte(
    status: int | None, responded_at: float | None, responding: bool
) -> None:
    """What is idle meanwhile waits for the client."""
    guard = make_guard()
    scope = ended_scope(guard)
    scope.status, scope.responded_at = status, responded_at
    assert case_of(take(guard, scope), FindingKind.HELD).responding is responding


@pytest.mark.parametrize(
    "exception, status, responded_at, cut_short",
    [
        ("CancelledError", None, None, True),
        ("ClientDisconnect", 200, None, True),
        (None, 200, None, True),  # a stream, whose framework gave it up
        (None, None, None, False),  # the application returned by itself
        (None, 200, 1.0, False),  # and had answered before
    ],
)
def test_what_ran_to_its_end_was_not_cut_short(
    exception: str | None, status: int | None, responded_at: float | None, cut_short: bool
) -> None:
    """A client that has gone is no evidence that code did not run."""
    guard = make_guard()
    scope = ended_scope(guard)
    scope.cancelled = True
    scope.exception, scope.status, scope.responded_at = exception, status, responded_at
    assert case_of(take(guard, scope), FindingKind.LEAKED).cancelled is cut_short


def test_without_evidence_there_is_none() -> None:
    """A connection outside of any scope, from nobody's line."""
    case = case_of(take(make_guard()), FindingKind.RECLAIMED)
    assert (case.constructor, case.acquirer, case.exception, case.status) == (None,) * 4
    assert not any((case.by_session, case.constructed_outside, case.after_response))
    session = case_of(construct(make_guard()), FindingKind.UNCLOSED_SESSION)
    assert session.by_session


def test_a_session_of_the_scope_is_not_from_outside() -> None:
    """Only one that was there before is shared."""
    guard = make_guard()
    scope = ended_scope(guard)
    hold = take(guard, scope)
    hold.session = construct(guard, scope)
    assert not case_of(hold, FindingKind.LEAKED).constructed_outside


@pytest.mark.parametrize("later, after", [(-0.001, False), (0.0, True), (0.001, True)])
def test_what_is_taken_with_the_last_byte_is_taken_after_it(later: float, after: bool) -> None:
    """Some clocks have ticks of many milliseconds."""
    guard = make_guard()
    scope = ended_scope(guard)
    hold = take(guard, scope)
    scope.responded_at = 50.0
    hold.acquired_monotonic = 50.0 + later
    assert case_of(hold, FindingKind.LEAKED).after_response is after


class Telling(FakeConnection):
    """A connection whose driver tells something of it."""

    __slots__ = ()

    @property
    def in_transaction(self) -> bool:
        return True

    @property
    def backend_pid(self) -> int:
        return 4711


@pytest.mark.parametrize("statements", [True, False])
@pytest.mark.parametrize("kind", set(FindingKind) - {FindingKind.POOL_EXHAUSTED})
def test_what_is_known_is_written_down(kind: FindingKind, statements: bool) -> None:
    """How full the pool is costs a look, and is not for notices; idleness needs the statements.

    Whoever is held was seen to be idle.
    """
    guard = make_guard(statements=statements)
    scope = ended_scope(guard)
    hold = Telling(guard, scope, here())
    hold.session = construct(guard, scope, site_at("app/db.py", 12, "get_db"))
    hold.fake_usage = PoolUsage(1, 5, 1)
    hold.acquired_monotonic, hold.used_monotonic, hold.released_monotonic = 10.0, 11.0, 14.0
    hold.now_at, hold.idle_since = here(), 12.0
    hold.outlived_by, hold.waited_for_return, hold.late_by = "task 'worker'", 1.0, 2.0
    finding = make_finding(hold, kind, (FindingKind.NESTED_CHECKOUT,))
    assert (finding.kind, finding.hold, finding.scope) == (kind, hold, scope)
    assert finding.pool == "main"
    assert finding.hint.fix
    slow = [position(hold.now_at)] if kind is FindingKind.HELD else []
    assert finding.fingerprint == fingerprint(kind, hold.session.site, hold.site, *slow)
    assert finding.also == (FindingKind.NESTED_CHECKOUT,)
    assert finding.usage == (None if kind.severity is Severity.NOTICE else hold.fake_usage)
    assert finding.evidence == Evidence(
        held_for=4.0,
        idle_for=2.0 if kind is FindingKind.HELD else 3.0 if statements else None,
        in_transaction=True,
        backend_pid=4711,
        outlived_by="task 'worker'",
        late_by=2.0,
        waited_for_return=1.0,
        now_at=hold.now_at if kind is FindingKind.HELD else None,
    )


def test_a_session_is_in_no_pool() -> None:
    """It may use any number of them."""
    finding = make_finding(construct(make_guard()), FindingKind.UNCLOSED_SESSION, ())
    assert finding.pool is None
