"""Ctrl-C and SIGTERM, heeded between two steps.

An exception that a signal raises wherever the program happens to be may be lost in a finalizer, or
leave a lock taken, an import's for one, that another thread then waits for.
"""

from __future__ import annotations

import signal
from queue import SimpleQueue
from typing import Final, NoReturn

_SIGNALS: Final[SimpleQueue[int]] = SimpleQueue()
"""Those that came. Putting something into it is safe at any point of any code."""


def listen() -> None:
    """Note both signals from now on; a second one of a kind ends the program where it is."""
    for number in (signal.SIGINT, signal.SIGTERM):
        # Also where a shell started this in the background, which makes it deaf to Ctrl-C.
        signal.signal(number, _note)


def _note(number: int, _: object) -> None:
    signal.signal(number, signal.SIG_DFL)
    _SIGNALS.put(number)


def heed() -> None:
    """Raise `KeyboardInterrupt` with the number of the signal, if one has come."""
    if not _SIGNALS.empty():
        wait()


def wait() -> NoReturn:
    """Wait for a signal, and raise `KeyboardInterrupt` with its number."""
    raise KeyboardInterrupt(_SIGNALS.get())
