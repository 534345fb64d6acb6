"""All the ways in which a connection ends, alone and beside others of the same pool entry."""

from __future__ import annotations

import gc
import itertools
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from sqlalchemy import Engine, event, text
from sqlalchemy.pool import (
    AssertionPool,
    NullPool,
    Pool,
    PoolProxiedConnection,
    QueuePool,
    StaticPool,
)

from leakguard import FindingKind, LeakGuard
from leakguard.core.hold import Hold
from leakguard.sources.sqlalchemy import SQLALCHEMY
from tests.sources.pools import ENDS, closed, detached, dropped, invalidated, make_engine
from tests.support import Recorder, core_of, drain_watch

QUERY = text("SELECT 1")
pytestmark = pytest.mark.usefixtures("collected_before")


@pytest.fixture
def static(tmp_path: Path) -> Iterator[Engine]:
    """Return an engine all of whose checkouts are one connection."""
    engine = make_engine(tmp_path, StaticPool)
    yield engine
    engine.dispose()


def remembered() -> dict[str, int]:
    """Count what the source knows of connections."""
    checkouts = SQLALCHEMY._checkouts  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]  # to count
    counts = {name: len(getattr(checkouts, name)) for name in ("out", "_by_record", "_detached")}
    return {name: count for name, count in counts.items() if count}


def end(taken: dict[str, PoolProxiedConnection], name: str, how: Callable[..., None]) -> None:
    """End one of several connections; afterwards nobody refers to it."""
    how(taken.pop(name))


@pytest.mark.parametrize("how", ENDS)
def test_every_end_in_every_pool(
    guard: LeakGuard, recorder: Recorder, any_engine: Engine, how: Callable[..., None]
) -> None:
    """Whatever is ended properly is clean, also where nobody keeps the proxy; the rest is found."""
    with guard.scope("job"):
        for _ in range(3):
            how(any_engine.raw_connection())
    assert recorder.kinds == ([FindingKind.RECLAIMED] * 3 if how is dropped else [])
    recorder.wait_for(lambda: set(recorder.holds_released) == set(recorder.holds_acquired))
    assert len(recorder.holds_released) == 3
    assert remembered() == {}


@pytest.mark.parametrize("how", ENDS)
def test_nothing_piles_up(any_engine: Engine, how: Callable[..., None]) -> None:
    """After a thousand connections that ended in the same way the source remembers none."""
    with LeakGuard(mode="production", observers=[]) as guard:
        for _ in range(1000):
            how(any_engine.raw_connection())
        drain_watch()  # it may be looking whether one is held, and refer to its proxy meanwhile
        assert remembered() == {}
        assert guard.open_holds() == ()


ENDINGS = [
    pytest.param(first, second, order, id=f"{first.__name__}-{second.__name__}-{''.join(order)}")
    for first, second in itertools.product(ENDS, repeat=2)
    for order in ("ab", "ba")
]


def accused(first: Callable[..., None], second: Callable[..., None]) -> list[FindingKind]:
    """Return what is to be found: nothing is held any more once the shared connection is closed."""
    reclaimed = [FindingKind.RECLAIMED]
    return (reclaimed if first is dropped else []) + (
        reclaimed if second is dropped and first not in {invalidated, detached} else []
    )


@pytest.mark.parametrize("first, second, order", ENDINGS)
def test_two_checkouts_of_one_static_connection(  # noqa: PLR0913, PLR0917  (the columns of a table)
    guard: LeakGuard,
    recorder: Recorder,
    static: Engine,
    first: Callable[..., None],
    second: Callable[..., None],
    order: str,
) -> None:
    """Of two that are out at once, exactly those are found that nobody ended."""
    with guard.scope("job"):
        taken = {name: static.raw_connection() for name in "ab"}
        end(taken, order[0], first)
        end(taken, order[1], second)
    assert recorder.kinds == accused(first, second)
    recorder.wait_for(lambda: len(recorder.holds_released) == 2)
    assert remembered() == {}


def test_the_dropped_one_of_three_is_named(
    guard: LeakGuard, recorder: Recorder, static: Engine
) -> None:
    """A finding about one of several checkouts of a connection is about the right one."""
    with guard.scope("job"):
        taken = {name: static.raw_connection() for name in "abc"}
        hold_of = dict(zip("abc", recorder.holds_acquired, strict=True))
        end(taken, "c", dropped)
        end(taken, "a", closed)
    assert [finding.hold for finding in recorder.findings] == [hold_of["b"], hold_of["c"]]
    assert recorder.kinds == [FindingKind.LEAKED, FindingKind.RECLAIMED]
    end(taken, "b", closed)
    recorder.wait_for(lambda: recorder.resolutions)
    assert recorder.resolutions[0].hold is hold_of["b"]


def test_a_refused_checkout_of_a_shared_connection(
    guard: LeakGuard, recorder: Recorder, static: Engine
) -> None:
    """Where a listener refuses the second checkout, SQLAlchemy closes the connection of both."""
    with guard.scope("job"):
        first = static.raw_connection()

        @event.listens_for(static, "checkout")
        def refuse(*_: object) -> None:
            raise KeyError("refused")

        with pytest.raises(KeyError):
            static.raw_connection()
        assert guard.open_holds() == ()
        first.close()
    assert recorder.findings == []
    assert remembered() == {}


@pytest.mark.parametrize("kind", [FindingKind.LEAKED, FindingKind.RECLAIMED])
def test_detached_and_invalidated_is_closed_by_nobody(
    guard: LeakGuard, recorder: Recorder, engine: Engine, kind: FindingKind
) -> None:
    """SQLAlchemy's `invalidate()` does not close a detached connection, whoever keeps what."""
    with guard.scope("job"):
        connection = engine.raw_connection()
        driver_connection = cast("sqlite3.Connection", connection.dbapi_connection)
        connection.detach()
        connection.invalidate()
        assert driver_connection.execute("SELECT 1").fetchone() == (1,)
        kept = [connection] if kind is FindingKind.LEAKED else []
        del connection
    assert recorder.kinds == [kind]
    kept.clear()
    assert remembered() == {}
    driver_connection.close()


def test_a_detached_connection_is_no_nested_checkout(
    guard: LeakGuard, recorder: Recorder, engine: Engine
) -> None:
    """What has left the pool makes nobody wait for the pool."""
    with guard.scope("job"):
        first, second = engine.raw_connection(), engine.raw_connection()
        first.detach()
        recorder.findings.clear()
        second.close()
        third, fourth = engine.raw_connection(), engine.raw_connection()
        for connection in (first, third, fourth):
            connection.close()
    nested = [finding.hold for finding in recorder.findings]
    assert recorder.kinds == [FindingKind.NESTED_CHECKOUT] * 2
    assert nested == [recorder.holds_acquired[1], recorder.holds_acquired[3]]


def test_the_usage_of_a_pool_that_was_disposed_of(
    guard: LeakGuard, recorder: Recorder, engine: Engine
) -> None:
    """After `dispose()` the old pool counts anew; what is really out is told all the same."""
    with guard.scope("job"):
        out = [engine.connect() for _ in range(3)]
        detached_one = engine.connect()
        detached_one.detach()
        engine.dispose()
        out.pop().close()
    leaks = [finding for finding in recorder.findings if finding.kind is FindingKind.LEAKED]
    usages = [leak.usage and leak.usage.out for leak in leaks]
    assert usages == [2, 2, None]  # one has left its pool
    for connection in (*out, detached_one):
        connection.close()


def test_assertion_pools_disposed_of_while_out(
    guard: LeakGuard, recorder: Recorder, tmp_path: Path
) -> None:
    """A pool that raises as its connection comes back late does not keep us from seeing it."""
    engine = make_engine(tmp_path, AssertionPool)
    with guard.scope("job"):
        connection = engine.raw_connection()
        engine.dispose()
        with pytest.raises(AssertionError, match="not checked out"):
            connection.close()
    assert recorder.findings == []
    assert remembered() == {}


def use_and_dispose_twice(engine: Engine) -> None:
    for _ in range(2):
        engine.connect().close()
        engine.dispose()


def test_pools_are_forgotten_with_their_engines(guard: LeakGuard, tmp_path: Path) -> None:
    """An application that makes an engine per tenant does not pile up what we know of them."""
    known = SQLALCHEMY._checkouts.pools.by_number  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]  # to count
    before = len(known)
    with guard.scope("job"):
        for _ in range(50):
            use_and_dispose_twice(make_engine(tmp_path, QueuePool))
    gc.collect()
    assert len(known) == before


def test_looking_for_an_engine_keeps_no_variable_alive(
    guard: LeakGuard, recorder: Recorder, engine: Engine, tmp_path: Path
) -> None:
    """The first checkout of a pool without an engine looks up the whole stack, at no variable."""
    pool = QueuePool(cast("Any", lambda: sqlite3.connect(tmp_path / "alone.db")))
    dropped_here = engine.raw_connection()
    pool.connect().close()
    (still_open,) = guard.open_holds()
    del dropped_here
    assert not still_open.open
    recorder.wait_for(lambda: still_open in recorder.holds_released)
    pool.dispose()


def test_a_hold_that_came_back_is_not_kept(engine: Engine) -> None:
    """A hold goes as soon as no finding and no observer asks for it any more."""
    with LeakGuard(mode="testing", observers=[]) as guard, guard.scope("job"):
        connection = engine.connect()
        connection.close()
        own = core_of(guard)
        assert not [one for one in gc.get_objects() if isinstance(one, Hold) and one.guard is own]


def test_a_detached_connection_whose_server_is_gone(
    guard: LeakGuard, recorder: Recorder, engine: Engine
) -> None:
    """Closing it fails half-way, which is SQLAlchemy's to log; it was closed all the same."""
    with guard.scope("job"):
        connection = engine.raw_connection()
        connection.detach()
        cast("Any", connection.dbapi_connection).close()
        connection.close()
        del connection
    assert recorder.findings == []
    assert remembered() == {}


def test_of_two_guards_each_follows_its_own_detached_connection(tmp_path: Path) -> None:
    """When one guard goes, the other still sees its connection come back."""
    engines = [make_engine(tmp_path, NullPool) for _ in range(2)]
    first, second = (
        LeakGuard(mode="testing", observers=[], engines=[engine]).install() for engine in engines
    )
    connections = [engine.raw_connection() for engine in engines]
    for connection in connections:
        connection.detach()
    first.uninstall()
    assert len(second.open_holds()) == 1
    for connection in connections:
        connection.close()
    assert second.open_holds() == ()
    assert remembered() == {}
    second.uninstall()


def test_a_return_that_no_event_tells_counts(
    guard: LeakGuard, recorder: Recorder, engine: Engine
) -> None:
    """Where somebody has cleared the listeners of an event, the proxy still says what is true."""
    with guard.scope("job"):
        returned, kept = engine.raw_connection(), engine.raw_connection()
        recorder.findings.clear()
        for listener in list(engine.pool.dispatch.checkin):
            event.remove(Pool, "checkin", listener)
        returned.close()
        out = [hold for hold in guard.open_holds() if hold.resource == "connection"]
        assert out == [recorder.holds_acquired[1]]
    leaked = [one.hold for one in recorder.findings if one.kind is FindingKind.LEAKED]
    assert leaked == [recorder.holds_acquired[1]]
    kept.close()
