"""The connections of a pool: which there are, and which of them are out."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from leakguard.core.observer import tell_nobody
from leakguard.core.pool import PoolChange

if TYPE_CHECKING:
    from leakguard.core.guard import Guard


class Ledger:
    """Counts by the pool's entries, each of which has one connection at most.

    It hears every event of the pool, in whatever thread, also from the garbage collector at any
    point of any code: so it takes no lock, and an entry is in the hands of one thread at a time.
    One guard is told, so that no two count the same connection.
    """

    __slots__ = ("_guard", "_limit", "_name", "_opened", "_out", "_returned", "_taken")

    def __init__(
        self, guard: Guard | None, name: str, limit: int | None, idle: Iterable[int]
    ) -> None:
        """Take what the pool may have out at once, and the entries whose connections are in it."""
        self._guard = guard
        self._limit = 0 if limit is None else limit
        self._out = dict.fromkeys(idle, False)
        self._call(name)

    def _call(self, name: str) -> None:
        self._name = name
        self._opened = PoolChange(name, 1, 0, 0)
        self._taken = PoolChange(name, -1, 1, 0)
        self._returned = PoolChange(name, 1, -1, 0)

    # --- who is told ------------------------------------------------------------------------------

    @property
    def guard(self) -> Guard | None:
        """The guard that is told."""
        return self._guard

    def begin(self, idle: int) -> None:
        """Tell what the pool had at the beginning: so many connections, all of them idle."""
        if self._guard is not None:
            self._guard.observers.pool_changed(PoolChange(self._name, idle, 0, self._limit))

    def join(self, guard: Guard) -> None:
        """Tell `guard` from now on."""
        self._guard = guard
        guard.observers.pool_changed(self.all())

    def rename(self, name: str) -> None:
        """Count under another name."""
        guard = self._guard
        self.end()
        self._call(name)
        if guard is not None:
            self.join(guard)

    def end(self) -> None:
        """Tell that all connections are gone, to the guard, and nothing more."""
        guard, self._guard = self._guard, None
        if guard is not None:
            guard.observers.pool_changed(self._all(-1))

    def forget(self) -> None:
        """Tell nothing more: this is the child of a fork, and the connections are the parent's."""
        self._guard = None

    # --- what happens -----------------------------------------------------------------------------

    def entries(self) -> list[int]:
        """List the entries that have a connection."""
        return list(self._out.copy())

    def opened(self, entry: int) -> None:
        """Count a new connection, which is not out yet."""
        if entry not in self._out:
            self._out[entry] = False
            self._tell(self._opened)

    def taken(self, entry: int) -> None:
        """Count a connection that goes out."""
        guard = self._guard
        if guard is None or guard.observers.pool_changed is tell_nobody:  # as nearly always
            self._out[entry] = True
            return
        out = self._out.get(entry)
        if out is None:  # opened before anybody looked
            self._tell(self._opened)
        if not out:
            self._out[entry] = True
            self._tell(self._taken)

    def returned(self, entry: int) -> None:
        """Count a connection that comes back."""
        guard = self._guard
        if guard is None or guard.observers.pool_changed is tell_nobody:
            self._out[entry] = False
            return
        out = self._out.get(entry)
        if out is not False:
            self._out[entry] = False
            self._tell(self._opened if out is None else self._returned)

    def gone(self, entry: int) -> None:
        """Count a connection that is closed, or has left the pool for good."""
        out = self._out.pop(entry, None)
        if out is not None:
            self._tell(PoolChange(self._name, -(not out), -out, 0))

    def all(self) -> PoolChange:
        """Return all that the pool has, as if it had just come."""
        return self._all(1)

    def _all(self, sign: int) -> PoolChange:
        out = list(self._out.copy().values())
        used = sum(out)
        return PoolChange(self._name, sign * (len(out) - used), sign * used, sign * self._limit)

    def _tell(self, change: PoolChange) -> None:
        if self._guard is not None:
            self._guard.observers.pool_changed(change)
