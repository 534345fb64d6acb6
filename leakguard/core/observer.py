"""Observers: who is told of what the guard sees and decides."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeVar

from leakguard.core.collector import COLLECTOR
from leakguard.core.faults import FROM_OUTSIDE
from leakguard.core.lock import LOCK
from leakguard.core.watch import WATCH

if TYPE_CHECKING:
    from leakguard.core.faults import Faults
    from leakguard.core.finding import Finding
    from leakguard.core.guard import Guard
    from leakguard.core.hold import Hold
    from leakguard.core.pool import PoolChange, Wait
    from leakguard.core.scope import Scope


T = TypeVar("T")


class Observer:
    """Derive from it and override what you want to be told; every method here does nothing.

    The methods are called where things happen, in the request's own task or thread, and must
    not block. In a thread of leakguard's own are called: `resolved`; `found` of what is held;
    whatever only the garbage collector noticed or did; `found` and `released` where a wait reached
    its end or the loop has many tasks; `pool_changed` of a pool whose checkouts share a connection
    or that is gone; and `uninstalled` where the application is gone. Where a verdict waited for a
    task, `found` is called on that task's event loop.
    An observer that raises is logged once and is not called again; the request never notices.
    """

    _leakguard_asks: Container[object] = ()
    """The functions among its methods that it is not told by: it asks instead."""

    def scope_opened(self, scope: Scope) -> None:
        """Tell that a request, connection, test or job begins."""

    def scope_closed(self, scope: Scope) -> None:
        """Tell that a scope ended and was judged; its findings were told before."""

    def acquired(self, hold: Hold) -> None:
        """Tell that a session was constructed or a connection checked out."""

    def released(self, hold: Hold) -> None:
        """Tell that a session was closed or a connection came back, by whatever way."""

    def found(self, finding: Finding) -> None:
        """Tell of a verdict."""

    def resolved(self, finding: Finding) -> None:
        """Tell that the connection of an earlier finding came back after all."""

    def pool_changed(self, change: PoolChange) -> None:
        """Tell that connections of a pool were opened or closed, taken or given back."""

    def waited(self, wait: Wait) -> None:
        """Tell how long a checkout took, or that it timed out."""

    def uninstalled(self, guard: Guard) -> None:
        """Tell that the guard watches nothing any more: no open hold will be told as released."""


FunctionT = TypeVar("FunctionT", bound=Callable[..., None])
_NOTING: Final[set[object]] = set()
_OF_CONNECTIONS: Final[set[object]] = set()


def notes(function: FunctionT) -> FunctionT:
    """Mark a method of an observer of leakguard's own that nobody has to be protected from.

    It writes down what it is told, and never raises. Where it counts that, which takes a lock, it
    does not do so within the garbage collector.
    """
    _NOTING.add(function)
    return function


def of_connections(function: FunctionT) -> FunctionT:
    """Mark a method `released` that has nothing to do with sessions: it is not told of those."""
    _OF_CONNECTIONS.add(function)
    return function


def only_notes(method: Callable[..., None]) -> bool:
    """Return whether a method was marked so; not one of the user's that overrides it."""
    return getattr(method, "__func__", None) in _NOTING


METHODS: Final = (
    "scope_opened",
    "scope_closed",
    "acquired",
    "released",
    "found",
    "resolved",
    "pool_changed",
    "waited",
    "uninstalled",
)
"""The names of the methods of `Observer`."""

ObserverT = TypeVar("ObserverT", bound=Observer)
Tell = Callable[[T], None]
"""Tells all observers who want to know."""


class Observers:
    """The observers of a guard, each isolated from the application and from the others.

    For every method of `Observer` it has a function of the same name that calls all who override
    it, so that what nobody listens to costs next to nothing.
    """

    def __init__(self, observers: Iterable[Observer], faults: Faults) -> None:
        self._observers = list(observers)
        self._faults = faults
        self._arrange()

    def __iter__(self) -> Iterator[Observer]:
        return iter(self._observers)

    def find(self, kind: type[ObserverT]) -> ObserverT | None:
        """Return the first observer of a class."""
        return next((one for one in self._observers if isinstance(one, kind)), None)

    def add(self, observer: Observer) -> None:
        """Tell one more, unless it is told already."""
        with LOCK:
            if observer not in self._observers:
                self._observers = [*self._observers, observer]
                self._arrange()

    def remove(self, observer: Observer) -> bool:
        """Tell one no more; `False` where it was not told any more."""
        with LOCK:  # two that are removed at once would bring one another back
            others = [one for one in self._observers if one is not observer]
            removed = len(others) < len(self._observers)
            self._observers = others
            self._arrange()
        return removed

    def _arrange(self) -> None:
        self.scope_opened: Tell[Scope] = self._tell("scope_opened")
        self.scope_closed: Tell[Scope] = self._tell("scope_closed")
        self.acquired: Tell[Hold] = self._tell("acquired")
        self.released: Tell[Hold] = self._tell("released")
        self.closed: Tell[Hold] = self._tell("released", but=_OF_CONNECTIONS)
        """As `released`, of a session."""
        self.found: Tell[Finding] = self._tell("found")
        self.resolved: Tell[Finding] = self._tell("resolved")
        self.pool_changed: Tell[PoolChange] = self._tell("pool_changed")
        self.waited: Tell[Wait] = self._tell("waited")
        self.uninstalled: Tell[Guard] = self._tell("uninstalled")

    def _tell(self, name: str, but: Container[object] = ()) -> Tell[Any]:
        """Make what tells all those who override a method, but for some marked functions."""
        told = tuple(
            (observer, method)
            for observer, method in self._overriding(name)
            if getattr(method, "__func__", None) not in but
        )
        if not told:
            return tell_nobody
        if len(told) == 1 and only_notes(told[0][1]):  # a call less for what every request does
            return told[0][1]
        collector = COLLECTOR

        def tell(subject: object, *, posted: bool = False) -> None:
            # Where the garbage collector interrupted some code, that may have an observer's lock.
            if collector.thread and not posted and collector.runs_here():
                WATCH.post(partial(tell, subject, posted=True))
                return
            for observer, method in told:
                try:
                    method(subject)
                except FROM_OUTSIDE:
                    raise
                except BaseException as error:  # noqa: BLE001  (whatever a user's code raises)
                    self._disable(observer, error)

        return tell

    def _overriding(self, name: str) -> Iterator[tuple[Observer, Tell[Any]]]:
        for observer in self._observers:
            method = getattr(observer, name)
            function = getattr(method, "__func__", None)
            asks = observer._leakguard_asks  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]  # of leakguard's own
            if function is not getattr(Observer, name) and function not in asks:
                yield observer, method

    def _disable(self, observer: Observer, error: BaseException) -> None:
        if not self.remove(observer):  # it raised in two threads at once
            return
        self._faults.log(
            f"leakguard's observer {type(observer).__name__}",
            error,
            "The observer is not called again.",
        )


def tell_nobody(_: object) -> None:
    """Do nothing: no observer wants to know."""
