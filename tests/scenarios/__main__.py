"""Run every scenario and write docs/accuracy.md; fails where a verdict is wrong."""

from __future__ import annotations

import logging
import sys
import tempfile
from pathlib import Path

from tests.scenarios.accuracy import TABLE, expected, render, run
from tests.scenarios.databases import Databases


def main() -> int:
    """Write the table, and give 1 where it is not what the scenarios expect."""
    logging.disable()  # leaks are logged by SQLAlchemy and the drivers, too
    with tempfile.TemporaryDirectory() as folder, Databases(Path(folder)) as databases:
        found = run(databases, print)
    text = render(lambda one, driver: found[one.name, driver.name])
    TABLE.write_text(text)
    return int(text != render(expected))


if __name__ == "__main__":
    sys.exit(main())
