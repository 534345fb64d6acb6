"""What an open scope remembers for its end has a bound, however long it is open."""

from __future__ import annotations

import pytest

from leakguard import FindingKind
from tests.core.fakes import construct, installed, take
from tests.support import Recorder, settle

LIMIT = 3


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the bound be reached soon."""
    monkeypatch.setattr("leakguard.core.guard._NOTABLE_LIMIT", LIMIT)


def test_of_the_sessions_that_were_collected_the_first_are_kept(recorder: Recorder) -> None:
    """Each is the same mistake, made again and again; a few of them tell it."""
    guard = installed(recorder)
    with guard.scope("job") as scope:
        sessions = [construct(guard, scope) for _ in range(LIMIT + 2)]
        for session in sessions:
            guard.collected(session)
        settle()
        assert list(scope.open_holds) == sessions[:LIMIT]
        assert recorder.holds_released == sessions
    assert [finding.hold for finding in recorder.findings] == sessions[:LIMIT]
    assert recorder.kinds == [FindingKind.UNCLOSED_SESSION] * LIMIT
    guard.uninstall()


def test_notices_are_told_when_there_are_many(recorder: Recorder) -> None:
    """As many as are kept at a time, and the last ones at the end."""
    guard = installed(recorder)
    told: list[int] = []
    with guard.scope("job") as scope:
        for _ in range(LIMIT + 1):
            hold = take(guard, scope)
            hold.nested = True
            hold.give_back()
            told.append(len(recorder.findings))
    assert told == [0, 0, LIMIT, LIMIT]
    assert recorder.kinds == [FindingKind.NESTED_CHECKOUT] * (LIMIT + 1)
    guard.uninstall()
