"""The public guard and middleware are wired as the documents say."""

from __future__ import annotations

import gc
import logging
import signal
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, Gauge
from sqlalchemy import Engine, create_engine, text
from sqlalchemy.orm import Session
from sqlalchemy.pool import QueuePool
from starlette.applications import Starlette
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from leakguard import (
    FindingKind,
    History,
    LeakGuard,
    LeakGuardMiddleware,
    Log,
    Prometheus,
    SettingsError,
    Warnings,
)
from leakguard.core.settings import MODE_VARIABLE, Mode
from leakguard.sources.sqlalchemy import SQLALCHEMY
from tests.support import Recorder, drain_watch, fetch


@pytest.mark.parametrize(
    "mode, kinds",
    [
        ("off", []),
        ("production", [Log, Prometheus]),
        ("development", [Log, Warnings, Prometheus, History]),
        ("testing", [History]),
    ],
)
def test_a_mode_has_its_observers(mode: str, kinds: list[type]) -> None:
    """Each mode tells those whom its users look at."""
    guard = LeakGuard(mode=mode)
    assert [type(observer) for observer in guard.observers] == kinds
    assert (guard.history is not None) is (History in kinds)


@pytest.mark.parametrize("mode, lines", [("production", 0), ("development", 1)])
def test_notices_are_logged_in_development_only(
    mode: str, lines: int, caplog: pytest.LogCaptureFixture
) -> None:
    """What is legal and worth knowing is for those who write the code."""
    engine = create_engine("sqlite://", poolclass=QueuePool)
    caplog.set_level(logging.DEBUG, "leakguard")
    with LeakGuard(mode=mode) as guard, guard.scope("job"), engine.connect(), engine.connect():
        pass
    logged = [record for record in caplog.records if record.name == "leakguard"]
    assert [record.getMessage().partition(":")[0] for record in logged] == [
        "nested_checkout"
    ] * lines
    engine.dispose()


def test_an_application_with_metrics_of_the_same_names_goes_on_without_these(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one that counts its pools by OpenTelemetry's names itself: nobody asked for ours."""
    registry = CollectorRegistry()
    monkeypatch.setattr(Prometheus.__init__, "__defaults__", (registry,))
    Gauge("db_client_connection_max", "The application's own.", registry=registry)
    guard = LeakGuard(mode="production")
    assert [type(one) for one in guard.observers] == [Log]
    [record] = caplog.records
    assert record.getMessage().startswith("there are no metrics: registry=")
    assert "db_client_connection_max" in record.getMessage()
    assert record.getMessage().endswith("or pass Prometheus(CollectorRegistry())")
    with pytest.raises(SettingsError, match="must have no other metrics"):
        Prometheus(registry)


def test_observers_that_are_given_replace_the_default_ones() -> None:
    """Nobody else is told then."""
    history = History()
    guard = LeakGuard(mode="development", observers=[history])
    assert guard.history is history
    assert guard.observers == (history,)


@pytest.mark.parametrize("debug, mode", [(True, Mode.DEVELOPMENT), (False, Mode.PRODUCTION)])
def test_the_application_s_debug_flag_is_found(
    debug: bool, mode: Mode, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Behind whatever middleware stands between it and leakguard."""
    monkeypatch.delenv(MODE_VARIABLE, raising=False)
    app = Starlette(debug=debug)
    app.add_middleware(GZipMiddleware)
    app.add_middleware(CORSMiddleware)
    app.add_middleware(LeakGuardMiddleware, observers=[])
    stack: Any = app.build_middleware_stack()
    while not isinstance(stack, LeakGuardMiddleware):
        stack = stack.app
    assert stack.guard.settings.mode is mode


def test_an_application_without_the_flag_is_in_production(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other frameworks have no such flag; one that wraps itself has no end."""
    monkeypatch.delenv(MODE_VARIABLE, raising=False)

    class Loop:
        """An application that wraps itself."""

        @property
        def app(self) -> Any:
            return self

        async def __call__(self, *_: object) -> None:
            """Do nothing."""

    async def plain(*_: object) -> None:
        """Do nothing."""

    for app in (Loop(), plain):
        assert LeakGuardMiddleware(app, observers=[]).guard.settings.mode is Mode.PRODUCTION


def test_an_argument_wins_over_the_flag() -> None:
    """The application's flag is a default, no more."""
    middleware = LeakGuardMiddleware(Starlette(debug=True), mode="testing")
    assert middleware.guard.settings.mode is Mode.TESTING


def test_the_stack_may_be_built_more_than_once(recorder: Recorder, engine: Engine) -> None:
    """Starlette builds it anew when somebody asks, and a leak is found once all the same."""
    kept: list[Session] = []

    async def leak(_: Request) -> Response:
        session = Session(engine)
        session.execute(text("select 1"))
        kept.append(session)
        return Response()

    app = Starlette(routes=[Route("/leak", leak)])
    app.add_middleware(LeakGuardMiddleware, observers=[recorder], mode="testing")
    stacks = [app.build_middleware_stack() for _ in range(2)]
    assert len(SQLALCHEMY.guards) == len(stacks)
    fetch(app, "/leak")
    assert [scope.name for scope in recorder.scopes_closed] == ["GET /leak"]
    assert recorder.kinds == [FindingKind.LEAKED]
    kept.pop().close()


def test_a_guard_of_its_own_goes_with_the_middleware(recorder: Recorder) -> None:
    """Applications come and go in tests; the guard that one was given stays."""
    given = LeakGuard(observers=[recorder]).install()
    guards = [
        LeakGuardMiddleware(Starlette(), given).guard,
        LeakGuardMiddleware(Starlette(), observers=[]).guard,
    ]
    gc.collect()
    drain_watch()
    assert [guard.installed for guard in guards] == [True, False]


def test_the_table_is_logged_on_a_signal(caplog: pytest.LogCaptureFixture) -> None:
    """By the guard that users have, too."""
    before = signal.getsignal(signal.SIGUSR2)
    try:
        with LeakGuard(mode="testing") as guard:
            guard.log_on_signal(signal.SIGUSR2)
            signal.raise_signal(signal.SIGUSR2)
            drain_watch()
    finally:
        signal.signal(signal.SIGUSR2, before)
    assert caplog.messages[0].endswith("no open holds")


def test_a_guard_that_is_given_is_installed() -> None:
    """The one line is enough for it, too."""
    guard = LeakGuard()
    assert not guard.installed
    middleware = LeakGuardMiddleware(Starlette(), guard)
    assert guard.installed
    assert middleware.guard is guard


@pytest.mark.parametrize("guard", ["production", LeakGuard, object()])
def test_what_is_no_guard_is_refused(guard: Any) -> None:
    """The error says what is wanted."""
    with pytest.raises(
        SettingsError, match=r"guard=.* is not allowed: must be a LeakGuard, or None"
    ):
        LeakGuardMiddleware(Starlette(), guard)


def test_a_guard_and_options_are_too_much() -> None:
    """Nobody could tell which of the two was to count, so neither is silently dropped."""
    with pytest.raises(SettingsError, match="frames=3 is not allowed: set it on the guard"):
        LeakGuardMiddleware(Starlette(), LeakGuard(), frames=3)
