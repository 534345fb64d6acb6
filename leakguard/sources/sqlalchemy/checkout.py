"""A checkout: one connection of an SQLAlchemy pool, and the sessions that use it."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from leakguard.core.clock import monotonic
from leakguard.core.finding import PoolUsage
from leakguard.core.hold import ConnectionHold, SessionHold
from leakguard.sources.sqlalchemy.activity import (
    ANY,
    Execution,
    Stream,
    is_in_database,
    worked_on_in_tasks,
    worked_on_in_threads,
)
from leakguard.sources.sqlalchemy.drivers import (
    backend_pid,
    driver_in_transaction,
    is_active,
    listens,
)
from leakguard.sources.sqlalchemy.pools import PoolFacts, pool_fill

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy.pool import PoolProxiedConnection

    from leakguard.core.callsite import CallSite
    from leakguard.core.hold import Hold
    from leakguard.core.stacks import Stack
    from leakguard.core.workers import Workers


class SessionUse(NamedTuple):
    """The use of a checkout by one of several sessions that share it."""

    session: SessionHold | None
    """`None` for who took it without a session."""
    site: CallSite | None
    """Where that use began."""
    after_close: bool
    """Whether the session had been closed before."""
    again: bool
    """Whether the session had given a connection back before, by commit or rollback."""

    @property
    def goes_on(self) -> bool:
        """Whether its session is known to have the connection still."""
        return self.session is not None and self.session.in_use


class Checkout(ConnectionHold):
    """A connection of an SQLAlchemy pool."""

    ref: Callable[[], PoolProxiedConnection | None]
    """Gives the proxy, of which it is a weak reference; `None` once it has come back."""
    facts: PoolFacts
    record_id: int
    """The `id()` of the pool's entry: two checkouts with the same one are one connection. It is 0
    once that connection has left the pool."""
    proxy_id: int
    """The `id()` of the proxy."""
    detached_id: int | None = None
    """The `id()` of the driver's connection once it has left its pool for good."""
    by_connection = False
    """Whether a `Connection` of SQLAlchemy's took it, a session's included, and no code that has
    the driver's connection to itself."""
    execution: Execution | None = None
    """That of the statement that began last, where the settings want to know."""
    streams: tuple[Stream, ...] = ()
    """Those whose rows the database hands out as they are read, and may still be read."""
    used_in_several = False
    """Whether it was checked out in another scope, too, while it was out."""
    uses: tuple[SessionUse, ...] = ()
    """That of who took it, and those that sessions began meanwhile; empty where there was none."""

    @property
    def subject(self) -> object:
        return self.ref()

    @property
    def open(self) -> bool:
        proxy = self.ref()
        # One that is gone was collected, and the finalizer that says so is yet to run. One that is
        # detached may be invalidated, which closes nothing; that it is closed is told by an event.
        if proxy is None or self.detached_id is not None:
            return self.released_monotonic is None
        return proxy.is_valid

    @property
    def in_transaction(self) -> bool | None:
        if self.session is not None:
            return self.session.in_transaction
        proxy = self.ref()
        return None if proxy is None else driver_in_transaction(proxy.driver_connection)

    @property
    def backend_pid(self) -> int | None:
        proxy = self.ref()
        return None if proxy is None else backend_pid(proxy.driver_connection)

    @property
    def executing(self) -> bool:
        execution = self.execution
        if execution is not None and (execution.running or self._stream_moved()):
            return True
        proxy = self.ref()
        return proxy is not None and is_active(proxy.driver_connection)

    def note_beside(self, connections: dict[Hold, None]) -> None:
        """Note another one of its pool among `connections`, which its scope has out already."""
        other = self._beside(connections)
        if other is not None:
            self.nested = True
            self.already_held_at = other.site

    def _beside(self, connections: dict[Hold, None]) -> Hold | None:
        # Of one that is shared they are one and the same.
        if self.facts.shares or not self.facts.waits:
            return None
        try:  # not in a copy: the first one is one of them, however many there are
            return next((other for other in connections if self._is_beside(other)), None)
        except RuntimeError:  # another thread took one, or gave one back
            others = connections.copy()
            return next((other for other in others if self._is_beside(other)), None)

    def _is_beside(self, other: Hold) -> bool:
        return (
            isinstance(other, Checkout)
            and other is not self
            and other.facts is self.facts
            and other.detached_id is None
            and other.open
        )

    def note_stream(self, stream: Stream) -> None:
        """Keep it while its rows may be read: the database waits for that."""
        before = [one for one in self.streams if one.may_be_read]
        self.streams = (*before, stream)
        stream.follow_result()

    def _stream_moved(self) -> bool:
        moved = [stream.has_moved() for stream in self.streams]  # each is to be asked
        return any(moved)

    @property
    def executing_for(self) -> float:
        return 0.0 if self.execution is None else monotonic() - self.execution.began

    @property
    def tells_idleness(self) -> bool:
        # Whoever has the driver's connection to himself may use it between any two looks.
        if not (self.by_connection and all(stream.tells for stream in self.streams)):
            return False
        proxy = self.ref()
        return proxy is None or not listens(proxy.driver_connection)

    def used_elsewhere(self, workers: Workers) -> bool:
        used = workers.once("threads", worked_on_in_threads)
        for loop in {holder.loop for holder in self.holders}:
            if loop is not None:
                used |= workers.once(loop, partial(worked_on_in_tasks, loop))
        return not used.isdisjoint((self.proxy_id, ANY))

    def occupied_by(self, stack: Stack) -> bool:
        return is_in_database(stack, self.execution)

    @property
    def usage(self) -> PoolUsage | None:
        pool = self.facts.ref()
        if pool is None or self.detached_id is not None:
            return None
        # Not among all that the guard has open: there may be thousands of sessions.
        every = self.facts.out
        of_pool = (hold for hold in every.copy().values() if hold.facts is self.facts)
        seen, same_line = self.facts.census.count(self.guard, self.origin, of_pool, len(every))
        out, capacity = pool_fill(pool)
        if out is not None:  # after a dispose() the old pool counts anew, down from 0
            out = max(out, seen)
        return PoolUsage(out, capacity, max(same_line, int(self.open)))

    @property
    def used_before(self) -> bool:
        """Whether somebody else has it, too: asked as a session begins to use it."""
        proxy: Any = self.ref()
        return proxy is not None and proxy._counter > 1  # noqa: SLF001  (no public way; tested)

    @property
    def shared(self) -> bool:
        return bool(self.uses)

    @property
    def ambiguous(self) -> bool:
        return self.used_in_several and self.session is None

    def use_also(self, session: SessionHold, site: CallSite | None) -> None:
        """Note that `session` begins to use what somebody else has, too."""
        first, *others = self.uses or (self._first_use(),)
        others = [use for use in others if use.goes_on and use.session is not session]
        mine = SessionUse(session, site, session.times_closed > 0, session.returns > 0)
        self.uses = (first, *others, mine)

    def find_session(self) -> None:
        """Of several sessions, link the one that still uses it.

        Of somebody without a session no event tells: that is who has it where no session does.
        """
        if not self.facts.nests or self.came_back:
            return
        uses = self.uses or (self._first_use(),)
        nobody = SessionUse(None, uses[0].site, after_close=False, again=False)
        use = next((use for use in uses if use.goes_on), nobody)
        self.session, self.site, self.taken_after_close, self.taken_again = use

    def _first_use(self) -> SessionUse:
        return SessionUse(self.session, self.site, self.taken_after_close, self.taken_again)

    @property
    def lost_when_collected(self) -> bool:
        return self.facts.is_async or self.detached_id is not None
