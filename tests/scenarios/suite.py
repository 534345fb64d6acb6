"""The nouns of the suite: what a scenario is, what is expected of it, and its laboratory."""

from __future__ import annotations

import asyncio
import inspect
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from types import FunctionType
from typing import Final, NamedTuple

from leakguard import CallSite, Finding, FindingKind
from leakguard.core.settings import Mode
from tests.fastapi_version import EXITS_BEFORE_RESPONSE
from tests.scenarios.databases import DRIVERS, Database, Driver, Form
from tests.scenarios.lab import Bench, Lab, Times
from tests.support import line_marked

COPIES: Final = 32
"""How many copies of a clean scenario run at once."""
TOO_LONG: Final = 60.0
"""Seconds after which a scenario has hung."""

ROWS: Final = str(Path(__file__).with_name("rows"))
"""The folder of the scenarios' sources."""

Row = Callable[[Lab], Awaitable[None]]


class Line(NamedTuple):
    """A line of a scenario's source."""

    file: str
    line: int


class Seen(NamedTuple):
    """What is compared of a finding."""

    kind: FindingKind
    created: Line | None
    acquired: Line | None
    scope: str | None
    status: int | None
    resolved: bool
    now: Line | None = None


@dataclass(frozen=True, slots=True)
class Expected:
    """A finding that a scenario must come to; lines are named by their trailing comments."""

    kind: FindingKind
    created: str | None = None
    acquired: str | None = None
    scope: str | None = "GET /leak"
    status: int | None = 200
    resolved: bool = False
    """Whether it is resolved when the scenario ends, before what was kept is closed."""
    times: int = 1
    says: str = ""
    """What its report says, among other things."""
    now: str | None = None
    """Where those who have the connection are, of one that is held."""

    def seen_in(self, source: Row) -> Seen:
        """Return how the finding must look for a scenario with this source."""
        return Seen(
            self.kind,
            _marked(source, self.created),
            _marked(source, self.acquired),
            self.scope,
            self.status,
            self.resolved,
            _marked(source, self.now),
        )


LEAKED: Final = Expected(FindingKind.LEAKED, "leak", "checkout")
"""What most scenarios expect: both lines, at `GET /leak`, which answers 200."""
CONNECTION_LEAKED: Final = replace(LEAKED, created=None)
"""The same, without a session."""


@dataclass(frozen=True, slots=True)
class Scenario:
    """One thing that people do, in one form, with the findings that it must come to."""

    number: int
    """The row of the list of scenarios."""
    title: str
    form: Form
    function: str
    row: Row
    usual: tuple[Expected, ...]
    """What it must come to; as in the table of accuracy."""
    exits_first: tuple[Expected, ...] | None
    """The same where dependencies exit before the response; `None`: it makes no difference."""
    late_after: float
    held_after: float
    served: bool | None
    """Whether its requests go to a real server; `None`: where many copies of it run at once."""
    crowd: bool
    """Whether many copies of it may run at once."""
    databases: tuple[str, ...]

    @property
    def name(self) -> str:
        """A name for it, unique in the suite."""
        return f"{self.number:02}-{self.function.replace('_', '-')}"

    @property
    def expected(self) -> tuple[Expected, ...]:
        """The findings that it must come to with the installed version of FastAPI."""
        if EXITS_BEFORE_RESPONSE and self.exits_first is not None:
            return self.exits_first
        return self.usual

    @property
    def clean(self) -> bool:
        """Whether nothing must be found."""
        return not self.expected

    @property
    def verdict(self) -> str:
        """The kinds that are expected, as in the table of accuracy."""
        return _kinds(self.usual)

    @property
    def verdict_if_exits_first(self) -> str | None:
        """The same where dependencies exit before the response; `None`: it makes no difference."""
        return None if self.exits_first is None else _kinds(self.exits_first)

    @property
    def drivers(self) -> tuple[Driver, ...]:
        """The drivers that it is for."""
        return tuple(
            driver
            for driver in DRIVERS
            if driver.form == self.form and driver.database in self.databases
        )

    def all_expected(self) -> list[Seen]:
        """List the findings that it must come to, in the order of `seen`."""
        every = [one for one in self.expected for _ in range(one.times)]
        return sorted((one.seen_in(self.row) for one in every), key=str)


def _kinds(expected: Iterable[Expected]) -> str:
    return verdict(kind for one in expected for kind in [one.kind] * one.times)


def verdict(kinds: Iterable[FindingKind]) -> str:
    """Write kinds in a few words, the most severe first; `clean` where there is none."""
    counts = Counter(kinds)
    told = [(kind, counts[kind]) for kind in FindingKind if counts[kind]]
    return ", ".join(f"{n} x {kind}" if n > 1 else str(kind) for kind, n in told) or "clean"


SCENARIOS: Final[list[Scenario]] = []


def scenario(  # noqa: PLR0913  (all but the first two are rarely given)
    number: int,
    title: str,
    *expected: Expected,
    exits_first: tuple[Expected, ...] | None = None,
    late_after: float = 5.0,
    held_after: float = TOO_LONG,
    served: bool | None = None,
    crowd: bool = True,
    databases: tuple[str, ...] = ("SQLite", "PostgreSQL", "MariaDB"),
) -> Callable[[Row], Row]:
    """Register a scenario; whether it is sync or async is said by the end of its name.

    `exits_first` is what is expected with the versions of FastAPI that run the exit code of
    dependencies before the response, where that is something else.
    """

    def register(row: Row) -> Row:
        assert isinstance(row, FunctionType)
        form: Form = "async" if row.__name__.endswith("_async") else "sync"
        assert row.__name__.endswith(f"_{form}"), f"{row.__name__} says not which form it is"
        SCENARIOS.append(
            Scenario(
                number,
                title,
                form,
                row.__name__,
                row,
                expected,
                exits_first,
                late_after,
                held_after,
                served,
                crowd,
                databases,
            )
        )
        return row

    return register


# --- running --------------------------------------------------------------------------------------


def observe(
    one: Scenario,
    driver: Driver,
    database: Database,
    *,
    mode: Mode = Mode.TESTING,
    copies: int = 1,
) -> list[Seen]:
    """Run a scenario and give what was found; all that it kept is closed, and seen to be back."""

    async def main() -> list[Seen]:
        async with asyncio.timeout(TOO_LONG):
            return await _observe(one, Bench(driver, database, mode, _times(one), copies))

    return asyncio.run(main())


def _times(one: Scenario) -> Times:
    return {"late_after": one.late_after, "held_after": one.held_after}


async def _observe(one: Scenario, bench: Bench) -> list[Seen]:
    served = bench.copies > 1 if one.served is None else one.served
    async with bench.serving() if served else bench.in_process():
        try:
            await asyncio.gather(*(one.row(lab) for lab in bench.labs))
            await bench.over(sum(expected.times for expected in one.expected) * bench.copies)
            seen = sorted(map(see, bench.recorder.findings), key=str)
            if one.clean:
                await bench.nothing_out()
            _reports_say(one, bench.recorder.findings)
        finally:
            await bench.close()
        bench.all_back()
        assert len(seen) == len(bench.recorder.findings), "found only while everything was closed"
    return seen


def _reports_say(one: Scenario, findings: list[Finding]) -> None:
    for expected in one.expected:
        reports = [str(finding) for finding in findings if finding.kind is expected.kind]
        assert not reports or any(expected.says in report for report in reports), reports[0]


def see(finding: Finding) -> Seen:
    """Return what is compared of a finding."""
    hold, scope = finding.hold, finding.scope
    return Seen(
        finding.kind,
        None if hold is None else _line(hold.created_at),
        None if hold is None else _line(hold.acquired_at),
        None if scope is None else scope.name,
        None if scope is None else scope.status,
        finding.resolved,
        _line_in_row(finding.evidence.now_at),
    )


def _line_in_row(site: CallSite | None) -> Line | None:
    """Return the innermost line of a scenario: it may wait for something of the laboratory's."""
    frames = () if site is None else site.frames
    lines = (Line(Path(frame.file).name, frame.line) for frame in frames if ROWS in frame.file)
    return next(lines, None)


def _line(site: CallSite | None) -> Line | None:
    return None if site is None else Line(Path(site.file).name, site.line)


def _marked(source: Row, marker: str | None) -> Line | None:
    if marker is None:
        return None
    assert isinstance(source, FunctionType)
    return Line(Path(inspect.getfile(source)).name, line_marked(source, marker))
