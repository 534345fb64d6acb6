"""The clock of everything that leakguard measures."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Final

monotonic: Final[Callable[[], float]] = partial(time.monotonic)
"""Gives the seconds of `time.monotonic()`. Also under freezegun, which replaces the function itself
wherever it was imported: whoever closes a session on another day is not late."""
