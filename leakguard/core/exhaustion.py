"""Exhaustion: a pool that had no connection left, who had them, and what that means."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from leakguard.core.callsite import CallSite


class Use(StrEnum):
    """What becomes of a connection that is out."""

    LEAKED = "leaked"
    """It was reported as leaked."""
    KEPT = "kept"
    """Its scope has ended, and it was not reported as leaked: whoever has it goes on, may yet give
    it back, or is exempted by `allow` or `ignore`."""
    WAITING = "waiting"
    """Held while whoever has it waits for another one of the pool."""
    LONG_STATEMENT = "long_statement"
    """Running a statement that began before those who wait in vain began to wait."""
    EXECUTING = "executing"
    """Running a statement."""
    IDLE = "idle"
    """No statement runs, and none began for long, measured by how long others wait."""
    IN_USE = "in_use"
    """Between statements that follow one another."""
    OPENING = "opening"
    """Being opened, or looked at before it is handed out."""
    OUT = "out"
    """Out; whether it is idle is not known, because the settings want nothing of statements."""


class Conclusion(StrEnum):
    """What most of the connections are out for."""

    LEAKS = "leaks"
    """They were never given back."""
    KEPT = "kept"
    """They are kept after the end of their scopes."""
    NESTED = "nested"
    """Those who have them wait for a second one of the same pool."""
    BLOCKED_LOOP = "blocked_loop"
    """Those who have them cannot go on, because a checkout that waits has stopped their loop."""
    IDLE = "idle"
    """They are held across something slow that is not the database."""
    STATEMENTS = "statements"
    """They run statements that take longer than others wait."""
    CONCURRENCY = "concurrency"
    """They are in use: there is more concurrency than there are connections."""
    UNKNOWN = "unknown"
    """Nobody saw who took them."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a pool allows."""

    size: int | None
    """Connections that it keeps; `None` where its class does not say."""
    overflow: int | None
    """Connections beyond those; `None` where there is no limit."""
    timeout: float | None
    """Seconds that a checkout waits; `None` where its class does not say."""


@dataclass(frozen=True, slots=True)
class PoolUsers:
    """Connections, or checkouts that wait, which are alike: their scope, line and use."""

    who: str
    """The name of the scope."""
    site: CallSite | None
    """Where the session was constructed, else the connection checked out; or where it waits."""
    use: Use | None
    """`None` for those that wait."""
    count: int
    longest: float
    """Seconds that the first of them is out, or waits."""
    now_at: CallSite | None = None
    """The line at which most of their owners are now."""


@dataclass(frozen=True, slots=True)
class Exhaustion:
    """A pool that has no connection left."""

    limits: Limits
    out: int
    """Connections out."""
    holders: tuple[PoolUsers, ...]
    """Who has them, as far as that is known; the most first."""
    waiters: tuple[PoolUsers, ...]
    """Who waits, the one that gave up included; the most first."""
    blocks_loop: bool
    """Whether the one that gave up waited on the thread of the event loop that those who have the
    connections need to go on."""
    threads: int | None
    """How many threads AnyIO lets work at once; `None` where nobody knows."""

    @property
    def waiting(self) -> int:
        """How many wait."""
        return sum(group.count for group in self.waiters)

    @property
    def unknown(self) -> int:
        """How many connections are out of which no checkout was seen."""
        return max(0, self.out - sum(group.count for group in self.holders))

    @property
    def conclusion(self) -> Conclusion:
        """What explains the most connections; where two explain as many, what is worse."""
        counts = {one: self.count(*uses) for one, uses in _EXPLAINED_BY.items()}
        conclusion = max(counts, key=lambda one: counts[one])
        if self.unknown > counts[conclusion] or not counts[conclusion]:
            return Conclusion.UNKNOWN
        if self.blocks_loop and conclusion not in _WHATEVER_THE_LOOP_DOES:
            return Conclusion.BLOCKED_LOOP
        return conclusion

    @property
    def main_group(self) -> PoolUsers | None:
        """The group that the conclusion is about most."""
        return self.largest(*_EXPLAINED_BY.get(self.conclusion, ()))

    def count(self, *uses: Use) -> int:
        """Count the connections in these uses."""
        return sum(group.count for group in self.holders if group.use in uses)

    def largest(self, *uses: Use) -> PoolUsers | None:
        """Return the largest group of connections in these uses."""
        return next((group for group in self.holders if group.use in uses), None)


_EXPLAINED_BY: Final = {
    Conclusion.LEAKS: (Use.LEAKED,),
    Conclusion.KEPT: (Use.KEPT,),
    Conclusion.NESTED: (Use.WAITING,),
    Conclusion.IDLE: (Use.IDLE,),
    Conclusion.STATEMENTS: (Use.LONG_STATEMENT,),
    Conclusion.CONCURRENCY: (Use.EXECUTING, Use.IN_USE, Use.OPENING, Use.OUT),
}
"""The worst first."""
_WHATEVER_THE_LOOP_DOES: Final = (Conclusion.LEAKS, Conclusion.KEPT)
"""Nobody of the loop would give them back."""
