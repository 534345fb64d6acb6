"""The log observer: every distinct finding in full once, then counted."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from leakguard.core.clock import monotonic
from leakguard.core.facts import flat_facts
from leakguard.core.finding import Severity
from leakguard.core.lock import LOCK
from leakguard.core.observer import Observer
from leakguard.core.report import render, repetition, resolution
from leakguard.core.settings import check_flag, check_seconds
from leakguard.core.watch import WATCH
from leakguard.exceptions import SettingsError

if TYPE_CHECKING:
    from leakguard.core.finding import Finding
    from leakguard.core.guard import Guard

_LEVELS: Final = {
    Severity.ERROR: logging.ERROR,
    Severity.WARNING: logging.WARNING,
    Severity.NOTICE: logging.INFO,
}


@dataclass(slots=True)
class _Line:
    """What was logged of one mistake in one pool, or of its resolutions."""

    next_at: float | None = None
    """From when on there may be a line again, in seconds of `time.monotonic()`; `None` where there
    was none yet."""
    unlogged: int = 0
    last: Finding | None = None
    """The latest that was not logged."""
    planned: bool = False
    """Whether the watch will log that, if nobody else does before."""


class Log(Observer):
    """Logs findings to the standard library's logger `leakguard`, without a handler of its own.

    Records carry the facts as extra fields prefixed `leakguard_`. Errors are logged at ERROR,
    warnings and the resolution of errors at WARNING, notices and their resolution at INFO.
    """

    LIMIT: Final = 1000
    """How many mistakes are remembered; the one longest unseen is forgotten."""
    POOLS: Final = 20
    """How many pools of one mistake are counted apart; all others are counted together."""

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
        self._lines: OrderedDict[tuple[str, _Write], dict[tuple[str | None, ...], _Line]] = (
            OrderedDict()
        )
        """By mistake, and by what writes of it: of findings, or of their resolutions."""

    def found(self, finding: Finding) -> None:
        """Log it in full the first time, then one counting line at most every `repeat_after`.

        Where one line leaks connections of several pools, that goes for each of the pools, up to
        `POOLS` of them.
        """
        if self._notices or finding.severity is not Severity.NOTICE:
            self._log_or_count(finding, self._log_found)

    def resolved(self, finding: Finding) -> None:
        """Log how long the connection was out; the notices' only where notices are logged."""
        if self._notices or finding.severity is not Severity.NOTICE:
            self._log_or_count(finding, self._log_resolved)

    def uninstalled(self, guard: Guard) -> None:  # noqa: ARG002  (the others' may as well be logged)
        """Log what was counted and not logged: nobody may come to do it later."""
        with LOCK:
            lines = [
                (line, write)
                for (_, write), by_pool in self._lines.items()
                for line in by_pool.values()
            ]
        for line, write in lines:
            self._catch_up(line, write)

    def _log_or_count(self, finding: Finding, write: _Write) -> None:
        now = monotonic()
        with LOCK:
            line = self._line_of((finding.mistake, write), finding.pool)
            first = line.next_at is None
            if line.next_at is None:
                line.next_at = now + self._repeat_after
            else:
                line.unlogged += 1
                line.last = finding
            next_at = line.next_at
        if first:
            write(finding, 0)
        elif now >= next_at:
            self._catch_up(line, write)
        elif not line.planned and WATCH.started:
            line.planned = True
            WATCH.post_at(next_at, partial(self._catch_up, line, write))

    def _catch_up(self, line: _Line, write: _Write) -> None:
        """Log the line that stands for all that were counted."""
        with LOCK:
            last, times = line.last, line.unlogged
            line.last, line.unlogged, line.planned = None, 0, False
            if last is not None:
                line.next_at = monotonic() + self._repeat_after
        if last is not None:
            write(last, times)

    def _line_of(self, what: tuple[str, _Write], pool: str | None) -> _Line:
        by_pool = self._lines.setdefault(what, {})
        self._lines.move_to_end(what)
        if len(self._lines) > self.LIMIT:
            self._lines.popitem(last=False)
        # The pool is no part of a mistake; but whose pool runs dry looks for its name in the log.
        # There may be one for each of a thousand tenants.
        key = (pool,) if (pool,) in by_pool or len(by_pool) < self.POOLS else _OTHERS
        return by_pool.setdefault(key, _Line())

    def _log_found(self, finding: Finding, times: int) -> None:
        text = repetition(finding, times) if times else render(finding)
        self._logger.log(_LEVELS[finding.severity], "%s", text, extra=fields_of(finding))

    def _log_resolved(self, finding: Finding, times: int) -> None:
        # A level that is shown wherever the error was shown.
        level = logging.INFO if finding.severity is Severity.NOTICE else logging.WARNING
        text = resolution(finding, max(0, times - 1))
        self._logger.log(level, "%s", text, extra=fields_of(finding))


_Write = Callable[["Finding", int], None]
"""Logs a finding in full, or, where there are any, so many that were counted."""
_OTHERS: Final = ()
"""Stands for the pools of which there are too many."""


def fields_of(finding: Finding) -> dict[str, Any]:
    """Return the facts of a finding as flat `extra` fields of a log record."""
    return {f"leakguard_{name}": value for name, value in flat_facts(finding).items()}
