"""The log observer: every distinct finding in full once, then counted."""

from __future__ import annotations

import logging
from collections import OrderedDict
from dataclasses import dataclass
from threading import RLock
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

from leakguard.core.finding import Severity
from leakguard.core.observer import Observer
from leakguard.core.report import render, repetition, resolution, to_dict

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

    Records carry every fact as an extra field prefixed `leakguard_`. Errors are logged at
    ERROR, warnings at WARNING, notices and resolutions at INFO.
    """

    LIMIT: Final = 1000

    def __init__(
        self,
        *,
        notices: bool = True,
        repeat_after: float = 60.0,
        logger: logging.Logger | None = None,
    ) -> None:
        """Take whether to log notices and how many seconds lie between two counting lines."""
        self._notices = notices
        self._repeat_after = repeat_after
        self._logger = logging.getLogger("leakguard") if logger is None else logger
        self._lines: OrderedDict[str, _Line] = OrderedDict()
        self._counting = RLock()

    def found(self, finding: Finding) -> None:
        """Log it in full the first time, then one counting line at most every `repeat_after`."""
        if finding.severity is Severity.NOTICE and not self._notices:
            return
        times = self._due(finding.fingerprint, monotonic())
        if times is None:
            return
        text = render(finding) if times == 0 else repetition(finding, times)
        self._logger.log(_LEVELS[finding.severity], "%s", text, extra=fields_of(finding))

    def resolved(self, finding: Finding) -> None:
        """Log how long the connection was out; the notices' only where notices are logged."""
        if finding.severity is Severity.NOTICE and not self._notices:
            return
        if self._due(f"resolved {finding.fingerprint}", monotonic()) is not None:
            self._logger.info("%s", resolution(finding), extra=fields_of(finding))

    def _due(self, key: str, now: float) -> int | None:
        """Say how many occurrences the line to log now stands for.

        0: log in full. `None`: not now.
        """
        with self._counting:
            line = self._lines.get(key)
            if line is None:
                self._lines[key] = _Line(now + self._repeat_after)
                if len(self._lines) > self.LIMIT:
                    self._lines.popitem(last=False)
                return 0
            self._lines.move_to_end(key)
            line.unlogged += 1
            if now < line.next_at:
                return None
            times, line.unlogged = line.unlogged, 0
            line.next_at = now + self._repeat_after
            return times


def fields_of(finding: Finding) -> dict[str, Any]:
    """Give the facts of a finding as flat `extra` fields of a log record."""
    fields: dict[str, Any] = {}
    for name, value in to_dict(finding).items():
        if isinstance(value, dict):
            for part in ("file", "line", "function"):
                fields[f"leakguard_{name}_{part}"] = value[part]
        elif name == "also":
            fields[f"leakguard_{name}"] = ",".join(kind.value for kind in finding.also)
        else:
            fields[f"leakguard_{name}"] = value
    return fields
