"""One run: hide the leaks, send the requests, compare what was found with what was hidden."""

from __future__ import annotations

import asyncio
import logging
import random
import resource
import tempfile
import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any
from urllib.parse import urlsplit

from fastapi import FastAPI

from leakguard import Finding, FindingKind, LeakGuard, Observer
from tests.load.application import HEALTHY, Site, leaking_paths
from tests.load.client import InProcess, Request, Server, Tally
from tests.support import PATIENCE, serving, settle


@dataclass(frozen=True)
class Plan:
    """What to send, and where to."""

    requests: int
    leaks: int
    clients: int = 32
    seed: int = 0
    server: str = "uvicorn"
    """`"uvicorn"`: a real server on the loopback; `"in-process"`: without one."""
    mode: str = "production"


@dataclass
class Outcome:
    """What came of it."""

    seconds: float = 0.0
    statuses: Counter[int] = field(default_factory=Counter[int])
    kinds: Counter[str] = field(default_factory=Counter[str])
    wrong: list[str] = field(default_factory=list[str])
    """Every disagreement, in words; empty if all is well."""
    open_then: int = 0
    open_now: int = 0
    found: int = 0
    resolved: int = 0


class Collecting(Observer):
    """Keeps every finding and counts resolutions."""

    def __init__(self) -> None:
        self.findings: list[Finding] = []
        self.resolutions: list[Finding] = []

    def found(self, finding: Finding) -> None:
        self.findings.append(finding)

    def resolved(self, finding: Finding) -> None:
        self.resolutions.append(finding)


def run(plan: Plan) -> Outcome:
    """Send the requests of a plan to a fresh application, and compare."""
    _allow_open_files()
    for name in ("uvicorn", "asyncio"):  # of clients that give up, and SQLAlchemy lets them wait
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
    collecting = Collecting()
    with tempfile.TemporaryDirectory() as folder:
        guard = LeakGuard(mode=plan.mode, observers=[collecting])
        site = Site(Path(folder), guard)
        try:
            return _Run(plan, site, collecting).outcome()
        finally:
            guard.uninstall()


class _Run:
    def __init__(self, plan: Plan, site: Site, collecting: Collecting) -> None:
        self._plan = plan
        self._site = site
        self._collecting = collecting
        self._outcome = Outcome()
        self._hidden: dict[int, str] = {}
        self._requests = iter(self._hide())

    def outcome(self) -> Outcome:
        app = self._site.application()
        begun = perf_counter()
        tally = self._serve(app) if self._plan.server == "uvicorn" else asyncio.run(self._call(app))
        self._outcome.seconds = perf_counter() - begun
        self._outcome.statuses = tally.statuses
        self._compare_resolutions()
        return self._outcome

    def _hide(self) -> list[Request]:
        """Choose at random which requests leak, and how; a few clients do not wait."""
        choice = random.Random(self._plan.seed)  # noqa: S311  (no secret)
        numbers = range(self._plan.requests)
        leaking = set(choice.sample(numbers, self._plan.leaks))
        requests: list[Request] = []
        for number in numbers:
            name = choice.choice(leaking_paths() if number in leaking else HEALTHY)
            if number in leaking:
                self._hidden[number] = name
            hasty = number not in leaking and choice.random() < 0.01
            requests.append(Request(f"/{name}/{number}", hasty))
        return requests

    def _serve(self, app: FastAPI) -> Tally:
        """Send them to a real server, and clean up on its loop when it shuts down."""
        cleaned = threading.Event()

        async def clean_up() -> None:
            self._compare()
            await self._site.clean_up()
            cleaned.set()

        with serving(_WithCleanUp(app, clean_up), lifespan="on") as url:
            port = urlsplit(url).port
            assert port is not None
            tally = asyncio.run(Server(port).run(self._requests, self._plan.clients))
        assert cleaned.wait(PATIENCE), "comparing and cleaning up failed, see above"
        return tally

    async def _call(self, app: FastAPI) -> Tally:
        tally = await InProcess(app).run(self._requests, self._plan.clients)
        self._compare()
        await self._site.clean_up()
        return tally

    # --- comparing --------------------------------------------------------------------------------

    def _compare(self) -> None:
        """Compare what was found with what was hidden, while all of it is still out."""
        wrong = self._outcome.wrong
        findings = self._collecting.findings
        self._outcome.found = len(findings)
        self._outcome.kinds = Counter(str(finding.kind) for finding in findings)
        number_of = {id(scope): number for number, (scope, _) in self._site.planted.items()}
        if set(self._site.planted) != set(self._hidden):
            wrong.append(f"{len(self._site.planted)} of {len(self._hidden)} leaks took place")
        by_number = Counter(number_of.get(id(finding.scope)) for finding in findings)
        wrong += [
            f"the leak of request {n} was not found" for n in self._hidden if not by_number[n]
        ]
        wrong += [f"request {n}: {times} findings" for n, times in by_number.items() if times > 1]
        for finding in findings:
            wrong += self._wrong_in(finding, number_of.get(id(finding.scope)))
        self._compare_open()

    def _wrong_in(self, finding: Finding, number: int | None) -> Iterator[str]:
        if number is None or finding.kind is not FindingKind.LEAKED:
            yield f"nobody hid this: {finding}"
            return
        name, lines = self._hidden[number], self._site.lines
        created = finding.hold and finding.hold.created_at
        taken = finding.hold and finding.hold.acquired_at
        if finding.scope is None or finding.scope.route != f"/{name}/{{number}}":
            yield f"request {number}, {name}: on another route: {finding}"
        if (created and created.line) != lines.get(f"created {name}"):
            yield f"request {number}, {name}: another line of construction: {finding}"
        if (taken and taken.line) != lines[f"taken {name}"]:
            yield f"request {number}, {name}: another line of checkout: {finding}"

    def _compare_open(self) -> None:
        connections = self._connections()
        self._outcome.open_then = connections
        if not connections == self._site.out() == self._plan.leaks:
            self._outcome.wrong.append(
                f"{connections} connections are open holds, the pools say {self._site.out()}, "
                f"{self._plan.leaks} were hidden"
            )

    def _connections(self) -> int:
        holds = self._site.guard.open_holds()
        return sum(hold.resource == "connection" for hold in holds)

    def _compare_resolutions(self) -> None:
        settle()
        self._outcome.open_now = len(self._site.guard.open_holds())
        self._outcome.resolved = len(self._collecting.resolutions)
        if self._outcome.open_now or self._site.out():
            self._outcome.wrong.append(
                f"after the clean-up {self._outcome.open_now} holds are open, and the pools say "
                f"{self._site.out()}"
            )
        told = {id(finding) for finding in self._collecting.resolutions}
        if told != {id(finding) for finding in self._collecting.findings} or len(told) != len(
            self._collecting.resolutions
        ):
            self._outcome.wrong.append(
                f"{self._outcome.resolved} resolutions of {len(self._collecting.findings)} findings"
            )


class _WithCleanUp:
    """The application, with something to do on its loop when the server shuts down."""

    def __init__(self, app: Any, clean_up: Callable[[], Awaitable[None]]) -> None:
        self._app = app
        self._clean_up = clean_up

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "lifespan":
            await self._app(scope, receive, send)
            return
        for phase in ("startup", "shutdown"):
            await receive()
            if phase == "shutdown":
                await self._clean_up()
            await send({"type": f"lifespan.{phase}.complete"})


def _allow_open_files() -> None:
    """Every leaked connection has a file open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 65536 if hard == resource.RLIM_INFINITY else hard
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
