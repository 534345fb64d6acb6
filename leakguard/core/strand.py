"""Strands: trio's tasks and gevent's greenlets, of which one thread runs many by turns.

Neither library is imported: where nobody else has done so, nothing of it runs.
"""

from __future__ import annotations

from sys import modules
from typing import Any, Final, NamedTuple

from leakguard.core.stacks import Stack, chain_stack, greenlet_stack


class Strand(NamedTuple):
    """Work that shares its thread with others, and is no task of asyncio's."""

    work: Any
    """The coroutine of a task of trio's, or a greenlet. Not to be kept alive."""
    name: str
    """What a report calls it."""


TRIO: Final = "trio.lowlevel"
GEVENT: Final = "gevent"
"""The modules that know what runs."""


def current_strand() -> Strand | None:
    """Return the strand that runs now; `None` outside of trio and of gevent's greenlets."""
    strand = None
    if (trio := modules.get(TRIO)) is not None:
        strand = _trio_task(trio)
    if strand is None and (gevent := modules.get(GEVENT)) is not None:
        strand = _greenlet(gevent)
    return strand


def is_running(work: Any) -> bool:  # noqa: ANN401  (of a library that need not be installed)
    """Return whether the work of a strand has not ended."""
    if hasattr(work, "dead"):
        return not work.dead
    return work.cr_frame is not None


def strand_stack(work: Any) -> Stack:  # noqa: ANN401  (of a library that need not be installed)
    """Return where the work of a strand waits or runs; empty for a greenlet that runs."""
    if not hasattr(work, "dead"):
        return chain_stack(work)
    return greenlet_stack(work)


def _trio_task(trio: Any) -> Strand | None:  # noqa: ANN401  (a module that need not be installed)
    try:
        coroutine = trio.current_task().coro
        return Strand(coroutine, f"task {coroutine.__qualname__!r} of trio")
    except (AttributeError, RuntimeError):  # still being imported; no run of trio's in this thread
        return None


def _greenlet(gevent: Any) -> Strand | None:  # noqa: ANN401  (a module that need not be installed)
    try:
        greenlet = gevent.getcurrent()
        # The main one of a thread is the thread, and the hub and those of a pool never end.
        if isinstance(greenlet, gevent.Greenlet):
            return Strand(greenlet, f"greenlet {greenlet.name!r}")
    except AttributeError:  # still being imported
        pass
    return None
