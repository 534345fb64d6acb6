"""The register: makes findings out of verdicts, and counts them by mistake."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Final

from leakguard.core.diagnosis import Case, diagnose
from leakguard.core.faults import FROM_OUTSIDE
from leakguard.core.finding import Evidence, Finding, FindingKind, Severity, fingerprint, position
from leakguard.core.hold import ConnectionHold
from leakguard.core.holder import TaskHolder
from leakguard.core.lock import LOCK
from leakguard.core.pool_diagnosis import diagnose_pool

if TYPE_CHECKING:
    from types import CodeType

    from leakguard.core.callsite import CallSite
    from leakguard.core.exhaustion import Exhaustion
    from leakguard.core.faults import Faults
    from leakguard.core.hold import Hold
    from leakguard.core.scope import Scope
    from leakguard.core.verdict import Verdict


@dataclass(slots=True)
class _Seen:
    count: int
    first_seen: datetime
    first_scope: str | None


class Register:
    """Knows which mistakes were found before; bounded, the one longest unseen is forgotten."""

    LIMIT: Final = 1000

    def __init__(self, ignore: tuple[Callable[[Finding], bool], ...], faults: Faults) -> None:
        self._ignore = ignore
        self._faults = faults
        self._seen: OrderedDict[str, _Seen] = OrderedDict()

    def enter(self, hold: Hold, verdict: Verdict) -> Finding | None:
        """Make the finding and count it; `None` where it is exempt or ignored."""
        if verdict.kind is None or hold.allowed is not None:
            return None
        finding = make_finding(hold, verdict.kind, verdict.also)
        if self._ignored(finding):
            return None
        self._count(finding)
        return finding

    def enter_exhaustion(
        self, exhaustion: Exhaustion, scope: Scope | None, pool: str, waited: float
    ) -> tuple[Finding, bool]:
        """Make the finding on a pool, and count it; say whether it is to be told."""
        finding = make_pool_finding(exhaustion, scope, pool, waited)
        if self._ignored(finding):
            return finding, False
        self._count(finding)
        return finding, True

    def _ignored(self, finding: Finding) -> bool:
        for predicate in self._ignore:
            try:
                if predicate(finding):
                    return True
            except FROM_OUTSIDE:
                raise
            except BaseException as error:  # noqa: BLE001  (whatever a user's code raises)
                name = getattr(predicate, "__qualname__", type(predicate).__name__)
                self._faults.report(
                    f"leakguard's ignore predicate {name}", error, "The finding is not ignored."
                )
        return False

    def _count(self, finding: Finding) -> None:
        mistake = finding.mistake
        name = None if finding.scope is None else finding.scope.name
        with LOCK:
            seen = self._seen.setdefault(mistake, _Seen(0, finding.first_seen, name))
            self._seen.move_to_end(mistake)
            if len(self._seen) > self.LIMIT:
                self._seen.popitem(last=False)
            seen.count += 1
            finding.count = seen.count
        finding.first_seen = seen.first_seen
        finding.first_scope = seen.first_scope


def make_finding(hold: Hold, kind: FindingKind, also: tuple[FindingKind, ...]) -> Finding:
    """Write down what is known of a hold now, before it changes."""
    hold.find_session()
    connection = hold if isinstance(hold, ConnectionHold) else None
    # What is slow is the mistake, and not who took the connection.
    now_at = None if connection is None or kind is not FindingKind.HELD else connection.now_at
    return Finding(
        kind=kind,
        hold=hold,
        scope=hold.scope,
        pool=hold.pool or None,
        hint=diagnose(case_of(hold, kind)),
        fingerprint=fingerprint(
            kind, hold.created_at, hold.acquired_at, *(() if now_at is None else [position(now_at)])
        ),
        evidence=Evidence(
            held_for=hold.held_for,
            idle_for=_idle_for(hold, kind),
            in_transaction=hold.in_transaction,
            backend_pid=hold.backend_pid,
            outlived_by=hold.outlived_by,
            waited_for_return=hold.waited_for_return,
            late_by=None if connection is None else connection.late_by,
            now_at=now_at,
        ),
        also=also,
        # Not for notices, which healthy requests may have: it looks at every connection out.
        usage=None if kind.severity is Severity.NOTICE else hold.usage,
    )


def _idle_for(hold: Hold, kind: FindingKind) -> float | None:
    if kind is FindingKind.HELD and isinstance(hold, ConnectionHold):
        return hold.surely_idle_for
    return hold.idle_for if hold.guard.settings.follow_statements else None


def make_pool_finding(
    exhaustion: Exhaustion, scope: Scope | None, pool: str, waited: float
) -> Finding:
    """Write down who had the connections of a pool when a checkout in `scope` timed out."""
    kind = FindingKind.POOL_EXHAUSTED
    about = exhaustion.main_group
    site = None if about is None else about.site
    return Finding(
        kind=kind,
        hold=None,
        scope=scope,
        pool=pool,
        hint=diagnose_pool(exhaustion),
        fingerprint=fingerprint(kind, None, site, exhaustion.conclusion.value),
        evidence=Evidence(held_for=0.0, idle_for=None, waited=waited),
        exhaustion=exhaustion,
    )


def case_of(hold: Hold, kind: FindingKind) -> Case:
    """Gather the evidence for a diagnosis."""
    connection = hold if isinstance(hold, ConnectionHold) else None
    session = connection.session if connection is not None else None
    scope = hold.scope
    return Case(
        kind=kind,
        constructor=_code(hold.created_at),
        acquirer=_code(hold.acquired_at),
        closed_by=None if session is None else session.closed_by,
        by_session=connection is None or session is not None or connection.by_older_session,
        exception=None if scope is None else scope.exception,
        cancelled=scope is not None and _cut_short(scope),
        status=None if scope is None else scope.status,
        taken_after_close=connection is not None and connection.taken_after_close,
        taken_again=connection is not None and connection.taken_again,
        # Who constructed the session is the one to name; else who took the connection.
        after_response=_after_response(session or hold, scope),
        asynchronous=hold.asynchronous,
        constructed_outside=(
            scope is not None and connection is not None and connection.session_from_outside
        ),
        endpoint=None if scope is None else scope.endpoint,
        outlived_by=hold.outlived_by,
        stranded=None if connection is None else _stranded(connection),
        scope_type=None if scope is None else scope.type,
        responding=scope is not None and scope.status is not None and scope.responded_at is None,
        now=None if connection is None else _code(connection.now_at),
    )


def _stranded(connection: ConnectionHold) -> str | None:
    tasks = (holder for holder in connection.holders if isinstance(holder, TaskHolder))
    return next((str(task) for task in tasks if task.stranded), None)


def _code(site: CallSite | None) -> CodeType | None:
    return None if site is None else site.code


def _cut_short(scope: Scope) -> bool:
    """Return whether its work did not come to its end because it was cancelled.

    An application that returns although its client has gone may have run to its end; it has not
    where it began a response and did not complete it.
    """
    unfinished = scope.status is not None and scope.responded_at is None
    return scope.cancelled and (scope.exception is not None or unfinished)


def _after_response(hold: Hold, scope: Scope | None) -> bool:
    if scope is None or scope.responded_at is None:
        return False
    return hold.acquired_monotonic >= scope.responded_at
