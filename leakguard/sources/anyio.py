"""AnyIO: how many threads it lets work at once, in which Starlette runs what is not `async`.

Not imported: where nobody else has done so, none of its threads run.
"""

from __future__ import annotations

import threading
from sys import modules
from typing import Any, Final

_THREAD_NAME: Final = "AnyIO worker thread"


def thread_limit() -> int | None:
    """Return the limit of the threads among which the one that runs now is; `None` for others."""
    if not threading.current_thread().name.startswith(_THREAD_NAME):
        return None
    limits = [limiter.total_tokens for limiter in _limiters() if limiter.borrowed_tokens]
    # Of several loops, each with a limiter of its own, nobody knows whose this thread is.
    return int(limits[0]) if len(limits) == 1 and limits[0] < _NO_LIMIT else None


_NO_LIMIT: Final = 1_000_000


def _limiters() -> list[Any]:
    """List the limiters of all event loops."""
    lowlevel: Any = modules.get("anyio.lowlevel")
    try:
        per_loop = list(lowlevel._run_vars.values())  # noqa: SLF001  (only a loop's own thread may ask otherwise; tested)
        values = [value for variables in per_loop for value in list(variables.values())]
    except (AttributeError, RuntimeError):  # another version, or changed at this moment
        return []
    return [value for value in values if hasattr(value, "borrowed_tokens")]
