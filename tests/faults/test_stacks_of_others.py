"""The stacks of threads that go on are read without harm to the process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.support import PATIENCE


def test_the_collector_does_not_run_while_a_stack_is_read() -> None:
    """In Python 3.11 the process would crash: a frame that is being read would go."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults.stacks_of_others"],
        check=False,
        capture_output=True,
        text=True,
        timeout=PATIENCE * 6,
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 0, done.stderr
