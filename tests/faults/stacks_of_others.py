"""Look at the stacks of threads that go on, with a collector that is at work all the time.

A program of its own, because where that is not safe the process ends.
"""

from __future__ import annotations

import gc
import sys
import threading
import time
from itertools import cycle, islice

from leakguard.core.stacks import call_site, frames_of, thread_stack

LOOKS = 300


class Garbage:
    """What only the collector takes; then it lets other threads go on, and leaves more of it."""

    def __init__(self) -> None:
        self.itself = self

    def __del__(self) -> None:
        time.sleep(0.0001)
        Garbage()


def narrow(depth: int) -> int:
    """Be deep down on a stack of small frames."""
    return narrow(depth - 1) if depth else sum(range(30))


def wide(depth: int) -> float:
    """Be deep down on a stack of large frames, where other frames were before."""
    a = b = c = d = e = f = g = h = 1.5
    i = j = k = l = m = n = o = p = a + b + c + d + e + f + g + h  # noqa: E741
    return wide(depth - 1) if depth else i + j + k + l + m + n + o + p


def work() -> None:
    """Come and go on the stack, until the thread goes, too."""
    for depth in islice(cycle(range(30)), 6000):
        narrow(depth)
        wide(30 - depth)


def main() -> None:
    """Look at all of them, again and again."""
    sys.setswitchinterval(1e-5)
    gc.set_threshold(1)
    Garbage()
    threads: list[threading.Thread] = []
    for _ in range(LOOKS):
        threads = [thread for thread in threads if thread.is_alive()]
        while len(threads) < 3:
            threads.append(threading.Thread(target=work, daemon=True))
            threads[-1].start()
        for thread in threads:
            stack = thread_stack(thread.ident or 0)
            call_site(stack, 100)
            frames_of(stack)


if __name__ == "__main__":
    main()
