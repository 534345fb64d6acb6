"""Workers: the tasks and threads that may be at work with a hold, and where they are now."""

from __future__ import annotations

import asyncio
from asyncio import AbstractEventLoop
from collections.abc import Callable, Hashable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

from leakguard.core.scope import scopes_around
from leakguard.core.stacks import Stack, task_stack, thread_stack
from leakguard.core.strand import strand_stack

if TYPE_CHECKING:
    from types import FrameType

    from leakguard.core.hold import ConnectionHold
    from leakguard.core.scope import Scope
    from leakguard.core.tasks import AnyTask

T = TypeVar("T")


class Workers:
    """Finds them for any number of holds; the tasks of a loop are scanned once, when needed.

    For one moment: it keeps tasks alive.
    """

    def __init__(self) -> None:
        self._by_scope: dict[AbstractEventLoop, dict[Scope, list[AnyTask]]] = {}
        self._found: dict[Hashable, Any] = {}

    def once(self, what: Hashable, find: Callable[[], T]) -> T:
        """Return what `find()` returned when `what` was first asked for at this moment."""
        if what not in self._found:
            self._found[what] = find()
        found: T = self._found[what]
        return found

    def stacks(self, hold: ConnectionHold) -> Iterator[Stack]:
        """Return where they are, those first that are the most likely to have it.

        That is who acquired it, who constructed its session, who does what the scope is for, who
        opened the scope, and the other tasks of the scope.
        """
        for holder in hold.holders:
            yield from _known(holder.stack())
        scope = hold.scope
        if scope is None:
            return
        loop = None if scope.loop is None else scope.loop()
        if loop is None:
            work = None if scope.strand is None else scope.strand()
            yield from _known(thread_stack(scope.opened_by) if work is None else strand_stack(work))
        # A scope may be around `asyncio.run()`.
        loops = {
            one for one in (loop, *(holder.loop for holder in hold.holders)) if one is not None
        }
        tasks = [task for one in loops for task in self._of_scope(scope, one)]
        tasks.sort(key=lambda task: id(task) != scope.opened_by)
        stacks = [task_stack(task) for task in tasks]
        # Starlette runs an application behind a middleware of functions in a task of its own.
        for stack in sorted(stacks, key=lambda stack: not scope.serves(stack)):
            yield from _known(stack)

    def task_through(self, scope: Scope, frame: FrameType) -> tuple[AnyTask | None, Stack]:
        """Find the task in whose stack `frame` is the innermost of a segment, and that stack.

        That is how a greenlet is found, which does not know the task that it works for.
        """
        loop = None if scope.loop is None else scope.loop()
        tasks = [] if loop is None else self._of_scope(scope, loop)
        stacks = ((task, task_stack(task)) for task in tasks)
        found = (one for one in stacks if any(segment is frame for segment in one[1]))
        return next(found, (None, [frame]))

    def _of_scope(self, scope: Scope, loop: AbstractEventLoop) -> list[AnyTask]:
        tasks = self._by_scope.get(loop)
        if tasks is None:
            tasks = self._by_scope[loop] = {}
            for task in asyncio.all_tasks(loop):
                for one in scopes_around(task):
                    tasks.setdefault(one, []).append(task)
        return tasks.get(scope, [])


def _known(stack: Stack) -> Iterator[Stack]:
    if stack:
        yield stack
