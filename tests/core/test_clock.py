"""The clock is leakguard's own: who freezes the application's time does not freeze it."""

from __future__ import annotations

import sys
import time

import leakguard.core.clock


def test_no_module_has_the_function_that_is_frozen() -> None:
    """Freezegun looks through every module for `time.monotonic`, and puts its own in that place."""
    modules = {name: module for name, module in sys.modules.items() if name.startswith("leakguard")}
    assert "leakguard.core.clock" in modules
    found = [name for name, module in modules.items() if time.monotonic in vars(module).values()]
    assert found == []


def test_it_gives_the_time_all_the_same() -> None:
    """In the seconds of `time.monotonic()`."""
    before = time.monotonic()
    assert before <= leakguard.core.clock.monotonic() <= time.monotonic()
