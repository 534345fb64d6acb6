"""The lifespan of an application: what it takes as it starts, it may keep until it ends."""

from __future__ import annotations

from contextvars import ContextVar
from typing import Final

from leakguard.core.holder import current_work

_lifespan: Final[ContextVar[int | None]] = ContextVar("leakguard_lifespan", default=None)


def enter_lifespan() -> None:
    """Note that the task which runs now is the one that runs the lifespan."""
    _lifespan.set(current_work())


def in_lifespan() -> bool:
    """Return whether the task that runs the lifespan runs now, and not one that it started."""
    runs_it = _lifespan.get()
    return runs_it is not None and runs_it == current_work()
