"""Checkouts: connections on their way out of a pool and back.

The identity of a checkout is its proxy, the third argument of the `checkout` event; it is
only ever held weakly. Events say when to look, the proxy says what is true.
"""

from __future__ import annotations

import sys
import weakref
from functools import partial
from sys import modules
from typing import TYPE_CHECKING, Any, NamedTuple

from sqlalchemy.pool import Pool, PoolProxiedConnection, StaticPool, _ConnectionFairy  # pyright: ignore[reportPrivateUsage]  # no public name; tested

from leakguard.core.callsite import locate
from leakguard.core.holder import current_holder
from leakguard.core.lifespan import in_lifespan
from leakguard.core.scope import current_scope
from leakguard.core.tasks import running_loop
from leakguard.core.watch import WATCH
from leakguard.sources.patch import Patch, Placement
from leakguard.sources.sqlalchemy.checkout import Checkout
from leakguard.sources.sqlalchemy.frames import checkout_frame
from leakguard.sources.sqlalchemy.greenlets import parent_stacks
from leakguard.sources.sqlalchemy.guards import Guards
from leakguard.sources.sqlalchemy.known_pools import KnownPools
from leakguard.sources.sqlalchemy.listeners import Listener, report_fault
from leakguard.sources.sqlalchemy.pools import PoolFacts, at_work, pool_of
from leakguard.sources.tracing import TRACING, note_span

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy.engine.interfaces import DBAPIConnection
    from sqlalchemy.pool import ConnectionPoolEntry, PoolResetState

    from leakguard.core.guard import Guard
    from leakguard.core.scope import Scope


class Attribution(NamedTuple):
    """Whose a checkout is, or would be."""

    guard: Guard
    scope: Scope | None
    pool: str
    """The name of the pool."""


class Checkouts:
    """Follows every checkout of every pool. Its listeners never raise, never block, never await."""

    def __init__(self, guards: Guards) -> None:
        self._guards = guards
        self.out: dict[int, Checkout] = {}
        """Every connection that is out of its pool, by the `id()` of its proxy."""
        self._by_record: dict[int, Checkout] = {}
        self._detached: dict[int, tuple[Checkout, ...]] = {}
        self.pools = KnownPools(guards, self.out)
        self._known_pools = self.pools.by_number  # looked up at every checkout
        self.taken_again = Patch(
            _ConnectionFairy, "_checkout_existing", self._wrap_checkout_existing
        )
        self.end_of_detached = Patch(_ConnectionFairy, "_checkin", self._wrap_checkin)
        """In place once a connection was detached, which few programs ever do."""
        self.listeners: tuple[Listener, ...] = (
            (Pool, "connect", self._on_connect),
            (Pool, "checkout", self._on_checkout),
            (Pool, "checkin", self._on_checkin),
            (Pool, "close", self._on_close),
            (Pool, "detach", self._on_detach),
            (StaticPool, "reset", self._on_static_reset),
            (StaticPool, "invalidate", self._on_static_invalidate),
        )

    def attribution_of(self, pool: Pool) -> Attribution | None:
        """Return whose a checkout is that the pool has yet to give."""
        guard, scope = self._guards.guard_for(current_scope.get(), pool)
        if guard is None:
            return None
        return Attribution(guard, scope, self.pools.facts_of(pool, guard).name)

    def of_pool(self, pool: Pool) -> list[Checkout]:
        """List the connections of a pool that are out of it, whatever guard watches them."""
        checkouts: list[Checkout] = list(self.out.copy().values())
        of_pool = [hold for hold in checkouts if hold.facts.ref() is pool]
        return [hold for hold in of_pool if hold.detached_id is None and hold.open]

    def forget(self, guard: Guard) -> None:
        """Follow what belongs to `guard` no more."""
        self.pools.forget(guard)
        for holds in (self.out, self._by_record):
            for key, hold in holds.copy().items():
                if hold.guard is guard:
                    holds.pop(key, None)
        for key, (hold, *_) in self._detached.copy().items():
            if hold.guard is guard:
                self._detached.pop(key, None)

    def forget_parent(self) -> None:
        """Know nothing of what was out at a fork: this is its child."""
        for known in (self.out, self._by_record, self._detached):
            known.clear()
        self.pools.forget_all()

    # --- listeners --------------------------------------------------------------------------------

    def _on_connect(self, dbapi_connection: DBAPIConnection, record: ConnectionPoolEntry) -> None:  # noqa: ARG002  (the event's signature)
        """A pool opens a connection, which counts when it goes out: a listener may refuse it."""
        try:
            pool = pool_of(record)
            guard, _ = self._guards.guard_for(current_scope.get(), pool)
            self.pools.facts_of(pool, guard)
        except Exception as error:  # noqa: BLE001  (the caller must not notice)
            report_fault(error)

    def _on_close(
        self,
        dbapi_connection: DBAPIConnection,  # noqa: ARG002  (the event's signature)
        record: ConnectionPoolEntry,
    ) -> None:
        try:
            facts = self.pools.of_entry(record)
            if facts is not None:
                facts.ledger.gone(id(record))
        except Exception as error:  # noqa: BLE001  (the caller must not notice)
            report_fault(error)

    def _on_checkout(
        self,
        dbapi_connection: DBAPIConnection,  # noqa: ARG002  (the event's signature)
        record: ConnectionPoolEntry,
        proxy: PoolProxiedConnection,
    ) -> None:
        try:
            known = self.out.get(id(proxy))
            if known is not None:  # of this proxy: an entry goes before its number is free
                # Checked out again, after another listener asked for a reconnect. Of a shared
                # connection all checkouts have ended with that.
                known.facts.ledger.taken(known.record_id)
                return
            fairy: Any = proxy  # its class has no public name
            pool: Pool = fairy._pool  # noqa: SLF001  (no public way; tested)
            guard: Guard | None
            scope = current_scope.get()
            if scope is not None and scope.guard.watches_all and not scope.iterated:
                guard = scope.guard  # as `guard_for` says, of most programs
            else:
                guard, scope = self._guards.guard_for(scope, pool)
            if guard is not None:
                self._checked_out(pool, record, proxy, guard, scope)
        except Exception as error:  # noqa: BLE001  (the caller must not notice)
            report_fault(error)

    def _on_checkin(
        self,
        dbapi_connection: DBAPIConnection | None,
        record: ConnectionPoolEntry,
    ) -> None:
        number = id(record)
        hold = self._by_record.pop(number, None)
        try:
            facts = self.pools.of_entry(record) if hold is None else hold.facts
            # Invalidated, it has no connection; of a shared one the event tells nothing.
            if facts is not None and not facts.shares and dbapi_connection is not None:
                facts.ledger.returned(number)
        except Exception as error:  # noqa: BLE001  (raising here loses the connection)
            report_fault(error)
        # The finalizer of a collected proxy has run before, and has said all there is to say.
        if hold is not None and not hold.collected:
            self._came_back(hold)

    def _on_detach(self, dbapi_connection: DBAPIConnection, record: ConnectionPoolEntry) -> None:
        try:
            facts = self.pools.of_entry(record)
            if facts is not None:
                facts.ledger.gone(id(record))
            hold = self._by_record.pop(id(record), None) or self._handled_by_caller()
            if hold is not None and not hold.collected:
                self.end_of_detached.place()
                hold.detached_id = id(dbapi_connection)
                leaving = (hold, *self._sharing(hold))
                self._detached[hold.detached_id] = leaving
                for one in leaving:  # the entry goes, and another one may get its number
                    one.record_id = 0
        except Exception as error:  # noqa: BLE001  (the caller must not notice)
            report_fault(error)

    def _wrap_checkin(
        self, original: Callable[..., None], placement: Placement
    ) -> Callable[..., None]:
        """Notice the end of a connection that has left its pool.

        The event for that, `close_detached`, is not fired where the server is gone.
        """
        detached, came_back = self._detached, self._came_back

        def checkin(self: Any, *args: object, **kwargs: object) -> None:  # noqa: ANN401  (a proxy)
            if not (placement.active or placement.resume()):
                return original(self, *args, **kwargs)
            left_its_pool = self._connection_record is None
            number = id(self.dbapi_connection)
            try:
                return original(self, *args, **kwargs)
            finally:
                if left_its_pool:
                    for hold in detached.pop(number, ()):
                        came_back(hold)

        return checkin

    def _wrap_checkout_existing(
        self, original: Callable[..., Any], placement: Placement
    ) -> Callable[..., Any]:
        """Notice that a pool gives a connection which is out already: no event tells."""
        out, taken_again = self.out, self._taken_again

        def checkout_existing(self: Any) -> Any:  # noqa: ANN401  (a proxy)
            if placement.active or placement.resume():
                taken_again(out.get(id(self)))
            return original(self)

        return checkout_existing

    def _taken_again(self, hold: Checkout | None) -> None:
        if hold is not None:
            hold.facts.nests = True  # also where a pool of the user's does so
            _, scope = self._guards.guard_for(current_scope.get(), hold.facts.ref())
            if scope is not hold.scope:
                hold.used_in_several = True

    def _on_static_reset(
        self,
        dbapi_connection: DBAPIConnection,  # noqa: ARG002  (the event's signature)
        record: ConnectionPoolEntry | None,
        reset_state: PoolResetState,  # noqa: ARG002  (the event's signature)
    ) -> None:
        """One of several checkouts of one connection is being closed."""
        if record is None:  # a detached one
            return
        try:
            hold = self._handled_by_caller()
            if hold is not None:
                self._came_back(hold)
        except Exception as error:  # noqa: BLE001  (raising here invalidates the connection)
            report_fault(error)

    def _on_static_invalidate(
        self,
        dbapi_connection: DBAPIConnection,  # noqa: ARG002  (the event's signature)
        record: ConnectionPoolEntry,
        exception: BaseException | None,  # noqa: ARG002  (the event's signature)
    ) -> None:
        """The connection of several checkouts is closed, and with it all of them."""
        for hold in self._of_shared(id(record)):
            self._came_back(hold)

    # --- out and back -----------------------------------------------------------------------------

    def _checked_out(
        self,
        pool: Pool,
        record: ConnectionPoolEntry,
        proxy: PoolProxiedConnection,
        guard: Guard,
        scope: Scope | None,
    ) -> None:
        facts = self._known_pools.get(id(pool))
        if facts is None or facts.engine is None or facts.ref() is not pool:
            facts = self.pools.facts_of(pool, guard)
        frame, by_connection = checkout_frame()
        opener = None if scope is None else scope.opener
        site, nearest = locate(frame, guard.settings.frames, parent_stacks, opener)
        hold = Checkout(guard, scope, site, facts.name)
        hold.facts = facts
        hold.asynchronous = facts.is_async
        hold.by_connection = by_connection
        hold.record_id = record_id = id(record)
        hold.proxy_id = number = id(proxy)
        hold.ref = weakref.ref(proxy, partial(self._proxy_gone, number))
        if scope is None:
            hold.holder = current_holder(None, nearest)
            hold.lifelong = in_lifespan()
        else:
            if TRACING in modules:
                note_span(scope)
            hold.holder = current_holder(scope, nearest)
            if scope.open_connections:
                hold.note_beside(scope.open_connections)
            hold.sync_in_async = not facts.is_async and running_loop() is not None
        self.out[number] = hold
        if facts.shares:  # the record does not tell which of them is meant
            facts.ledger.opened(record_id)
            WATCH.post(partial(self._recount_shared, facts))
        else:
            self._by_record[record_id] = hold
            facts.ledger.taken(record_id)
        guard.checked_out(hold)

    def place(self, hold: Checkout, scope: Scope) -> None:
        """Note anew who has `hold`, and what was there before it, now that it is `scope`'s."""
        hold.holder = current_holder(scope)
        hold.nested = False
        hold.already_held_at = None
        hold.note_beside(scope.open_connections)

    def _recount_shared(self, facts: PoolFacts) -> None:
        """Run by the watch, where nobody else recounts at the same time."""
        pool = facts.ref()
        present = id(None if pool is None else vars(pool).get("connection"))
        ledger = facts.ledger
        for record in ledger.entries():
            if self._of_shared(record):
                ledger.taken(record)
            elif record == present:
                ledger.returned(record)
            else:  # the pool has replaced it, and forgotten it without a word
                ledger.gone(record)

    def _came_back(self, hold: Checkout) -> None:
        self.out.pop(hold.proxy_id, None)
        hold.ref = _nothing  # the proxy may be collected from now on
        try:
            if hold.facts.shares:
                WATCH.post(partial(self._recount_shared, hold.facts))
            if hold.session is not None:
                hold.session.returns += 1
            hold.guard.came_back(hold)
        except Exception as error:  # noqa: BLE001  (raising in a listener loses the connection)
            report_fault(error)

    def _sharing(self, hold: Checkout) -> list[Checkout]:
        """List the other checkouts of the same connection."""
        if not hold.facts.shares:
            return []
        return [other for other in self._of_shared(hold.record_id) if other is not hold]

    def _of_shared(self, record_id: int) -> list[Checkout]:
        """List the checkouts of a connection that several share: closed, all of them are."""
        checkouts = self.out.copy().values()
        return [one for one in checkouts if one.facts.shares and one.record_id == record_id]

    def _handled_by_caller(self) -> Checkout | None:
        """Find the checkout whose proxy SQLAlchemy is at work on: its events do not tell."""
        frame = sys._getframe(2)  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]  # documented
        proxies = (one for one in at_work(frame) if isinstance(one, PoolProxiedConnection))
        proxy = next(proxies, None)
        hold = self.out.get(id(proxy))
        # It is another proxy where a collected one is cleaned up after.
        return hold if hold is not None and hold.ref() is proxy else None

    def _proxy_gone(self, number: int, _: object) -> None:
        """Run as a finalizer: at any point of any code, without a lock and with few allocations."""
        # The number is free for another object only after this, so that the entry is its own.
        hold = self.out.pop(number, None)
        if hold is not None and hold.released_monotonic is None:
            if hold.detached_id is not None:
                self._detached.pop(hold.detached_id, None)
            if hold.facts.shares:
                WATCH.post(partial(self._recount_shared, hold.facts))
            hold.guard.collected(hold)


def _nothing() -> None:
    """Stand for a reference to a proxy that has nothing any more."""
