"""The watch: one daemon thread of the process, for what no request is there to do.

It learns what the garbage collector did, ends waits at their deadline, and sleeps otherwise.
"""

from __future__ import annotations

import heapq
import itertools
import threading
from collections.abc import Callable
from contextvars import Context
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Final

from leakguard.core.clock import monotonic
from leakguard.core.faults import FAULTS, Faults
from leakguard.core.fork import in_child

Job = Callable[[], None]


class Watch:
    """A queue of jobs, some of them for later, and the thread that does them.

    `post` may be called from anywhere, a finalizer in the middle of any other code included:
    `SimpleQueue.put` is reentrant. So may everything else: a `__del__` of the user's that opens
    a session, or a signal handler, may come by in the middle of a start.
    """

    def __init__(self, faults: Faults) -> None:
        self.started = False
        self._users = 0
        self._faults = faults
        self._lock = threading.RLock()
        self._starting = False
        """Whether somebody starts the thread at this moment."""
        self._inbox: SimpleQueue[tuple[float, Job] | None] = SimpleQueue()
        in_child(self._forget)

    def start(self) -> None:
        """Start the thread unless it runs."""
        with self._lock:
            if self.started or self._starting:
                return
            self._starting = True
        try:  # without the lock: the new thread itself may be interrupted, and come here
            self.started = self._start()
        except RuntimeError as error:  # too many threads, or the interpreter is ending
            self._faults.report("the start of leakguard's watch", error, "It is tried again.")
        finally:
            self._starting = False

    def _start(self) -> bool:
        """Return whether it runs, which a test may have made impossible that replaces threads."""
        # A thread, like a timer, must not keep the context of a request alive.
        run = Context().run
        thread = Thread(target=run, args=(self._run, self._inbox), name="leakguard", daemon=True)
        thread.start()
        return thread.is_alive()

    def add_user(self) -> None:
        """Count one more guard that may need the thread."""
        with self._lock:
            self._users += 1
        if not self._inbox.empty():  # the guard of an application that is gone waits for its end
            self.start()

    def remove_user(self) -> None:
        """End the thread with the last guard. What is posted is done, what is for later is not."""
        with self._lock:
            self._users -= 1
            if self._users == 0 and self.started:
                self.started = False
                self._inbox.put(None)
                self._inbox = SimpleQueue()

    def post(self, job: Job) -> None:
        """Have `job` done soon."""
        self._inbox.put((0.0, job))

    def post_at(self, when: float, job: Job) -> None:
        """Have `job` done when `time.monotonic()` has reached `when`."""
        self._inbox.put((when, job))

    def drain(self, timeout: float) -> bool:
        """Wait until what was posted so far is done.

        `False` where that took `timeout` seconds, or where there can be no thread that does it.
        """
        done = threading.Event()
        self.start()
        self.post(done.set)
        return self.started and done.wait(timeout)

    def _forget(self) -> None:
        """Begin anew in the child of a fork: threads do not survive it, locks may be taken."""
        self.started = False
        self._starting = False
        self._lock = threading.RLock()
        self._inbox = SimpleQueue()

    def _run(self, inbox: SimpleQueue[tuple[float, Job] | None]) -> None:
        jobs: list[tuple[float, int, Job]] = []
        order = itertools.count()
        while True:
            while jobs and jobs[0][0] <= monotonic():
                self._do(heapq.heappop(jobs)[2])
            try:
                item = inbox.get(timeout=_until(jobs[0][0]) if jobs else None)
            except Empty:
                continue
            if item is None:
                return
            when, job = item
            heapq.heappush(jobs, (when, next(order), job))
            del item, job  # while it sleeps it keeps nothing that it has done

    def _do(self, job: Job) -> None:
        try:
            job()
        except BaseException as error:  # noqa: BLE001  (the thread must outlive any fault)
            self._faults.report("leakguard's watch", error, "Please report it.")


_LONGEST_WAIT: Final = 3600.0
"""Seconds after which the thread looks at the clock anyway: the system refuses to wait for ages."""


def _until(when: float) -> float:
    return min(max(0.0, when - monotonic()), _LONGEST_WAIT)


WATCH: Final = Watch(FAULTS)
