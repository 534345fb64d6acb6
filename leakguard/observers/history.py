"""The history observer: the last findings, grouped by mistake."""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass
from threading import RLock
from typing import TYPE_CHECKING, Final

from leakguard.core.observer import Observer

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
        """Take how many findings, and how many groups, are kept at most."""
        self._limit: Final = limit
        self._findings: deque[Finding] = deque(maxlen=limit)
        self._groups: OrderedDict[str, Group] = OrderedDict()
        self._writing = RLock()

    @property
    def findings(self) -> tuple[Finding, ...]:
        """The findings kept, oldest first."""
        with self._writing:
            return tuple(self._findings)

    @property
    def groups(self) -> dict[str, Group]:
        """The groups by fingerprint, the one found last at the end."""
        with self._writing:
            return dict(self._groups)

    def clear(self) -> None:
        """Forget everything."""
        with self._writing:
            self._findings.clear()
            self._groups.clear()

    def found(self, finding: Finding) -> None:
        """Keep it, and forget the oldest where there are too many."""
        with self._writing:
            self._findings.append(finding)
            group = self._groups.setdefault(finding.fingerprint, Group(finding, finding))
            group.last = finding
            group.count += 1
            self._groups.move_to_end(finding.fingerprint)
            if len(self._groups) > self._limit:
                self._groups.popitem(last=False)

    def resolved(self, finding: Finding) -> None:
        """Count it as resolved in its group."""
        with self._writing:
            group = self._groups.get(finding.fingerprint)
            if group is not None:
                group.resolved += 1
