"""What leakguard costs a request, beside its peers: python -m benchmarks.requests.

What is told is the CPU time of the process for a request, and the difference to the bare
application in the same round. Peers that are not installed are left out, and so are those that do
not support this SQLAlchemy, unless `--older` says where there is one that they do.
"""

from __future__ import annotations

from contextlib import ExitStack

from benchmarks.application import WAYS, Workload
from benchmarks.children import BASE, Compared, Figures, Way, compare, measure, to_json
from benchmarks.postgresql import postgresql
from benchmarks.sections import Options, Results, run_section

WORKLOADS = [
    Workload("nothing", statements=0),
    Workload("sync"),
    Workload("async"),
    Workload("sync", statements=10),
    Workload("sync", statements=100),
    Workload("async", statements=10),
    Workload("sync", depth=10),
    Workload("sync", depth=50),
    Workload("sync", depth=200),
    Workload("async", depth=50),
    Workload("sync", url="postgresql"),
    Workload("async", url="postgresql"),
]
NEED_OLDER = ("OpenTelemetry, SQLAlchemy", "OpenTelemetry, both")
"""Ways that do not support SQLAlchemy 2.1."""
OLD_BASE = "bare, SQLAlchemy 2.0"
"""What they are compared with."""
_BLOCK = 500
"""Requests in a block, about as many as leakguard counts for its metrics at a time; fewer where
each has many statements."""


def title(load: Workload) -> str:
    """Say what a request does."""
    if load.work == "nothing":
        return "no database work"
    parts = [load.work, f"{load.statements} statement" + "s" * (load.statements > 1)]
    if load.depth:
        parts.append(f"{load.depth} frames deep")
    parts.append("PostgreSQL" if load.url else "SQLite")
    return ", ".join(parts)


def run(options: Options) -> Results:
    """Measure all workloads, print a table of each, and return them for a file."""
    results: Results = []
    with ExitStack() as stack:
        url = stack.enter_context(postgresql())
        for load in WORKLOADS:
            actual = load._replace(url=url if load.url else "")
            requests = max(50, _BLOCK // (actual.statements or 1))
            figures = measure("application", ways(actual, options), options.rounds, requests)
            compared = compare_all(figures)
            print_table(title(load), compared)
            results.append({"title": title(load), "ways": to_json(compared)})
    return results


def ways(load: Workload, options: Options) -> dict[str, Way]:
    """Return all ways; those that need an older SQLAlchemy beside a bare application with that."""
    every = {way: Way((way, *load)) for way in WAYS}
    if options.older is not None:
        every[OLD_BASE] = Way((BASE, *load), options.older)
        every |= {way: Way((way, *load), options.older) for way in NEED_OLDER}
    return every


def compare_all(figures: dict[str, list[Figures]]) -> dict[str, Compared]:
    """Compare every way with the bare application of the same environment."""
    if OLD_BASE not in figures:
        return compare(figures, "micros")
    old = {way: one for way, one in figures.items() if way in (OLD_BASE, *NEED_OLDER)}
    new = {way: one for way, one in figures.items() if way not in old}
    return compare(new, "micros") | compare(old, "micros", OLD_BASE)


def print_table(name: str, compared: dict[str, Compared]) -> None:
    """Print what the ways cost."""
    print(f"{name}: microseconds of CPU for a request")
    for way, one in compared.items():
        print(
            f"  {way:<36}{one.value:>8.1f}{one.added:>+8.1f}"
            f"   quartiles {one.added_low:+.1f} {one.added_high:+.1f}   x{one.ratio:.2f}"
        )


if __name__ == "__main__":
    run_section(__doc__, run, rounds=11)
