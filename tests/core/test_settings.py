"""Settings are built once, from a preset and what is given, and a mistake is named."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from leakguard import Finding, LeakGuard, LeakGuardMiddleware, Observer, SettingsError
from leakguard.core.settings import MODE_VARIABLE, Mode, Options, build_settings, default_mode


@pytest.fixture(autouse=True)
def no_mode_in_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(MODE_VARIABLE, raising=False)


def never(_: Finding) -> bool:
    return False


async def never_async(_: Finding) -> bool:
    return False


def never_generator(_: Finding) -> Iterator[bool]:
    yield False


async def never_async_generator(_: Finding) -> AsyncIterator[bool]:
    yield False


class NeverAsync:
    """A predicate with state, which is called like a function."""

    async def __call__(self, _: Finding) -> bool:
        """Say no."""
        return False


class AsyncObserver(Observer):
    """An observer that would like to be awaited."""

    async def found(self, finding: Finding) -> None:  # type: ignore[override]  # pyright: ignore[reportIncompatibleMethodOverride]  # the mistake
        """Send it somewhere."""


MODES = "must be one of 'off', 'production', 'development', 'testing'"
SECONDS = "must be a number of seconds"
FINITE = "must be a finite number of seconds, 0 or more"
COUNT = "must be a whole number, 1 or more"
FLAG = "must be True or False"
OBSERVERS = "must be a list of Observer instances, or None for the default ones"
PREDICATES = "must be a list of functions that take a finding and say whether to drop it"
ENGINES = "must be a list of at least one engine, or None for all"
DEF = "must be def, neither async def nor a generator"

BAD: list[tuple[str, object, str]] = [
    ("mode", "prod", MODES),
    ("mode", 7, MODES),
    ("mode", ["testing"], MODES),
    ("held_after", -1, FINITE),
    ("held_after", float("nan"), FINITE),
    ("held_after", float("inf"), FINITE),
    ("held_after", 10**400, FINITE),
    ("held_after", "5", SECONDS),
    ("held_after", True, SECONDS),
    ("late_after", None, SECONDS),
    ("late_after", -0.5, FINITE),
    ("frames", 0, COUNT),
    ("frames", 1.5, COUNT),
    ("frames", True, COUNT),
    ("statements", "yes", FLAG),
    ("events", 1, FLAG),
    ("observers", "log", OBSERVERS),
    ("observers", Observer(), OBSERVERS),
    ("ignore", "leaked", PREDICATES),
    ("ignore", never, PREDICATES),
    ("ignore", None, PREDICATES),
    ("engines", 7, ENGINES),
    ("engines", {"main": 1}, ENGINES),
    ("engines", [], ENGINES),
    (
        "heldafter",
        5,
        (
            "there is no such setting; known are mode, engines, observers, held_after, late_after, "
            "ignore, frames, statements, events"
        ),
    ),
]

BAD_ITEMS: list[tuple[str, object, object, str]] = [
    ("observers", Observer(), Observer, "must be an Observer instance"),
    ("observers", Observer(), AsyncObserver(), f"its found {DEF}"),
    (
        "ignore",
        never,
        "leaked",
        "must be a function that takes a finding and says whether to drop it",
    ),
    ("ignore", never, never_async, DEF),
    ("ignore", never, partial(never_async), DEF),
    ("ignore", never, NeverAsync(), DEF),
    ("ignore", never, never_generator, DEF),
    ("ignore", never, never_async_generator, DEF),
]


def errors_of(options: Any) -> Iterator[SettingsError]:
    """Return the errors of whatever takes settings."""
    for construct in (lambda: LeakGuard(**options), lambda: LeakGuardMiddleware(None, **options)):  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]  # never called
        with pytest.raises(SettingsError) as raised:
            construct()
        yield raised.value


@pytest.mark.parametrize("name, value, allowed", BAD, ids=[f"{n}={v!r:.20}" for n, v, _ in BAD])
def test_a_bad_value_is_named(name: str, value: object, allowed: str) -> None:
    """The error names the setting, the value and what is allowed, at construction."""
    for error in errors_of({name: value}):
        assert str(error) == f"{name}={value!r} is not allowed: {allowed}"
        assert (error.setting, error.value, error.allowed) == (name, value, allowed)
        assert isinstance(error, ValueError)


@pytest.mark.parametrize(
    "name, good, bad, allowed", BAD_ITEMS, ids=[f"{n}={b!r:.20}" for n, _, b, _ in BAD_ITEMS]
)
def test_a_bad_item_of_a_list_is_named(name: str, good: object, bad: object, allowed: str) -> None:
    """With its place in the list."""
    for error in errors_of({name: [good, bad]}):
        assert str(error) == f"{name}[1]={bad!r} is not allowed: {allowed}"
        assert error.value is bad


def test_what_is_no_engine_is_named() -> None:
    """The source says so, which knows engines."""
    for error in errors_of({"engines": [7]}):
        assert str(error).startswith("engines[0]=7 is not allowed: must be an Engine")


GOOD: list[tuple[str, object, object]] = [
    ("mode", "testing", Mode.TESTING),
    ("held_after", 0, 0.0),
    ("held_after", None, None),
    ("held_after", sys.float_info.max, sys.float_info.max),
    ("late_after", 2, 2.0),
    ("frames", 1, 1),
    ("frames", 3, 3),
    ("statements", False, False),
    ("events", False, False),
    ("engines", None, None),
    ("observers", None, None),
    ("observers", [], ()),
    ("ignore", [never], (never,)),
]


@pytest.mark.parametrize("name, value, kept", GOOD)
def test_a_good_value_is_kept(name: str, value: object, kept: object) -> None:
    """What is given wins over the preset."""
    assert getattr(build_settings({"mode": "development", name: value}), name) == kept


def test_the_rest_comes_from_the_preset() -> None:
    """An explicit argument changes nothing else."""
    settings = build_settings({"mode": "development", "frames": 3})
    assert (settings.held_after, settings.statements, settings.late_after) == (5.0, True, 1.0)


def test_the_environment_names_the_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    """`LEAKGUARD_MODE` decides where no argument does."""
    monkeypatch.setenv(MODE_VARIABLE, "testing")
    assert build_settings({}).mode is Mode.TESTING
    assert build_settings({"mode": None}).mode is Mode.TESTING
    assert build_settings({"mode": "off"}).mode is Mode.OFF
    monkeypatch.setenv(MODE_VARIABLE, "prod")
    with pytest.raises(SettingsError, match=r"LEAKGUARD_MODE='prod' is not allowed"):
        LeakGuard()


def test_the_application_s_debug_flag_means_development(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without argument and environment, `debug` decides between development and production."""
    monkeypatch.setattr(sys, "flags", type("Flags", (), {"dev_mode": False}))
    assert default_mode(debug=True) is Mode.DEVELOPMENT
    assert default_mode() is Mode.PRODUCTION


@pytest.mark.parametrize("arguments, mode", [([], "production"), (["-X", "dev"], "development")])
def test_python_s_dev_mode_means_development(arguments: list[str], mode: str) -> None:
    """`python -X dev` is asked for by people who want to see what is wrong."""
    code = "from leakguard import LeakGuard; print(LeakGuard().settings.mode)"
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONDEVMODE"}
    out = subprocess.run(  # noqa: S603  (our own code)
        [sys.executable, "-W", "ignore", *arguments, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env=environment,
        cwd=Path(__file__).parents[2],
    )
    assert out.stdout.strip() == mode


@pytest.mark.parametrize("name", Options.__annotations__)
def test_a_value_that_cannot_be_shown_is_named_all_the_same(name: str) -> None:
    """A user's broken `repr` does not hide which setting is wrong."""

    class Unprintable:
        """A value whose `repr` raises."""

        def __repr__(self) -> str:
            raise RuntimeError

    with pytest.raises(SettingsError, match=f"{name}=<a Unprintable whose repr raises>"):
        LeakGuard(**{name: Unprintable()})  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]  # the mistake


def test_an_empty_variable_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """As `docker run -e LEAKGUARD_MODE=` sets it."""
    monkeypatch.setenv(MODE_VARIABLE, "")
    assert default_mode(debug=True) is Mode.DEVELOPMENT


def test_settings_cannot_be_changed_afterwards() -> None:
    """They were validated once, as a whole."""
    settings = build_settings({"mode": "testing"})
    with pytest.raises(AttributeError):
        settings.frames = 0  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]  # the mistake
