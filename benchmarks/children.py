"""Processes that are measured by turns, and what is made of their figures.

Every way has a process of its own that stays. They do blocks of work by turns, in an order of its
own for every round, so that a machine that drifts hits all alike. What is compared is always of the
same round.
"""

from __future__ import annotations

import json
import os
import random
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import IO, Any, NamedTuple, cast

BASE = "bare"

Figures = dict[str, float]
"""What a child has measured of a block, by name."""


class Way(NamedTuple):
    """How a child is started."""

    arguments: tuple[object, ...]
    python: str = sys.executable
    """The interpreter: that of another environment, where a way needs other versions."""


class Child:
    """A module of this package that runs with some arguments, and answers numbers with figures."""

    def __init__(self, module: str, way: Way, stack: ExitStack) -> None:
        command = [way.python, "-m", f"benchmarks.{module}", *map(str, way.arguments)]
        process = subprocess.Popen(  # noqa: S603  (our own command)
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # Compiled once, as everywhere: some environments forbid it.
            env={k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"},
        )
        self._process = stack.enter_context(process)
        self._input, self._output = cast("IO[str]", process.stdin), cast("IO[str]", process.stdout)
        self.figures: list[Figures] = []

    @property
    def ready(self) -> bool:
        """Whether it answers; waits until it is warm. Not so where its library is not installed."""
        return self._output.readline().strip() == "ready"

    @property
    def error(self) -> str:
        """The last line that it wrote on its way out."""
        _, errors = self._process.communicate()
        return errors.strip().rpartition("\n")[2]

    def ask(self, number: int) -> Figures:
        """Have it do a block of that many, and return what it measured."""
        self._input.write(f"{number}\n")
        self._input.flush()
        line = self._output.readline()
        if not line:
            raise SystemExit(f"a child ended: {self.error}")
        figures: Figures = json.loads(line)
        return figures


def answer(block: Callable[[int], Figures]) -> None:
    """Do blocks of work as long as somebody asks; for the children themselves."""
    print("ready", flush=True)
    for line in sys.stdin:
        print(json.dumps(block(int(line))), flush=True)


def measure(
    module: str, ways: Mapping[str, Way], rounds: int, number: int
) -> dict[str, list[Figures]]:
    """Have all ways do blocks by turns, and return their figures, without those that cannot."""
    with ExitStack() as stack:
        children = {name: Child(module, way, stack) for name, way in ways.items()}
        for way, child in list(children.items()):
            if not child.ready:
                print(f"  {way} is left out: {child.error}", file=sys.stderr)
                del children[way]
        for _ in range(rounds):
            for child in random.sample(list(children.values()), len(children)):
                child.figures.append(child.ask(number))
        return {way: child.figures for way, child in children.items()}


class Compared(NamedTuple):
    """A figure of a way beside that of the bare application: medians of all rounds, quartiles."""

    value: float
    added: float
    added_low: float
    added_high: float
    ratio: float
    ratio_low: float
    ratio_high: float


def compare(
    figures: Mapping[str, list[Figures]], name: str, base_way: str = BASE
) -> dict[str, Compared]:
    """Compare a figure of all ways, each round with the bare one of the same round."""
    base = [one[name] for one in figures[base_way]]
    compared: dict[str, Compared] = {}
    for way, of_way in figures.items():
        values = [one[name] for one in of_way]
        low, added, high = _quartiles([v - b for v, b in zip(values, base, strict=True)])
        ratios = _quartiles([v / b for v, b in zip(values, base, strict=True)])
        compared[way] = Compared(
            statistics.median(values), added, low, high, ratios[1], ratios[0], ratios[2]
        )
    return compared


def _quartiles(values: list[float]) -> tuple[float, float, float]:
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, median, high


def to_json(compared: Mapping[str, Compared]) -> dict[str, Any]:
    """Return them as they go into a file."""
    return {
        way: {name: round(value, 4) for name, value in one._asdict().items()}
        for way, one in compared.items()
    }
