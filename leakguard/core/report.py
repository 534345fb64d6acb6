"""Reports: the only wording of a finding in the project."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Final

from leakguard.core.callsite import relative_path
from leakguard.core.finding import FindingKind

if TYPE_CHECKING:
    from leakguard.core.callsite import CallSite
    from leakguard.core.finding import Finding, PoolUsage
    from leakguard.core.hold import Hold
    from leakguard.core.scope import Scope

_LABEL_WIDTH: Final = 17
_STATEMENT_WIDTH: Final = 200
_CALLERS_SHOWN: Final = 4

_ALSO: Final = {
    FindingKind.RETURNED_LATE: "came back late",
    FindingKind.NESTED_CHECKOUT: "taken while the scope held another connection of the pool",
    FindingKind.SYNC_IN_ASYNC: "a synchronous checkout on a thread that runs an event loop",
}


def render(finding: Finding) -> str:
    """Write the report: one line that can be understood alone, then a block of facts."""
    lines = [headline(finding)]
    lines += [f"  {label:<{_LABEL_WIDTH}} {text}" for label, text in _facts(finding)]
    return "\n".join(lines)


def headline(finding: Finding) -> str:
    """Write the one line that can be understood alone."""
    return f"{finding.kind}: {_who(finding.scope)} {_WHAT[finding.kind](finding)}"


def repetition(finding: Finding, times: int) -> str:
    """Write the line that stands for `times` further occurrences of a known finding."""
    noun = "time" if times == 1 else "times"
    return (
        f"{finding.kind}: {times} more {noun} {_where(finding)}, "
        f"{finding.count} since {finding.first_seen:%H:%M:%S}, "
        f"last in {_who(finding.scope)} [{finding.fingerprint}]"
    )


def resolution(finding: Finding) -> str:
    """Write that the connection of a finding came back after all."""
    return f"resolved: {finding.resolution} {_where(finding)}, {_who(finding.scope)}"


def describe_return(finding: Finding, hold: Hold) -> str:
    """Write how a hold came back after its finding, and how long it was out."""
    way = "given back"
    if hold.collected:
        way = f"{'thrown away' if hold.lost_when_collected else way} by the garbage collector"
    later = seconds(hold.held_for - finding.evidence.held_for)
    return f"{way} {later} later, after {seconds(hold.held_for)} out"


def advice(finding: Finding) -> str:
    """Write the cause, where one is known, and the fix, for a place with little room."""
    hint = finding.hint
    cause = "" if hint.cause is None else f"\n  likely cause: {hint.cause}"
    return f"{headline(finding)}{cause}\n  fix: {hint.fix}"


def to_dict(finding: Finding) -> dict[str, Any]:
    """Give every fact as JSON-ready values under flat, stable names."""
    hold, scope, usage = finding.hold, finding.scope, finding.usage
    return {
        "kind": finding.kind.value,
        "severity": finding.severity.value,
        "message": headline(finding),
        "fingerprint": finding.fingerprint,
        "count": finding.count,
        "first_seen": finding.first_seen.isoformat(),
        "first_scope": finding.first_scope,
        "also": [kind.value for kind in finding.also],
        "cause": finding.hint.cause,
        "fix": finding.hint.fix,
        "resolution": finding.resolution,
        "pool": finding.pool,
        "pool_out": usage and usage.out,
        "pool_capacity": usage and usage.capacity,
        "same_line": usage and usage.same_line,
        "resource": hold and hold.resource,
        "created_at": hold and _site_dict(hold.created_at),
        "acquired_at": hold and _site_dict(hold.acquired_at),
        "statement": hold and hold.statement,
        **dataclasses.asdict(finding.evidence),
        "scope": scope and scope.name,
        "scope_type": scope and scope.type,
        "route": scope and scope.route,
        "method": scope and scope.method,
        "status": scope and scope.status,
        "duration": scope and scope.duration,
        "cancelled": scope and scope.cancelled,
        "exception": scope and scope.exception,
        "trace_id": scope and scope.trace_id,
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


def _who(scope: Scope | None) -> str:
    if scope is None:
        return "code outside of any scope (no request context)"
    how = [] if scope.status is None else [str(scope.status)]
    if scope.cancelled:
        how.append("cancelled")
    elif scope.exception is not None:
        how.append(scope.exception)
    return f"{scope.name} ({', '.join(how)}{' ' if how else ''}in {seconds(scope.duration)})"


_WHAT: Final[dict[FindingKind, Callable[[Finding], str]]] = {
    FindingKind.LEAKED: lambda f: f"did not give back a connection of pool {_pool(f)}",
    FindingKind.RECLAIMED: lambda f: (
        f"left a connection of pool {_pool(f)} to the garbage collector"
    ),
    FindingKind.OUTLIVES_SCOPE: lambda f: (
        f"ended while {f.evidence.holder} still had a connection of pool {_pool(f)}"
    ),
    FindingKind.RETURNED_LATE: lambda f: (
        f"gave a connection of pool {_pool(f)} back "
        f"{seconds(f.evidence.late_by or 0.0)} after the response"
    ),
    FindingKind.NESTED_CHECKOUT: lambda f: (
        f"took a connection of pool {_pool(f)} while it held another one"
    ),
    FindingKind.SYNC_IN_ASYNC: lambda f: (
        f"took a connection of the synchronous pool {_pool(f)} on the event loop's thread"
    ),
    FindingKind.UNCLOSED_SESSION: lambda _: "did not close a session",
}


def _pool(finding: Finding) -> str:
    return f'"{finding.pool}"'


def _where(finding: Finding) -> str:
    hold = finding.hold
    site = hold and (hold.created_at or hold.acquired_at)
    return "from an unknown line" if site is None else f"from {site}"


def _facts(finding: Finding) -> Iterator[tuple[str, str]]:
    if finding.hold is not None:
        yield from _hold_facts(finding, finding.hold)
    if finding.also:
        yield "also", "; ".join(_ALSO[kind] for kind in finding.also)
    if finding.usage is not None:
        yield "pool", _usage(finding.usage, finding)
    if finding.hint.cause is not None:
        yield "likely cause", finding.hint.cause
    yield "fix", finding.hint.fix
    yield "seen", _seen(finding)
    if finding.resolution is not None:
        yield "resolved", finding.resolution


def _hold_facts(finding: Finding, hold: Hold) -> Iterator[tuple[str, str]]:
    created, acquired = hold.created_at, hold.acquired_at
    if created is not None:
        yield from _site_lines("session created", created)
    if acquired is not None:
        yield from _site_lines("checked out", acquired)
    if created is None and acquired is None:
        yield "checked out", "by code that has no line of the user's on its stack"
    if hold.statement is not None:
        yield "last statement", shorten(hold.statement)
    if hold.resource == "connection":
        yield "state", _state(finding)


def _site_lines(label: str, site: CallSite) -> Iterator[tuple[str, str]]:
    yield label, str(site)
    for frame in site.frames[1:_CALLERS_SHOWN]:
        yield "  called from", f"{relative_path(frame.file)}:{frame.line} in {frame.function}"


def _state(finding: Finding) -> str:
    evidence = finding.evidence
    parts: list[str] = []
    if evidence.in_transaction is not None:
        parts.append("transaction open" if evidence.in_transaction else "no transaction")
    parts.append(f"held {seconds(evidence.held_for)}")
    if evidence.idle_for is not None:
        parts.append(f"idle {seconds(evidence.idle_for)}")
    if evidence.backend_pid is not None:
        parts.append(f"backend pid {evidence.backend_pid}")
    if evidence.holder is not None:
        parts.append(_hands(finding.kind, evidence.holder))
    return ", ".join(parts)


def _hands(kind: FindingKind, holder: str) -> str:
    if kind is FindingKind.OUTLIVES_SCOPE:
        return f"in the hands of {holder}"
    return f"left by {holder}, which has ended"


def _usage(usage: PoolUsage, finding: Finding) -> str:
    if usage.out is None:
        count = "has no limit and does not count"
    else:
        count = f"{usage.out} of {usage.capacity or 'unlimited'} out"
    hold = finding.hold
    site = hold and (hold.created_at or hold.acquired_at)
    return f"{count}, {usage.same_line} of them from {site}" if site and usage.same_line else count


def _seen(finding: Finding) -> str:
    if finding.count == 1:
        return f"for the first time [{finding.fingerprint}]"
    first = f", first in {finding.first_scope}" if finding.first_scope else ""
    return (
        f"{finding.count} times since {finding.first_seen:%H:%M:%S}{first} [{finding.fingerprint}]"
    )


def seconds(value: float) -> str:
    """Write a duration so that it reads well: `12 ms`, `3.2 s`, `4 min 10 s`."""
    if value < 1:
        return f"{value * 1000:.0f} ms"
    if value < 120:  # noqa: PLR2004  (two minutes)
        return f"{value:.1f} s"
    minutes, rest = divmod(round(value), 60)
    return f"{minutes} min {rest} s"


def shorten(statement: str) -> str:
    """Write SQL text on one line of bounded length."""
    line = " ".join(statement.split())
    return line if len(line) <= _STATEMENT_WIDTH else line[: _STATEMENT_WIDTH - 1] + "…"
