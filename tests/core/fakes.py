"""Holds, call sites and guards without a library behind them."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Iterable
from types import CodeType, FunctionType
from typing import Any

from leakguard import CallSite, Finding, FindingKind, Observer, Scope
from leakguard.core.callsite import capture, no_segments
from leakguard.core.finding import PoolUsage
from leakguard.core.guard import Guard
from leakguard.core.hold import ConnectionHold, SessionHold
from leakguard.core.holder import current_holder
from leakguard.core.register import make_finding as finding_of
from leakguard.core.scope import current_scope
from leakguard.core.settings import build_settings
from leakguard.core.source import Source


def make_guard(*told: Observer, sources: Iterable[Source] = (), **options: Any) -> Guard:
    """Make a guard that is told by nobody but the test, and tells `told`."""
    return Guard(build_settings({"mode": "testing", **options}), told, sources)


def installed(*told: Observer, **options: Any) -> Guard:
    """Make such a guard, installed, that does not wait for long."""
    settings = build_settings({"mode": "testing", "late_after": 0.05, **options})
    return Guard(settings, told, ()).install()


class FakeConnection(ConnectionHold):
    """A connection that is open while the test says so."""

    def __init__(
        self, guard: Guard, scope: Scope | None = None, site: CallSite | None = None
    ) -> None:
        super().__init__(guard, scope, site, "main")
        self.is_open = True
        self.fake_usage: PoolUsage | None = None
        self.is_lost_when_collected = False
        if scope is not None:
            if scope.closed_at is not None:  # it was taken while the scope was open
                self.acquired_monotonic = min(self.acquired_monotonic, scope.closed_at)
            self.holder = current_holder(scope)

    @property
    def open(self) -> bool:
        return self.is_open

    @property
    def usage(self) -> PoolUsage | None:
        return self.fake_usage

    @property
    def lost_when_collected(self) -> bool:
        return self.is_lost_when_collected

    def give_back(self) -> None:
        """Close it, as a source that sees the checkin would tell."""
        self.is_open = False
        self.guard.released(self)

    def collect(self) -> None:
        """Have it collected, as a finalizer would tell."""
        self.is_open = False
        self.guard.collected(self)


class FakeSession(SessionHold):
    """A session that is open while the test says so."""

    def __init__(
        self, guard: Guard, scope: Scope | None = None, site: CallSite | None = None
    ) -> None:
        super().__init__(guard, scope, site)
        self.is_open = True
        if scope is not None:
            self.holder = current_holder(scope)

    @property
    def open(self) -> bool:
        return self.is_open


def take(guard: Guard, scope: Scope | None = None, site: CallSite | None = None) -> FakeConnection:
    """Acquire a connection."""
    hold = FakeConnection(guard, scope, site)
    guard.acquired(hold)
    return hold


def construct(
    guard: Guard, scope: Scope | None = None, site: CallSite | None = None
) -> FakeSession:
    """Acquire a session."""
    hold = FakeSession(guard, scope, site)
    guard.acquired(hold)
    return hold


def here() -> CallSite:
    """Return the call site of the caller."""
    site = capture(sys._getframe(1), 12, no_segments)  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]  # documented
    assert site is not None
    return site


def site_of(code: CodeType | FunctionType) -> CallSite:
    """Return the call site of a function's first line."""
    return CallSite(((code.__code__ if isinstance(code, FunctionType) else code, 0),))


def site_at(file: str, line: int, function: str, *callers: CallSite) -> CallSite:
    """Return a call site in a file of the working directory that need not exist."""
    path = os.path.join(os.getcwd(), *file.split("/"))  # noqa: PTH109, PTH118  (code objects name files as strings)
    variables: dict[str, Any] = {}
    exec(compile("\n" * (line - 1) + f"def {function}(): ...", path, "exec"), variables)  # noqa: S102  (text of the tests)
    outer = [(caller.code, 0) for caller in callers]
    return CallSite(((variables[function].__code__, 0), *outer))


def ended_scope(guard: Guard, name: str = "GET /items/{item_id}") -> Scope:
    """Make a scope of 12 ms that has ended; it never was the current one."""
    scope = Scope(guard, name, "http")
    scope.opened_at, scope.closed_at = 100.0, 100.012
    return scope


def make_finding(kind: FindingKind = FindingKind.LEAKED) -> Finding:
    """Make a finding on a connection that a job did not give back."""
    guard = make_guard()
    hold = FakeConnection(guard, ended_scope(guard, "nightly import"), here())
    return finding_of(hold, kind, ())


async def let_tasks_run() -> None:
    """Let what is ready run."""
    for _ in range(5):
        await asyncio.sleep(0)


def start_within(scope: Scope) -> asyncio.Task[object]:
    """Start a task that never ends in the context of a scope."""
    current_scope.set(scope)
    return asyncio.create_task(asyncio.Event().wait())
