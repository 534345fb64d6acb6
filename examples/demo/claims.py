"""What the demonstration says, held against what it saw."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from inspect import getsourcelines

from examples.demo.application import Example
from examples.demo.lifecycle import Life
from examples.demo.observation import Db, What
from examples.demo.shortage import POOL_SIZE, Shortage
from leakguard import FindingKind

OPENED_AND_CLOSED = (Db.NONE, Db.OPEN, Db.CLOSED, Db.NONE)
OPENED_AND_LOST = (Db.NONE, Db.OPEN, Db.NONE)


@dataclass(frozen=True)
class Claim:
    """Something that the demonstration says."""

    what: str
    said: object
    seen: object

    @property
    def holds(self) -> bool:
        """Whether it is so."""
        return self.said == self.seen

    def __str__(self) -> str:
        return f"{self.what}: said {self.said!r}, seen {self.seen!r}"


def of_life(life: Life, example: Example) -> Iterator[Claim]:
    """Claim that a session is closed and leakguard silent, or neither."""
    variation = life.variation
    leaks = variation.raises and not variation.with_finally
    title = variation.title
    yield Claim(f"{title}: status", 500 if variation.raises else 200, life.answer.status)
    yield Claim(f"{title}: `db`", OPENED_AND_LOST if leaks else OPENED_AND_CLOSED, life.db)
    yield Claim(f"{title}: connections out when it is over", int(leaks), life.out)
    kinds = [finding.kind for finding in life.findings]
    yield Claim(f"{title}: leakguard's findings", [FindingKind.LEAKED] if leaks else [], kinds)
    if variation.function_scope and not leaks:
        early = (What.CLOSED, What.RESPONDED)
        yield Claim(f"{title}: closed before the response", early, life.ending)
    if leaks and life.findings:
        yield from _of_finding(life, example)
    if leaks and not variation.function_scope:  # the same lines again are only counted
        yield from _of_report(life, example)


def _of_finding(life: Life, example: Example) -> Iterator[Claim]:
    finding = life.findings[0]
    hold, scope = finding.hold, finding.scope
    constructed = hold and hold.created_at and hold.created_at.line
    acquired = hold and hold.acquired_at and hold.acquired_at.line
    title = f"{life.variation.title}: leakguard's"
    route = life.variation.path.rpartition("/")[0] + "/{item_id}"
    yield Claim(f"{title} route", route, scope and scope.route)
    yield Claim(f"{title} status", life.answer.status, scope and scope.status)
    yield Claim(f"{title} line of the session", line_of(example, "SessionLocal()"), constructed)
    yield Claim(f"{title} line of the checkout", life.line(What.CHECKED_OUT), acquired)


def _of_report(life: Life, example: Example) -> Iterator[Claim]:
    place = f"without_finally.py:{line_of(example, 'SessionLocal()')}"
    for what, said, printed in (
        ("the report", f"{place} in get_db", life.log),
        ("the warning", f"{place}: ConnectionLeakWarning: leaked: GET ", life.warning),
    ):
        yield Claim(f"{what} has the line of the session", said, said if said in printed else "")


def of_shortages(with_finally: Shortage, without: Shortage) -> Iterator[Claim]:
    """Claim that one pool stays full, and the other runs dry and comes back by the collector."""
    for title, shortage, outs, status, leaks in (
        ("with finally", with_finally, [0] * POOL_SIZE, 200, 0),
        ("without finally", without, list(range(1, POOL_SIZE + 1)), 500, POOL_SIZE),
    ):
        seen = [request.out for request in shortage.failing]
        yield Claim(f"small pool {title}: connections out", outs, seen)
        yield Claim(f"small pool {title}: next request", status, shortage.then.answer.status)
        yield Claim(f"small pool {title}: leaks reported", leaks, shortage.leaks)
        yield Claim(f"small pool {title}: leaks resolved", leaks, len(shortage.resolutions))
        yield Claim(f"small pool {title}: out at last", 0, shortage.out_when_collected)
        yield Claim(f"small pool {title}: last request", 200, shortage.afterwards.answer.status)
    error = without.then.error.partition(":")[0]
    yield Claim("why the next request fails", "TimeoutError", error)
    logged = [bool(request.log.startswith("ERROR:leakguard:leaked")) for request in without.failing]
    yield Claim("reports in full", [True] + [False] * (POOL_SIZE - 1), logged)


def line_of(example: Example, text: str) -> int:
    """Find the line of the example's `get_db` that has a text in it; 0 where none has."""
    lines, first = getsourcelines(example.module.get_db)
    return next((number for number, line in enumerate(lines, first) if text in line), 0)
