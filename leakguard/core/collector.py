"""Whether the garbage collector is at work, and keeping it from work for a moment."""

from __future__ import annotations

import gc
import sys
from threading import get_ident
from typing import Final, Literal

from leakguard.core.fork import in_child
from leakguard.core.lock import LOCK


class Collector:
    """Knows the thread in which the garbage collector runs.

    What is done there, such as a `__del__` of the user's that closes a session, may have
    interrupted anybody who holds a lock. Whoever needs one that is not reentrant waits.
    """

    def __init__(self) -> None:
        self._users = 0
        self.thread = 0
        """The number of that thread; 0 while it does not run."""

    def add_user(self) -> None:
        """Count one more who wants to know; under the lock."""
        if self._users == 0:
            gc.callbacks.append(self._called)
        self._users += 1

    def remove_user(self) -> None:
        """Count one less; with the last one, leave the collector as it was found."""
        self._users -= 1
        if self._users == 0 and self._called in gc.callbacks:  # somebody may have cleared them
            gc.callbacks.remove(self._called)
            self.thread = 0

    def runs_here(self) -> bool:
        """Say whether it runs in this thread."""
        return self.thread != 0 and self.thread == get_ident()

    def _called(self, phase: Literal["start", "stop"], _: dict[str, int]) -> None:
        self.thread = get_ident() if phase == "start" else 0


COLLECTOR: Final = Collector()


class CollectorPause:
    """Keeps it from running while a block looks at the stacks of other threads.

    Python 3.11 may start it in the middle of `frame.f_back`, which makes an object. What it calls
    may let the other thread go on, whose frame is gone when Python comes back to it: the process
    crashes. (For the same reason `sys._current_frames` does it since 3.11.5, by gh-106883.) Since
    3.12 it starts only between two instructions of a program.
    """

    def __init__(self, *, needed: bool = sys.version_info < (3, 12)) -> None:
        self._needed = needed
        self._blocks = 0
        self._was_enabled = False

    def __enter__(self) -> None:
        if self._needed:
            with LOCK:
                if self._blocks == 0:
                    self._was_enabled = gc.isenabled()
                    gc.disable()
                self._blocks += 1

    def __exit__(self, *_: object) -> None:
        if self._needed:
            with LOCK:
                self._blocks -= 1
                self._go_on()

    def forget_parent(self) -> None:
        """End the blocks of other threads, which the child of a fork does not have."""
        if self._blocks:
            self._blocks = 0
            self._go_on()

    def _go_on(self) -> None:
        if self._blocks == 0 and self._was_enabled:
            gc.enable()


PAUSE: Final = CollectorPause()

in_child(PAUSE.forget_parent)
