"""Putting listeners and wrappers into SQLAlchemy, and taking them out without a trace."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import event
from sqlalchemy.engine.interfaces import Dialect

from leakguard.core.fork import in_child
from leakguard.core.pool import answer_for_pools
from leakguard.sources.sqlalchemy.checkouts import Checkouts
from leakguard.sources.sqlalchemy.guards import Guards
from leakguard.sources.sqlalchemy.listeners import Listener
from leakguard.sources.sqlalchemy.sessions import Sessions
from leakguard.sources.sqlalchemy.statements import Statements
from leakguard.sources.sqlalchemy.waits import Waits

if TYPE_CHECKING:
    from leakguard.core.guard import Guard
    from leakguard.core.pool import PoolState


class SQLAlchemySource:
    """Tells the installed guards what SQLAlchemy does.

    Everything is in place once, however many guards there are, and goes with the last of them;
    what follows statements is there only while a guard wants to know them.
    """

    def __init__(self) -> None:
        self._guards = Guards()
        self._checkouts = Checkouts(self._guards)
        self._sessions = Sessions(self._guards, self._checkouts)
        self._statements = Statements(self._checkouts.out)
        self._in_place = False
        self._waits = Waits(self._checkouts)
        self._follows_statements = False
        self._had_events = False

    def pool_states(self) -> Iterable[PoolState]:
        """Say what the pools have that an installed guard counts."""
        return self._checkouts.pools.states()

    @property
    def guards(self) -> tuple[Guard, ...]:
        """The guards that are told, in the order of their installation."""
        return self._guards.all()

    def attach(self, guard: Guard) -> None:
        """Tell `guard` from now on."""
        if not self._in_place:
            self._in_place = True
            _listen(self._checkouts.listeners + self._sessions.listeners)
            self._sessions.place()
            self._waits.place()
            self._checkouts.taken_again.place()
        self._guards.add(guard)
        self._checkouts.pools.share_out()
        self._follow_statements()

    def detach(self, guard: Guard) -> None:
        """Tell `guard` no more; with the last one, leave SQLAlchemy as it was found."""
        self.dismiss(guard)
        self.tidy()

    def dismiss(self, guard: Guard) -> None:
        """Tell `guard` no more, and change nothing in SQLAlchemy.

        Its events are in ordinary collections: whoever takes a listener out makes everybody fail
        who goes through the same collection at that moment, the checkout of a healthy request
        included. So whatever happens beside requests leaves the listeners where they are, to do
        nothing until the next guard comes or goes.
        """
        self._guards.remove(guard)
        self._checkouts.forget(guard)

    def tidy(self) -> None:
        """Take out of SQLAlchemy what no guard needs."""
        self._follow_statements()
        if self._in_place and not self._guards:
            self._in_place = False
            self._checkouts.taken_again.remove()
            self._waits.remove()
            self._sessions.remove()
            _ignore(self._checkouts.listeners + self._sessions.listeners)
            self._checkouts.end_of_detached.remove()

    def forget_parent(self) -> None:
        """Know nothing of the connections of the parent: this is the child of a fork."""
        self._checkouts.forget_parent()
        self._waits.forget()

    def _follow_statements(self) -> None:
        """Listen to statements while a guard wants to know them, and not otherwise."""
        wanted = self._guards.follow_statements
        if wanted == self._follows_statements:
            return
        self._follows_statements = wanted
        if wanted:
            self._had_events = Dialect._has_events  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]  # no public way; tested
            _listen(self._statements.listeners)
        else:
            _ignore(self._statements.listeners)
            # Listening sets this flag for good, and costs every statement of the process a bit.
            if not self._had_events and not _someone_listens_to_dialects():
                Dialect._has_events = False  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]  # no public way; tested


def _listen(listeners: Iterable[Listener]) -> None:
    for target, name, listener in listeners:
        event.listen(target, name, listener)


def _ignore(listeners: Iterable[Listener]) -> None:
    for target, name, listener in listeners:
        if event.contains(target, name, listener):  # somebody may have cleared the event
            event.remove(target, name, listener)


def _someone_listens_to_dialects() -> bool:
    dispatch: Any = Dialect.dispatch
    try:
        names: list[str] = dispatch._event_names  # noqa: SLF001  (no public way; tested)
        return any(getattr(dispatch, name)._clslevel.get(Dialect) for name in names)  # noqa: SLF001  (no public way; tested)
    except AttributeError:  # pragma: no cover - a future SQLAlchemy; the flag only costs time
        return True


SQLALCHEMY: Final = SQLAlchemySource()
"""The one source of the process: what it listens to and wraps belongs to the whole process."""

in_child(SQLALCHEMY.forget_parent)
answer_for_pools(SQLALCHEMY.pool_states)
