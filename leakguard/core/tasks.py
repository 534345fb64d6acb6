"""The tasks and event loops of asyncio."""

from __future__ import annotations

import asyncio
import gc
import sys
import weakref
from collections.abc import Callable, Iterable
from contextvars import Context
from typing import Any, Final

AnyTask = asyncio.Task[Any]
LoopRef = weakref.ref[asyncio.AbstractEventLoop]


running_loop: Final[Callable[[], asyncio.AbstractEventLoop | None]] = asyncio._get_running_loop  # noqa: SLF001  (exported by asyncio for this use)
"""Returns the event loop that runs in this thread; `get_running_loop` raises where there is none,
and raising is slow."""


_asyncio: Final[Any] = asyncio.tasks
task_on: Final[Callable[[asyncio.AbstractEventLoop], AnyTask | None]] = (
    asyncio.current_task if sys.version_info >= (3, 12) else _asyncio._current_tasks.get  # noqa: SLF001  (tested)
)
"""Returns the task that runs on a loop; before 3.12 `current_task` is a function of Python's."""


def loop_ref() -> LoopRef | None:
    """Return a weak reference to the event loop that runs in this thread."""
    loop = running_loop()
    return None if loop is None else weakref.ref(loop)


def runs_elsewhere(loops: Iterable[asyncio.AbstractEventLoop]) -> bool:
    """Return whether one of the loops runs in another thread: this one may wait for its work."""
    own = running_loop()
    return any(loop is not own and loop.is_running() for loop in loops)


def may_run(loop: asyncio.AbstractEventLoop) -> bool:
    """Return whether a loop is not closed; a class of the user's may not be able to tell."""
    try:
        return not loop.is_closed()
    except NotImplementedError:
        return True


def current_task() -> AnyTask | None:
    """Return the running task, `None` outside of an event loop."""
    loop = running_loop()
    return None if loop is None else task_on(loop)


def other_tasks(loop: asyncio.AbstractEventLoop) -> list[AnyTask]:
    """List the tasks of `loop` that are not done, the current one left out."""
    current = current_task()
    return [task for task in asyncio.all_tasks(loop) if task is not current]


def context_of(task: AnyTask) -> Context | None:
    """Return the context a task runs in."""
    get_context: Callable[[], Context] | None = getattr(task, "get_context", None)
    return context_among_referents(task) if get_context is None else get_context()


def context_among_referents(task: AnyTask) -> Context | None:
    """Return the context of a task in Python 3.11, which does not tell, but refers to it."""
    return next((item for item in gc.get_referents(task) if isinstance(item, Context)), None)
