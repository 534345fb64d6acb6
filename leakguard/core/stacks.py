"""Where work is now: the stack of a thread, or the chain of what a task awaits.

A stack is given as the innermost frames of its segments, the innermost segment first: a
suspended coroutine does not know who awaits it, and a greenlet not on whose stack it hangs.
Looked at from another thread, while the work may go on: what comes out is for a reader. Nobody may
look at the variables of another thread's frames without `PAUSE`.
"""

from __future__ import annotations

import asyncio
import gc
import inspect
import os
import sys
from collections.abc import Iterable, Iterator
from sys import modules
from threading import Thread
from types import AsyncGeneratorType, CodeType, CoroutineType, FrameType, GeneratorType
from typing import Any, Final

from leakguard.core.callsite import CallSite, capture
from leakguard.core.collector import PAUSE
from leakguard.core.tasks import AnyTask

Stack = list[FrameType]
"""The innermost frames of the segments, the innermost segment first."""

_LOOKS: Final = 3
"""How often work that is nowhere to be seen is looked for."""
_LONGEST_CHAIN: Final = 1000
"""How many awaits are followed: a task may await itself by way of another one."""


def thread_stack(thread: int) -> Stack:
    """Return where a thread is; empty where it has ended."""
    with PAUSE:
        frame = sys._current_frames().get(thread)  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]  # documented
    return [] if frame is None else [frame]


def thread_stacks() -> dict[int, Stack]:
    """Return where all threads are, by their numbers; to ask for each of them takes longer."""
    with PAUSE:
        frames = sys._current_frames()  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]  # documented
    return {number: [frame] for number, frame in frames.items()}


def greenlet_stack(greenlet: Any) -> Stack:  # noqa: ANN401  (of a library that need not be installed)
    """Return where a greenlet waits; empty for one that runs, or has ended."""
    with PAUSE:
        frame: FrameType | None = greenlet.gr_frame
    return [] if frame is None else [frame]


def task_stack(task: AnyTask) -> Stack:
    """Return where a task waits or runs; empty where it is done."""
    return [] if task.done() else chain_stack(task.get_coro())


def chain_stack(work: Any) -> Stack:  # noqa: ANN401  (whatever can be awaited)
    """Return where a coroutine waits, by what it awaits, or runs."""
    with PAUSE:
        # One that ran a moment ago may have gone on to wait before its thread was looked at.
        looks = (_chain_stack(work) for _ in range(_LOOKS))
        return next((found for found in looks if found), Stack())


def _chain_stack(work: Any) -> Stack:  # noqa: ANN401  (whatever can be awaited)
    found: Stack = []
    for _ in range(_LONGEST_CHAIN):
        if getattr(work, "cr_running", False) or getattr(work, "gi_running", False):
            return _running_stack(work) or found
        frame = _frame_of(work)
        if frame is not None:
            found.insert(0, frame)
            found[:0] = _stacks_within(work, frame)
        work = _awaited_by(work)
        if work is None:
            break
    return found


def call_site(stack: Stack, limit: int) -> CallSite | None:
    """Find the user's own frames in a stack, up to `limit` of them."""
    with PAUSE:
        return capture(stack[0], limit, lambda: stack[1:]) if stack else None


def first_site(stacks: Iterable[Stack], limit: int) -> CallSite | None:
    """Return the user's own line in the first stack that has one."""
    sites = (call_site(stack, limit) for stack in stacks)
    return next((site for site in sites if site is not None), None)


def frames_of(stack: Stack) -> list[FrameType]:
    """Return all the frames of a stack, the innermost first."""
    with PAUSE:
        return [frame for segment in stack for frame in _outwards(segment)]


def is_on_stack(frame_id: int, code: CodeType, stack: Stack) -> bool:
    """Return whether the frame with that id and code is, or might be, on the first segment.

    The thread goes on while its stack is walked. A frame that returns meanwhile still knows its
    caller, but a generator that yields does not: where the way ends at one, nobody knows.
    """
    outermost: FrameType | None = None
    for frame in frames_of(stack[:1]):
        if id(frame) == frame_id and frame.f_code is code:
            return True
        outermost = frame
    return outermost is not None and bool(outermost.f_code.co_flags & _SUSPENDABLE)


_SUSPENDABLE: Final = inspect.CO_GENERATOR | inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR


def _outwards(frame: FrameType | None) -> Iterator[FrameType]:
    while frame is not None:
        yield frame
        frame = frame.f_back


def _frame_of(work: Any) -> FrameType | None:  # noqa: ANN401  (whatever can be awaited)
    for name in ("cr_frame", "gi_frame", "ag_frame"):
        frame = getattr(work, name, None)
        if isinstance(frame, FrameType):  # that of a compiled coroutine is another thing
            return frame
    return None


def _awaited_by(work: Any) -> Any:  # noqa: ANN401  (whatever can be awaited)
    for name in ("cr_await", "gi_yieldfrom", "ag_await"):
        if hasattr(work, name):
            return getattr(work, name)
    if hasattr(work, "get_coro"):  # a task
        return work.get_coro()
    # What stands between a coroutine and what it really waits for does not tell of it, but refers
    # to it: the step of an asynchronous generator, the iterator of a future.
    return next((one for one in gc.get_referents(work) if isinstance(one, _FOLLOWED)), None)


_FOLLOWED: Final[tuple[type[Any], ...]] = (
    CoroutineType,
    GeneratorType,
    AsyncGeneratorType,
    asyncio.Task,
)


def _stacks_within(work: Any, frame: FrameType) -> Iterator[FrameType]:  # noqa: ANN401
    """Return the stacks that work goes on with.

    That of a greenlet, in which SQLAlchemy runs, or of the thread that it waits for.
    """
    greenlets: Any = modules.get("greenlet")
    is_thread_call = frame.f_code.co_filename.endswith(_THREAD_CALLS)
    for one in gc.get_referents(work):
        if greenlets is not None and isinstance(one, greenlets.greenlet):
            yield from greenlet_stack(one)
        elif is_thread_call and isinstance(one, Thread):
            yield from thread_stack(one.ident or 0)


_THREAD_CALLS: Final = os.path.join("anyio", "_backends", "_asyncio.py")
"""The file of the coroutine that waits for a thread of AnyIO's, in which Starlette runs what is
not `async`. It has the thread among its variables."""


def _running_stack(work: Any) -> Stack:  # noqa: ANN401  (whatever can be awaited)
    """Return the stack of the thread that runs a coroutine at this moment."""
    own = _frame_of(work)
    found = (stack for stack in thread_stacks().values() if own in frames_of(stack))
    return next(found, Stack())
