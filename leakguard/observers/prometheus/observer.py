"""The observer: hands what it is told to those who count it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from prometheus_client import REGISTRY, CollectorRegistry

from leakguard.core.observer import Observer, notes, of_connections
from leakguard.core.unresolved import UnresolvedLeaks
from leakguard.observers.prometheus.counting import counted_in
from leakguard.observers.prometheus.metrics import NONE, route_label

if TYPE_CHECKING:
    from leakguard.core.finding import Finding
    from leakguard.core.guard import Guard
    from leakguard.core.hold import Hold
    from leakguard.core.pool import PoolChange, Wait
    from leakguard.core.scope import Scope


class Prometheus(Observer):
    """Counts in a registry of the official client library; the default one if none is given.

    Any number of observers may share a registry: its metrics are made once.
    """

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        """Take the registry.

        Raises `SettingsError` for anything else, and where the registry has metrics of one of
        these names already that are not leakguard's.
        """
        self._counted: Final = counted_in(registry)
        # Of one that overrides it, it is told.
        self._leakguard_asks = {Prometheus.pool_changed} if self._counted.asks_for_pools else ()
        self._unresolved = UnresolvedLeaks(self._count_unresolved)

    # What every request does is written down in as few steps as there can be.

    @notes
    def scope_opened(self, scope: Scope) -> None:
        """Count it as open."""
        counted = self._counted
        counted.scopes.append((scope.type, 1))
        if len(counted.scopes) >= counted.much:
            counted.count_soon(len(counted.scopes))

    @notes
    def scope_closed(self, scope: Scope) -> None:
        """Count it as open no more."""
        counted = self._counted
        counted.scopes.append((scope.type, -1))
        if len(counted.scopes) >= counted.much:
            counted.count_soon(len(counted.scopes))

    @notes
    @of_connections
    def released(self, hold: Hold) -> None:
        """Observe how long the connection was out."""
        ended = hold.released_monotonic
        # One that is handed over to another guard is released there.
        if hold.resource == "connection" and ended is not None:
            counted = self._counted
            counted.returns.append((hold.scope, hold.pool, ended - hold.acquired_monotonic))
            if len(counted.returns) >= counted.much:
                counted.count_soon(len(counted.returns))

    def found(self, finding: Finding) -> None:
        """Count it, and a leak as unresolved, too."""
        scope = finding.scope
        method = None if scope is None else scope.method
        labels = (finding.kind.value, method or NONE, route_label(scope), finding.pool or NONE)
        self._counted.metrics.findings.labels(*labels).inc()
        self._unresolved.found(finding)

    def resolved(self, finding: Finding) -> None:
        """Count the leak as unresolved no more."""
        self._unresolved.resolved(finding)

    def uninstalled(self, guard: Guard) -> None:
        """Follow its leaks no more."""
        self._unresolved.forget(guard)
        self._counted.count()  # who would do it later may go with the guard

    @notes
    def pool_changed(self, change: PoolChange) -> None:
        """Count the connections in the pool and out of it.

        Called in multiprocess mode, and by observers that hand on what they are told.
        """
        counted = self._counted
        counted.changes.append(change)
        if len(counted.changes) >= counted.much:
            counted.count_soon(len(counted.changes))

    @notes
    def waited(self, wait: Wait) -> None:
        """Observe how long a checkout took, or count that it timed out."""
        counted = self._counted
        counted.waits.append(wait)
        if len(counted.waits) >= counted.much:
            counted.count_soon(len(counted.waits))

    def _count_unresolved(self, finding: Finding, change: int) -> None:
        self._counted.metrics.unresolved.labels(finding.pool or NONE).inc(change)
