"""The ledger of a pool comes out even, whoever comes at once and whatever goes wrong."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine
from sqlalchemy.pool import NullPool, Pool, PoolProxiedConnection, QueuePool, StaticPool

from leakguard import LeakGuard, Observer, PoolChange, Wait
from leakguard.sources.sqlalchemy import SQLALCHEMY
from leakguard.sources.sqlalchemy.known_pools import KnownPools
from leakguard.sources.sqlalchemy.ledger import Ledger
from leakguard.sources.sqlalchemy.pools import idle_entries
from tests.support import core_of, drain_watch


class Totals(Observer):
    """An observer that adds up what it is told of pools."""

    def __init__(self) -> None:
        self.idle = self.used = self.limit = 0
        self.waits: list[Wait] = []

    def pool_changed(self, change: PoolChange) -> None:
        self.idle += change.idle
        self.used += change.used
        self.limit += change.limit

    def waited(self, wait: Wait) -> None:
        self.waits.append(wait)

    def now(self) -> tuple[int, int, int]:
        """Give the sums, once all is told."""
        drain_watch()
        return self.idle, self.used, self.limit


@pytest.fixture
def totals() -> Totals:
    return Totals()


def test_a_name_that_is_found_out_when_nobody_is_told() -> None:
    """The next guard is told of it by that name."""
    told: list[PoolChange] = []
    ledger = Ledger(None, "QueuePool", 15, [1])
    ledger.rename("main")
    guard = SimpleNamespace(observers=SimpleNamespace(pool_changed=told.append))
    ledger.join(guard)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]  # a guard that is told
    assert told == [PoolChange("main", 1, 0, 15)]


@pytest.mark.parametrize("pool", [QueuePool, StaticPool, NullPool])
def test_a_pool_has_one_name_from_the_beginning(
    pool: type[Pool], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many libraries have wrapped the method that gives a connection out."""
    connect = Pool.connect

    def wrapped(pool: Pool, depth: int = 20) -> PoolProxiedConnection:
        return wrapped(pool, depth - 1) if depth else connect(pool)

    monkeypatch.setattr(Pool, "connect", wrapped)
    names: set[str] = set()

    class Names(Observer):
        def pool_changed(self, change: PoolChange) -> None:
            names.add(change.pool)

    engine = create_engine(f"sqlite:///{tmp_path / 'named.db'}", poolclass=pool)
    with LeakGuard(mode="testing", observers=[Names()]):
        engine.connect().close()
        drain_watch()
    engine.dispose()
    assert names == {"named.db"}


def test_what_is_closed_before_anybody_looked(engine: Engine, totals: Totals) -> None:
    """A pool of which no event was seen before is not counted for that."""
    engine.connect().close()
    with LeakGuard(mode="production", observers=[totals]):
        engine.dispose()
        assert totals.now() == (0, 0, 0)


def test_a_pool_that_has_the_number_of_one_that_is_gone(engine: Engine, totals: Totals) -> None:
    """It is another pool."""
    pools: Any = SQLALCHEMY._checkouts.pools.by_number  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]  # to exchange them
    with LeakGuard(mode="production", observers=[totals]):
        engine.connect().close()
        old = engine.pool
        engine.dispose()
        pools[id(engine.pool)] = pools[id(old)]
        engine.connect().close()
        assert totals.idle == 1


def test_two_threads_that_see_a_pool_first(
    engine: Engine, totals: Totals, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What one of them has found out counts, and is told once."""
    facts_of: Any = SQLALCHEMY._checkouts.pools.facts_of  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]  # to be there first
    name = "leakguard.sources.sqlalchemy.known_pools.idle_entries"

    def come_first(pool: Any) -> list[int]:
        monkeypatch.setattr(name, idle_entries)
        facts_of(pool, core_of(guard))
        return []

    monkeypatch.setattr(name, come_first)
    with LeakGuard(mode="production", observers=[totals]) as guard:
        engine.connect().close()
        assert totals.now() == (1, 0, 15)


def test_the_child_of_a_fork_counts_nothing_of_its_parent_s(engine: Engine, totals: Totals) -> None:
    """Whatever becomes of its copies: to the observers of the child there were none."""
    with LeakGuard(mode="production", observers=[totals]):
        connection = engine.connect()
        before = totals.now()
        SQLALCHEMY.forget_parent()
        connection.close()
        engine.dispose()
        assert totals.now() == before


@pytest.mark.parametrize(
    "owner, method",
    [
        (Ledger, "taken"),
        (Ledger, "returned"),
        (Ledger, "gone"),
        (KnownPools, "facts_of"),
    ],
)
def test_a_fault_of_ours_reaches_nobody(
    engine: Engine,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    owner: type,
    method: str,
) -> None:
    """Neither who takes a connection nor who gives it back, and the pool loses none."""

    def fail(*_: object) -> None:
        raise KeyError

    monkeypatch.setattr(owner, method, fail)
    with LeakGuard(mode="production", observers=[]):
        for _ in range(20):
            engine.connect().close()
        engine.raw_connection().invalidate()
        engine.raw_connection().detach()
        engine.dispose()
    messages = [one.getMessage() for one in caplog.records if one.levelno == logging.ERROR]
    assert [message.partition(";")[0] for message in messages] == [
        "leakguard's SQLAlchemy source raised KeyError"
    ]
