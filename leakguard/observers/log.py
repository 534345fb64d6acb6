"""The log observer: every distinct finding in full once, then counted."""

from __future__ import annotations

import logging
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from leakguard.core.clock import monotonic
from leakguard.core.facts import flat_facts
from leakguard.core.finding import Severity
from leakguard.core.lock import LOCK
from leakguard.core.observer import Observer
from leakguard.core.report import render, repetition, resolution
from leakguard.core.settings import check_flag, check_seconds
from leakguard.exceptions import SettingsError

if TYPE_CHECKING:
    from leakguard.core.finding import Finding

_LEVELS: Final = {
    Severity.ERROR: logging.ERROR,
    Severity.WARNING: logging.WARNING,
    Severity.NOTICE: logging.INFO,
}


@dataclass(slots=True)
class _Line:
    next_at: float
    unlogged: int = 0


class Log(Observer):
    """Logs findings to the standard library's logger `leakguard`, without a handler of its own.

    Records carry the facts as extra fields prefixed `leakguard_`. Errors are logged at ERROR,
    warnings and the resolution of errors at WARNING, notices and their resolution at INFO.
    """

    LIMIT: Final = 1000
    """Of how many mistakes it is remembered when they were logged; the one longest unseen is
    forgotten."""
    POOLS: Final = 20
    """Of how many pools of one mistake; all others are counted together."""

    def __init__(
        self,
        *,
        notices: bool = True,
        repeat_after: float = 60.0,
        logger: logging.Logger | None = None,
    ) -> None:
        """Take whether to log notices and how many seconds lie between two counting lines.

        Raises `SettingsError` for a bad value.
        """
        self._notices = check_flag("notices", notices)
        self._repeat_after = check_seconds("repeat_after", repeat_after)
        if logger is not None and not isinstance(logger, logging.Logger):
            raise SettingsError(
                "logger", logger, "must be a logging.Logger, or None for leakguard's"
            )
        self._logger = logging.getLogger("leakguard") if logger is None else logger
        self._lines: OrderedDict[str, dict[tuple[str | None, ...], _Line]] = OrderedDict()

    def found(self, finding: Finding) -> None:
        """Log it in full the first time, then one counting line at most every `repeat_after`.

        Where one line leaks connections of several pools, that goes for each of the pools, up to
        `POOLS` of them.
        """
        if finding.severity is Severity.NOTICE and not self._notices:
            return
        times = self._due(finding.mistake, finding.pool, monotonic())
        if times is None:
            return
        text = render(finding) if times == 0 else repetition(finding, times)
        self._logger.log(_LEVELS[finding.severity], "%s", text, extra=fields_of(finding))

    def resolved(self, finding: Finding) -> None:
        """Log how long the connection was out; the notices' only where notices are logged."""
        notice = finding.severity is Severity.NOTICE
        if notice and not self._notices:
            return
        times = self._due(f"resolved {finding.mistake}", finding.pool, monotonic())
        if times is not None:
            # A level that is shown wherever the error was shown.
            level = logging.INFO if notice else logging.WARNING
            text = resolution(finding, max(0, times - 1))
            self._logger.log(level, "%s", text, extra=fields_of(finding))

    def _due(self, what: str, pool: str | None, now: float) -> int | None:
        """Return how many occurrences the line to log now stands for.

        0: log in full. `None`: not now.
        """
        with LOCK:
            lines = self._lines.setdefault(what, {})
            self._lines.move_to_end(what)
            if len(self._lines) > self.LIMIT:
                self._lines.popitem(last=False)
            # The pool is no part of a mistake; but whose pool runs dry looks for its name in the
            # log. There may be one for each of a thousand tenants.
            key = (pool,) if (pool,) in lines or len(lines) < self.POOLS else _OTHERS
            line = lines.get(key)
            if line is None:
                lines[key] = _Line(now + self._repeat_after)
                return 0
            line.unlogged += 1
            if now < line.next_at:
                return None
            times, line.unlogged = line.unlogged, 0
            line.next_at = now + self._repeat_after
            return times


_OTHERS: Final = ()
"""Stands for the pools of which there are too many."""


def fields_of(finding: Finding) -> dict[str, Any]:
    """Return the facts of a finding as flat `extra` fields of a log record."""
    return {f"leakguard_{name}": value for name, value in flat_facts(finding).items()}
