"""What was found in one process, compared with what was hidden in it."""

from __future__ import annotations

import logging
import resource
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from leakguard import Finding, FindingKind, LeakGuard, Observer
from tests.load.application import Site
from tests.support import drain_watch


@dataclass
class Result:
    """What came of it, ready for JSON."""

    planted: list[int] = field(default_factory=list[int])
    """The numbers of the requests that leaked."""
    kinds: dict[str, int] = field(default_factory=dict[str, int])
    wrong: list[str] = field(default_factory=list[str])
    """Every disagreement, in words; empty if all is well."""
    open_then: int = 0
    """Connections that were out while everything that leaked was."""
    open_now: int = 0
    found: int = 0
    resolved: int = 0


class Collecting(Observer):
    """Keeps every finding and every resolution."""

    def __init__(self) -> None:
        self.findings: list[Finding] = []
        self.resolutions: list[Finding] = []

    def found(self, finding: Finding) -> None:
        self.findings.append(finding)

    def resolved(self, finding: Finding) -> None:
        self.resolutions.append(finding)


class Examination:
    """A site under guard: `compare` while all is out, `clean_up`, then `result`."""

    def __init__(self, folder: Path, mode: str, hidden: Mapping[int, str]) -> None:
        """Take the route of every leaking request by its number."""
        _allow_open_files()
        for name in ("uvicorn", "asyncio"):  # of clients that give up, which SQLAlchemy lets wait
            logging.getLogger(name).setLevel(logging.CRITICAL + 1)
        self._collecting = Collecting()
        self._hidden = hidden
        self._result = Result()
        # A machine that is busy with so many clients gives late what it gives back.
        self.guard = LeakGuard(mode=mode, observers=[self._collecting], late_after=60.0)
        self.site = Site(folder, self.guard)

    async def compare_and_clean_up(self) -> None:
        """Compare while everything is still out, then give it back, on the application's loop."""
        self._compare()
        await self.site.clean_up()

    def result(self) -> Result:
        """Compare what came back, and give it all."""
        drain_watch()
        result, findings = self._result, self._collecting.findings
        result.open_now = len(self.guard.open_holds())
        result.resolved = len(self._collecting.resolutions)
        if result.open_now or self.site.out():
            result.wrong.append(
                f"after the clean-up {result.open_now} holds are open, and the pools say "
                f"{self.site.out()}"
            )
        told = {id(finding) for finding in self._collecting.resolutions}
        if told != set(map(id, findings)) or len(told) != result.resolved:
            result.wrong.append(f"{result.resolved} resolutions of {len(findings)} findings")
        return result

    def _compare(self) -> None:
        result, findings = self._result, self._collecting.findings
        planted = self.site.planted
        result.planted = sorted(planted)
        result.found = len(findings)
        result.kinds = dict(Counter(str(finding.kind) for finding in findings))
        number_of = {id(scope): number for number, (scope, _) in planted.items()}
        by_number = Counter(number_of.get(id(finding.scope)) for finding in findings)
        result.wrong += [
            f"the leak of request {number} was not found"
            for number in planted
            if not by_number[number]
        ]
        result.wrong += [
            f"request {number}: {times} findings"
            for number, times in by_number.items()
            if times > 1
        ]
        for finding in findings:
            result.wrong += self._wrong_in(finding, number_of.get(id(finding.scope)))
        self._compare_open()

    def _wrong_in(self, finding: Finding, number: int | None) -> Iterator[str]:
        if number is None or finding.kind is not FindingKind.LEAKED:
            yield f"nobody hid this: {finding}"
            return
        name, lines = self._hidden[number], self.site.lines
        created = finding.hold and finding.hold.created_at
        taken = finding.hold and finding.hold.acquired_at
        if finding.scope is None or finding.scope.route != f"/{name}/{{number}}":
            yield f"request {number}, {name}: on another route: {finding}"
        if (created and created.line) != lines.get(f"created {name}"):
            yield f"request {number}, {name}: another line of construction: {finding}"
        if (taken and taken.line) != lines[f"taken {name}"]:
            yield f"request {number}, {name}: another line of checkout: {finding}"

    def _compare_open(self) -> None:
        holds = self.guard.open_holds()
        connections = sum(hold.resource == "connection" for hold in holds)
        self._result.open_then = connections
        if not connections == self.site.out() == len(self.site.planted):
            self._result.wrong.append(
                f"{connections} connections are open holds, the pools say {self.site.out()}, "
                f"{len(self.site.planted)} were hidden"
            )


class WithEnds:
    """An application, with something to do on its loop when the server starts and shuts down."""

    def __init__(
        self, app: Any, *, start: Callable[[], None], stop: Callable[[], Awaitable[None]]
    ) -> None:
        self._app = app
        self._start = start
        self._stop = stop

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "lifespan":
            await self._app(scope, receive, send)
            return
        await receive()
        self._start()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await self._stop()
        await send({"type": "lifespan.shutdown.complete"})


def _allow_open_files() -> None:
    """Every leaked connection has a file open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 65536 if hard == resource.RLIM_INFINITY else hard
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
