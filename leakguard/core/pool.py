"""Pools as observers see them: how many connections there are, and how long a checkout took."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from leakguard.core.guard import Guard

HOLD_BUCKETS: Final = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
"""Bounds of the histogram of hold times, in seconds."""
WAIT_BUCKETS: Final = (0.0001, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 10, 30, 60)
"""Bounds of the histogram of waits, in seconds: a checkout takes microseconds, and SQLAlchemy's
pools give up after 30 s by default."""


class PoolChange(NamedTuple):
    """By how much the connections of a pool became more, or fewer where it is negative."""

    pool: str
    """The name of the pool; pools of one name are counted together."""
    idle: int
    """Connections that are open and in the pool."""
    used: int
    """Connections that are out."""
    limit: int
    """Connections that the pool may have out at once. It changes when a pool comes or goes, and
    is 0 for one without a limit."""


class Wait(NamedTuple):
    """A checkout, from the call until there was a connection, or the pool gave up."""

    pool: str
    """The name of the pool."""
    seconds: float
    """How long it took, the opening of a new connection included."""
    timed_out: bool
    """Whether the pool had no connection in time, so that the caller got an error instead."""


class PoolState(NamedTuple):
    """What a pool has at a moment, for observers that ask instead of being told of each change."""

    guard: Guard
    """The guard that counts it: no two count the same connection."""
    pool: PoolChange
    """All that it has, as if it had just come."""


def answer_for_pools(states: Callable[[], Iterable[PoolState]]) -> None:
    """Have a source asked for the pools that it knows."""
    _SOURCES.append(states)


def pool_states() -> Iterator[PoolState]:
    """Ask all sources for the pools that they know."""
    for states in _SOURCES:
        yield from states()


_SOURCES: Final[list[Callable[[], Iterable[PoolState]]]] = []
