"""The lifespan of an application: what it takes as it starts, it may keep until it ends."""

from __future__ import annotations

from contextvars import ContextVar
from typing import Final

from leakguard.core.holder import current_work


class Lifespan:
    """One run of an application, from its start to its end."""

    started = False
    """Whether the application has said that it has started."""

    def __init__(self) -> None:
        self.run_by = current_work()
        """The task that runs it, by its `id()`."""


_lifespan: Final[ContextVar[Lifespan | None]] = ContextVar("leakguard_lifespan", default=None)


def enter_lifespan() -> Lifespan:
    """Begin the one that runs in the current task."""
    lifespan = Lifespan()
    _lifespan.set(lifespan)
    return lifespan


def in_lifespan() -> bool:
    """Return whether the application starts, or the task that runs its lifespan runs now.

    While it starts, the lifespan may have a thread or a task of its own take something, as by
    `asyncio.wait_for()`. What tasks take that go on after that is theirs.
    """
    lifespan = _lifespan.get()
    return lifespan is not None and (not lifespan.started or lifespan.run_by == current_work())
