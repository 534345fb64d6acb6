"""What leakguard costs a request, beside its peers: python -m benchmarks.requests.

What is told is the CPU time of the process for a request, and the difference to the bare
application in the same round. Peers that are not installed are left out: `pip install --group
benchmarks`.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from benchmarks.application import WAYS, Workload
from benchmarks.children import Compared, compare, measure, to_json
from benchmarks.postgresql import postgresql
from benchmarks.sections import run_section

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
_BLOCK = 10_000
"""About how many statements there are in a block, of requests that have many."""


def title(load: Workload) -> str:
    """Say what a request does."""
    if load.work == "nothing":
        return "no database work"
    parts = [load.work, f"{load.statements} statement" + "s" * (load.statements > 1)]
    if load.depth:
        parts.append(f"{load.depth} frames deep")
    parts.append("PostgreSQL" if load.url else "SQLite")
    return ", ".join(parts)


def run(rounds: int) -> list[dict[str, Any]]:
    """Measure all workloads, print a table of each, and return them for a file."""
    results: list[dict[str, Any]] = []
    with ExitStack() as stack:
        url = stack.enter_context(postgresql())
        for load in WORKLOADS:
            actual = load._replace(url=url if load.url else "")
            requests = min(100, _BLOCK // (actual.statements or 1) // 100)
            figures = measure(
                "application", {way: [way, *actual] for way in WAYS}, rounds, requests
            )
            compared = compare(figures, "micros")
            print_table(title(load), compared)
            results.append({"title": title(load), "ways": to_json(compared)})
    return results


def print_table(name: str, compared: dict[str, Compared]) -> None:
    """Print what the ways cost."""
    print(f"{name}: microseconds of CPU for a request")
    for way, one in compared.items():
        print(
            f"  {way:<36}{one.value:>8.1f}{one.added:>+8.1f}"
            f"   quartiles {one.added_low:+.1f} {one.added_high:+.1f}   x{one.ratio:.2f}"
        )


if __name__ == "__main__":
    run_section(__doc__, run, rounds=40)
