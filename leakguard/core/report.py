"""Reports: the only wording of a finding in the project."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Final, TypeVar

from leakguard.core.callsite import relative_path
from leakguard.core.exhaustion import Use
from leakguard.core.faults import FAULTS
from leakguard.core.finding import FindingKind
from leakguard.core.hold import ConnectionHold
from leakguard.core.words import moment, seconds, shorten

if TYPE_CHECKING:
    from leakguard.core.callsite import CallSite
    from leakguard.core.exhaustion import Exhaustion, PoolUsers
    from leakguard.core.finding import Finding, PoolUsage
    from leakguard.core.hold import Hold

T = TypeVar("T")
Part = Callable[["Finding"], Iterator[tuple[str, str]]]
"""Some facts of a finding, each with its label."""

_LABEL_WIDTH: Final = 17
_CALLERS_SHOWN: Final = 4
_GROUPS_SHOWN: Final = 10

_ALSO: Final = {
    FindingKind.RETURNED_LATE: "came back late",
    FindingKind.NESTED_CHECKOUT: "taken while the scope held another connection of the pool",
    FindingKind.SYNC_IN_ASYNC: "a synchronous checkout on a thread that runs an event loop",
}


def render(finding: Finding) -> str:
    """Write the report: one line that can be understood alone, then a block of facts.

    Never raises: what cannot be told is left out, and logged once as a fault.
    """
    lines = [headline(finding)]
    for name, part in _PARTS.items():
        lines += told(name, partial(_part_lines, part), finding, [])
    return "\n".join(lines)


def headline(finding: Finding) -> str:
    """Write the one line that can be understood alone."""
    return f"{finding.kind}: {_who(finding)} {_WHAT[finding.kind](finding)}"


def _part_lines(part: Part, finding: Finding) -> list[str]:
    return [f"  {label:<{_LABEL_WIDTH}} {text}" for label, text in part(finding)]


def repetition(finding: Finding, times: int) -> str:
    """Write the line that stands for `times` further occurrences of a known finding."""
    noun = "time" if times == 1 else "times"
    where = f" {_where(finding)}" if finding.exhaustion is None else ""
    of_pool = f" of pool {_pool(finding)}" if finding.pool else ""
    cause = f"; likely cause: {finding.hint.cause}" if finding.exhaustion is not None else ""
    return (
        f"{finding.kind}: {times} more {noun}{where}{of_pool}, "
        f"{finding.count} since {moment(finding.first_seen)}, "
        f"last in {_who(finding)}{cause} [{finding.fingerprint}]"
    )


def resolution(finding: Finding, more: int = 0) -> str:
    """Write that the connection of a finding came back after all, and `more` that nobody told."""
    others = f", and {more} more like it" if more else ""
    of_pool = f" of pool {_pool(finding)}" if finding.pool else ""
    return (
        f"resolved: {_RESOLVED[finding.kind]}{of_pool} {_where(finding)}, {_who(finding)}: "
        f"{finding.resolution}{others} [{finding.fingerprint}]"
    )


_RESOLVED: Final = {
    FindingKind.LEAKED: "leaked connection",
    FindingKind.HELD: "held connection",
    FindingKind.OUTLIVES_SCOPE: "connection that outlived its scope",
}


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


def told(name: str, tell: Callable[[Finding], T], finding: Finding, instead: T) -> T:
    """Return what `tell` gives; a finding is worth reading also where one of its facts is not."""
    try:
        return tell(finding)
    except Exception as error:  # noqa: BLE001  (a report must come out whatever is in it)
        FAULTS.report(f"leakguard's report, at {name!r},", error, "The rest of the report is told.")
        return instead


def already_held_at(finding: Finding) -> CallSite | None:
    """Return where the scope had taken the other connection that it held."""
    return finding.hold.already_held_at if isinstance(finding.hold, ConnectionHold) else None


def _who(finding: Finding) -> str:
    return told("scope", _scope_words, finding, "a scope that cannot be told")


def _scope_words(finding: Finding) -> str:
    scope = finding.scope
    if scope is None:
        return "code outside of any scope (no request context)"
    how = [] if scope.status is None else [str(scope.status)]
    if scope.cancelled:
        how.append("cancelled")
    elif scope.exception is not None:
        how.append(scope.exception)
    ended = scope.closed_at
    how = [", ".join(how)] if how else []
    if ended is None:
        words = f"{scope.name} ({', '.join([*how, f'open for {seconds(scope.duration)}'])})"
    else:
        words = f"{scope.name} ({' '.join([*how, f'in {seconds(scope.duration)}'])})"
    hold = finding.hold
    too_late = hold is not None and ended is not None and hold.acquired_monotonic > ended
    return f"work started by {words}" if too_late else words


_WHAT: Final[dict[FindingKind, Callable[[Finding], str]]] = {
    FindingKind.LEAKED: lambda f: f"did not give back a connection of pool {_pool(f)}",
    FindingKind.RECLAIMED: lambda f: (
        f"left a connection of pool {_pool(f)} to the garbage collector"
    ),
    FindingKind.POOL_EXHAUSTED: lambda f: (
        f"waited {seconds(f.evidence.waited or 0.0)} in vain for a connection of pool {_pool(f)}"
    ),
    FindingKind.HELD: lambda f: (
        f"holds a connection of pool {_pool(f)} that has been idle for "
        f"{seconds(f.evidence.idle_for or 0.0)}"
    ),
    FindingKind.OUTLIVES_SCOPE: lambda f: (
        f"ended while {f.evidence.outlived_by} still had a connection of pool {_pool(f)}"
    ),
    FindingKind.RETURNED_LATE: lambda f: (
        f"gave a connection of pool {_pool(f)} back "
        f"{seconds(f.evidence.late_by or 0.0)} after the last byte of the response"
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
    return "from an unknown line" if finding.site is None else f"from {finding.site}"


def _lines_facts(finding: Finding) -> Iterator[tuple[str, str]]:
    hold = finding.hold
    if hold is None:
        return
    created, acquired = hold.created_at, hold.acquired_at
    if created is not None:
        yield from _site_lines("session created", created)
    if acquired is not None:
        yield from _site_lines("checked out", acquired)
    if created is None and acquired is None:
        yield "checked out", "by code that has no line of the user's on its stack"
    held = already_held_at(finding)
    if held is not None:
        yield "already held", str(held)


def _now_facts(finding: Finding) -> Iterator[tuple[str, str]]:
    if finding.evidence.now_at is not None:
        yield from _site_lines("now at", finding.evidence.now_at)
    elif finding.kind is FindingKind.HELD:
        yield "now at", "unknown: no task or thread that may have it was found"


def _statement_facts(finding: Finding) -> Iterator[tuple[str, str]]:
    if finding.hold is not None and finding.hold.statement is not None:
        yield "last statement", shorten(finding.hold.statement)


def _state_facts(finding: Finding) -> Iterator[tuple[str, str]]:
    if isinstance(finding.hold, ConnectionHold):
        yield "state", _state(finding)


def _also_facts(finding: Finding) -> Iterator[tuple[str, str]]:
    if finding.also:
        yield "also", "; ".join(_ALSO[kind] for kind in finding.also)


def _usage_facts(finding: Finding) -> Iterator[tuple[str, str]]:
    if finding.usage is not None:
        yield "pool", _usage(finding.usage, finding)


def _exhaustion_facts(finding: Finding) -> Iterator[tuple[str, str]]:
    if finding.exhaustion is not None:
        yield from exhaustion_lines(finding.exhaustion)


def exhaustion_lines(exhaustion: Exhaustion) -> Iterator[tuple[str, str]]:
    """Write who has the connections of a pool, and who waits, each line with its label."""
    limits = exhaustion.limits
    overflow = "unlimited" if limits.overflow is None else limits.overflow
    sizes = "" if limits.size is None else f", size {limits.size}, overflow {overflow}"
    out, waiting = exhaustion.out, exhaustion.waiting
    yield "pool", f"{_count(out, 'connection')} out{sizes}; {_count(waiting, 'checkout')} waiting"
    yield from _group_lines("held by", exhaustion.holders)
    if exhaustion.unknown:
        label = "" if exhaustion.holders else "held by"
        yield label, f"{exhaustion.unknown} x unknown: no checkout of them was seen"
    yield from _group_lines("waiting", exhaustion.waiters)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _group_lines(label: str, groups: tuple[PoolUsers, ...]) -> Iterator[tuple[str, str]]:
    for number, group in enumerate(groups[:_GROUPS_SHOWN]):
        yield "" if number else label, group_words(group)
    if len(groups) > _GROUPS_SHOWN:
        rest = groups[_GROUPS_SHOWN:]
        yield "", f"{sum(group.count for group in rest)} x others, from {len(rest)} lines"


def group_words(group: PoolUsers) -> str:
    """Write who has, or waits for, connections of a pool."""
    where = "from an unknown line" if group.site is None else f"from {group.site}"
    use = "" if group.use is None else f"{_USES[group.use]}, "
    now = "" if group.now_at is None else f", now at {group.now_at}"
    return f"{group.count} x {group.who}, {where}: {use}for up to {seconds(group.longest)}{now}"


_USES: Final = {
    Use.LEAKED: "leaked",
    Use.KEPT: "kept after its scope ended",
    Use.WAITING: "held while its owner waits for another one",
    Use.LONG_STATEMENT: "running a long statement",
    Use.EXECUTING: "running a statement",
    Use.IDLE: "idle",
    Use.IN_USE: "in use",
    Use.OPENING: "being opened",
    Use.OUT: "out",
}


def _hint_facts(finding: Finding) -> Iterator[tuple[str, str]]:
    if finding.hint.cause is not None:
        yield "likely cause", finding.hint.cause
    yield "fix", finding.hint.fix


def _history_facts(finding: Finding) -> Iterator[tuple[str, str]]:
    yield "seen", _seen(finding)
    if finding.resolution is not None:
        yield "resolved", finding.resolution


_PARTS: Final[dict[str, Part]] = {
    "lines": _lines_facts,
    "now": _now_facts,
    "statement": _statement_facts,
    "state": _state_facts,
    "also": _also_facts,
    "pool": _usage_facts,
    "exhaustion": _exhaustion_facts,
    "hint": _hint_facts,
    "seen": _history_facts,
}


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
    if evidence.outlived_by is not None:
        parts.append(_hands(finding.kind, evidence.outlived_by))
    if evidence.waited_for_return is not None:
        waited = seconds(evidence.waited_for_return)
        parts.append(f"waited {waited} for somebody to give it back")
    return ", ".join(parts)


def _hands(kind: FindingKind, holder: str) -> str:
    if kind is FindingKind.OUTLIVES_SCOPE:
        return f"in the hands of {holder}"
    return f"left by {holder}, which runs no more"


def _usage(usage: PoolUsage, finding: Finding) -> str:
    site = finding.site
    if usage.out is None:
        count, which = "its class does not count connections", "known to be out"
    else:
        count, which = f"{usage.out} of {usage.capacity or 'unlimited'} out", "of them"
    return f"{count}, {usage.same_line} {which} from {site}" if site and usage.same_line else count


def _seen(finding: Finding) -> str:
    if finding.count == 1:
        return f"for the first time [{finding.fingerprint}]"
    first = f", first in {finding.first_scope}" if finding.first_scope else ""
    return (
        f"{finding.count} times since {moment(finding.first_seen)}{first} [{finding.fingerprint}]"
    )
