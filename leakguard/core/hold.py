"""Holds: what was acquired and is not yet released."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from leakguard.core.allow import allowed_block
from leakguard.core.clock import monotonic

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop
    from collections.abc import Iterator
    from types import CodeType

    from leakguard.core.allow import AllowedBlock
    from leakguard.core.callsite import CallSite
    from leakguard.core.finding import PoolUsage
    from leakguard.core.guard import Guard
    from leakguard.core.holder import Holder
    from leakguard.core.scope import Scope
    from leakguard.core.stacks import Stack
    from leakguard.core.workers import Workers


class Hold:
    """A pooled connection from checkout to checkin, or a session from construction to `close()`.

    It keeps nothing of the user's alive: weak references and plain values only. A source
    derives from it to say what only the library knows.

    There is one for every session and every checkout of a healthy request, too. What most of them
    never have is a value of the class; what each is asked for is set in the constructor, because
    Python looks that up faster. Each of the two kinds sets all of it itself: a constructor that
    both run by turns costs a request 2 us more, because Python remembers one class for each line.
    """

    resource: Literal["connection", "session"]
    guard: Guard
    scope: Scope | None
    """The scope it belongs to; `None` where it was acquired outside of any."""
    site: CallSite | None
    pool: str
    """The name of the pool; empty for a session."""
    holder: Holder | None = None
    """The task or thread that acquired it; `None` for the one that opened the scope."""
    acquired_monotonic: float
    released_monotonic: float | None
    collected: bool = False
    """Whether the garbage collector took it before anybody closed it."""
    asynchronous: bool | None = None
    """Whether it is used with `await`; `None` where nobody knows yet."""
    allowed: str | None
    """The reason given to `allow`, which exempts it from findings."""
    outlived_by: str | None = None
    """The work that had it and went on after its scope had ended."""
    waited_for_return: float | None = None
    """Seconds for which somebody might have given it back before it was called leaked."""

    @property
    def created_at(self) -> CallSite | None:
        """Where the session was constructed; `None` where there is no session."""

    @property
    def acquired_at(self) -> CallSite | None:
        """Where the connection was checked out; `None` for a session."""

    @property
    def origin(self) -> CallSite | None:
        """The line to look at first: `created_at`, or `acquired_at` where there is no session."""
        return self.created_at or self.acquired_at

    @property
    def held_for(self) -> float:
        """Seconds from its acquisition to its release, or until now."""
        return self._end - self.acquired_monotonic

    @property
    def idle_for(self) -> float:
        """Seconds since a statement last began on it, or was seen to run, until its release or now.

        Since its acquisition where none did, or where the settings want neither statements nor
        `held`.
        """
        return self.held_for

    @property
    def statement(self) -> str | None:
        """The SQL text of the last statement, where the settings keep it; never its parameters.

        Of a very long one it is the beginning, which ends in an ellipsis.
        """
        return None

    @property
    def in_transaction(self) -> bool | None:
        """Whether a transaction is open on it; `None` where nobody knows."""
        return None

    @property
    def backend_pid(self) -> int | None:
        """The server's process for it, where the driver tells without a round trip."""
        return None

    @property
    def subject(self) -> object:
        """The session or connection itself; `None` where it is gone. Not to be kept."""

    @property
    def open(self) -> bool:
        """Whether it is still out; asks the library, whose word counts more than events."""
        return self.released_monotonic is None

    @property
    def came_back(self) -> bool:
        """Whether it was closed or given back, and not collected."""
        return self.released_monotonic is not None and not self.collected

    def find_session(self) -> None:
        """Find out which session has it by now: called before anything is said about it."""

    @property
    def lost_when_collected(self) -> bool:
        """Whether the garbage collector throws it away instead of giving it back."""
        return False

    @property
    def usage(self) -> PoolUsage | None:
        """How full its pool is now."""
        return None

    @property
    def _end(self) -> float:
        return monotonic() if self.released_monotonic is None else self.released_monotonic

    def __repr__(self) -> str:
        where = self.acquired_at or self.created_at or "an unknown line"
        return f"<Hold {self.resource} from {where}>"


def _reason(block: AllowedBlock, scope: Scope | None) -> str | None:
    """Return the reason of the block of `allow`, unless it is another request's."""
    return block.reason if scope is None or block is not scope.foreign_block else None


def take_out(holds: dict[Hold, None], hold: Hold) -> bool:
    """Take a hold out; `False` where somebody else was first, or it never was there.

    A single operation: of several threads that try at once, one is first.
    """
    return holds.pop(hold, hold) is None  # the value of all that are there


class SessionHold(Hold):
    """An ORM session."""

    resource = "session"
    pool = ""
    closed_by: CodeType | None = None
    """The user's generator that closed it before its first use, because nobody kept it."""
    connection_lost = False
    """Whether one of its connections came to a finding of its own."""

    def __init__(self, guard: Guard, scope: Scope | None, site: CallSite | None) -> None:
        self.guard = guard
        self.scope = scope
        self.site = site
        self.acquired_monotonic = monotonic()
        self.released_monotonic = None
        block = allowed_block.get()
        self.allowed = None if block is None else _reason(block, scope)
        self.times_closed = 0
        self.returns = 0
        """How many of its connections came back since its construction or last close."""
        self.checkouts_ever = 0
        """How many connections it checked out in all."""

    def __deepcopy__(self, memo: dict[int, object]) -> SessionHold:
        """Return itself: a session may be copied, whatever the guard has to do with its own."""
        return self

    @property
    def in_use(self) -> bool:
        """Whether it may have a connection: it is in a transaction, or was lost in one."""
        return self.collected or bool(self.in_transaction)

    @property
    def created_at(self) -> CallSite | None:
        return self.site


class ConnectionHold(Hold):
    """A connection of a pool."""

    resource = "connection"
    by_older_session = False
    """Whether a session checked it out that is older than the guard, so that nothing is known
    of it."""
    sync_in_async = False
    """Whether it is synchronous and was checked out on a thread that runs an event loop."""
    already_held_at: CallSite | None = None
    """Where its scope had checked out another connection of the pool, if it is `nested`."""
    taken_after_close = False
    """Whether its session had been closed before."""
    taken_again = False
    """Whether its session had given a connection back before, by commit or rollback."""
    late_by: float | None = None
    """Seconds from the last byte of the response to its return."""
    statement_text: str | None = None
    idle_since: float | None = None
    """From when on it is judged as idle: at the latest when it was first seen so since it was
    last used. Seconds of `time.monotonic()`."""
    parked = False
    """Whether a task may yet give it back whose event loop stands still, as between two tests."""
    held_reported = False
    """Whether it was reported as held."""
    lifelong = False
    """Whether the application took it as it started, to be kept for as long as it lives."""
    now_at: CallSite | None = None
    """Where those who have it were when it was reported as held."""

    def __init__(self, guard: Guard, scope: Scope | None, site: CallSite | None, pool: str) -> None:
        self.guard = guard
        self.scope = scope
        self.site = site
        self.pool = pool
        self.acquired_monotonic = monotonic()
        self.released_monotonic = None
        self.collected = False
        block = allowed_block.get()
        self.allowed = None if block is None else _reason(block, scope)
        self.session: SessionHold | None = None
        """The session that checked it out."""
        self.nested = False
        """Whether its scope held another connection of the pool when it was checked out."""
        self.used_monotonic: float | None = None
        """When a statement last began on it, or it was seen to be in use; `None` before that."""

    @property
    def created_at(self) -> CallSite | None:
        return None if self.session is None else self.session.site

    @property
    def acquired_at(self) -> CallSite | None:
        return self.site

    @property
    def holders(self) -> Iterator[Holder]:
        """The work other than the scope's own that may give it back: who took it, whose session."""
        for hold in (self, self.session):
            if hold is not None and hold.holder is not None:
                yield hold.holder

    def needs(self, loop: AbstractEventLoop) -> bool:
        """Return whether those who have it are tasks of `loop`, and do not go on without it."""
        if self.guard.has_leaked(self):
            return False
        holders = list(self.holders)
        if any(holder.loop is loop for holder in holders):
            return True
        if any(holder.running() for holder in holders):
            return False
        # As of a dependency that a thread has run: its exit is up to the task of the request.
        loop_ref = None if self.scope is None else self.scope.loop
        return loop_ref is not None and loop_ref() is loop

    @property
    def shared(self) -> bool:
        """Whether several sessions have used it at once, perhaps in several scopes."""
        return False

    @property
    def ambiguous(self) -> bool:
        """Whether several scopes have used it at once, and nobody knows which has it still."""
        return False

    @property
    def session_from_outside(self) -> bool:
        """Whether its session was constructed outside of any scope."""
        session = self.session
        return self.by_older_session if session is None else session.scope is None

    @property
    def last_used(self) -> float:
        """When a statement last began on it, or else it was acquired."""
        used = self.used_monotonic
        return self.acquired_monotonic if used is None else used

    @property
    def idle_for(self) -> float:
        return self._end - self.last_used

    @property
    def surely_idle_for(self) -> float:
        """Seconds since it was first seen idle; the end of a statement is told by nobody."""
        return self._end - max(self.last_used, self.idle_since or 0.0)

    @property
    def executing(self) -> bool:
        """Whether a statement runs on it, or it is known to be busy by other means."""
        return False

    @property
    def executing_for(self) -> float:
        """Seconds since the statement that runs on it began; of one that runs."""
        return 0.0

    @property
    def tells_idleness(self) -> bool:
        """Whether everything that its user may do with it can be noticed."""
        return True

    def used_elsewhere(self, workers: Workers) -> bool:  # noqa: ARG002  (most libraries tell more)
        """Return whether somebody may use it now who is not among those that may have it."""
        return False

    def occupied_by(self, stack: Stack) -> bool:  # noqa: ARG002  (most libraries tell more)
        """Return whether work that is there is busy with the database."""
        return False

    @property
    def statement(self) -> str | None:
        return self.statement_text
