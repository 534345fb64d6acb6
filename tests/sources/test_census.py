"""The census of a pool: exact while few connections are out, and cheap when they are many."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import create_engine

from leakguard import LeakGuard
from leakguard.sources.sqlalchemy.census import MANY, Census
from leakguard.sources.sqlalchemy.checkout import Checkout
from tests.support import core_of


class Clock:
    """A clock on which every look at it takes a second."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 1.0
        return self.now


def test_of_many_it_is_taken_for_a_twentieth_of_the_time(guard: LeakGuard, tmp_path: Path) -> None:
    """Every request of an application may leak, and each of them asks."""
    engine = create_engine(f"sqlite:///{tmp_path / 'many.db'}", pool_size=MANY + 10)
    clock = Clock()
    census = Census(clock)

    def count() -> tuple[int, int]:
        holds = [hold for hold in guard.open_holds() if isinstance(hold, Checkout)]
        return census.count(core_of(guard), holds[0].origin, holds, len(holds))

    out = [engine.connect() for _ in range(MANY)]
    assert count() == (MANY, MANY)
    out.append(engine.connect())
    assert count() == (MANY, MANY)
    clock.now += 100.0
    assert count() == (MANY + 1, MANY)  # from another line
    while len(out) > 1:
        out.pop().close()
    assert count() == (1, 1)
    out.pop().close()
    engine.dispose()


def test_a_leak_among_many_counts_itself(guard: LeakGuard, tmp_path: Path) -> None:
    """Though the last census was before it."""
    engine = create_engine(f"sqlite:///{tmp_path / 'many.db'}", pool_size=MANY + 10)
    out = [engine.connect() for _ in range(MANY + 1)]
    hold = guard.open_holds()[0]
    assert isinstance(hold, Checkout)
    hold.facts.census = Census(Clock())
    assert hold.usage is not None
    assert hold.usage.same_line == MANY + 1
    out.append(engine.connect())
    last = guard.open_holds()[-1]
    assert last.usage is not None
    assert (last.usage.out, last.usage.same_line) == (MANY + 2, 1)
    for connection in out:
        connection.close()
    engine.dispose()
