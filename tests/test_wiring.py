"""The public guard and middleware are wired as the documents say."""

from __future__ import annotations

from typing import Any

import pytest
from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.gzip import GZipMiddleware

from leakguard import History, LeakGuard, LeakGuardMiddleware, Log, Warnings
from leakguard.core.settings import MODE_VARIABLE, Mode


@pytest.mark.parametrize(
    "mode, kinds",
    [
        ("off", []),
        ("production", [Log]),
        ("development", [Log, Warnings, History]),
        ("testing", [History]),
    ],
)
def test_a_mode_has_its_observers(mode: str, kinds: list[type]) -> None:
    """Each mode tells those whom its users look at."""
    guard = LeakGuard(mode=mode)
    assert [guard.observers.find(kind) is not None for kind in kinds] == [True] * len(kinds)
    assert (guard.history is not None) is (History in kinds)


def test_observers_that_are_given_replace_the_default_ones() -> None:
    """Nobody else is told then."""
    history = History()
    guard = LeakGuard(mode="development", observers=[history])
    assert guard.history is history
    assert guard.observers.find(Log) is None


@pytest.mark.parametrize("debug, mode", [(True, Mode.DEVELOPMENT), (False, Mode.PRODUCTION)])
def test_the_application_s_debug_flag_is_found(
    debug: bool, mode: Mode, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Behind whatever middleware stands between it and leakguard."""
    monkeypatch.delenv(MODE_VARIABLE, raising=False)
    app = FastAPI(debug=debug)
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
    middleware = LeakGuardMiddleware(FastAPI(debug=True), mode="testing")
    assert middleware.guard.settings.mode is Mode.TESTING


def test_the_stack_may_be_built_more_than_once() -> None:
    """Starlette builds it anew when somebody asks: every one has a guard."""
    app = FastAPI()
    app.add_middleware(LeakGuardMiddleware, mode="testing")
    app.build_middleware_stack()
    app.build_middleware_stack()
