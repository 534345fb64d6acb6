"""Sessions: constructed, linked to their checkouts, closed.

There is no event for the construction or the `close()` of a session, nor for `invalidate()` and
`reset()`, which end its work, too: `__init__` and the method that does the work of those three are
wrapped while a guard is installed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy.engine import Connection
from sqlalchemy.orm import Session
from sqlalchemy.pool import Pool

from leakguard.core.callsite import capture
from leakguard.core.hold import SessionHold
from leakguard.core.holder import current_holder
from leakguard.core.scope import current_scope
from leakguard.core.tasks import current_task
from leakguard.sources.patch import Patch
from leakguard.sources.sqlalchemy.checkout import Checkout
from leakguard.sources.sqlalchemy.checkouts import Checkouts
from leakguard.sources.sqlalchemy.greenlets import parent_stacks
from leakguard.sources.sqlalchemy.guards import Guards
from leakguard.sources.sqlalchemy.listeners import Listener, report_fault
from leakguard.sources.sqlalchemy.refs import IdRef
from leakguard.sources.tracing import note_span

if TYPE_CHECKING:
    from sqlalchemy.orm import SessionTransaction

    from leakguard.core.guard import Guard


class TrackedSession(SessionHold):
    """An SQLAlchemy `Session`, be it one's own or an `AsyncSession`'s."""

    __slots__ = ("ref",)
    ref: IdRef[Session]

    @property
    def open(self) -> bool:
        return self.released_monotonic is None

    @property
    def in_transaction(self) -> bool | None:
        session = self.ref()
        # Not by a class of the user's, where the name may mean something else.
        return None if session is None else Session.in_transaction(session)


class Sessions:
    """Follows every session, and tells a checkout which session made it."""

    def __init__(self, guards: Guards, checkouts: Checkouts) -> None:
        self._guards = guards
        self._checkouts = checkouts
        self._alive: dict[int, TrackedSession] = {}
        self.listeners: tuple[Listener, ...] = ((Session, "after_begin", self._on_begin),)
        self.patches = (
            Patch(Session, "__init__", self._wrap_init),
            *(Patch(Session, name, self._wrap_end) for name in _ENDS),
        )

    def forget(self, guard: Guard) -> None:
        """Follow what belongs to `guard` no more."""
        for key, hold in self._alive.copy().items():
            if hold.guard is guard:
                self._alive.pop(key, None)

    # --- wrappers ---------------------------------------------------------------------------------

    def _wrap_init(self, original: Callable[..., None]) -> Callable[..., None]:
        def init(session: Session, /, *args: object, **kwargs: object) -> None:
            original(session, *args, **kwargs)
            try:
                self._constructed(session)
            except Exception as error:  # noqa: BLE001  (the application must not notice)
                report_fault(error)

        return init

    def _wrap_end(self, original: Callable[..., None]) -> Callable[..., None]:
        resets = original.__name__ == "reset"

        def end(session: Session, /, *args: object, **kwargs: object) -> None:
            hold = self._alive.get(id(session))
            if hold is None:
                return original(session, *args, **kwargs)
            # A reset does not close: that it is used again is what it is for. Noted before, because
            # a close() that fails was called all the same.
            if not (resets or kwargs.get("is_reset")):
                self._closing(hold)
            try:
                return original(session, *args, **kwargs)
            finally:
                self._closed(hold)

        return end

    def _constructed(self, session: Session) -> None:
        if id(session) in self._alive:
            return  # by a class that calls the `__init__` of two bases
        pool = _pool_of(session)
        guard, scope = self._guards.guard_for(current_scope.get(), pool)
        known = guard is not None
        if guard is None:
            # Its `binds` or its `get_bind()` may yet give it an engine that is watched.
            guard, scope = self._guards.nearest(current_scope.get())
        if guard is None:
            return
        # Two frames up is the wrapper of `__init__`.
        frame = _constructing_frame(session, sys._getframe(2))  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]  # documented
        opener = None if scope is None else scope.opener
        site = capture(frame, guard.settings.frames, parent_stacks, opener)
        hold = TrackedSession(guard, scope, site)
        hold.ref = IdRef(session, self._session_gone)
        if scope is not None:
            note_span(scope)
            hold.holder = current_holder(scope)
        self._alive[hold.ref.id] = hold
        if known:
            guard.acquired(hold)
        else:  # nobody watches it; it only tells a watched connection where it comes from
            hold.released_monotonic = hold.acquired_monotonic

    def _closing(self, hold: TrackedSession) -> None:
        hold.times_closed += 1
        # Closed before its first use by a generator that nobody keeps, as in next(get_db()).
        if hold.checkouts_ever == 0:
            try:
                if _in_dropped_generator():
                    site = capture(sys._getframe(), 1, parent_stacks)  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]  # documented
                    hold.closed_by = None if site is None else site.code
            except Exception as error:  # noqa: BLE001  (the session must be closed)
                report_fault(error)

    def _closed(self, hold: TrackedSession) -> None:
        try:
            hold.returns = 0
            hold.guard.released(hold)
        except Exception as error:  # noqa: BLE001  (the application must not notice)
            report_fault(error)

    # --- events -----------------------------------------------------------------------------------

    def _on_begin(
        self, session: Session, transaction: SessionTransaction, connection: Connection
    ) -> None:
        """A session uses a connection: link them if it was the session that checked it out."""
        try:
            hold = self._checkouts.of(connection)
            if hold is None or _was_handed(connection, transaction):
                return
            owner = self._alive.get(id(session))
            if hold.session is not None or hold.used_before:
                if owner is not None and owner is not hold.session and not transaction.nested:
                    self._link_also(owner, hold)
            elif owner is None:
                hold.by_older_session = True
            else:
                self._link(owner, hold)
        except Exception as error:  # noqa: BLE001  (the application must not notice)
            report_fault(error)

    def _link(self, owner: TrackedSession, hold: Checkout) -> None:
        hold.session = owner
        owner.asynchronous = hold.asynchronous
        hold.taken_after_close = owner.times_closed > 0
        hold.taken_again = owner.returns > 0
        owner.checkouts_ever += 1
        if owner.allowed is not None:
            hold.allowed = owner.allowed
        scope = owner.scope
        if scope is not None and scope is not hold.scope and scope.closed_at is None:
            pool = hold.facts.ref()
            if owner.guard is hold.guard or self._guards.watches(owner.guard, pool):
                self._checkouts.place(hold, scope)
                hold.guard.hand_over(hold, owner.guard, scope)

    def _link_also(self, owner: TrackedSession, hold: Checkout) -> None:
        """Of a pool whose checkouts nest: the session gets what its thread has already."""
        frames = hold.guard.settings.frames
        hold.use_also(owner, capture(sys._getframe(2), frames, parent_stacks))  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]  # documented
        owner.checkouts_ever += 1

    def _session_gone(self, ref: IdRef[Any]) -> None:
        """Run as a finalizer: at any point of any code, without a lock and with few allocations."""
        # The number is free for another object only after this, so that the entry is its own.
        hold = self._alive.pop(ref.id, None)
        if hold is not None and hold.released_monotonic is None:
            hold.guard.collected(hold)


def _was_handed(connection: Connection, transaction: SessionTransaction) -> bool:
    """Return whether the session was given `connection`, so that to close it is not its business.

    As its bind, as that of some models, by `bind_arguments` or by its `get_bind()`.
    """
    while transaction.parent is not None:  # a SAVEPOINT is on the connection of the outermost
        transaction = transaction.parent
    _, _, _, closes = transaction._connections[connection]  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]  # no public way; tested
    return not closes


def _pool_of(session: Session) -> Pool | None:
    try:  # a class of the user's may find out about its engine when it is used
        pool = getattr(getattr(session.bind, "engine", None), "pool", None)
    except Exception:  # noqa: BLE001  (the user's)
        return None
    return pool if isinstance(pool, Pool) else None


def _in_dropped_generator() -> bool:
    """Return whether Python, or the event loop, ends a generator that nobody keeps.

    A framework that is done with one resumes it, or throws another exception in.
    """
    if isinstance(sys.exception(), GeneratorExit):
        return True
    # The loop ends an asynchronous one in a task of its own, and SQLAlchemy closes in a greenlet,
    # where that exception is not seen.
    task = current_task()
    return task is not None and type(task.get_coro()).__name__ == _CLOSES_GENERATOR


_ENDS: Final = (
    ("_close_impl",) if hasattr(Session, "_close_impl") else ("close", "invalidate", "reset")
)
"""The methods that end the work of a session. The one that the public ones call is there where
somebody has kept one of those from before the installation, or under another name, too."""

_CLOSES_GENERATOR: Final = "async_generator_athrow"
"""The type of what `aclose()` returns; only the loop makes a task of that alone."""


def _constructing_frame(session: Session, frame: FrameType) -> FrameType | None:
    """Return the frame that constructs a session, or its `AsyncSession`; `None` in a bare greenlet.

    The `__init__` methods of their classes are none of it, nor is what somebody wrapped around
    them.
    """
    outside = _caller_of(type(session), frame)
    if outside is None or outside.f_code.co_name != "__init__":
        return outside
    if outside.f_globals.get("__name__") != "sqlalchemy.ext.asyncio.session":
        return outside
    asynchronous: object = outside.f_locals["self"]
    return _caller_of(type(asynchronous), outside)


def _caller_of(cls: type, frame: FrameType) -> FrameType | None:
    """Return the frame that calls the `__init__` of `cls`, which runs in `frame` or around it."""
    code = _code_of_init(cls)
    if frame.f_code is code:  # of most classes: there is nothing but our own wrapper
        return frame.f_back
    # The same wrapper may be around those of several bases.
    times = sum(_code_of_init(base) is code for base in cls.__mro__ if "__init__" in vars(base))
    outside: FrameType | None = frame
    around: FrameType | None = frame
    while around is not None and times:
        if around.f_code is code:
            times -= 1
            outside = around.f_back
        around = around.f_back
    return outside


def _code_of_init(cls: type) -> object:
    return getattr(cls.__init__, "__code__", None)  # type: ignore[misc]  # of whichever class it is
