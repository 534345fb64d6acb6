"""What the pytest plugin costs a suite of 1,000 trivial tests: python -m benchmarks.pytest_plugin.

Every round runs pytest once in each way, in an order of its own, so that a machine that drifts hits
all alike. What is compared is the CPU time of the process, in the same round.
"""

from __future__ import annotations

import argparse
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

WAYS = {
    "without": ["-pno:leakguard"],
    "without, again": ["-pno:leakguard"],  # what the machine makes of the same
    "inert": [],
    "error": ["--leakguard=error"],
}
BASE = "without"
# Other plugins of this environment would only blur the picture.
OTHERS = ["randomly", "asyncio", "anyio", "xdist", "hypothesispytest", "rerunfailures"]
TRIVIAL = "def test_{number}(): assert True\n"
WITH_SQLALCHEMY = "import sqlalchemy.orm, sqlalchemy.ext.asyncio\n"


def cpu_seconds() -> float:
    """Return the CPU time of all children that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def run(folder: Path, arguments: list[str]) -> float:
    """Run pytest over the suite, and return the CPU time that it took, in seconds."""
    before = cpu_seconds()
    subprocess.run(  # noqa: S603  (our own command)
        [sys.executable, "-m", "pytest", "-q", *(f"-pno:{name}" for name in OTHERS), *arguments],
        cwd=folder,
        # Compiled once, as everywhere: some environments forbid it.
        env={k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"},
        stdout=subprocess.DEVNULL,
        check=True,
    )
    return cpu_seconds() - before


def measure(suite: str, rounds: int) -> dict[str, list[float]]:
    """Run a suite in all ways, as often, after a round that fills the caches."""
    times: dict[str, list[float]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "pytest.ini").write_text("[pytest]\n")
        (folder / "test_trivial.py").write_text(suite)
        for number in range(rounds + 1):
            for way in random.sample(list(WAYS), len(WAYS)):
                seconds = run(folder, WAYS[way])
                if number:
                    times[way].append(seconds)
    return times


def main() -> None:
    """Print a table for a suite that does not use SQLAlchemy, and for one that does."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15, help="how often each way is run")
    parser.add_argument("--tests", type=int, default=1000, help="how many tests the suite has")
    arguments = parser.parse_args()
    tests = "".join(TRIVIAL.format(number=number) for number in range(arguments.tests))
    suites = {"without SQLAlchemy": tests, "with SQLAlchemy": WITH_SQLALCHEMY + tests}
    for title, suite in suites.items():
        times = measure(suite, arguments.rounds)
        print(f"{arguments.tests} trivial tests {title}, median of {arguments.rounds} rounds")
        for way, seconds in times.items():
            ratios = [one / base - 1 for one, base in zip(seconds, times[BASE], strict=True)]
            low, _, high = statistics.quantiles(ratios, n=4)
            print(
                f"  {way:<16}{statistics.median(seconds) * 1000:>7.0f} ms"
                f"{statistics.median(ratios):>+8.1%}   quartiles {low:+.1%} {high:+.1%}"
            )


if __name__ == "__main__":
    main()
