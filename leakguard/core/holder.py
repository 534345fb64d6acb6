"""In whose hands a hold is: who acquired it, a task, strand or thread, and whether it runs."""

from __future__ import annotations

import asyncio
import gc
import inspect
import os
import sys
import threading
import weakref
from collections.abc import Callable
from contextvars import Context, ContextVar
from functools import lru_cache
from types import CodeType, FrameType
from typing import TYPE_CHECKING, Any, Final, Protocol

from leakguard.core.strand import Strand, current_strand, is_running
from leakguard.core.watch import WATCH

if TYPE_CHECKING:
    from leakguard.core.hold import Hold
    from leakguard.core.scope import Scope

Callback = Callable[["Hold"], None]
AnyTask = asyncio.Task[Any]
LoopRef = weakref.ref[asyncio.AbstractEventLoop]


class Holder(Protocol):
    """A task, strand or thread other than the one that opened the scope."""

    def running(self) -> bool:
        """Say whether the work that acquired the hold still runs."""
        ...

    def on_end(self, hold: Hold, callback: Callback) -> None:
        """Have `callback(hold)` called about when the work ends, unless the hold is gone by then.

        It may come late, twice or never. Asking again changes nothing.
        """
        ...


class TaskHolder:
    """An asyncio task."""

    __slots__ = ("_function", "_name", "_task")

    def __init__(self, task: AnyTask) -> None:
        self._task = weakref.ref(task)
        self._name = task.get_name()
        self._function: str | None = getattr(task.get_coro(), "__qualname__", None)

    def __str__(self) -> str:
        function = "" if self._function is None else f" ({self._function})"
        return f"task {self._name!r}{function}"

    def running(self) -> bool:
        """Say whether the task is not done."""
        task = self._task()
        return task is not None and not task.done()

    def on_end(self, hold: Hold, callback: Callback) -> None:
        """Call it when the task is done; never, where another thread runs its loop."""
        task = self._task()
        if task is not None:
            on_done(task, hold, callback)


class StrandHolder:
    """A task of trio's or a greenlet of gevent's."""

    __slots__ = ("_name", "_work")

    def __init__(self, strand: Strand) -> None:
        self._work = weakref.ref(strand.work)
        self._name = strand.name

    def __str__(self) -> str:
        return self._name

    def running(self) -> bool:
        """Say whether it has not ended."""
        work = self._work()
        return work is not None and is_running(work)

    def on_end(self, hold: Hold, callback: Callback) -> None:
        """Call it in the watch thread when the coroutine or the greenlet goes."""
        _on_gone(self._work(), hold, callback)


class _Work:
    """A run of a function in a copied context; it lives as long as that copy of the context.

    A `ContextVar` set inside the copy is seen by nobody else, and goes when the copy goes.
    A traceback may keep the copy alive for longer than the run, so that alone proves nothing:
    the run must also still have its outermost frame on the thread's stack. (The number of
    a frame alone proves nothing either: any other frame may get the same address, and that of
    the next run of the same function, too.)
    """

    __slots__ = ("__weakref__", "code", "frame", "thread")

    def __init__(self, thread: int, frame: FrameType) -> None:
        self.thread = thread
        self.frame = id(frame)
        self.code = frame.f_code


_work: Final[ContextVar[_Work | None]] = ContextVar("leakguard_work", default=None)
_THREAD_LOOPS: Final = (
    os.path.join(os.sep, "threading.py"),
    os.path.join(os.sep, "concurrent", "futures", "thread.py"),
    os.path.join(os.sep, "multiprocessing", "pool.py"),
    os.path.join(os.sep, "anyio", "_backends", "_asyncio.py"),
    os.path.join(os.sep, "asyncio", "events.py"),  # callbacks of the event loop
    os.path.join(os.sep, "trio", "_threads.py"),
)
"""Files whose frames run one piece of work after the other."""


class ThreadHolder:
    """A function that a thread runs in a copy of the scope's context."""

    __slots__ = ("_code", "_frame", "_name", "_thread", "_work")

    def __init__(self, work: _Work) -> None:
        self._work = weakref.ref(work)
        self._thread = work.thread
        self._frame = work.frame
        self._code = work.code
        self._name = threading.current_thread().name

    def __str__(self) -> str:
        return f"thread {self._name!r}"

    def running(self) -> bool:
        """Say whether the function that acquired the hold, or its caller, is on the stack.

        In doubt it is: where somebody else keeps the copy of the context, and the thread's next
        work starts in a frame with the same address, that counts as the same work.
        """
        if self._work() is None:
            return False
        stack = sys._current_frames().get(self._thread)  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]  # documented
        return is_on_stack(stack, self._frame, self._code)

    def on_end(self, hold: Hold, callback: Callback) -> None:
        """Call it in the watch thread when the copy of the context goes."""
        _on_gone(self._work(), hold, callback)


def current_holder(scope: Scope) -> Holder | None:
    """Name the task, strand or thread that runs now; `None` for the one that has `scope` open."""
    # The owner is known by its number, which means nothing once the scope has ended.
    owner = scope.owner if scope.closed_at is None else None
    task = current_task()
    if task is not None:
        return None if id(task) == owner else TaskHolder(task)
    strand = current_strand()
    if strand is not None:
        return None if id(strand.work) == owner else StrandHolder(strand)
    thread = threading.get_ident()
    return None if thread == owner else ThreadHolder(_current_work(thread))


def current_owner() -> int:
    """Identify the task, strand or else thread that runs now; valid while it runs."""
    task = current_task()
    if task is not None:
        return id(task)
    strand = current_strand()
    return threading.get_ident() if strand is None else id(strand.work)


def running_loop() -> asyncio.AbstractEventLoop | None:
    """Give the event loop that runs in this thread."""
    # `get_running_loop` raises where there is none, and raising is slow.
    return asyncio._get_running_loop()  # noqa: SLF001  (exported by asyncio for this use)


def loop_ref() -> LoopRef | None:
    """Give a weak reference to the event loop that runs in this thread."""
    loop = running_loop()
    return None if loop is None else weakref.ref(loop)


def current_task() -> AnyTask | None:
    """Give the running task, `None` outside of an event loop."""
    loop = running_loop()
    return None if loop is None else asyncio.current_task(loop)


def other_tasks(loop: asyncio.AbstractEventLoop) -> list[AnyTask]:
    """List the tasks of `loop` that are not done, the current one left out."""
    current = current_task()
    return [task for task in asyncio.all_tasks(loop) if task is not current]


def context_of(task: AnyTask) -> Context | None:
    """Give the context a task runs in."""
    get_context: Callable[[], Context] | None = getattr(task, "get_context", None)
    return context_among_referents(task) if get_context is None else get_context()


def context_among_referents(task: AnyTask) -> Context | None:
    """Give the context of a task in Python 3.11, which does not tell, but refers to it."""
    return next((item for item in gc.get_referents(task) if isinstance(item, Context)), None)


def on_done(task: AnyTask, hold: Hold, callback: Callback) -> None:
    """Call `callback(hold)` when `task` is done, unless the hold is gone by then.

    Only in the thread that runs the task's loop: a task must not be touched from another one.
    """
    if task.get_loop() is running_loop():
        waiting = _waiting.get(task)
        if waiting is None:
            waiting = _waiting[task] = _Waiting()
            # In a context of its own: it would keep the current one alive.
            task.add_done_callback(waiting.tell, context=Context())
        waiting.add(hold, callback)


def _on_gone(work: object | None, hold: Hold, callback: Callback) -> None:
    """Call `callback(hold)` in the watch thread when `work` is collected."""
    if work is not None:
        waiting = _waiting.get(work)
        if waiting is None:
            waiting = _waiting[work] = _Waiting()
            weakref.finalize(work, WATCH.post, waiting.tell).atexit = False
        waiting.add(hold, callback)


class _Waiting:
    """The holds to judge again when a task or a run ends, each while anybody else knows it.

    Work that outlives its scope may take and return any number of connections.
    """

    def __init__(self) -> None:
        self._callbacks: dict[weakref.ref[Hold], Callback] = {}

    def add(self, hold: Hold, callback: Callback) -> None:
        """Have `callback(hold)` called; once, however often it is asked for."""
        callbacks = self._callbacks
        callbacks[weakref.ref(hold, lambda ref: callbacks.pop(ref, None))] = callback

    def tell(self, *_: object) -> None:
        """Call them: the work has ended."""
        callbacks = self._callbacks.copy()
        holds = [(ref(), callback) for ref, callback in callbacks.items()]
        for hold, callback in [(hold, callback) for hold, callback in holds if hold is not None]:
            callback(hold)


_waiting: Final[weakref.WeakKeyDictionary[object, _Waiting]] = weakref.WeakKeyDictionary()


def is_on_stack(stack: FrameType | None, number: int, code: CodeType) -> bool:
    """Say whether the frame with that `id` and `code` is `stack` or one further out, or might be.

    The thread goes on while its stack is walked. A frame that returns meanwhile still knows its
    caller, but a generator that yields does not: where the way ends at one, nobody knows.
    """
    outermost = stack
    while stack is not None:
        if id(stack) == number and stack.f_code is code:
            return True
        outermost, stack = stack, stack.f_back
    return outermost is not None and bool(outermost.f_code.co_flags & _SUSPENDABLE)


_SUSPENDABLE: Final = inspect.CO_GENERATOR | inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR


def _current_work(thread: int) -> _Work:
    # The same copy of the context may run one function after the other, so that what an earlier
    # one left there says nothing about this one, unless it runs in the same frame.
    frame = _outermost_frame(sys._getframe(1))  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]  # documented
    work = _work.get()
    if work is None or (work.thread, work.frame, work.code) != (thread, id(frame), frame.f_code):
        work = _Work(thread, frame)
        _work.set(work)
    return work


def _outermost_frame(frame: FrameType) -> FrameType:
    """Give the outermost frame of the work that the thread does now.

    The loop of a thread pool is not part of it: it outlives what it runs.
    """
    outer: FrameType | None = frame
    while outer is not None and not _is_thread_loop(outer.f_code.co_filename):
        frame, outer = outer, outer.f_back
    return frame


@lru_cache(maxsize=1024)
def _is_thread_loop(file: str) -> bool:
    return file.endswith(_THREAD_LOOPS)
