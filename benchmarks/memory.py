"""What leakguard keeps in memory: python -m benchmarks.memory.

What a process has allocated in Python before and after so many of something: of connections and
sessions that are out, of requests that have ended, and of mistakes that were found. With leakguard
and without it, each in a process of its own; what is told is the difference.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sqlalchemy import create_engine
from sqlalchemy.orm import Session

from benchmarks.application import Workload, make, respond
from benchmarks.children import BASE
from benchmarks.pool import make_engine
from benchmarks.sections import Options, Results, run_section
from leakguard import LeakGuard
from leakguard.core.watch import WATCH

WATCHED = "leakguard, production"
_BOUND = 3000
"""More mistakes than anything remembers."""

Many = Callable[[int], object]
"""Makes so many of something, and returns what is to be kept of them."""


def connections(way: str) -> Many:
    """Take connections of a pool, and keep them."""
    watch(way)
    engine = make_engine(2000)
    return lambda number: [engine.raw_connection() for _ in range(number)]


def sessions(way: str) -> Many:
    """Construct sessions, and keep them."""
    watch(way)
    engine = create_engine("sqlite://")
    return lambda number: [Session(engine) for _ in range(number)]


def requests(way: str) -> Many:
    """Answer requests, each of which uses a session."""
    app = make(way, Workload("sync"))
    loop = asyncio.new_event_loop()
    return lambda number: loop.run_until_complete(respond(app, number))


def findings(way: str) -> Many:
    """Leak at so many lines, from each once; the connection comes back after that."""
    guard = watch(way)
    engine = make_engine(1)
    lines = range(_BOUND + 2000)
    code = "".join(f"def leak_{line}(engine): return engine.raw_connection()\n" for line in lines)
    functions: dict[str, Any] = {}
    exec(compile(code, str(Path.cwd() / "leaks.py"), "exec"), functions)  # noqa: S102  (our own code)
    for line in lines:  # Python keeps their instructions once somebody has read them
        functions[f"leak_{line}"].__code__.co_code  # noqa: B018
    todo = iter(lines)

    def leak(number: int) -> None:
        for _ in range(number):
            function = functions[f"leak_{next(todo)}"]
            if guard is None:
                function(engine).close()
            else:
                with guard.scope("job"):
                    taken = function(engine)
                taken.close()

    return leak


def more_findings(way: str) -> Many:
    """Leak at more lines, when the memory for mistakes is full."""
    leak = findings(way)
    leak(_BOUND)
    return leak


def watch(way: str) -> LeakGuard | None:
    """Begin to watch, if the way is about that."""
    logging.getLogger("leakguard").setLevel(logging.CRITICAL)
    return LeakGuard(mode="production").install() if way == WATCHED else None


KINDS: dict[str, tuple[Callable[[str], Many], int, int]] = {
    "a connection that is out": (connections, 10, 1000),
    "a session that is open": (sessions, 10, 1000),
    "a request that has ended": (requests, 1000, 10_000),
    "a distinct mistake": (findings, 10, 500),
    f"a distinct mistake, after {_BOUND:,}": (more_findings, 10, 1500),
}
"""What there are many of, what makes them, how many are there before, and how many are measured."""


def measure(kind: str, way: str) -> float:
    """Return how many bytes the process has more for each."""
    tracemalloc.start()
    make_many, warm_up, number = KINDS[kind]
    many = make_many(way)
    many(warm_up)
    before = allocated()
    kept = many(number)
    grown = allocated() - before
    del kept
    return grown / number


def allocated() -> int:
    """Return how many bytes are allocated, when the garbage is gone."""
    WATCH.drain(10.0)  # it may be behind
    gc.collect()
    return tracemalloc.get_traced_memory()[0]


def run(options: Options) -> Results:  # noqa: ARG001  (memory does not vary)
    """Measure all kinds, print a table, and return it for a file."""
    results: Results = []
    print("bytes of memory that leakguard adds for")
    for kind in KINDS:
        values = {way: ask(kind, way) for way in (BASE, WATCHED)}
        added = values[WATCHED] - values[BASE]
        print(f"  {kind:<36}{added:>8.0f}   (without leakguard it takes {values[BASE]:.0f})")
        results.append({"title": kind, "added": round(added), "bare": round(values[BASE])})
    return results


def ask(kind: str, way: str) -> float:
    """Measure in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.memory", "--of", kind, way]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)  # noqa: S603  (our own command)
    return float(done.stdout)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--of"]:
        print(measure(*sys.argv[2:]))
    else:
        run_section(__doc__, run, rounds=1)
