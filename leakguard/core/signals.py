"""Signals: something done whenever one comes, beside what was done before."""

from __future__ import annotations

import signal
from collections.abc import Callable
from types import FrameType
from typing import Any

from leakguard.exceptions import SettingsError


class _Handler:
    """What is called when a signal comes."""

    def __init__(self, job: Callable[[], None], before: Any) -> None:  # noqa: ANN401  (a handler)
        self.job = job
        self._before = before

    def __call__(self, signalnum: int, frame: FrameType | None) -> None:
        self.job()
        if callable(self._before):
            self._before(signalnum, frame)


def handle_signal(signalnum: int, job: Callable[[], None]) -> None:
    """Have `job` done when the signal comes, and then call the handler that was there before.

    Nothing changes where that one does the same job.

    Raises `SettingsError` for what is no signal, or cannot be handled.
    """
    try:
        before: Any = signal.getsignal(signalnum)
        if not isinstance(before, _Handler) or before.job != job:
            signal.signal(signalnum, _Handler(job, before))
    except (TypeError, ValueError, OSError) as error:
        allowed = (
            "must be a signal that can be handled, such as signal.SIGUSR2, and be set in the main "
            f"thread: {error}"
        )
        raise SettingsError("signalnum", signalnum, allowed) from error
