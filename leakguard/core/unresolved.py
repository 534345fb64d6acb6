"""Leaks that have not come back, as observers count them."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from leakguard.core.finding import FindingKind

if TYPE_CHECKING:
    from collections.abc import Callable

    from leakguard.core.finding import Finding
    from leakguard.core.guard import Guard


class UnresolvedLeaks:
    """Counts every leak once up, and once down when it is resolved or not followed any more."""

    def __init__(self, count: Callable[[Finding, int], None]) -> None:
        self._count = count
        self._findings: dict[Finding, int] = {}
        """In which process each was counted: the child of a fork counts from nothing."""

    def found(self, finding: Finding) -> None:
        """Count it, if it is a leak."""
        if finding.kind is FindingKind.LEAKED:
            self._findings[finding] = os.getpid()
            self._count(finding, 1)

    def resolved(self, finding: Finding) -> None:
        """Count it no more, if it was counted."""
        # A single operation: of several threads that try at once, one is first.
        if self._findings.pop(finding, None) == os.getpid():
            self._count(finding, -1)

    def forget(self, guard: Guard) -> None:
        """Count none of this guard's any more: nobody will tell that they are resolved."""
        for finding in self._findings.copy():
            if finding.hold is not None and finding.hold.guard is guard:
                self.resolved(finding)
