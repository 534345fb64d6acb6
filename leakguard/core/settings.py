"""Settings: built and validated once, frozen, passed whole."""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from enum import StrEnum
from typing import TYPE_CHECKING, Final, TypedDict, cast

from leakguard.core.observer import METHODS, Observer
from leakguard.exceptions import SettingsError

if TYPE_CHECKING:
    from leakguard.core.finding import Finding

MODE_VARIABLE: Final = "LEAKGUARD_MODE"
"""The environment variable that sets the mode where no argument does."""


class Mode(StrEnum):
    """A preset of settings, named after where the application runs."""

    OFF = "off"
    PRODUCTION = "production"
    DEVELOPMENT = "development"
    TESTING = "testing"


_MODES: Final[Mapping[str, Mode]] = {mode.value: mode for mode in Mode}


class Options(TypedDict, total=False):
    """What `LeakGuard` and `LeakGuardMiddleware` accept; each is described in `Settings`."""

    mode: str | None
    engines: Iterable[object] | None
    observers: Iterable[Observer] | None
    held_after: float | None
    late_after: float
    ignore: Iterable[Callable[[Finding], bool]]
    frames: int
    statements: bool
    events: bool


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything that can be set, with the preset of its mode filled in."""

    mode: Mode
    """Which preset filled in what was not set explicitly."""
    engines: tuple[object, ...] | None
    """Watch only these engines (`Engine` or `AsyncEngine`); `None`: every engine of the process."""
    observers: tuple[Observer, ...] | None
    """Who is told, in this order; `None`: the default observers of the mode."""
    held_after: float | None
    """Seconds that a connection may be out and idle before that is reported; `None`: never."""
    late_after: float
    """Seconds after the last byte of the response from which a return is `returned_late`;
    also how long a verdict waits for other work of its scope."""
    ignore: tuple[Callable[[Finding], bool], ...]
    """Predicates on findings: a finding for which one of them is true is dropped."""
    frames: int
    """The most user frames kept for a call site."""
    statements: bool
    """Whether the SQL text of the last statement is kept (never its parameters)."""
    events: bool
    """Whether every scope keeps the list of its lifecycle events."""

    @property
    def follow_statements(self) -> bool:
        """Whether anybody needs to know of statements."""
        return self.statements or self.held_after is not None


_PRESETS: Final[Mapping[Mode, Settings]] = {
    mode: Settings(
        mode=mode,
        engines=None,
        observers=None,
        held_after=held_after,
        late_after=1.0,
        ignore=(),
        frames=frames,
        statements=detailed,
        events=detailed,
    )
    for mode, held_after, frames, detailed in (
        (Mode.OFF, None, 1, False),
        (Mode.PRODUCTION, 30.0, 1, False),
        (Mode.DEVELOPMENT, 5.0, 12, True),
        (Mode.TESTING, None, 12, True),
    )
}


def build_settings(options: Mapping[str, object]) -> Settings:
    """Fill `options` up with the preset of their mode.

    Raises `SettingsError` for an unknown option or a bad value.
    """
    for name in options:
        if name not in _VALIDATORS:
            known = ", ".join(_VALIDATORS)
            raise SettingsError(name, options[name], f"there is no such setting; known are {known}")
    named = options.get("mode")
    mode = default_mode() if named is None else _known_mode("mode", named)
    preset = _PRESETS[mode]
    values = {field.name: getattr(preset, field.name) for field in fields(Settings)}
    for name, value in options.items():
        if name != "mode":
            values[name] = _VALIDATORS[name](name, value)
    return Settings(**values)


def default_mode(*, debug: bool = False) -> Mode:
    """Return the mode for where no option names one: the environment's, else development's signs.

    `debug` is the application's own flag. Raises `SettingsError` for an unknown mode in the
    environment.
    """
    if environment := os.environ.get(MODE_VARIABLE):
        return _known_mode(MODE_VARIABLE, environment)
    return Mode.DEVELOPMENT if debug or sys.flags.dev_mode else Mode.PRODUCTION


def _known_mode(setting: str, value: object) -> Mode:
    mode = _MODES.get(value) if isinstance(value, str) else None
    if mode is None:
        allowed = "must be one of " + ", ".join(map(repr, _MODES))
        raise SettingsError(setting, value, allowed)
    return mode


def check_seconds(name: str, value: object) -> float:
    """Return a number of seconds as a float; raise `SettingsError` where it is none."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise SettingsError(name, value, "must be a number of seconds")
    if not 0 <= value <= sys.float_info.max:  # neither NaN nor infinite nor a giant integer
        raise SettingsError(name, value, "must be a finite number of seconds, 0 or more")
    return float(value)


def _seconds_or_none(name: str, value: object) -> float | None:
    return None if value is None else check_seconds(name, value)


def check_count(name: str, value: object) -> int:
    """Return a whole number from 1 on; raise `SettingsError` where it is none."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise SettingsError(name, value, "must be a whole number, 1 or more")
    return value


def check_flag(name: str, value: object) -> bool:
    """Return True or False; raise `SettingsError` for anything else."""
    if not isinstance(value, bool):
        raise SettingsError(name, value, "must be True or False")
    return value


def _items(name: str, value: object, allowed: str) -> tuple[object, ...]:
    if isinstance(value, str | bytes | Mapping) or not isinstance(value, Iterable):
        raise SettingsError(name, value, allowed)  # pyright: ignore[reportUnknownArgumentType]  # a mapping of anything
    return tuple(cast("Iterable[object]", value))


def _engines(name: str, value: object) -> tuple[object, ...] | None:
    # Which objects are engines is for the source to say: the core knows no SQLAlchemy.
    if value is None:
        return None
    allowed = "must be a list of at least one engine, or None for all"
    engines = _items(name, value, allowed)
    if not engines:  # would watch nothing
        raise SettingsError(name, value, allowed)
    return engines


def _observers(name: str, value: object) -> tuple[Observer, ...] | None:
    if value is None:
        return None
    allowed = "must be a list of Observer instances, or None for the default ones"
    observers = _items(name, value, allowed)
    for number, observer in enumerate(observers):
        if not isinstance(observer, Observer):
            raise SettingsError(f"{name}[{number}]", observer, "must be an Observer instance")
        for method in METHODS:
            if _gives_no_answer(getattr(observer, method)):
                allowed = f"its {method} must be def, neither async def nor a generator"
                raise SettingsError(f"{name}[{number}]", observer, allowed)
    return cast("tuple[Observer, ...]", observers)


def _predicates(name: str, value: object) -> tuple[Callable[[Finding], bool], ...]:
    allowed = "must be a list of functions that take a finding and say whether to drop it"
    predicates = _items(name, value, allowed)
    for number, predicate in enumerate(predicates):
        if not callable(predicate):
            allowed = "must be a function that takes a finding and says whether to drop it"
            raise SettingsError(f"{name}[{number}]", predicate, allowed)
        if _gives_no_answer(predicate):  # what it gives counts as true, and drops everything
            allowed = "must be def, neither async def nor a generator"
            raise SettingsError(f"{name}[{number}]", predicate, allowed)
    return cast("tuple[Callable[[Finding], bool], ...]", predicates)


def _gives_no_answer(function: Callable[..., object]) -> bool:
    """Return whether calling it does nothing yet: somebody would have to await or iterate it."""
    own_call = type(function).__call__  # of an object that can be called
    return any(
        kind(one)
        for one in (function, own_call)
        for kind in (
            inspect.iscoroutinefunction,
            inspect.isasyncgenfunction,
            inspect.isgeneratorfunction,
        )
    )


_VALIDATORS: Final[Mapping[str, Callable[[str, object], object]]] = {
    "mode": _known_mode,
    "engines": _engines,
    "observers": _observers,
    "held_after": _seconds_or_none,
    "late_after": check_seconds,
    "ignore": _predicates,
    "frames": check_count,
    "statements": check_flag,
    "events": check_flag,
}
