"""The installed guards, and which of them a session or connection belongs to."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from leakguard.core.holder import current_work
from leakguard.core.scope import AMBIENT, nearest_open
from leakguard.core.stacks import frames_of
from leakguard.sources.sqlalchemy.greenlets import parent_stacks
from leakguard.sources.sqlalchemy.pools import belongs_to

if TYPE_CHECKING:
    from sqlalchemy.pool import Pool

    from leakguard.core.guard import Guard
    from leakguard.core.scope import Scope


class Guards:
    """The innermost scope's guard is told if it watches the engine, and nobody else is.

    So every leak is found once, however many guards and scopes there are. What happens outside
    of any scope goes to the guard that was installed first.
    """

    def __init__(self) -> None:
        self._guards: tuple[Guard, ...] = ()
        self._watched: dict[Guard, WeakKeyDictionary[Pool, bool]] = {}
        """Of each guard with `engines`, which of the pools seen so far are theirs."""
        self.choose_engines = False
        """Whether one of them watches some engines only."""

    def __bool__(self) -> bool:
        return bool(self._guards)

    def all(self) -> tuple[Guard, ...]:
        """Return them in the order of their installation."""
        return self._guards

    @property
    def follow_statements(self) -> bool:
        """Whether one of them needs to know of statements."""
        return any(guard.settings.follow_statements for guard in self._guards)

    def add(self, guard: Guard) -> None:
        """Take a guard in."""
        if guard.settings.engines is not None:
            self._watched[guard] = WeakKeyDictionary()
            self.choose_engines = True
        self._guards = (*self._guards, guard)

    def remove(self, guard: Guard) -> None:
        """Take a guard out."""
        self._guards = tuple(one for one in self._guards if one is not guard)
        self._watched.pop(guard, None)
        self.choose_engines = bool(self._watched)

    def guard_for(
        self, scope: Scope | None, pool: Pool | None
    ) -> tuple[Guard | None, Scope | None]:
        """Find the guard to tell, and its scope, by the current scope and the pool.

        The pool of a session is `None` where it has no engine of its own.
        """
        if scope is not None and scope.guard.watches_all and not scope.iterated:  # of most programs
            return scope.guard, scope
        scope = _at_work(scope)
        while scope is not None:
            guard = scope.guard
            if guard.installed and self.watches(guard, pool):
                return guard, scope
            scope = scope.parent
        for guard in self._guards:
            if self.watches(guard, pool):
                return guard, None
        return None, None

    def nearest(self, scope: Scope | None) -> tuple[Guard | None, Scope | None]:
        """Return the innermost scope and its guard, else the guard that was installed first."""
        scope = _at_work(scope)
        while scope is not None:
            if scope.guard.installed:
                return scope.guard, scope
            scope = scope.parent
        return next(iter(self._guards), None), None

    def watches(self, guard: Guard, pool: Pool | None) -> bool:
        """Return whether `pool` is of an engine that an installed guard watches."""
        engines = guard.settings.engines
        if engines is None:
            return True
        known = self._watched.get(guard)
        if pool is None or known is None:  # it is being taken out in another thread
            return False
        watched = known.get(pool)
        if watched is None:  # there may be an engine for each of a thousand tenants
            watched = known[pool] = belongs_to(pool, engines)
        return watched


def _at_work(scope: Scope | None) -> Scope | None:
    """Return the innermost scope that is at work: not that of a generator which is suspended."""
    while scope is not None and scope.iterated and _is_suspended(scope):
        scope = nearest_open(scope.before)
    return AMBIENT.scope if scope is None else scope


def _is_suspended(scope: Scope) -> bool:
    if scope.closed_at is not None or scope.opened_by != current_work():
        return False  # what it has started works on
    stack = [sys._getframe(), *parent_stacks()]  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]  # documented
    return all((id(frame), frame.f_code) != scope.opener for frame in frames_of(stack))
