"""Faults of leakguard's own or of a user's callback: logged once each, never raised."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from typing import Final

LOGGER: Final = logging.getLogger("leakguard")

_LIMIT: Final = 100
"""How many are logged at most, whatever types of exceptions there are."""


FROM_OUTSIDE: Final = (KeyboardInterrupt, SystemExit)
"""What a signal may raise anywhere. Every other exception of a user's function is its own: also a
cancellation, which reaches nothing that does not wait, and the failure of a test."""


class Faults:
    """Logs the first fault of a type in every place and keeps quiet about the following ones."""

    def __init__(self) -> None:
        self._seen: set[tuple[str, str]] = set()

    def forget(self) -> None:
        """Log every fault once more."""
        self._seen.clear()

    def report(self, place: str, error: BaseException, remedy: str) -> None:
        """Log that `place` raised `error`; `place` is one of a fixed number of names."""
        kind = type(error).__qualname__
        if (place, kind) not in self._seen and len(self._seen) < _LIMIT:
            self._seen.add((place, kind))
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


def apart(decide: Callable[[], None]) -> None:
    """Decide on one hold; a fault in it takes no other hold's verdict with it."""
    try:
        decide()
    except Exception as error:  # noqa: BLE001  (the other holds' verdicts are due all the same)
        FAULTS.report("leakguard's judge", error, "A verdict is lost. Please report it.")
