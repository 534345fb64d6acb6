"""The guards of the process: what a fork and the end mean for them, and who hears of all."""

from __future__ import annotations

import atexit
from typing import TYPE_CHECKING, Final

from leakguard.core.fork import in_child
from leakguard.core.lock import LOCK
from leakguard.core.scope import AMBIENT, current_scope

if TYPE_CHECKING:
    from leakguard.core.guard import Guard
    from leakguard.core.observer import Observer
    from leakguard.core.scope import Scope

INSTALLED: Final[set[Guard]] = set()
"""The guards that have something to forget in the child of a fork; changed under the lock."""

EVERYWHERE: Final[list[Observer]] = []
"""Who is told by every installed guard, beside its own observers; changed under the lock."""


def observe_everywhere(observer: Observer) -> None:
    """Have every guard of the process tell `observer`, those installed from now on included."""
    with LOCK:
        EVERYWHERE.append(observer)
        for guard in INSTALLED:
            guard.observers.add(observer)


def observe_no_more(observer: Observer) -> None:
    """Have no guard tell it any more."""
    with LOCK:
        EVERYWHERE.remove(observer)
        for guard in INSTALLED:
            guard.observers.remove(observer)


def forget_parent() -> None:
    """Begin anew in the child of a fork: what was out is the parent's to give back and to report.

    The child has a copy of each connection, session and scope. Whatever becomes of the copy, the
    parent still has, or gives back, its own.
    """
    for guard in INSTALLED.copy():  # what goes with a hold may uninstall a guard
        guard.forget()
    for innermost in (current_scope.get(), AMBIENT.scope):
        _forget_scopes(innermost)


def _forget_scopes(scope: Scope | None) -> None:
    while scope is not None:  # what came back, too: the parent tells of it at the scope's end
        scope.open_connections.clear()
        scope.open_sessions.clear()
        vars(scope).pop("notable", None)
        scope = scope.parent


def _judge_pending() -> None:
    """Say at the end of the process what would have been said later."""
    for guard in tuple(INSTALLED):
        guard.judge_pending()


atexit.register(_judge_pending)

in_child(forget_parent)
