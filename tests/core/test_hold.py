"""A hold says what is known of it, and no more."""

from __future__ import annotations

import pytest

from leakguard.core.hold import ConnectionHold, SessionHold
from leakguard.core.workers import Workers
from tests.core.fakes import FakeConnection, construct, here, installed, make_guard, take


class OpenSession(SessionHold):
    """What a library adds at least."""

    @property
    def open(self) -> bool:
        return True


class OpenConnection(ConnectionHold):
    """The same for a connection."""

    @property
    def open(self) -> bool:
        return True


def test_a_connection_knows_its_session_s_line() -> None:
    """The construction is the session's, the checkout its own."""
    guard = make_guard()
    session = construct(guard, None, here())
    hold = take(guard, None, here())
    assert hold.created_at is None
    hold.session = session
    assert hold.created_at is session.created_at is not None
    assert hold.acquired_at is hold.site
    assert session.acquired_at is None
    assert (session.resource, hold.resource) == ("session", "connection")


def test_where_a_library_tells_nothing_a_connection_is_idle() -> None:
    """Idle by what is known, since it was acquired."""
    hold = OpenConnection(make_guard(), None, None, "main")
    assert not hold.executing
    assert hold.executing_for == 0
    assert not hold.used_elsewhere(Workers())
    assert hold.tells_idleness
    assert not hold.occupied_by([])
    hold.released_monotonic = hold.acquired_monotonic + 5
    assert hold.idle_for == pytest.approx(5)
    assert hold.surely_idle_for == pytest.approx(5)
    hold.idle_since = hold.acquired_monotonic + 2
    assert hold.idle_for == pytest.approx(5)
    assert hold.surely_idle_for == pytest.approx(3)


@pytest.mark.parametrize("way", ["give_back", "collect"])
def test_time_stands_still_when_it_is_back(way: str) -> None:
    """How long it was out does not grow any more."""
    guard = installed()
    hold = take(guard)
    assert hold.idle_for <= hold.held_for
    getattr(hold, way)()
    assert hold.released_monotonic is not None
    assert hold.held_for == hold.released_monotonic - hold.acquired_monotonic
    assert hold.idle_for == hold.released_monotonic - hold.last_used
    guard.uninstall()


def test_what_only_a_library_knows_is_unknown_to_the_core() -> None:
    """The base has nothing to guess."""
    guard = make_guard()
    session = OpenSession(guard, None, None)
    assert (session.statement, session.in_transaction, session.backend_pid) == (None, None, None)
    assert (session.usage, session.lost_when_collected) == (None, False)
    assert session.idle_for <= session.held_for
    assert OpenConnection(guard, None, None, "main").statement is None


def test_nothing_has_happened_to_a_new_hold() -> None:
    """Observers are told of it in this state."""
    guard = make_guard()
    session = OpenSession(guard, None, None)
    connection = OpenConnection(guard, None, None, "main")
    assert (session.pool, connection.pool) == ("", "main")
    assert (session.times_closed, session.returns, session.checkouts_ever) == (0, 0, 0)
    for hold in (session, connection):
        assert hold.collected is False
        assert (hold.holder, hold.released_monotonic, hold.outlived_by) == (None, None, None)
        assert (hold.waited_for_return, hold.allowed, hold.asynchronous) == (None, None, None)
    assert session.closed_by is None
    assert (connection.session, connection.late_by, connection.already_held_at) == (None,) * 3
    assert [
        session.connection_lost,
        connection.by_older_session,
        connection.nested,
        connection.sync_in_async,
        connection.taken_after_close,
        connection.taken_again,
    ] == [False] * 6


def test_a_hold_is_named_by_its_line() -> None:
    """Where there is one."""
    guard = make_guard()
    assert "in test_a_hold_is_named_by_its_line>" in repr(take(guard, None, here()))
    assert "in test_a_hold_is_named_by_its_line>" in repr(construct(guard, None, here()))
    assert repr(FakeConnection(guard)) == "<Hold connection from an unknown line>"
