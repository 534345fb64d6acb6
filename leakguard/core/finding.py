"""Findings: a verdict with everything needed to fix it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from datetime import datetime
from enum import StrEnum
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from leakguard.core.callsite import CallSite, import_path

if TYPE_CHECKING:
    from types import CodeType

    from leakguard.core.exhaustion import Exhaustion
    from leakguard.core.hold import Hold
    from leakguard.core.scope import Scope


class Severity(StrEnum):
    """How much a finding matters."""

    ERROR = "error"
    """A connection was lost to its pool, or somebody waited for one in vain."""
    WARNING = "warning"
    """A connection is kept from others for long."""
    NOTICE = "notice"
    """Legal and worth knowing."""


class FindingKind(StrEnum):
    """What was found. The most severe first: where several fit a hold, the first names it."""

    LEAKED = "leaked"
    """A connection is still out although its scope has ended and nothing could return it."""
    RECLAIMED = "reclaimed"
    """Nobody closed a connection: the garbage collector gave it back or threw it away."""
    POOL_EXHAUSTED = "pool_exhausted"
    """A checkout timed out, because the pool had no connection left."""
    HELD = "held"
    """Out and idle for longer than `held_after` seconds, its scope still open or outside of any."""
    OUTLIVES_SCOPE = "outlives_scope"
    """Still out when its scope ended, in the hands of a task or thread that is still running."""
    RETURNED_LATE = "returned_late"
    """Given back more than `late_after` seconds after the last byte of the response."""
    NESTED_CHECKOUT = "nested_checkout"
    """One scope took a second connection of a pool while it held one."""
    SYNC_IN_ASYNC = "sync_in_async"
    """A synchronous checkout on a thread that runs an event loop."""
    UNCLOSED_SESSION = "unclosed_session"
    """A session that holds no connection was not closed by the end of its scope."""

    @property
    def severity(self) -> Severity:
        """How much a finding of this kind matters."""
        return _SEVERITIES.get(self, Severity.NOTICE)


_SEVERITIES: Final[Mapping[FindingKind, Severity]] = {
    FindingKind.LEAKED: Severity.ERROR,
    FindingKind.RECLAIMED: Severity.ERROR,
    FindingKind.POOL_EXHAUSTED: Severity.ERROR,
    FindingKind.HELD: Severity.WARNING,
}


@dataclass(frozen=True, slots=True)
class PoolUsage:
    """How full a pool was when a finding was made."""

    out: int | None
    """Connections out; `None` where the pool's class does not count them, as `NullPool`."""
    capacity: int | None
    """Connections the pool may have out at once; `None` where it has no limit."""
    same_line: int
    """Open holds of the pool that come from the same line as the finding's."""


@dataclass(frozen=True, slots=True)
class Hint:
    """The likely mistake and its fix."""

    cause: str | None
    """What probably went wrong; `None` where the evidence carries no cause."""
    fix: str
    """What to change."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """The state of a hold at the moment of its finding: facts that later change or vanish."""

    held_for: float
    """Seconds from checkout or construction."""
    idle_for: float | None
    """Seconds since a statement last began, or since the checkout where none did; `None` where
    the settings want neither statements nor `held`."""
    in_transaction: bool | None = None
    backend_pid: int | None = None
    outlived_by: str | None = None
    """The task or thread that had it and still ran when its scope ended."""
    late_by: float | None = None
    """Seconds after the last byte of the response at which it came back."""
    waited_for_return: float | None = None
    """Seconds for which somebody might have given it back before it was called leaked."""
    waited: float | None = None
    """Seconds for which a connection was waited for in vain."""
    now_at: CallSite | None = None
    """Where those who have it were at that moment, for a connection that is held."""


@dataclass(eq=False, slots=True)
class Finding:
    """A verdict on a hold, or on a pool. `str(finding)` is its report."""

    kind: FindingKind
    hold: Hold | None
    """What was not given back; `None` for a finding on a pool."""
    scope: Scope | None
    """The request, test or job it belongs to; `None` where there was none."""
    pool: str | None
    """The name of the pool."""
    hint: Hint
    """The likely mistake and its fix."""
    fingerprint: str
    """Names the mistake, not the occurrence: the same in every process and after a restart."""
    evidence: Evidence
    also: tuple[FindingKind, ...] = ()
    """Other kinds that fit the same hold; the most severe one names the finding."""
    usage: PoolUsage | None = None
    """How full the pool was."""
    exhaustion: Exhaustion | None = None
    """Who had the connections of the pool that was exhausted, and who waited."""
    count: int = 1
    """How often this mistake was found so far in this process, this one included."""
    first_seen: datetime = field(default_factory=lambda: datetime.now().astimezone())
    """When this mistake was first found in this process."""
    first_scope: str | None = None
    """The name of the scope in which this mistake was first found."""
    resolution: str | None = None
    """How the connection came back after all; `None` while it has not."""

    @property
    def severity(self) -> Severity:
        """How much it matters."""
        return self.kind.severity

    @property
    def site(self) -> CallSite | None:
        """The line to look at first: of the session, else of the checkout.

        Of an exhausted pool, that from which most of what it is about was taken.
        """
        if self.hold is not None:
            return self.hold.origin
        group = None if self.exhaustion is None else self.exhaustion.main_group
        return None if group is None else group.site

    @property
    def mistake(self) -> str:
        """Tells it apart from other mistakes in this process.

        Functions of one name in one file, as two lambdas, have one fingerprint.
        """
        group = None if self.exhaustion is None else self.exhaustion.main_group
        sites = [self.evidence.now_at, None if group is None else group.site]
        if self.hold is not None:
            sites += self.hold.created_at, self.hold.acquired_at
        lines = [str(site.line) for site in sites if site is not None]
        return " ".join([self.fingerprint, *lines])

    @property
    def resolved(self) -> bool:
        """Whether the connection came back after all."""
        return self.resolution is not None

    def __str__(self) -> str:
        from leakguard.core.report import render  # noqa: PLC0415  (report knows finding)

        return render(self)

    def to_dict(self) -> dict[str, Any]:
        """Return every fact of the finding as JSON-ready values."""
        from leakguard.core.facts import to_dict  # noqa: PLC0415  (facts know finding)

        return to_dict(self)

    def __reduce__(self) -> tuple[partial[SentFinding], tuple[()]]:
        # A hold and a scope belong to their process: code, locks, weak references.
        values = {one.name: getattr(self, one.name) for one in fields(self)}
        values |= {"hold": None, "scope": None, "report": str(self), "facts": self.to_dict()}
        return partial(SentFinding, **values), ()


@dataclass(eq=False, slots=True)
class SentFinding(Finding):
    """A finding that was pickled: hold and scope stayed behind, what they told came along."""

    report: str = field(kw_only=True)
    facts: dict[str, Any] = field(kw_only=True)

    def __str__(self) -> str:
        return self.report

    def to_dict(self) -> dict[str, Any]:
        """Return every fact of the finding, as it was then."""
        return self.facts.copy()


def fingerprint(
    kind: FindingKind, created_at: CallSite | None, acquired_at: CallSite | None, *more: str
) -> str:
    """Name a mistake: its kind, the lines that made it relative to their functions, and `more`.

    Neither the folder of the project nor the lines above a function are part of it, so that
    it survives a move to another host and an edit elsewhere in the file.
    """
    parts = [kind.value, position(created_at), position(acquired_at), *more]
    return hashlib.blake2s("\n".join(parts).encode(), digest_size=8).hexdigest()


def position(site: CallSite | None) -> str:
    """Name a line relative to its function, the same in every process."""
    if site is None:
        return "-"
    # By numbers, because Python hashes the whole of a code object each time.
    key = id(site.code), site.line
    known = _positions.get(key)
    if known is None:
        if len(_positions) >= _POSITIONS_LIMIT:
            _positions.clear()
        offset = site.line - site.code.co_firstlineno
        name = f"{import_path(site.file)}:{site.function}+{offset}"
        known = _positions[key] = site.code, name
    return known[1]


_positions: Final[dict[tuple[int, int], tuple[CodeType, str]]] = {}
"""By the `id()` of a code object and a line: the code object, which so keeps its `id()`, and the
name."""
_POSITIONS_LIMIT: Final = 1000
