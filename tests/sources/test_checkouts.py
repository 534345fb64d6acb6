"""Connections leave pools of every class and come back in every way."""

from __future__ import annotations

import gc
import random
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from sqlalchemy import Engine, Pool, create_engine, event, text
from sqlalchemy.exc import DisconnectionError
from sqlalchemy.orm import Session
from sqlalchemy.pool import (
    NullPool,
    PoolProxiedConnection,
    QueuePool,
    SingletonThreadPool,
    StaticPool,
)

from leakguard import FindingKind, LeakGuard
from leakguard.core.callsite import relative_path
from leakguard.core.hold import ConnectionHold, Hold
from leakguard.sources.sqlalchemy import SQLALCHEMY, frames
from leakguard.sources.sqlalchemy.sessions import TrackedSession
from tests.support import Recorder, core_of, line_marked

HERE = sys.modules[__name__]

pytestmark = pytest.mark.usefixtures("collected_before")


def test_what_is_closed_is_clean(guard: LeakGuard, recorder: Recorder, any_engine: Engine) -> None:
    """A connection that is closed leads to no finding."""
    with guard.scope("job"):
        for _ in range(3):
            with any_engine.connect() as connection:
                connection.execute(text("SELECT 1"))
            raw = any_engine.raw_connection()
            raw.close()
    assert recorder.findings == []
    assert recorder.holds_acquired == recorder.holds_released
    assert guard.open_holds() == ()


def test_what_is_kept_has_leaked(guard: LeakGuard, recorder: Recorder, any_engine: Engine) -> None:
    """A connection that is still out is found, and resolved when it is closed after all."""
    with guard.scope("job"):
        connection = any_engine.connect()
    assert recorder.kinds == [FindingKind.LEAKED]
    connection.close()
    recorder.wait_for(lambda: recorder.resolutions)
    assert guard.open_holds() == ()


def test_nested_connects_of_one_thread_are_one_checkout(
    guard: LeakGuard, recorder: Recorder, tmp_path: Path
) -> None:
    """A `SingletonThreadPool` gives its thread the connection that it has."""
    engine = create_engine(f"sqlite:///{tmp_path / 'one.db'}", poolclass=SingletonThreadPool)
    with guard.scope("job"), engine.connect(), engine.connect():
        pass
    assert recorder.findings == []
    assert len(recorder.holds_acquired) == 1
    engine.dispose()


def test_checkouts_of_one_static_connection_are_not_nested(
    guard: LeakGuard, recorder: Recorder
) -> None:
    """Two checkouts of the same connection cannot wait for each other."""
    engine = create_engine("sqlite://", poolclass=StaticPool)
    with guard.scope("job"), engine.connect(), engine.connect():
        pass
    assert recorder.findings == []
    engine.dispose()


@pytest.mark.parametrize("seed", range(25))
def test_a_static_pool_tells_its_checkouts_apart(
    guard: LeakGuard, recorder: Recorder, seed: int
) -> None:
    """However many are out at once and in whatever order they go, the dropped ones are named."""
    rng = random.Random(seed)  # noqa: S311  (a test's dice)
    engine = create_engine("sqlite://", poolclass=StaticPool)
    kept: list[PoolProxiedConnection] = []
    out: list[PoolProxiedConnection] = []
    dropped = 0
    with guard.scope("job"):
        for _ in range(30):
            action = rng.choice(["take", "take", "close", "close and keep", "drop"])
            if action == "take" or not out:
                out.append(engine.raw_connection())
                continue
            connection = out.pop(rng.randrange(len(out)))
            if action == "drop":
                dropped += 1
            else:
                connection.close()
            if action == "close and keep":
                kept.append(connection)
            del connection
    kinds = recorder.kinds
    assert kinds.count(FindingKind.RECLAIMED) == dropped
    assert kinds.count(FindingKind.LEAKED) == len(out)
    assert len(kinds) == dropped + len(out)
    for connection in out:
        connection.close()
    assert guard.open_holds() == ()
    engine.dispose()


def test_detached_and_kept_has_leaked(guard: LeakGuard, recorder: Recorder, engine: Engine) -> None:
    """A detached connection has left its pool, and somebody must close it all the same."""
    with guard.scope("job"):
        connection = engine.raw_connection()
        connection.detach()
    assert recorder.kinds == [FindingKind.LEAKED]
    connection.close()
    recorder.wait_for(lambda: recorder.resolutions)


def test_detached_and_dropped_is_reclaimed(
    guard: LeakGuard, recorder: Recorder, engine: Engine
) -> None:
    """A detached connection that is dropped fires no event, and is found."""
    with guard.scope("job"):
        engine.raw_connection().detach()
    assert recorder.kinds == [FindingKind.RECLAIMED]
    hold = recorder.findings[0].hold
    assert hold is not None
    assert hold.lost_when_collected


def test_dispose_while_out_is_clean(guard: LeakGuard, recorder: Recorder, engine: Engine) -> None:
    """A connection of a pool that was disposed of meanwhile is closed like any other."""
    with guard.scope("job"):
        connection = engine.connect()
        engine.dispose()
        with engine.connect():
            pass
        connection.close()
    assert recorder.findings == []


def test_a_reconnect_that_a_listener_asks_for_is_one_checkout(
    guard: LeakGuard, recorder: Recorder, engine: Engine
) -> None:
    """`DisconnectionError` fires the event twice for one proxy: one hold, one return."""
    refusals = [DisconnectionError()]

    @event.listens_for(engine, "checkout")
    def refuse_once(*_: object) -> None:
        if refusals:
            raise refusals.pop()

    with guard.scope("job"), engine.connect():
        pass
    assert recorder.findings == []
    assert len(recorder.holds_acquired) == 1
    assert guard.open_holds() == ()


def test_a_checkout_that_a_listener_refuses_is_no_hold(
    guard: LeakGuard, recorder: Recorder, engine: Engine
) -> None:
    """Another listener's exception reaches the caller, and nothing stays open."""

    @event.listens_for(engine, "checkout")
    def refuse(*_: object) -> None:
        raise KeyError("refused")

    with guard.scope("job"), pytest.raises(KeyError, match="refused"):
        engine.connect()
    assert recorder.findings == []
    assert guard.open_holds() == ()


def test_a_failed_connect_is_no_hold(guard: LeakGuard, recorder: Recorder, engine: Engine) -> None:
    """A `checkin` without a `checkout` is nothing to us."""
    with engine.connect() as connection:
        connection.invalidate()

    @event.listens_for(engine, "connect")
    def fail(*_: object) -> None:
        raise OSError("no route to host")

    with guard.scope("job"), pytest.raises(OSError, match="no route"):
        engine.connect()
    assert guard.open_holds() == ()
    assert recorder.findings == []


def test_a_pool_without_an_engine_is_named_after_its_class(
    guard: LeakGuard, recorder: Recorder, tmp_path: Path
) -> None:
    """A pool that somebody uses on its own is watched, and has some name."""
    import sqlite3  # noqa: PLC0415  (only here)

    pool = QueuePool(lambda: sqlite3.connect(tmp_path / "alone.db"))  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]  # a DBAPI connection, in older words
    with guard.scope("job"):
        connection = pool.connect()
    assert [finding.pool for finding in recorder.findings] == ["QueuePool"]
    connection.close()
    pool.dispose()


def test_a_second_connection_is_a_nested_checkout(
    guard: LeakGuard, recorder: Recorder, engine: Engine
) -> None:
    """Two connections of one pool at once are worth a notice, on the second one."""
    with guard.scope("job"), engine.connect() as first, engine.connect() as second:
        assert first is not second
    assert recorder.kinds == [FindingKind.NESTED_CHECKOUT]
    assert recorder.findings[0].hold is recorder.holds_acquired[1]


class Unlisted(dict[Hold, None]):
    """Holds that nobody may go through."""

    def __iter__(self) -> Iterator[Hold]:
        raise AssertionError("all of them")

    copy = __iter__  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]  # nor this way


def test_a_checkout_does_not_look_at_sessions(
    guard: LeakGuard, engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    """A scope may have thousands that hold no connection, as that of a WebSocket may."""
    with guard.scope("job") as scope:
        session = Session(engine)
        holds, scope.open_sessions = scope.open_sessions, Unlisted(scope.open_sessions)
        with engine.connect() as connection:
            assert [hold.resource for hold in scope.open_connections] == ["connection"]
            assert connection.connection.is_valid
        assert not scope.open_connections
        scope.open_sessions = holds
        session.close()
    assert caplog.records == []


class Changing(dict[Hold, None]):
    """Holds of which another thread gives some back while they are gone through."""

    def __iter__(self) -> Iterator[Hold]:
        raise RuntimeError("dictionary changed size during iteration")


def test_connections_may_come_and_go_during_a_checkout(
    guard: LeakGuard, recorder: Recorder, engine: Engine
) -> None:
    """Whether there is another one out is found all the same."""
    with guard.scope("job") as scope, engine.connect():
        scope.open_connections = Changing(scope.open_connections)
        with engine.connect():
            pass
    assert recorder.kinds == [FindingKind.NESTED_CHECKOUT]


def test_connections_of_two_pools_are_not_nested(
    guard: LeakGuard, recorder: Recorder, engine: Engine, tmp_path: Path
) -> None:
    """One connection each of two pools is no deadlock in the making."""
    other = create_engine(f"sqlite:///{tmp_path / 'other.db'}")
    with guard.scope("job"), engine.connect(), other.connect():
        pass
    assert recorder.findings == []
    other.dispose()


def test_connections_of_two_scopes_are_not_nested(
    guard: LeakGuard, recorder: Recorder, engine: Engine
) -> None:
    """Each scope counts for itself: requests that run at once have a connection each."""
    with guard.scope("one"), engine.connect(), guard.scope("another"), engine.connect():
        pass
    assert recorder.findings == []


def test_one_connection_after_the_other_is_not_nested(
    guard: LeakGuard, recorder: Recorder, engine: Engine
) -> None:
    """A scope may take as many connections as it likes, one at a time."""
    with guard.scope("job"):
        for _ in range(3):
            with engine.connect():
                pass
    assert recorder.findings == []


def test_a_leak_tells_how_full_the_pool_is(
    guard: LeakGuard, recorder: Recorder, tmp_path: Path
) -> None:
    """The report counts what is out, what may be, and how much of it is from the same line."""
    engine = create_engine(f"sqlite:///{tmp_path / 'full.db'}", pool_size=3, max_overflow=2)
    with guard.scope("job"):
        kept = [engine.connect() for _ in range(2)]
        kept.append(engine.connect())
    (usage,) = {finding.usage for finding in recorder.findings if finding.usage.same_line == 1}  # type: ignore[union-attr]  # pyright: ignore[reportOptionalMemberAccess]  # every connection has one
    assert usage is not None
    assert (usage.out, usage.capacity) == (3, 5)
    for connection in kept:
        connection.close()
    engine.dispose()


def test_a_leak_does_not_look_at_sessions(
    guard: LeakGuard, recorder: Recorder, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What fills the pool is counted, and nothing else that is open."""

    def look(_: object) -> bool:
        looked.append(1)
        return True

    looked: list[int] = []
    sessions = [Session(engine) for _ in range(10)]
    monkeypatch.setattr(TrackedSession, "open", property(look))
    with guard.scope("job"):
        connection = engine.connect()
    assert [finding.usage and finding.usage.same_line for finding in recorder.findings] == [1]
    assert looked == []
    connection.close()
    for session in sessions:
        session.close()


def test_what_was_forgotten_fills_no_line(
    guard: LeakGuard, recorder: Recorder, engine: Engine
) -> None:
    """As the child of a fork forgets what its parent had out, and may take more from that line."""
    out: list[PoolProxiedConnection] = []
    for name in ("parent", "child"):
        core_of(guard).forget()
        with guard.scope(name):
            out.append(engine.raw_connection())
    assert [finding.usage and finding.usage.same_line for finding in recorder.findings] == [1, 1]
    for connection in out:
        connection.close()


@pytest.mark.parametrize(
    "options",
    [{"poolclass": NullPool}, {"pool_size": 1, "max_overflow": -1}, {"poolclass": QueuePool}],
    ids=str,
)
def test_what_never_waits_for_a_connection_is_no_deadlock(
    guard: LeakGuard, recorder: Recorder, tmp_path: Path, options: dict[str, Any]
) -> None:
    """A second connection of one scope is worth a notice where it may have to be waited for."""
    engine = create_engine(f"sqlite:///{tmp_path / 'unlimited.db'}", **options)
    with guard.scope("job"), engine.connect(), engine.connect():
        pass
    waits = options.get("poolclass") is QueuePool
    assert recorder.kinds == ([FindingKind.NESTED_CHECKOUT] if waits else [])
    engine.dispose()


@pytest.mark.parametrize(
    "options", [{"poolclass": NullPool}, {"pool_size": 1, "max_overflow": -1}], ids=str
)
def test_a_pool_without_a_limit_has_no_capacity(
    guard: LeakGuard, recorder: Recorder, tmp_path: Path, options: dict[str, Any]
) -> None:
    """Where a pool has no limit, or does not count, the report claims none."""
    engine = create_engine(f"sqlite:///{tmp_path / 'unlimited.db'}", **options)
    with guard.scope("job"):
        connection = engine.connect()
    usage = recorder.findings[0].usage
    assert usage is not None
    assert usage.capacity is None
    connection.close()
    engine.dispose()


class NamesItsLimit(NullPool):
    """A pool of the user's that means something else by the name of SQLAlchemy's."""

    _max_overflow = "none"


def test_whatever_a_pool_says_of_its_limit_it_is_watched(
    guard: LeakGuard, recorder: Recorder, tmp_path: Path
) -> None:
    """What cannot be understood is no reason to know nothing."""
    file = tmp_path / "own.db"
    engine = create_engine(f"sqlite:///{file}", poolclass=NamesItsLimit)
    with guard.scope("job"):
        connection = engine.connect()
    assert recorder.kinds == [FindingKind.LEAKED]
    connection.close()


class CountsByTenant(QueuePool):
    """A pool of the user's, with a `checkedout()` of its own."""

    def checkedout(self, tenant: str) -> int:  # type: ignore[override]  # pyright: ignore[reportIncompatibleMethodOverride]  # the point
        """Count those of one tenant."""
        return len(tenant)

    def status(self) -> str:
        """Return which pool it is."""
        return "by tenant"


def test_a_pool_that_counts_in_its_own_way_has_no_usage(
    guard: LeakGuard, recorder: Recorder, tmp_path: Path
) -> None:
    """A leak is found also where its pool's class cannot be asked how full it is."""
    engine = create_engine(f"sqlite:///{tmp_path / 'own.db'}", poolclass=CountsByTenant)
    with guard.scope("job"):
        connection = engine.connect()
    assert recorder.kinds == [FindingKind.LEAKED]
    usage = recorder.findings[0].usage
    assert usage is not None
    assert (usage.out, usage.capacity) == (None, None)
    connection.close()
    engine.dispose()


def test_a_pool_that_is_gone_has_no_usage(guard: LeakGuard, recorder: Recorder) -> None:
    """A finding does not keep an engine or its pool alive."""
    engine = create_engine("sqlite://")
    pool: Pool = engine.pool
    with guard.scope("job"):
        connection = engine.connect()
    hold = recorder.findings[0].hold
    assert hold is not None
    assert hold.usage is not None
    connection.close()
    engine.dispose()
    del connection, engine, pool
    gc.collect()
    assert hold.usage is None


def test_a_fault_of_ours_does_not_reach_the_caller(
    guard: LeakGuard,
    engine: Engine,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Whatever goes wrong in our listeners is logged once, and the application goes on."""

    def fail(*_: object) -> None:
        raise RuntimeError("a fault")

    checkouts = SQLALCHEMY._checkouts  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]  # to break it
    static = create_engine("sqlite://", poolclass=StaticPool)
    with guard.scope("job"), static.connect(), static.connect():
        monkeypatch.setattr(checkouts.pools, "facts_of", fail)
        monkeypatch.setattr(checkouts, "_handled_by_caller", fail)
        for _ in range(2):
            with engine.connect() as connection:
                assert connection.execute(text("SELECT 1")).scalar() == 1
                connection.detach()
    faults = [record for record in caplog.records if record.name == "leakguard"]
    assert len(faults) == 1
    assert all("not affected" in record.getMessage() for record in faults)
    static.dispose()


def test_another_driver_s_connection_has_no_pid(
    guard: LeakGuard, recorder: Recorder, engine: Engine
) -> None:
    """SQLite has no server process; what a dead connection knows is not asked."""
    with guard.scope("job"):
        connection = engine.connect()
    hold = recorder.findings[0].hold
    assert hold is not None
    assert hold.backend_pid is None
    assert hold.in_transaction is None
    connection.close()
    del connection
    gc.collect()
    assert hold.backend_pid is None
    assert hold.in_transaction is None


def test_invalidating_one_static_checkout_ends_them_all(
    guard: LeakGuard, recorder: Recorder, engine: Engine
) -> None:
    """They are one connection; those of other pools are not concerned."""
    static = create_engine("sqlite://", poolclass=StaticPool)
    with guard.scope("job"):
        other = engine.connect()
        first, second = static.raw_connection(), static.raw_connection()
        first.invalidate()
        assert {hold.pool for hold in guard.open_holds()} == {"main"}
        second.close()
        other.close()
    assert recorder.findings == []
    static.dispose()


def test_faults_of_ours_in_statements_and_returns_reach_nobody(
    guard: LeakGuard, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The statement is executed, and the pool has its connection back."""

    def fail(*_: object) -> None:
        raise RuntimeError("a fault")

    with engine.connect() as connection:
        monkeypatch.setattr("leakguard.sources.sqlalchemy.statements.begin_execution", fail)
        monkeypatch.setattr(core_of(guard), "came_back", fail)
        assert connection.execute(text("SELECT 1")).scalar() == 1
    assert "Connections in pool: 1" in engine.pool.status()


def test_a_statement_without_a_context_is_sqlalchemy_s_own(guard: LeakGuard) -> None:
    """There is no connection that it could be noted for."""
    statements = SQLALCHEMY._statements  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]  # the listener
    statements._on_statement(None, "SELECT 1", None)  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]  # as SQLAlchemy calls it
    assert guard.open_holds() == ()


def test_an_installed_application_is_named_and_not_the_script_that_starts_it(
    guard: LeakGuard, recorder: Recorder, engine: Engine
) -> None:
    """It opens the scope itself, and the script has no part in what happens in it."""
    file = f"{sysconfig.get_path('purelib')}/the_application/jobs.py"
    code = "with guard.scope('job'):\n db = Session(engine)\n db.connection()\nkept.append(db)"
    kept: list[Session] = []
    names = {"guard": guard, "engine": engine, "Session": Session, "kept": kept}
    exec(compile(code, file, "exec"), {"__name__": "the_application.jobs", **names})  # noqa: S102  (text of the test)
    (hold,) = (finding.hold for finding in recorder.findings)
    assert hold is not None
    where = relative_path(file)
    assert str(hold.created_at) == f"{where}:2 in <module>"
    assert str(hold.acquired_at) == f"{where}:3 in <module>"
    kept.pop().close()


class OwnEngine(Engine):
    """An engine that gets its connections in a way of its own."""

    def raw_connection(self) -> PoolProxiedConnection:
        return self.pool.connect()  # in a way of its own


def test_an_engine_may_get_its_connections_in_its_own_way(
    guard: LeakGuard, recorder: Recorder, engine: Engine
) -> None:
    """Whoever wrote that is the user, whatever method of the session came to it."""
    own = OwnEngine(engine.pool, engine.dialect, engine.url)
    for executes in (True, False):
        recorder.findings.clear()
        with guard.scope("job"):
            session = Session(own)
            if executes:
                session.execute(text("SELECT 1"))
            else:
                session.connection()
        (finding,) = recorder.findings
        assert isinstance(finding.hold, ConnectionHold)
        assert finding.hold.acquired_at is not None
        assert finding.hold.acquired_at.line == line_marked(HERE, "in a way of its own")
        assert not finding.hold.tells_idleness
        session.close()


@pytest.mark.parametrize("method", ["execute", "scalar", "scalars"])
def test_the_way_from_a_session_to_its_checkout_is_known(
    guard: LeakGuard, engine: Engine, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    """In every version of SQLAlchemy: to walk it frame by frame takes much longer."""
    walked: list[FrameType] = []

    def walk(frame: FrameType) -> bool:
        walked.append(frame)
        return True

    monkeypatch.setattr(frames, "_is_of_connection", walk)
    with Session(engine) as session:
        getattr(session, method)(text("SELECT 1"))
    assert not walked
    with Session(engine) as session:  # another way, which is walked
        session.connection()
    assert len(walked) == 1
