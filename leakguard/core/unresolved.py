"""Leaks that have not come back, as observers count them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from leakguard.core.finding import FindingKind

if TYPE_CHECKING:
    from collections.abc import Callable

    from leakguard.core.finding import Finding


class UnresolvedLeaks:
    """Counts every leak once up, and once down when it is resolved or not followed any more."""

    def __init__(self, count: Callable[[Finding, int], None]) -> None:
        self._count = count
        self._findings: dict[Finding, None] = {}

    def found(self, finding: Finding) -> None:
        """Count it, if it is a leak."""
        if finding.kind is FindingKind.LEAKED:
            self._findings[finding] = None
            self._count(finding, 1)

    def resolved(self, finding: Finding) -> None:
        """Count it no more, if it was counted."""
        # A single operation: of several threads that try at once, one is first.
        if self._findings.pop(finding, _ABSENT) is not _ABSENT:
            self._count(finding, -1)

    def forget(self) -> None:
        """Count none of them any more."""
        for finding in self._findings.copy():
            self.resolved(finding)


_ABSENT: Final = object()
