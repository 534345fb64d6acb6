"""Sentry's SDK beside the guard, initialised before or after it; nothing is sent anywhere."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults.neighbours import FIRST
from tests.support import PATIENCE


@pytest.mark.parametrize("first", FIRST)
def test_both_watch_the_same_application(tmp_path: Path, first: str) -> None:
    """Sentry sees every statement, the guard the leaks alone, and each does without the other."""
    done = subprocess.run(  # noqa: S603  (the module beside this one)
        [
            *(sys.executable, "-W", "error"),
            *("-m", "tests.faults.beside_sentry", str(tmp_path), first),
        ],
        check=False,
        capture_output=True,
        text=True,
        timeout=PATIENCE * 3,
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 0, done.stderr
