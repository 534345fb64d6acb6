"""Findings are made from what is known at that moment, and counted by their mistake."""

from __future__ import annotations

import pytest

from leakguard import FindingKind
from leakguard.core.register import Register, case_of
from tests.core.fakes import construct, ended_scope, here, installed, make_guard, site_at, take
from tests.support import Recorder


def test_the_same_mistake_is_counted(recorder: Recorder) -> None:
    """With when and where it was first seen in this process."""
    guard = installed(recorder)
    for name in ("first", "second", "third"):
        with guard.scope(name) as scope:
            take(guard, scope, site_at("app/items.py", 41, "read_item"))
    assert [finding.count for finding in recorder.findings] == [1, 2, 3]
    assert {finding.first_scope for finding in recorder.findings} == {"first"}
    assert len({finding.first_seen for finding in recorder.findings}) == 1
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
    hold.taken_again = hold.taken_after_close = True
    case = case_of(hold, FindingKind.LEAKED)
    assert case.constructor is case.acquirer is case.endpoint is here().code
    assert (case.exception, case.status, case.cancelled) == ("ValueError", 500, True)
    assert case.by_session
    assert case.constructed_outside
    assert case.taken_again
    assert case.taken_after_close
    assert case.after_response
    assert case.holder == "task 'worker'"


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
