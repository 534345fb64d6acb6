"""What an open scope remembers for its end has a bound, however long it is open."""

from __future__ import annotations

import contextvars

import pytest

from leakguard import FindingKind, Hold, Scope, allow
from tests.core.fakes import construct, here, installed, take
from tests.support import Recorder, drain_watch

LIMIT = 3


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the bound be reached soon."""
    monkeypatch.setattr("leakguard.core.guard._NOTABLE_LIMIT", LIMIT)
    monkeypatch.setattr("leakguard.core.scope.Tally.LIMIT", LIMIT)


@pytest.mark.parametrize("collected", [0, 1, LIMIT + 1, LIMIT + 2])
def test_of_the_unclosed_sessions_of_a_line_the_first_are_told(
    recorder: Recorder, collected: int
) -> None:
    """Each is the same mistake, made again and again; whether the collector took it or not.

    Those of another line are another mistake.
    """
    guard = installed(recorder)
    with guard.scope("job") as scope:
        site = here()
        with allow("told to nobody"):
            for _ in range(LIMIT):
                guard.collected(construct(guard, scope, site))
                construct(guard, scope, site)
        drain_watch()
        recorder.holds_released.clear()
        sessions = [construct(guard, scope, site) for _ in range(LIMIT + 2)]
        other = construct(guard, scope, here())
        for session in sessions[:collected]:
            guard.collected(session)
        drain_watch()
        forgotten = sessions[LIMIT:collected]
        assert not set(forgotten).intersection(scope.open_sessions)
        assert recorder.holds_released == sessions[:collected]
    assert [finding.hold for finding in recorder.findings] == [*sessions[:LIMIT], other]
    assert set(recorder.kinds) == {FindingKind.UNCLOSED_SESSION}
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


def test_collected_connections_are_told_when_there_are_many(recorder: Recorder) -> None:
    """Each is an error, and certain: a job that runs for days must not keep them for its end."""
    guard = installed(recorder)
    with guard.scope("job") as scope:
        for _ in range(LIMIT + 1):
            take(guard, scope).collect()
        drain_watch()
        assert recorder.kinds == [FindingKind.RECLAIMED] * LIMIT
        assert not scope.open_connections
    assert recorder.kinds == [FindingKind.RECLAIMED] * (LIMIT + 1)
    guard.uninstall()


def test_one_that_is_collected_as_its_scope_ends_is_told(recorder: Recorder) -> None:
    """The watch may take it out of the scope just before, and note it just after."""
    guard = installed(recorder)

    class EndsMeanwhile(Scope):
        """A scope that ends while somebody takes something out of it."""

        def take_out(self, hold: Hold) -> bool:
            taken = super().take_out(hold)
            if self.closed_at is None:
                guard.close_scope(self)
            return taken

    scope = EndsMeanwhile(guard, "job", "job")
    # In a context of its own, because the watch ends it in another one.
    contextvars.copy_context().run(guard.open_scope, scope)
    take(guard, scope).collect()
    drain_watch()
    assert scope.closed_at is not None
    assert recorder.kinds == [FindingKind.RECLAIMED]
    guard.uninstall()
