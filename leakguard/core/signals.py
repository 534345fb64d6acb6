"""Signals: something done whenever one comes, beside what was done before."""

from __future__ import annotations

import signal
from collections.abc import Callable
from types import FrameType
from typing import Any

from leakguard.exceptions import SettingsError


def handle_signal(number: int, job: Callable[[], None]) -> None:
    """Have `job` done when the signal comes, and then what was done so far.

    Raises `SettingsError` for what is no signal, or cannot be handled.
    """
    try:
        before: Any = signal.getsignal(number)

        def handler(received: int, frame: FrameType | None) -> None:
            job()
            if callable(before):
                before(received, frame)

        signal.signal(number, handler)
    except (TypeError, ValueError, OSError) as error:
        allowed = (
            "must be a signal that can be handled, such as signal.SIGUSR2, and be set in the main "
            f"thread: {error}"
        )
        raise SettingsError("number", number, allowed) from error
