"""What the pytest plugin costs a suite of 1,000 trivial tests: python -m benchmarks.pytest_plugin.

Every round runs pytest once in each way, in an order of its own, so that a machine that drifts hits
all alike. What is compared is the CPU time of the process, in the same round.
"""

from __future__ import annotations

import os
import random
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.children import Figures, compare, to_json
from benchmarks.sections import Options, Results, run_section

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
_TESTS = 1000
WITH_SQLALCHEMY = "import sqlalchemy.orm, sqlalchemy.ext.asyncio\n"


def cpu_seconds() -> float:
    """Return the CPU time of all children that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def run_suite(folder: Path, arguments: list[str]) -> float:
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


def measure(suite: str, rounds: int) -> dict[str, list[Figures]]:
    """Run a suite in all ways, as often, after a round that fills the caches."""
    figures: dict[str, list[Figures]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "pytest.ini").write_text("[pytest]\n")
        (folder / "test_trivial.py").write_text(suite)
        for number in range(rounds + 1):
            for way in random.sample(list(WAYS), len(WAYS)):
                seconds = run_suite(folder, WAYS[way])
                if number:
                    figures[way].append({"milliseconds": seconds * 1000})
    return figures


def run(options: Options) -> Results:
    """Measure a suite without SQLAlchemy, and one with it; print tables, and return them."""
    tests = "".join(TRIVIAL.format(number=number) for number in range(_TESTS))
    suites = {"without SQLAlchemy": tests, "with SQLAlchemy": WITH_SQLALCHEMY + tests}
    results: Results = []
    for title, suite in suites.items():
        compared = compare(measure(suite, options.rounds), "milliseconds", BASE)
        print(f"{_TESTS} trivial tests {title}: milliseconds of CPU for the suite")
        for way, one in compared.items():
            print(
                f"  {way:<16}{one.value:>7.0f}{one.ratio - 1:>+8.1%}"
                f"   quartiles {one.ratio_low - 1:+.1%} {one.ratio_high - 1:+.1%}"
            )
        results.append({"title": title, "ways": to_json(compared)})
    return results


if __name__ == "__main__":
    run_section(__doc__, run, rounds=10)
