"""Databases that go away, and the reconnects of pools and connections."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from sqlalchemy import Engine, create_engine, event, text
from sqlalchemy.exc import (
    DBAPIError,
    DisconnectionError,
    InvalidatePoolError,
    InvalidRequestError,
)
from sqlalchemy.orm import Session
from sqlalchemy.pool import NullPool, Pool, QueuePool, StaticPool

from leakguard import FindingKind, LeakGuard
from leakguard.sources.sqlalchemy import SQLALCHEMY
from tests.support import Recorder

QUERY = text("SELECT 1")
POOLS = [QueuePool, NullPool, StaticPool]


@pytest.fixture(params=POOLS, ids=lambda pool: pool.__name__)
def any_engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Engine]:
    """Return an engine with a pool that may reconnect, and that pings before it gives one out."""
    engine = create_engine(
        f"sqlite:///{tmp_path / 'any.db'}",
        poolclass=request.param,
        pool_pre_ping=True,
        connect_args={"check_same_thread": False},
    )
    yield engine
    engine.dispose()


@pytest.fixture(autouse=True)
def all_forgotten() -> Iterator[None]:
    """See after each test that the source remembers no connection."""
    gc.collect()
    yield
    checkouts = SQLALCHEMY._checkouts  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]  # to look
    for name in ("out", "_by_record", "_detached"):
        assert getattr(checkouts, name) == {}


def kill(connection: Any) -> None:
    """Close the driver's connection behind SQLAlchemy's back, as a server does that goes away."""
    connection.connection.dbapi_connection.close()


def use(engine: Engine) -> None:
    with engine.connect() as connection:
        connection.execute(QUERY)


def test_a_ping_that_fails_reconnects(guard: LeakGuard, recorder: Recorder, tmp_path: Path) -> None:
    """With `pool_pre_ping` a dead connection is replaced before anybody sees it: one hold."""
    engine = create_engine(f"sqlite:///{tmp_path / 'ping.db'}", pool_pre_ping=True)
    with engine.connect() as connection:
        driver_connection = cast("Any", connection.connection.dbapi_connection)
    driver_connection.close()
    recorder.holds_acquired.clear()
    with guard.scope("job"):
        use(engine)
    assert recorder.findings == []
    assert len(recorder.holds_acquired) == 1
    engine.dispose()


def test_a_reconnect_that_fails_after_a_ping(
    guard: LeakGuard, recorder: Recorder, tmp_path: Path
) -> None:
    """Where the server is gone altogether there is a `checkin` without a `checkout`: no hold."""
    engine = create_engine(f"sqlite:///{tmp_path / 'gone.db'}", pool_pre_ping=True)
    with engine.connect() as connection:
        driver_connection = cast("Any", connection.connection.dbapi_connection)
    driver_connection.close()
    recorder.holds_acquired.clear()

    @event.listens_for(engine, "do_connect")
    def refuse(*_: object) -> None:
        raise OSError("connection refused")

    with guard.scope("job"), pytest.raises(OSError, match="connection refused"):
        engine.connect()
    assert recorder.holds_acquired == []
    assert recorder.findings == []
    assert guard.open_holds() == ()
    event.remove(engine, "do_connect", refuse)
    with guard.scope("afterwards"):
        use(engine)
    assert recorder.findings == []
    engine.dispose()


@pytest.mark.parametrize("error", [DisconnectionError, InvalidatePoolError])
@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("first", [True, False], ids=["before ours", "after ours"])
def test_another_listener_asks_for_a_reconnect(  # noqa: PLR0913, PLR0917  (a table's columns)
    guard: LeakGuard,
    recorder: Recorder,
    any_engine: Engine,
    error: type[DisconnectionError],
    times: int,
    first: bool,
) -> None:
    """Once, the connection is replaced; twice, SQLAlchemy gives up: clean in both cases."""
    refusals = [error()] * times

    def refuse(*_: object) -> None:
        if refusals:
            raise refusals.pop()

    target: Any = Pool if first else any_engine
    event.listen(target, "checkout", refuse, insert=True)
    try:
        with guard.scope("job"):
            if times == 1:
                use(any_engine)
            else:
                with pytest.raises(InvalidRequestError, match="closed"):
                    any_engine.connect()
            assert guard.open_holds() == ()
    finally:
        event.remove(target, "checkout", refuse)
    assert recorder.findings == []
    assert len(recorder.holds_released) == len(recorder.holds_acquired)


def test_another_listener_asks_and_the_reconnect_fails(
    guard: LeakGuard, recorder: Recorder, any_engine: Engine
) -> None:
    """A checkout that was noted and then failed is none."""
    use(any_engine)
    recorder.holds_acquired.clear()
    recorder.holds_released.clear()

    @event.listens_for(any_engine, "checkout")
    def refuse(*_: object) -> None:
        event.listen(any_engine, "do_connect", fail)
        raise DisconnectionError

    def fail(*_: object) -> None:
        raise OSError("connection refused")

    with guard.scope("job"), pytest.raises(OSError, match="connection refused"):
        any_engine.connect()
    assert guard.open_holds() == ()
    assert recorder.findings == []
    assert recorder.holds_acquired == recorder.holds_released


@pytest.mark.parametrize("error", [KeyError, KeyboardInterrupt])
def test_another_listener_raises_something_else(
    guard: LeakGuard, recorder: Recorder, any_engine: Engine, error: type[BaseException]
) -> None:
    """Its exception reaches the caller, and the connection is not held by anybody."""

    @event.listens_for(any_engine, "checkout")
    def refuse(*_: object) -> None:
        raise error

    with guard.scope("job"), pytest.raises(error):
        any_engine.connect()
    assert guard.open_holds() == ()
    assert recorder.findings == []


def ended_in_a_block(engine: Engine) -> None:
    def fail() -> None:
        with engine.connect() as connection:
            kill(connection)
            connection.execute(QUERY)

    with pytest.raises(DBAPIError):
        fail()


def used_again(engine: Engine) -> None:
    with engine.connect() as connection:
        kill(connection)
        with pytest.raises(DBAPIError):
            connection.execute(QUERY)
        connection.rollback()
        connection.execute(QUERY)


def used_again_by_a_session(engine: Engine) -> None:
    with Session(engine) as session:
        kill(session.connection())
        with pytest.raises(DBAPIError):
            session.execute(QUERY)
        session.rollback()
        session.execute(QUERY)


def invalidated_by_a_session(engine: Engine) -> None:
    session = Session(engine)
    session.execute(QUERY)
    session.invalidate()


def invalidated_and_used_again(engine: Engine) -> None:
    with engine.connect() as connection:
        connection.execute(QUERY)
        connection.invalidate()
        connection.rollback()
        connection.execute(QUERY)


@pytest.mark.parametrize(
    "work",
    [
        ended_in_a_block,
        used_again,
        used_again_by_a_session,
        invalidated_by_a_session,
        invalidated_and_used_again,
    ],
)
def test_a_database_that_goes_away_in_the_middle(
    guard: LeakGuard, recorder: Recorder, any_engine: Engine, work: Callable[[Engine], None]
) -> None:
    """Code that closes what it opened is clean, whatever the server does."""
    with guard.scope("job"):
        work(any_engine)
    assert recorder.findings == []
    assert guard.open_holds() == ()
    assert set(recorder.holds_acquired) == set(recorder.holds_released)


def test_a_reconnected_connection_that_is_kept_has_leaked(
    guard: LeakGuard, recorder: Recorder, any_engine: Engine
) -> None:
    """The checkout that replaced an invalidated one is a hold like any other."""
    with guard.scope("job"):
        connection = any_engine.connect()
        connection.invalidate()
        connection.execute(QUERY)
    assert recorder.kinds == [FindingKind.LEAKED]
    assert [finding.hold for finding in recorder.findings] == [recorder.holds_acquired[1]]
    connection.close()


def test_recycled_connections_are_clean(
    guard: LeakGuard, recorder: Recorder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A connection that is older than `pool_recycle` is replaced: one hold, given back."""
    engine = create_engine(f"sqlite:///{tmp_path / 'old.db'}", pool_recycle=3600)
    replaced: list[object] = []

    @event.listens_for(engine, "close")
    def replace(connection: object, _: object) -> None:
        replaced.append(connection)

    use(engine)
    recorder.holds_acquired.clear()
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 7200)
    with guard.scope("job"):
        use(engine)
    assert len(replaced) == 1
    assert recorder.findings == []
    assert len(recorder.holds_acquired) == 1
    engine.dispose()


def test_dispose_in_the_middle(guard: LeakGuard, recorder: Recorder, any_engine: Engine) -> None:
    """Connections of before and after a `dispose()` that are closed are clean in any order."""
    with guard.scope("job"):
        before = any_engine.connect()
        any_engine.dispose()
        after = any_engine.connect()
        after.execute(QUERY)
        after.close()
        before.close()
    assert recorder.findings == []
    assert guard.open_holds() == ()
