"""The announcer: makes findings known, and that they are resolved."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final

from leakguard.core.finding import FindingKind
from leakguard.core.report import describe_return
from leakguard.core.watch import WATCH

if TYPE_CHECKING:
    from leakguard.core.exhaustion import Exhaustion
    from leakguard.core.faults import Faults
    from leakguard.core.finding import Finding
    from leakguard.core.hold import Hold
    from leakguard.core.observer import Observers
    from leakguard.core.register import Register
    from leakguard.core.scope import Scope
    from leakguard.core.verdict import Verdict


class Announcer:
    """Has findings made of verdicts, tells the observers, and follows those that may be resolved.

    Verdicts come from whatever thread, several at once.
    """

    def __init__(self, register: Register, observers: Observers, faults: Faults) -> None:
        self._register = register
        self._observers = observers
        self._faults = faults
        self.unresolved: dict[Hold, list[Finding]] = {}
        """By the connection whose return resolves them."""

    def found(self, hold: Hold, verdict: Verdict) -> None:
        """Tell of a verdict on `hold`, unless it is exempt or ignored."""
        finding = self._enter(hold, verdict)
        if finding is None:
            return
        self._observers.found(finding)
        if finding.kind in _RESOLVABLE:
            # Work that outlived its scope may have left it, and each of the two is a finding.
            self.unresolved.setdefault(hold, []).append(finding)
            # It may have come back while it was being judged, in another thread.
            if hold.released_monotonic is not None:
                self.resolve(hold)

    def exhausted(
        self, exhaustion: Exhaustion, scope: Scope | None, pool: str, waited: float
    ) -> Finding:
        """Tell that a checkout timed out, unless that is ignored; return what there is to say."""
        finding, told = self._register.enter_exhaustion(exhaustion, scope, pool, waited)
        if told:
            self._observers.found(finding)
        return finding

    def has_leaked(self, hold: Hold) -> bool:
        """Return whether `hold` was reported as leaked, and has not come back."""
        findings = self.unresolved.get(hold, ())
        return any(finding.kind is FindingKind.LEAKED for finding in findings)

    def resolve(self, hold: Hold) -> None:
        """Tell that the findings on a connection are resolved: it came back, or was collected."""
        # Taking it out is atomic: where two come at once, one of them resolves it.
        for finding in self.unresolved.pop(hold, ()):
            finding.resolution = describe_return(finding, hold)
            # Told by the watch: a connection may come back at any point of any code.
            WATCH.post(partial(self._tell_resolved, finding))

    def forget(self) -> None:
        """Follow none of them any more."""
        self.unresolved.clear()

    def _tell_resolved(self, finding: Finding) -> None:
        self._observers.resolved(finding)  # to those who are observers by then

    def _enter(self, hold: Hold, verdict: Verdict) -> Finding | None:
        try:
            return self._register.enter(hold, verdict)
        except Exception as error:  # noqa: BLE001  (the other holds' findings are due)
            self._faults.report(
                "leakguard's register", error, "A finding is lost. Please report it."
            )
            return None


_RESOLVABLE: Final = frozenset({FindingKind.LEAKED, FindingKind.HELD, FindingKind.OUTLIVES_SCOPE})
