"""The ends of tasks and runs, and who wants to hear of them."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from contextvars import Context
from typing import TYPE_CHECKING, Final

from leakguard.core.tasks import AnyTask, running_loop
from leakguard.core.watch import WATCH

if TYPE_CHECKING:
    from leakguard.core.hold import Hold

Callback = Callable[["Hold"], None]


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


def on_gone(work: object | None, hold: Hold, callback: Callback) -> None:
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
