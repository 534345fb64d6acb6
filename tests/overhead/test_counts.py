"""What leakguard adds to a clean request is what it added when this was last recorded.

Times depend on the machine, numbers of calls do not. Where one is meant to change, write it down
here, with the figures of `benchmarks/` in the commit.
"""

from __future__ import annotations

import subprocess
import sys
from typing import Final

import pytest
import sqlalchemy

from tests.overhead.counting import Counts

SQLALCHEMY: Final = "2.1.9"
RECORDED: Final = {
    (3, 11): {
        "production": Counts(50, 2, 15, 28, 1840),
        "development": Counts(68, 3, 20, 41, 2552),
    },
    (3, 12): {
        "production": Counts(50, 2, 15, 28, 1816),
        "development": Counts(68, 3, 20, 41, 2528),
    },
    (3, 13): {
        "production": Counts(50, 2, 15, 28, 1816),
        "development": Counts(68, 3, 20, 41, 2528),
    },
}
"""By version of Python, and by mode; with SQLAlchemy of the version above."""

pytestmark = pytest.mark.skipif(
    sqlalchemy.__version__ != SQLALCHEMY or sys.version_info[:2] not in RECORDED,
    reason=f"recorded with SQLAlchemy {SQLALCHEMY}, for Python 3.11 to 3.13",
)


@pytest.mark.parametrize("mode", ["production", "development"])
def test_a_clean_request_costs_what_it_did(mode: str) -> None:
    """By the number of calls, and of the objects that are kept meanwhile."""
    # In a process of its own: what else is imported, as OpenTelemetry is by other tests, counts.
    command = [sys.executable, "-m", "tests.overhead", mode]
    done = subprocess.run(command, capture_output=True, text=True, check=True)  # noqa: S603
    counted = Counts(*map(int, done.stdout.split()))
    assert counted == RECORDED[sys.version_info[:2]][mode]
