"""The list of tests that leak on purpose is true: who is in it without need would leak unseen."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import PLANT_LEAKS

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("entry", PLANT_LEAKS)
def test_every_entry_is_needed(entry: str, tmp_path: Path) -> None:
    """Where the plugin looks at its tests as at any other, one of them fails: at the first."""
    assert (ROOT / "tests" / entry).exists(), "there is no such file or folder any more"
    command = (
        *(sys.executable, "-m", "pytest", f"tests/{entry}", "--leakguard=error", "--exitfirst"),
        *("--color=no", "-pno:randomly", "-pno:cacheprovider", f"--basetemp={tmp_path / 'pytest'}"),
    )
    # Whoever measures coverage has these tests already.
    environment = {name: value for name, value in os.environ.items() if "COVERAGE" not in name}
    environment["LEAKGUARD_WATCH_PLANTED"] = entry
    run = subprocess.run(  # noqa: S603  (our own)
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert run.returncode == pytest.ExitCode.TESTS_FAILED, run.stdout + run.stderr
