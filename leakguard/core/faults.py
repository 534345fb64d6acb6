"""Faults of leakguard's own or of a user's callback: logged once each, never raised."""

from __future__ import annotations

import contextlib
import logging
from typing import Final

LOGGER: Final = logging.getLogger("leakguard")


class Faults:
    """Logs the first fault of every place and keeps quiet about the following ones."""

    def __init__(self) -> None:
        self._seen: set[str] = set()

    def forget(self) -> None:
        """Log the next fault of every place again."""
        self._seen.clear()

    def report(self, place: str, error: BaseException, remedy: str) -> None:
        """Log that `place` raised `error`; `place` is one of a fixed number of names."""
        if place not in self._seen:
            self._seen.add(place)
            self.log(place, error, remedy)

    def log(self, place: str, error: BaseException, remedy: str) -> None:
        """Log it every time, for what happens only once anyway."""
        # A handler or filter of the application's may raise. Then there is nobody left to tell,
        # and whoever called would lose more than a line: a pool, for one, loses the connection.
        with contextlib.suppress(Exception):
            LOGGER.error(
                "%s raised %s; the application is not affected. %s",
                place,
                type(error).__name__,
                remedy,
                exc_info=error,
            )


FAULTS: Final = Faults()
"""Those of the process: a fault that every guard meets is logged once all the same."""
