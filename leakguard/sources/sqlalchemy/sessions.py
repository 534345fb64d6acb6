"""Sessions: constructed, linked to their checkouts, closed.

There is no event for the construction or the `close()` of a session, nor for `invalidate()` and
`reset()`, which end its work, too: `__init__` and the method that does the work of those three are
wrapped while a guard is installed.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable
from functools import partial
from sys import modules
from typing import TYPE_CHECKING, Final

from sqlalchemy.engine import Connection
from sqlalchemy.orm import Session
from sqlalchemy.pool import Pool

from leakguard.core.callsite import capture, locate
from leakguard.core.hold import SessionHold
from leakguard.core.holder import current_holder
from leakguard.core.scope import current_scope
from leakguard.core.tasks import current_task
from leakguard.sources.patch import Patch, Placement
from leakguard.sources.sqlalchemy.checkout import Checkout
from leakguard.sources.sqlalchemy.checkouts import Checkouts
from leakguard.sources.sqlalchemy.frames import constructing_frame
from leakguard.sources.sqlalchemy.greenlets import parent_stacks
from leakguard.sources.sqlalchemy.guards import Guards
from leakguard.sources.sqlalchemy.listeners import Listener, report_fault
from leakguard.sources.tracing import TRACING, note_span

if TYPE_CHECKING:
    from sqlalchemy.orm import SessionTransaction

    from leakguard.core.guard import Guard
    from leakguard.core.scope import Scope


class TrackedSession(SessionHold):
    """An SQLAlchemy `Session`, be it one's own or an `AsyncSession`'s."""

    ref: weakref.ref[Session]

    @property
    def subject(self) -> object:
        return self.ref()

    @property
    def in_transaction(self) -> bool | None:
        session = self.ref()
        # Not by a class of the user's, where the name may mean something else.
        return None if session is None else Session.in_transaction(session)


class Sessions:
    """Follows every session, and tells a checkout which session made it.

    A session has its hold in an attribute of its own: a table of all sessions would have to be
    tidied up whenever one goes.
    """

    def __init__(self, guards: Guards, checkouts: Checkouts) -> None:
        self._guards = guards
        self._checkouts = checkouts
        self.listeners: tuple[Listener, ...] = ((Session, "after_begin", self._on_begin),)
        self.patches = (
            Patch(Session, "__init__", self._wrap_init),
            *(Patch(Session, name, self._wrap_end) for name in _ENDS),
        )

    def place(self) -> None:
        """Wrap the methods; a session that is there already has no hold."""
        # Where it is found in the class, no `__getattr__` of the user's is asked for it.
        setattr(Session, _HOLD, None)
        for patch in self.patches:
            patch.place()

    def remove(self) -> None:
        """Leave the class as it was found."""
        for patch in reversed(self.patches):
            patch.remove()
        delattr(Session, _HOLD)

    # --- wrappers ---------------------------------------------------------------------------------

    def _wrap_init(
        self, original: Callable[..., None], placement: Placement
    ) -> Callable[..., None]:
        constructed = self._constructed

        def init(self: Session, *args: object, **kwargs: object) -> None:
            original(self, *args, **kwargs)
            if placement.active or placement.resume():
                constructed(self)

        return init

    def _wrap_end(self, original: Callable[..., None], placement: Placement) -> Callable[..., None]:
        resets = original.__name__ == "reset"

        def end(self: Session, *args: object, **kwargs: object) -> None:
            if not (placement.active or placement.resume()):
                return original(self, *args, **kwargs)
            hold = _hold_of(self)
            if hold is None:
                return original(self, *args, **kwargs)
            # A reset does not close: that it is used again is what it is for. Noted before, because
            # a close() that fails was called all the same.
            if not (resets or kwargs.get("is_reset")):
                hold.times_closed += 1
                if hold.checkouts_ever == 0:
                    _note_dropped_generator(hold)
            try:
                return original(self, *args, **kwargs)
            finally:
                try:
                    hold.returns = 0
                    if hold.released_monotonic is None:
                        hold.ref = weakref.ref(self)  # it may be collected from now on
                        hold.guard.closed(hold)
                except Exception as error:  # noqa: BLE001  (the application must not notice)
                    report_fault(error)

        return end

    def _constructed(self, session: Session) -> None:
        try:
            if getattr(session, _HOLD, None) is not None and _hold_of(session) is not None:
                return  # by a class that calls the `__init__` of two bases
            scope = current_scope.get()
            known = True
            if scope is not None and scope.guard.watches_all and not scope.iterated:
                guard = scope.guard  # as `guard_for` says, of most programs
            else:
                found, scope, known = self._guard_for(session, scope)
                if found is None:
                    return
                guard = found
            # One frame up is the wrapper of `__init__`.
            frame = constructing_frame(session, sys._getframe(1))  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]  # documented
            opener = None if scope is None else scope.opener
            site, nearest = locate(frame, guard.settings.frames, parent_stacks, opener)
            hold = TrackedSession(guard, scope, site)
            hold.ref = weakref.ref(session, partial(_collected, hold))
            # Past a `__setattr__` of the user's, who may refuse names that he does not know.
            object.__setattr__(session, _HOLD, hold)
            if scope is not None:
                if TRACING in modules:
                    note_span(scope)
                hold.holder = current_holder(scope, nearest)
            if known:
                guard.constructed(hold)
            else:  # nobody watches it; it only tells a watched connection where it comes from
                hold.released_monotonic = hold.acquired_monotonic
        except Exception as error:  # noqa: BLE001  (the application must not notice)
            report_fault(error)

    def _guard_for(
        self, session: Session, scope: Scope | None
    ) -> tuple[Guard | None, Scope | None, bool]:
        """Return the guard to tell, its scope, and whether it is known to watch the session."""
        guards = self._guards
        pool = _pool_of(session) if guards.choose_engines else None
        guard, inner = guards.guard_for(scope, pool)
        if guard is not None:
            return guard, inner, True
        # Its `binds` or its `get_bind()` may yet give it an engine that is watched.
        return *guards.nearest(scope), False

    # --- events -----------------------------------------------------------------------------------

    def _on_begin(
        self,
        session: Session,
        transaction: SessionTransaction,
        connection: Connection,
    ) -> None:
        """A session uses a connection: link them if it was the session that checked it out."""
        try:
            hold = self._checkouts.out.get(id(connection._dbapi_connection))  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]  # no public way; tested
            if hold is None or _was_handed(connection, transaction):
                return
            session_hold = _hold_of(session)
            if (
                session_hold is not None
                and session_hold.acquired_monotonic < session_hold.guard.installed_at
            ):
                session_hold = None  # of an earlier installation
            if hold.session is not None or (hold.facts.nests and hold.used_before):
                if (
                    session_hold is not None
                    and session_hold is not hold.session
                    and not transaction.nested
                ):
                    self._link_also(session_hold, hold)
            elif session_hold is None:
                hold.by_older_session = True
            else:
                self._link(session_hold, hold)
        except Exception as error:  # noqa: BLE001  (the application must not notice)
            report_fault(error)

    def _link(self, session_hold: TrackedSession, hold: Checkout) -> None:
        hold.session = session_hold
        session_hold.asynchronous = hold.asynchronous
        session_hold.checkouts_ever += 1
        if session_hold.times_closed:
            hold.taken_after_close = True
        if session_hold.returns:
            hold.taken_again = True
        if session_hold.allowed is not None:
            hold.allowed = session_hold.allowed
        scope = session_hold.scope
        if scope is not None and scope is not hold.scope and scope.closed_at is None:
            pool = hold.facts.ref()
            if session_hold.guard is hold.guard or self._guards.watches(session_hold.guard, pool):
                self._checkouts.place(hold, scope)
                hold.guard.hand_over(hold, session_hold.guard, scope)

    def _link_also(self, session_hold: TrackedSession, hold: Checkout) -> None:
        """Of a pool whose checkouts nest: the session gets what its thread has already."""
        frames = hold.guard.settings.frames
        hold.use_also(session_hold, capture(sys._getframe(2), frames, parent_stacks))  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]  # documented
        session_hold.checkouts_ever += 1


def _hold_of(session: Session) -> TrackedSession | None:
    hold: object = getattr(session, _HOLD, None)
    # Not that of another one, of which it is a copy, nor what a class of the user's says instead.
    return hold if type(hold) is TrackedSession and hold.ref() is session else None


def _collected(hold: TrackedSession, _: object) -> None:
    """Run as a finalizer: at any point of any code, without a lock and with few allocations."""
    if hold.guard.has(hold):
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


def _note_dropped_generator(hold: TrackedSession) -> None:
    """Note a generator that closes a session before its first use, because nobody keeps it.

    As in `next(get_db())`.
    """
    try:
        if _in_dropped_generator():
            site = capture(sys._getframe(), 1, parent_stacks)  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]  # documented
            hold.closed_by = None if site is None else site.code
    except Exception as error:  # noqa: BLE001  (the session must be closed)
        report_fault(error)


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


_HOLD: Final = "_leakguard_hold"
"""The name of the attribute that has the hold of a session."""

_ENDS: Final = (
    ("_close_impl",) if hasattr(Session, "_close_impl") else ("close", "invalidate", "reset")
)
"""The methods that end the work of a session. The one that the public ones call is there where
somebody has kept one of those from before the installation, or under another name, too."""

_CLOSES_GENERATOR: Final = "async_generator_athrow"
"""The type of what `aclose()` returns; only the loop makes a task of that alone."""
