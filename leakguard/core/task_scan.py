"""Scans the tasks of an event loop for those that a scope started.

Nobody keeps a list of the tasks by scope, so that a scan goes through all of them: about
a microsecond each. A process with many idle tasks, as one with many WebSockets, cannot afford that
for every request that has a connection out when it ends.
"""

from __future__ import annotations

from asyncio import AbstractEventLoop
from collections.abc import Callable
from functools import cache
from typing import Final

from leakguard.core.clock import monotonic
from leakguard.core.scope import Scope, scopes_around
from leakguard.core.tasks import AnyTask, other_tasks

MANY: Final = 100
"""More tasks than these are scanned once for all who ask, and not for each: about 0.1 ms."""
_PAUSE: Final = 20e-6
"""Seconds from one such scan to the next for each task: they take a twentieth of the time."""

Scopes = Callable[[AbstractEventLoop], set[Scope]]
"""Returns the scopes of which tasks run in a loop."""


class TaskScan:
    """Finds tasks by scope, and knows from the last scan what the next one will cost."""

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        self._seen = -1
        self._next = 0.0

    @property
    def expensive(self) -> bool:
        """Whether one scan is to be for all who ask, because there were many tasks."""
        return self._seen > MANY

    @property
    def next_at(self) -> float:
        """When the next scan of many tasks may be, by the clock."""
        return max(self._clock(), self._next)

    def started(self, scope: Scope, loop: AbstractEventLoop) -> list[AnyTask]:
        """List the tasks that `scope` started and that still run, the current one left out."""
        return [task for task in self._tasks_in(loop) if scope in scopes_around(task)]

    def shared(self) -> Scopes:
        """Return a function that scans the tasks of a loop once, however often it is called.

        It gives the scopes that started tasks which still run, the current one left out.
        """
        return cache(self._scopes)

    def _scopes(self, loop: AbstractEventLoop) -> set[Scope]:
        return {scope for task in self._tasks_in(loop) for scope in scopes_around(task)}

    def _tasks_in(self, loop: AbstractEventLoop) -> list[AnyTask]:
        tasks = other_tasks(loop)
        self._seen = len(tasks)
        self._next = self._clock() + self._seen * _PAUSE
        return tasks
