"""Faults of leakguard's own or of a user's callback: logged once each, never raised."""

from __future__ import annotations

import logging
from typing import Final

LOGGER: Final = logging.getLogger("leakguard")


class Faults:
    """Logs the first fault of every place and keeps quiet about the following ones."""

    def __init__(self) -> None:
        self._seen: set[str] = set()

    def report(self, place: str, error: BaseException, remedy: str) -> None:
        """Log that `place` raised `error`; `place` is one of a fixed number of names."""
        if place in self._seen:
            return
        self._seen.add(place)
        LOGGER.error(
            "%s raised %s; the application is not affected. %s",
            place,
            type(error).__name__,
            remedy,
            exc_info=error,
        )


FAULTS: Final = Faults()
"""Those of the process: a fault that every guard meets is logged once all the same."""
