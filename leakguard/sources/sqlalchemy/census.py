"""The census of a pool: how many of its connections are out, and from which lines."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Final

from leakguard.core.clock import monotonic

if TYPE_CHECKING:
    from leakguard.core.callsite import CallSite
    from leakguard.core.guard import Guard
    from leakguard.sources.sqlalchemy.checkout import Checkout

MANY: Final = 20
"""With more connections out than these the census is not taken anew each time."""
_PAUSE: Final = 20
"""How many times as long as such a census takes it is from one to the next: a twentieth of the
time."""


class Census:
    """Counts the connections of a pool that are out, for findings, which may be many a second."""

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        self._next = 0.0
        # By `id()`, because this lives as long as the pool. One tuple, since threads may be at it.
        self._last: tuple[Counter[tuple[int, CallSite | None]], Counter[int]]
        self._last = Counter(), Counter()

    def count(
        self, guard: Guard, site: CallSite | None, out: Iterable[Checkout], size: int
    ) -> tuple[int, int]:
        """Return how many connections of the pool `guard` has out, and how many from a line.

        `out` are those of the pool, and `size` tells how many there are to look at. Where they are
        many, it may be what was true a moment ago.
        """
        began = self._clock()
        if size <= MANY or began >= self._next:
            holds = [hold for hold in out if hold.guard.has(hold) and hold.open]
            self._last = (
                Counter((id(hold.guard), hold.origin) for hold in holds),
                Counter(id(hold.guard) for hold in holds if hold.detached_id is None),
            )
            self._next = self._clock() + _PAUSE * (self._clock() - began)
        lines, attached = self._last
        return attached[id(guard)], lines[id(guard), site]
