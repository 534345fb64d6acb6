"""Facts: a finding as values for machines, under stable names."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from leakguard.core.report import already_held_at, group_words, headline, told

if TYPE_CHECKING:
    from leakguard.core.callsite import CallSite
    from leakguard.core.exhaustion import PoolUsers
    from leakguard.core.finding import Finding


def to_dict(finding: Finding) -> dict[str, Any]:
    """Return every fact as JSON-ready values; `None` if it is unknown."""
    return {name: told(name, fact, finding, None) for name, fact in _FACTS.items()}


def flat_facts(finding: Finding) -> dict[str, str | int | float | None]:
    """Return every fact as one plain value, for what has no lists and no objects in it."""
    facts = to_dict(finding)
    for name in ("created_at", "acquired_at", "already_held_at", "now_at"):
        site: dict[str, Any] = facts.pop(name) or {}
        for part in ("file", "line", "function"):
            facts[f"{name}_{part}"] = site.get(part)
    facts["also"] = ",".join(facts["also"])
    exhaustion = finding.exhaustion
    if exhaustion is not None:
        facts["holders"] = "; ".join(map(group_words, exhaustion.holders))
        facts["waiters"] = "; ".join(map(group_words, exhaustion.waiters))
    return facts


_FACTS: Final[dict[str, Callable[[Finding], Any]]] = {
    "kind": lambda f: f.kind.value,
    "severity": lambda f: f.severity.value,
    "message": headline,
    "fingerprint": lambda f: f.fingerprint,
    "count": lambda f: f.count,
    "first_seen": lambda f: f.first_seen.isoformat(),
    "first_scope": lambda f: f.first_scope,
    "also": lambda f: [kind.value for kind in f.also],
    "cause": lambda f: f.hint.cause,
    "fix": lambda f: f.hint.fix,
    "resolution": lambda f: f.resolution,
    "pool": lambda f: f.pool,
    "pool_out": lambda f: f.exhaustion.out if f.exhaustion else f.usage and f.usage.out,
    "pool_capacity": lambda f: f.usage and f.usage.capacity,
    "pool_same_line": lambda f: f.usage and f.usage.same_line,
    "pool_size": lambda f: f.exhaustion and f.exhaustion.limits.size,
    "pool_overflow": lambda f: f.exhaustion and f.exhaustion.limits.overflow,
    "conclusion": lambda f: f.exhaustion and f.exhaustion.conclusion.value,
    "holders": lambda f: f.exhaustion and [_users_dict(one) for one in f.exhaustion.holders],
    "waiters": lambda f: f.exhaustion and [_users_dict(one) for one in f.exhaustion.waiters],
    "resource": lambda f: f.hold and f.hold.resource,
    "created_at": lambda f: f.hold and _site_dict(f.hold.created_at),
    "acquired_at": lambda f: f.hold and _site_dict(f.hold.acquired_at),
    "statement": lambda f: f.hold and f.hold.statement,
    "held_for": lambda f: f.hold and f.evidence.held_for,
    "idle_for": lambda f: f.evidence.idle_for,
    "in_transaction": lambda f: f.evidence.in_transaction,
    "backend_pid": lambda f: f.evidence.backend_pid,
    "outlived_by": lambda f: f.evidence.outlived_by,
    "late_by": lambda f: f.evidence.late_by,
    "now_at": lambda f: _site_dict(f.evidence.now_at),
    "waited": lambda f: f.evidence.waited,
    "waited_for_return": lambda f: f.evidence.waited_for_return,
    "already_held_at": lambda f: _site_dict(already_held_at(f)),
    "scope": lambda f: f.scope and f.scope.name,
    "scope_type": lambda f: f.scope and f.scope.type,
    "route": lambda f: f.scope and f.scope.route,
    "method": lambda f: f.scope and f.scope.method,
    "status": lambda f: f.scope and f.scope.status,
    "duration": lambda f: f.scope and f.scope.duration,
    "cancelled": lambda f: f.scope and f.scope.cancelled,
    "exception": lambda f: f.scope and f.scope.exception,
    "trace_id": lambda f: f.scope and f.scope.trace_id,
    "span_id": lambda f: f.scope and f.scope.span_id,
}


def _users_dict(users: PoolUsers) -> dict[str, Any]:
    return {
        "who": users.who,
        "site": _site_dict(users.site),
        "use": None if users.use is None else users.use.value,
        "count": users.count,
        "longest": users.longest,
        "now_at": _site_dict(users.now_at),
    }


def _site_dict(site: CallSite | None) -> dict[str, Any] | None:
    if site is None:
        return None
    return {
        "file": site.file,
        "line": site.line,
        "function": site.function,
        "frames": [frame._asdict() for frame in site.frames],
    }
