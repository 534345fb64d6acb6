"""Run every scenario and write docs/accuracy.md; fails where a verdict is wrong."""

from __future__ import annotations

import argparse
import logging
import random
import sys
import tempfile
from pathlib import Path

from tests.scenarios.accuracy import TABLE, expected, render, run
from tests.scenarios.databases import Databases


def main() -> int:
    """Write the table, and give 1 where it is not what the scenarios expect."""
    parser = argparse.ArgumentParser(prog="python -m tests.scenarios", description=__doc__)
    parser.add_argument("--times", type=int, default=1, help="how often each runs")
    parser.add_argument("--seed", type=int, default=random.randrange(1000), help="of the order")  # noqa: S311  (not a secret)
    asked = parser.parse_args()
    logging.disable()  # leaks are logged by SQLAlchemy and the drivers, too
    with tempfile.TemporaryDirectory() as folder, Databases(Path(folder)) as databases:
        found = run(databases, print, times=asked.times, seed=asked.seed)
    text = render(lambda one, driver: found[one.name, driver.name])
    TABLE.write_text(text)
    right = text == render(expected)
    came_out = "all as expected" if right else f"not as expected: see {TABLE.name}"
    sys.stdout.write(f"{len(found)} cases, {asked.times} times, seed {asked.seed}: {came_out}\n")
    return int(not right)


if __name__ == "__main__":
    sys.exit(main())
