"""What leakguard costs a request, beside its peers: python -m benchmarks.requests [--json FILE].

Each way has a process of its own that stays. They answer blocks of requests by turns, in an order
of its own for every round, so that a machine that drifts hits all alike. What is told is the CPU
time of the process for a request, and the difference to the bare application in the same round.

Peers that are not installed are left out: `pip install --group benchmarks`.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import statistics
import subprocess
import sys
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any, cast

from benchmarks.application import WAYS

BASE = "bare"
WORKLOADS = [
    ("nothing", 0),
    ("sync", 1),
    ("async", 1),
    ("sync", 10),
    ("sync", 100),
]
"""What a request does, and with how many statements."""


class Child:
    """An application in one way, in a process of its own."""

    def __init__(self, way: str, work: str, statements: int, stack: ExitStack) -> None:
        command = [sys.executable, "-m", "benchmarks.application", way, work, str(statements)]
        process = subprocess.Popen(  # noqa: S603  (our own command)
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._process = stack.enter_context(process)
        self._input, self._output = cast("IO[str]", process.stdin), cast("IO[str]", process.stdout)
        self.micros: list[float] = []

    @property
    def ready(self) -> bool:
        """Whether it answers; waits until it is warm. Not so where its library is not installed."""
        return self._line() == "ready"

    @property
    def error(self) -> str:
        """The last line that it wrote on its way out."""
        _, errors = self._process.communicate()
        return errors.strip().rpartition("\n")[2]

    def answer(self, requests: int) -> None:
        """Have it answer a block, and keep the time."""
        self._input.write(f"{requests}\n")
        self._input.flush()
        self.micros.append(float(self._line()))

    def _line(self) -> str:
        return self._output.readline().strip()


def measure(work: str, statements: int, rounds: int, requests: int) -> dict[str, list[float]]:
    """Return the times of all blocks by way, in microseconds."""
    with ExitStack() as stack:
        children = {way: Child(way, work, statements, stack) for way in WAYS}
        for way, child in list(children.items()):
            if not child.ready:
                print(f"  {way} is left out: {child.error}")
                del children[way]
        for _ in range(rounds):
            for child in random.sample(list(children.values()), len(children)):
                child.answer(requests)
        return {way: child.micros for way, child in children.items()}


def summarise(times: dict[str, list[float]]) -> dict[str, dict[str, float]]:
    """Return the figures of each way: medians and quartiles, in microseconds."""
    summary: dict[str, dict[str, float]] = {}
    for way, micros in times.items():
        more = [one - base for one, base in zip(micros, times[BASE], strict=True)]
        low, median, high = statistics.quantiles(more, n=4)
        summary[way] = {
            "request": statistics.median(micros),
            "added": median,
            "added_low": low,
            "added_high": high,
            "ratio": statistics.median(micros) / statistics.median(times[BASE]),
        }
    return summary


def main() -> None:
    """Print a table for each workload, and write all of it as JSON where asked to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=40, help="how many blocks of each way")
    parser.add_argument("--requests", type=int, default=100, help="how many requests in a block")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, too")
    arguments = parser.parse_args()
    results: list[dict[str, Any]] = []
    for work, statements in WORKLOADS:
        print(f"{work}, {statements} statements: microseconds of CPU for a request")
        summary = summarise(measure(work, statements, arguments.rounds, arguments.requests))
        for way, one in summary.items():
            print(
                f"  {way:<36}{one['request']:>8.1f}{one['added']:>+8.1f}"
                f"   quartiles {one['added_low']:+.1f} {one['added_high']:+.1f}"
                f"   x{one['ratio']:.2f}"
            )
        results.append({"work": work, "statements": statements, "ways": summary})
    if arguments.json is not None:
        machine = {
            "python": platform.python_version(),
            "sqlalchemy": version("sqlalchemy"),
            "fastapi": version("fastapi"),
            "rounds": arguments.rounds,
            "requests": arguments.requests,
        }
        arguments.json.write_text(json.dumps({**machine, "workloads": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
