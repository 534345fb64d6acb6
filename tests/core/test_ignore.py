"""Ready-made predicates for what is meant to be."""

from __future__ import annotations

from asyncio import CancelledError
from typing import Any

import pytest

from leakguard import Finding, FindingKind, LeakGuard, SettingsError, ignore_function, ignore_route
from leakguard.core.verdict import Verdict
from leakguard.sources.asgi import ScopeMiddleware
from tests.core.fakes import (
    FakeConnection,
    construct,
    here,
    installed,
    make_finding,
    make_guard,
    site_at,
    take,
)
from tests.support import Recorder


def test_a_function_is_ignored_that_did_it_itself() -> None:
    """By its qualified name; its callers are not kept in production, so they never count."""
    finding = make_finding()
    assert ignore_function("make_finding")(finding)
    assert not ignore_function("test_a_function_is_ignored_that_did_it_itself")(finding)
    assert not ignore_function("another_function")(finding)


def test_the_function_that_constructed_the_session_is_ignored() -> None:
    """Also where another one checked the connection out."""
    finding = make_finding()
    assert isinstance(finding.hold, FakeConnection)
    finding.hold.session = construct(make_guard(), None, site_at("app/db.py", 12, "get_db"))
    assert ignore_function("get_db")(finding)
    assert ignore_function("make_finding")(finding)


def test_a_finding_without_a_hold_is_no_function_s() -> None:
    """What is found on a pool was not done by a function."""
    finding = make_finding()
    finding.hold = None
    assert not ignore_function("make_finding")(finding)


def test_a_job_is_no_route_s() -> None:
    """Outside of a web application there is no route to compare with."""
    finding = make_finding()
    assert not ignore_route("/export")(finding)
    finding.scope = None
    assert not ignore_route("/export")(finding)


async def leak(scope: Any, receive: Any, send: Any) -> None:
    """Take a connection and keep it, on a route."""
    scope["endpoint"] = leak
    scope["route"] = type("Route", (), {"path": scope["path"]})
    guard = scope["guard"]
    from leakguard.core.scope import current_scope  # noqa: PLC0415  (only here)

    take(guard, current_scope.get())


@pytest.mark.parametrize(
    "path, kinds",
    [
        ("/export", []),
        ("/import", [FindingKind.LEAKED]),
        ("/export/{item_id}", [FindingKind.LEAKED]),
        ("/api/export", [FindingKind.LEAKED]),
    ],
)
def test_a_route_is_ignored(path: str, kinds: list[FindingKind]) -> None:
    """By its full template."""
    import asyncio  # noqa: PLC0415  (only here)

    recorder = Recorder()
    guard = installed(recorder, ignore=[ignore_route("/export")])
    scope = {"type": "http", "method": "GET", "path": path, "guard": guard}
    asyncio.run(ScopeMiddleware(leak, guard)(scope, None, None))  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]  # not used
    assert recorder.kinds == kinds
    guard.uninstall()


def test_ignored_findings_are_not_counted() -> None:
    """What is dropped leaves no trace in the numbers."""
    recorder = Recorder()
    verdicts = [True, False]

    def predicate(_: Finding) -> bool:
        return verdicts.pop(0)

    guard = installed(recorder, ignore=[predicate])
    with guard.scope("job") as scope:
        site = here()
        for _ in range(2):
            take(guard, scope, site)
    assert [finding.count for finding in recorder.findings] == [1]
    guard.uninstall()


class Predicate:
    """A callable object, which has no name of its own."""

    def __init__(self, error: type[BaseException]) -> None:
        self.error = error

    def __call__(self, finding: object) -> bool:
        """Fail."""
        raise self.error


def failing(_: object) -> bool:
    raise KeyError


@pytest.mark.parametrize(
    "predicate, name, error",
    [
        (Predicate(KeyError), "Predicate", "KeyError"),
        (Predicate(CancelledError), "Predicate", "CancelledError"),
        (failing, "failing", "KeyError"),
    ],
)
def test_a_predicate_that_raises_ignores_nothing(
    caplog: pytest.LogCaptureFixture, predicate: Any, name: str, error: str
) -> None:
    """The finding is told, the fault is logged once."""
    recorder = Recorder()
    guard = installed(recorder, ignore=[predicate])
    with guard.scope("job") as scope:
        take(guard, scope)
        take(guard, scope)
    assert len(recorder.findings) == 2
    assert [record.getMessage() for record in caplog.records] == [
        (
            f"leakguard's ignore predicate {name} raised {error}; "
            "the application is not affected. The finding is not ignored."
        )
    ]
    guard.uninstall()


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_what_ends_the_process_passes(error: type[BaseException]) -> None:
    """A signal may arrive in the middle of a predicate, too."""

    def predicate(_: Finding) -> bool:
        raise error

    guard = installed(ignore=[predicate])
    hold = take(guard)
    with pytest.raises(error):
        guard._announcer.found(hold, Verdict(FindingKind.RECLAIMED))  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]  # as the judge calls it
    guard.uninstall()


@pytest.mark.parametrize("value", ["", None, 7])
def test_a_predicate_needs_a_string(value: object) -> None:
    """The error names the argument."""
    allowed = "must be a string of at least one character"
    with pytest.raises(SettingsError) as raised:
        ignore_route(value)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]  # the mistake
    assert str(raised.value) == f"template={value!r} is not allowed: {allowed}"
    with pytest.raises(SettingsError) as raised:
        ignore_function(value)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]  # the mistake
    assert str(raised.value) == f"name={value!r} is not allowed: {allowed}"


def test_a_leak_guard_takes_them() -> None:
    """They are what the setting wants."""
    guard = LeakGuard(mode="off", ignore=[ignore_route("/export"), ignore_function("export")])
    assert len(guard.settings.ignore) == 2
