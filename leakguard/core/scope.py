"""Scopes: the stretches of work that must give back what they took."""

from __future__ import annotations

from collections import deque
from contextvars import ContextVar
from typing import TYPE_CHECKING, Final, NamedTuple

from leakguard.core.clock import monotonic
from leakguard.core.hold import ConnectionHold, take_out
from leakguard.core.holder import where_work_runs
from leakguard.core.tasks import context_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import CodeType

    from leakguard.core.allow import AllowedBlock
    from leakguard.core.callsite import CallSite, Opener
    from leakguard.core.guard import Guard
    from leakguard.core.hold import Hold
    from leakguard.core.stacks import Stack
    from leakguard.core.tasks import AnyTask
    from leakguard.core.trace import Trace


class Event(NamedTuple):
    """One step in the life of a scope."""

    at: float
    """Seconds after the scope opened."""
    what: str
    """What happened, in the words of a report: `"session constructed"`."""
    where: CallSite | None
    """The user's line that did it, where there is one."""


class EventLog:
    """The first events of a scope, up to a bound."""

    LIMIT: Final = 200

    __slots__ = ("_events", "_opened")

    def __init__(self) -> None:
        self._events: list[Event] = []
        self._opened = monotonic()

    def add(self, what: str, where: CallSite | None = None) -> None:
        """Note that `what` happens now, if there is room for it."""
        if len(self._events) < self.LIMIT:
            self._events.append(Event(monotonic() - self._opened, what, where))

    def all(self) -> tuple[Event, ...]:
        """Return the events in order."""
        return tuple(self._events)


class Tally:
    """Counts sessions by the line that constructed them: it makes the same mistake each time."""

    LIMIT: Final = 100
    """How many unclosed sessions of one line are reported of a scope, at most."""

    __slots__ = ("_counts",)

    def __init__(self) -> None:
        self._counts: dict[CallSite | None, int] = {}

    def too_many(self, session: Hold) -> bool:
        """Count one more, and say whether that is one too many of its line."""
        count = self._counts[session.site] = self._counts.get(session.site, 0) + 1
        return count > self.LIMIT


current_scope: Final[ContextVar[Scope | None]] = ContextVar("leakguard_scope", default=None)
"""The innermost scope; child tasks and threads that copy the context see it, too."""


class Ambient:
    """The scope of whatever is done in none of its own, in any thread, task and context.

    There can be one where the process does one thing after the other, as a run of tests does. The
    context cannot say which it is: event loops, portals and servers have one from long before.
    """

    scope: Scope | None = None


AMBIENT: Final = Ambient()


class Scope:
    """One request, WebSocket connection, test or job. Scopes nest."""

    cancelled = False
    """Whether the work was cancelled."""
    exception: str | None = None
    """The type name of the exception that ended it."""
    handled_outside = False
    """Whether its exception goes to a handler outside of it, who may yet close what it had."""
    endpoint: CodeType | None = None
    """The code of the function that the route names."""
    foreign_block: AllowedBlock | None = None
    """The block of `allow` that is another request's, in whose context this one began."""
    notable: deque[ConnectionHold] | None = None
    """Connections that came back or were collected, about which there is something to say when the
    scope ends. Taking the first one out of a deque is atomic."""
    sessions_collected: Tally | None = None
    """Its sessions that the garbage collector took, because nobody closed them."""
    sessions_unclosed: Tally | None = None
    """Its sessions of which it was found that nobody closed them."""

    def __init__(self, guard: Guard, name: str, type: str) -> None:  # noqa: A002  (the field's name for it)
        self.guard = guard
        self.type: str = type
        """`"http"`, `"websocket"`, `"test"`, `"job"` or what the one who opened it says."""
        self._name = name
        self.status: int | None = None
        """The status of the response; 500 where an exception left the application before one was
        begun, else `None` where none was."""
        self.trace: Trace | None = None
        """The span of OpenTelemetry's in which it does its work, where there is one."""
        self.event_log: EventLog | None = EventLog() if guard.settings.events else None
        """Its events, where the settings keep them."""
        self.iterated = False
        """Whether its block is in a generator that the user's code iterates: between two steps of
        it somebody else is at work, in the same context."""
        self.opener: Opener | None = None
        """The frame that has its block; `None` where it has none, as a request."""
        self.before: Scope | None = None
        """What was current before it, while it is open."""
        self.parent: Scope | None = None
        """The innermost scope around it that had not ended when it began."""
        around = current_scope.get()
        if around is not None:
            self._begin_in(around)
        elif AMBIENT.scope is not None:
            self.parent = AMBIENT.scope
        self.opened_by, self.loop, self.strand = where_work_runs()
        """The `id()` of the task or strand that opened it, else the number of the thread, which
        mean something while it is open; the event loop in which it was opened; and the task of
        trio's or greenlet of gevent's, where it was one."""
        self.opened_at = monotonic()
        """When it began, in seconds of `time.monotonic()`."""
        self.closed_at: float | None = None
        """When it ended, in the same seconds; `None` while it is open."""
        self.responded_at: float | None = None
        """When the last byte of the response was handed to the server, in the same seconds."""
        # In the order of their acquisition. Dicts, because taking one out of a dict is atomic:
        # whoever gets it deals with it. Apart, because sessions may be many.
        self.open_connections: dict[Hold, None] = {}
        self.open_sessions: dict[Hold, None] = {}

    def _begin_in(self, around: Scope) -> None:
        """Begin within another scope, which may have ended."""
        self.parent = parent = nearest_open(around)
        if parent is not None:
            # Ended scopes are cut out of the chain: else a job that starts its successor would keep
            # all its predecessors.
            parent.parent = nearest_open(parent.parent)
            self.foreign_block = parent.foreign_block

    @property
    def name(self) -> str:
        """What a report calls it: `"GET /items/{item_id}"`."""
        return self._name

    @property
    def route(self) -> str | None:
        """The route's full template; `None` outside of a web application."""
        return None

    @property
    def route_known(self) -> bool:
        """Whether it is known which route answers; before that, looking for it takes long."""
        return True

    @property
    def method(self) -> str | None:
        """The HTTP method; `None` outside of HTTP."""
        return None

    @property
    def duration(self) -> float:
        """Seconds from its beginning to its end, or until now."""
        return (monotonic() if self.closed_at is None else self.closed_at) - self.opened_at

    @property
    def trace_id(self) -> str | None:
        """The id of its trace, 32 hexadecimal digits; `None` where OpenTelemetry has no span."""
        return None if self.trace is None else self.trace.trace_id

    @property
    def span_id(self) -> str | None:
        """The id of its span, 16 hexadecimal digits; `None` where OpenTelemetry has none."""
        return None if self.trace is None else self.trace.span_id

    @property
    def events(self) -> tuple[Event, ...]:
        """The lifecycle so far, where the settings keep it."""
        return () if self.event_log is None else self.event_log.all()

    def serves(self, stack: Stack) -> bool:  # noqa: ARG002  (most scopes are the work of one)
        """Return whether work that is there is seen to do what the scope was opened for."""
        return False

    def note(self, hold: ConnectionHold) -> int:
        """Keep one of which there is something to say at the end; return how many there are."""
        # Only now: an empty one has 760 bytes. Atomic, because another thread may be at it, too.
        notable: deque[ConnectionHold] = vars(self).setdefault("notable", deque())
        notable.append(hold)
        return len(notable)

    def take_out(self, hold: Hold) -> bool:
        """Take a hold out; `False` where somebody else was first, or it never was there."""
        return take_out(
            self.open_connections if isinstance(hold, ConnectionHold) else self.open_sessions, hold
        )

    def take_all_out(self) -> list[Hold]:
        """Take out every hold, connections first, unless somebody returns it at this moment."""
        holds = [*self.open_connections.copy(), *self.open_sessions.copy()]
        return [hold for hold in holds if self.take_out(hold)]

    def note_exception(self, error: BaseException) -> None:
        """Write down which exception ended it; the exception itself is not kept."""
        self.exception = type(error).__name__
        # By name, because trio and its exception need not be installed.
        if self.exception in ("CancelledError", "Cancelled"):
            self.cancelled = True

    def __repr__(self) -> str:
        return f"<Scope {self.type} {self.name!r}>"


def scopes_around(task: AnyTask) -> Iterator[Scope]:
    """Yield the scopes from within which `task` was started, the innermost first."""
    context = context_of(task)
    scope = None if context is None else context.get(current_scope)
    if scope is None:
        scope = AMBIENT.scope
    while scope is not None:
        yield scope
        scope = scope.parent


def nearest_open(scope: Scope | None) -> Scope | None:
    """Return `scope`, or the innermost of those around it that has not ended."""
    while scope is not None and scope.closed_at is not None:
        scope = scope.parent
    return scope
