"""In whose hands a hold is: who acquired it, a task, strand or thread, and whether it runs."""

from __future__ import annotations

import os
import sys
import threading
import weakref
from contextvars import ContextVar
from functools import lru_cache
from sys import modules
from threading import get_ident
from types import CodeType, FrameType
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

from leakguard.core.endings import Callback, on_done, on_gone
from leakguard.core.quick import new_tuple
from leakguard.core.stacks import Stack, greenlet_stack, is_on_stack, task_stack, thread_stack
from leakguard.core.strand import GEVENT, TRIO, Strand, current_strand, is_running, strand_stack
from leakguard.core.tasks import AnyTask, LoopRef, may_run, running_loop, task_on

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop

    from leakguard.core.hold import Hold
    from leakguard.core.scope import Scope


class Holder(Protocol):
    """A task, strand or thread other than the one that opened the scope."""

    @property
    def loop(self) -> AbstractEventLoop | None:
        """The event loop of a task, also of one that has ended."""
        ...

    @property
    def number(self) -> int:
        """What `current_work` calls it; it means something while the work runs."""
        ...

    def running(self) -> bool:
        """Return whether the work that acquired the hold still runs."""
        ...

    def stack(self) -> Stack:
        """Return where the work is now; empty where it has ended, or nobody knows."""
        ...

    def on_end(self, hold: Hold, callback: Callback) -> None:
        """Have `callback(hold)` called about when the work ends, unless the hold is gone by then.

        It may come late, twice or never. Asking again changes nothing.
        """
        ...


class TaskHolder:
    """An asyncio task."""

    __slots__ = ("_function", "_loop", "_name", "_task", "number")

    def __init__(self, task: AnyTask) -> None:
        self.number = id(task)
        self._task = weakref.ref(task)
        self._name = task.get_name()
        self._loop = weakref.ref(task.get_loop())
        self._function: str | None = getattr(task.get_coro(), "__qualname__", None)

    def __str__(self) -> str:
        function = "" if self._function is None else f" ({self._function})"
        return f"task {self._name!r}{function}"

    @property
    def loop(self) -> AbstractEventLoop | None:
        """The event loop of the task."""
        return self._loop()

    def running(self) -> bool:
        """Return whether the task is not done, and may go on."""
        task = self._task()
        return task is not None and not (task.done() or self.stranded)

    @property
    def stranded(self) -> bool:
        """Whether the task was not done when its event loop was closed."""
        task, loop = self._task(), self._loop()
        return task is not None and loop is not None and not (task.done() or may_run(loop))

    def stack(self) -> Stack:
        """Return where the task waits or runs."""
        task = self._task()
        return [] if task is None else task_stack(task)

    def on_end(self, hold: Hold, callback: Callback) -> None:
        """Call it when the task is done; never, where another thread runs its loop."""
        task = self._task()
        if task is not None:
            on_done(task, hold, callback)


class StrandHolder:
    """A task of trio's or a greenlet of gevent's."""

    __slots__ = ("_name", "_work", "number")
    loop = None

    def __init__(self, strand: Strand) -> None:
        self.number = id(strand.work)
        self._work = weakref.ref(strand.work)
        self._name = strand.name

    def __str__(self) -> str:
        return self._name

    def running(self) -> bool:
        """Return whether it has not ended."""
        work = self._work()
        return work is not None and is_running(work)

    def stack(self) -> Stack:
        """Return where it waits or runs; empty for a greenlet that runs."""
        work = self._work()
        return [] if work is None else strand_stack(work)

    def on_end(self, hold: Hold, callback: Callback) -> None:
        """Call it in the watch thread when the coroutine or the greenlet goes."""
        on_gone(self._work(), hold, callback)


class _ThreadRun:
    """A run of a function in a copied context; it lives as long as that copy of the context.

    A `ContextVar` set inside the copy is seen by nobody else, and goes when the copy goes.
    A traceback may keep the copy alive for longer than the run, so that alone proves nothing:
    the run must also still have its outermost frame on the thread's stack. (The `id()`
    of a frame alone proves nothing either: any other frame may get the same address, and that of
    the next run of the same function, too.)
    """

    __slots__ = ("__weakref__", "holder")
    holder: ThreadHolder
    """The one of all that it acquires."""


_run: Final[ContextVar[_ThreadRun | None]] = ContextVar("leakguard_run", default=None)
_THREAD_LOOPS: Final = (
    os.path.join(os.sep, "threading.py"),
    os.path.join(os.sep, "concurrent", "futures", "thread.py"),
    os.path.join(os.sep, "multiprocessing", "pool.py"),
    os.path.join(os.sep, "anyio", "_backends", "_asyncio.py"),
    os.path.join(os.sep, "asyncio", "events.py"),  # callbacks of the event loop
    os.path.join(os.sep, "asyncio", "runners.py"),  # and of loops that are not written in Python
    os.path.join(os.sep, "trio", "_threads.py"),
)
"""Files whose frames run one piece of work after the other."""


class ThreadHolder(NamedTuple):
    """A function that a thread runs in a copy of the scope's context.

    Every function in a thread that uses the database has one: a tuple, as that is made quickly.
    """

    run: weakref.ref[_ThreadRun]
    number: int
    """The number of the thread."""
    frame: int
    """The `id()` of the function's outermost frame."""
    code: CodeType
    greenlet: weakref.ref[Any] | None

    @property
    def loop(self) -> None:
        """There is none."""

    def __str__(self) -> str:
        # Only now: this is made at every checkout in a thread. The thread may have ended.
        names = {thread.ident: thread.name for thread in threading.enumerate()}
        return f"thread {names.get(self.number, self.number)!r}"

    def runs_in(self, thread: int, frame: FrameType) -> bool:
        """Return whether it is the function whose outermost frame that is."""
        return self.number == thread and self.frame == id(frame) and self.code == frame.f_code

    def running(self) -> bool:
        """Return whether the function that acquired the hold, or its caller, is on the stack.

        In doubt it is: where somebody else keeps the copy of the context, and the thread's next
        work starts in a frame with the same address, that counts as the same work.
        """
        if self.run() is None:
            return False
        if is_on_stack(self.frame, self.code, thread_stack(self.number)):
            return True
        # Where the thread runs a greenlet, as an event loop of its own may, that one's stack is all
        # there is to see of it.
        greenlet = None if self.greenlet is None else self.greenlet()
        if greenlet is None:
            return False
        return is_on_stack(self.frame, self.code, greenlet_stack(greenlet))

    def stack(self) -> Stack:
        """Return where the thread is, while it runs that function."""
        return thread_stack(self.number) if self.running() else []

    def on_end(self, hold: Hold, callback: Callback) -> None:
        """Call it in the watch thread when the copy of the context goes."""
        on_gone(self.run(), hold, callback)


def current_holder(scope: Scope | None, frame: FrameType | None = None) -> Holder | None:
    """Name the task, strand or thread that runs now; `None` for the one that has `scope` open.

    `frame` is one of its frames, the one to begin at where the outermost is looked for.
    """
    # Who opened it is known by an `id()`, which means nothing once the scope has ended.
    opened_by = scope.opened_by if scope is not None and scope.closed_at is None else None
    loop = running_loop()
    if loop is not None:
        task = task_on(loop)
        if task is not None:
            return None if id(task) == opened_by else TaskHolder(task)
    if TRIO in modules or GEVENT in modules:
        strand = current_strand()
        if strand is not None:
            return None if id(strand.work) == opened_by else StrandHolder(strand)
    thread = get_ident()
    return None if thread == opened_by else _current_thread_holder(thread, frame)


def current_work() -> int:
    """Identify the task, strand or else thread that runs now; valid while it runs."""
    return where_work_runs()[0]


def where_work_runs() -> tuple[int, LoopRef | None, weakref.ref[Any] | None]:
    """Return what `current_work` does, the event loop of this thread, and the strand."""
    loop = running_loop()
    loop_ref = task = None
    if loop is not None:
        loop_ref = weakref.ref(loop)
        task = task_on(loop)
    strand = current_strand() if TRIO in modules or GEVENT in modules else None
    strand_ref = None if strand is None else weakref.ref(strand.work)
    if task is not None:
        return id(task), loop_ref, strand_ref
    return get_ident() if strand is None else id(strand.work), loop_ref, strand_ref


def _current_thread_holder(thread: int, frame: FrameType | None) -> ThreadHolder:
    # The outermost frame of the work that the thread does now. The loop of a thread pool is not
    # part of it: it outlives what it runs.
    outermost = frame or sys._getframe(1)  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]  # documented
    outer = outermost.f_back
    while outer is not None and not _is_thread_loop(outer.f_code.co_filename):
        outermost = outer
        outer = outer.f_back
    # The same copy of the context may run one function after the other, so that what an earlier
    # one left there says nothing about this one, unless it runs in the same frame.
    run = _run.get()
    if run is not None and run.holder.runs_in(thread, outermost):
        return run.holder
    run = _ThreadRun()
    try:
        greenlet = weakref.ref(modules["greenlet"].getcurrent())
    except (KeyError, AttributeError):  # nobody uses greenlets, or it is still being imported
        greenlet = None
    run.holder = holder = new_tuple(
        ThreadHolder, (weakref.ref(run), thread, id(outermost), outermost.f_code, greenlet)
    )
    _run.set(run)
    return holder


@lru_cache(maxsize=1024)
def _is_thread_loop(file: str) -> bool:
    return file.endswith(_THREAD_LOOPS)
