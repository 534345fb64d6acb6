"""The history observer: the last findings, grouped by mistake."""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from leakguard.core.lock import LOCK
from leakguard.core.observer import Observer
from leakguard.core.settings import check_count

if TYPE_CHECKING:
    from leakguard.core.finding import Finding


@dataclass(slots=True)
class Group:
    """All findings of one fingerprint."""

    first: Finding
    last: Finding
    count: int = 0
    resolved: int = 0
    """How many of them were resolved."""


class History(Observer):
    """Keeps the last `limit` findings and, grouped by fingerprint, the last `limit` groups."""

    def __init__(self, limit: int = 1000) -> None:
        """Take how many findings, and how many groups, are kept at most.

        Raises `SettingsError` for a bad value.
        """
        self._limit: Final = check_count("limit", limit)
        self._findings: deque[Finding] = deque(maxlen=self._limit)
        self._groups: OrderedDict[str, Group] = OrderedDict()

    @property
    def findings(self) -> tuple[Finding, ...]:
        """The findings kept, oldest first."""
        with LOCK:
            return tuple(self._findings)

    @property
    def groups(self) -> dict[str, Group]:
        """The groups by fingerprint, the one found last at the end."""
        with LOCK:
            return dict(self._groups)

    def clear(self) -> None:
        """Forget everything."""
        with LOCK:
            self._findings.clear()
            self._groups.clear()

    def found(self, finding: Finding) -> None:
        """Keep it, and forget the oldest where there are too many."""
        with LOCK:
            self._findings.append(finding)
            group = self._groups.setdefault(finding.fingerprint, Group(finding, finding))
            group.last = finding
            group.count += 1
            self._groups.move_to_end(finding.fingerprint)
            if len(self._groups) > self._limit:
                self._groups.popitem(last=False)

    def resolved(self, finding: Finding) -> None:
        """Count it as resolved in its group."""
        with LOCK:
            group = self._groups.get(finding.fingerprint)
            if group is not None:
                group.resolved += 1
