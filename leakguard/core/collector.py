"""Whether the garbage collector is at work: then some code is interrupted at any point."""

from __future__ import annotations

import gc
from threading import get_ident
from typing import Final, Literal


class Collector:
    """Knows the thread in which the garbage collector runs.

    What is done there, such as a `__del__` of the user's that closes a session, may have
    interrupted anybody who holds a lock. Whoever needs one that is not reentrant waits.
    """

    def __init__(self) -> None:
        self._users = 0
        self._thread = 0

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
            self._thread = 0

    def runs_here(self) -> bool:
        """Say whether it runs in this thread."""
        return self._thread != 0 and self._thread == get_ident()

    def _called(self, phase: Literal["start", "stop"], _: dict[str, int]) -> None:
        self._thread = get_ident() if phase == "start" else 0


COLLECTOR: Final = Collector()
