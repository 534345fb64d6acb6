"""The `leakguard` fixture, for tests that look for themselves."""

from __future__ import annotations

from typing import TYPE_CHECKING

from leakguard.core.allow import allow
from leakguard.core.finding import Severity
from leakguard.core.table import OpenHolds
from leakguard.exceptions import ConnectionLeakError

if TYPE_CHECKING:
    from leakguard.core.allow import AllowedBlock
    from leakguard.core.finding import Finding
    from leakguard.testing.watch import TestWatch


class LeakGuardFixture:
    """What was found of a test so far, what it has open, and what it is allowed."""

    def __init__(self, watch: TestWatch) -> None:
        self._watch = watch

    @property
    def findings(self) -> tuple[Finding, ...]:
        """The findings so far, notices included: of the requests that the test made.

        It waits for those that a server in another thread has yet to end, for a second at most.
        """
        return self._watch.findings()

    def open_holds(self) -> OpenHolds:
        """Return what the test, its fixtures and its requests have out now, oldest first."""
        return OpenHolds(self._watch.open_holds())

    def allow(self, reason: str) -> AllowedBlock:
        """Exempt what is acquired in the block, as `leakguard.allow` does."""
        return allow(reason)

    def check(self) -> None:
        """Raise `ConnectionLeakError` if there are findings of severity warning or error so far."""
        findings = [one for one in self.findings if one.severity is not Severity.NOTICE]
        if findings:
            raise ConnectionLeakError(findings)
