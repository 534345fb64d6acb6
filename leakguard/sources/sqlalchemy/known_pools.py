"""The pools of the process, known from their first event on."""

from __future__ import annotations

import sys
import weakref
from typing import TYPE_CHECKING

from leakguard.core.pool import PoolState
from leakguard.core.watch import WATCH
from leakguard.sources.sqlalchemy.pools import PoolFacts, idle_entries, pool_facts, pool_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy.pool import ConnectionPoolEntry, Pool

    from leakguard.core.guard import Guard
    from leakguard.sources.sqlalchemy.checkout import Checkout
    from leakguard.sources.sqlalchemy.guards import Guards


class KnownPools:
    """What is known of every pool, and which guard counts what it has."""

    def __init__(self, guards: Guards, out: dict[int, Checkout]) -> None:
        """Take the checkouts of the process, by the `id()` of their proxies."""
        self._guards = guards
        self._out = out
        self.by_number: dict[int, PoolFacts] = {}
        """By the `id()` of the pool, which may be that of one that is gone."""

    def facts_of(self, pool: Pool, guard: Guard | None) -> PoolFacts:
        """Return what is known of a pool that does something on this stack; find it out once.

        `guard` counts what it has, where it is new.
        """
        known = self.by_number.get(id(pool))
        frame = sys._getframe(1)  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]  # documented
        if known is not None and known.ref() is pool:
            if known.engine is None:  # it was used without, as for a warm-up
                known.look_for_engine(frame)
            return known
        if known is not None:
            self.by_number.pop(id(pool), None)
        idle = idle_entries(pool)
        facts = pool_facts(pool, frame, self._out, idle, guard)
        # Where two threads come at once, one of them has found out the facts that count.
        first = self.by_number.setdefault(id(pool), facts)
        if first is facts:
            facts.ledger.begin(len(idle))
            weakref.finalize(pool, self._gone, id(pool), facts).atexit = False
        return first

    def of_entry(self, record: ConnectionPoolEntry) -> PoolFacts | None:
        """Return what is known of the pool of an entry; `None` before its first event."""
        pool = pool_of(record)
        facts = self.by_number.get(id(pool))
        return None if facts is None or facts.ref() is not pool else facts

    def states(self) -> Iterator[PoolState]:
        """Say what is in the pools and out of them, of each that a guard counts."""
        for facts in self._all():
            guard = facts.ledger.guard
            if guard is not None:
                yield PoolState(guard, facts.ledger.all())

    def share_out(self) -> None:
        """Tell a guard of every pool that it watches and of which nobody is told."""
        for facts in self._all():
            pool = facts.ref()
            if pool is not None and facts.ledger.guard is None:
                guard, _ = self._guards.guard_for(None, pool)
                if guard is not None:
                    facts.ledger.join(guard)

    def forget(self, guard: Guard) -> None:
        """Tell `guard` that all is gone, and another one what it watches of that."""
        for facts in self._all():
            if facts.ledger.guard is guard:
                facts.ledger.end()
        if self._guards:
            self.share_out()
        else:  # whatever happens from now on is not heard
            self.forget_all()

    def forget_all(self) -> None:
        """Count what pools have from nothing, and tell nobody what becomes of what was counted."""
        for facts in self.by_number.values():
            facts.ledger.forget()
        self.by_number.clear()

    def _all(self) -> list[PoolFacts]:
        return list(self.by_number.copy().values())

    def _gone(self, number: int, facts: PoolFacts) -> None:
        """Run as a finalizer."""
        if self.by_number.get(number) is facts:
            self.by_number.pop(number, None)
        WATCH.post(facts.ledger.end)
