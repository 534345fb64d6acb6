"""Rows whose whole verdict waits for kinds of findings that leakguard does not have yet.

Their scenarios expect what it can say today. Whoever adds a kind changes them, and takes the row
out of here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

ROWS: Final = 39
"""How many rows the list of scenarios has."""

PENDING: Final[Mapping[int, str]] = {
    19: "`pool_exhausted`, saying that nothing leaks, with the holders",
    20: "`pool_exhausted`, naming the leaking line",
}
