"""Entry points: the public guard and middleware, wired from sources, core and observers."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Final, Self, Unpack

from leakguard.core.faults import LOGGER
from leakguard.core.guard import Guard
from leakguard.core.settings import Mode, Options, build_settings, default_mode
from leakguard.core.watch import WATCH
from leakguard.exceptions import SettingsError
from leakguard.observers.history import History
from leakguard.observers.log import Log
from leakguard.observers.prometheus import Prometheus
from leakguard.observers.warnings import Warnings
from leakguard.sources.asgi import ScopeMiddleware
from leakguard.sources.request import AsgiApp
from leakguard.sources.routes import layers
from leakguard.sources.sqlalchemy import SQLALCHEMY, check_engines

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from leakguard.core.block import ScopeBlock
    from leakguard.core.observer import Observer
    from leakguard.core.settings import Settings
    from leakguard.core.table import OpenHolds


class LeakGuard:
    """Watches every SQLAlchemy engine and session of the process, once it is installed.

    Options, all optional, by keyword:

    - `mode`: `"off"`, `"production"`, `"development"` or `"testing"`, a preset of the others.
      Default: `LEAKGUARD_MODE` where it is set, else `"development"` under `python -X dev`, else
      `"production"`. (`LeakGuardMiddleware` also looks at the application's `debug`.)
    - `engines`: watch only these `Engine` and `AsyncEngine` objects; default: every one.
    - `observers`: told instead of the default ones.
    - `held_after`: seconds that a connection may be out and idle; `None`: never reported.
    - `late_after`: seconds after the last byte of the response from which a return is late.
    - `ignore`: functions that take a finding and say whether to drop it.
    - `frames`: the most user frames that are kept for a call site.
    - `statements`: whether the SQL text of the last statement is kept.
    - `events`: whether every scope keeps the list of its lifecycle events.

    Raises `SettingsError`, which names the option, its value and what is allowed.
    """

    def __init__(self, **options: Unpack[Options]) -> None:
        settings = build_settings(options)
        check_engines(settings.engines)
        observers = settings.observers
        if observers is None:
            observers = _DEFAULT_OBSERVERS[settings.mode]()
        self._guard = Guard(settings, observers, (SQLALCHEMY,))

    @property
    def settings(self) -> Settings:
        """What it goes by: the options, and the presets of the mode for those that were not given.

        Its `observers` are those of the option; `observers` of the guard are those who are told.
        """
        return self._guard.settings

    @property
    def observers(self) -> tuple[Observer, ...]:
        """Those who are told; without one that raised, which is told no more."""
        return tuple(self._guard.observers)

    @property
    def history(self) -> History | None:
        """The first history among the observers; in development and testing there is one."""
        return self._guard.observers.find(History)

    @property
    def installed(self) -> bool:
        """Whether it watches."""
        return self._guard.installed

    def install(self) -> Self:
        """Begin to watch. Does nothing where it is installed, or where the mode is "off"."""
        self._guard.install()
        return self

    def uninstall(self) -> None:
        """Stop watching and forget every open hold. Does nothing where it is not installed.

        Verdicts that wait for somebody to give a connection back do not fall any more.
        """
        self._guard.uninstall()

    def __enter__(self) -> Self:
        self._guard.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._guard.__exit__()

    def scope(self, name: str, type: str = "job") -> ScopeBlock:  # noqa: A002  (the field's name for it)
        """Open a scope by hand, with `with` or `async with`; the block's value is the scope.

        Raises `SettingsError` where the name or the type is not a string or is empty.
        """
        return self._guard.scope(name, type)

    def open_holds(self) -> OpenHolds:
        """Return a snapshot of every open hold, sessions and connections, oldest first.

        It is a tuple, and `str()` of it, as in `print(guard.open_holds())`, is a table.
        """
        return self._guard.open_holds()

    def log_on_signal(self, signalnum: int) -> None:
        """Write the table of open holds to the log, at WARNING, whenever a signal comes.

        `signalnum` is that of the signal, such as `signal.SIGUSR2`. A handler that is there already
        is called, too. It stays for the life of the process, does nothing while the guard is not
        installed, and asking again changes nothing. Has to be called in the main thread, which
        handles signals.

        Raises `SettingsError` for what is no signal, or cannot be handled.
        """
        self._guard.log_on_signal(signalnum)


class LeakGuardMiddleware(ScopeMiddleware):
    """The one line: `app.add_middleware(LeakGuardMiddleware)`. Add it last: it is outermost then.

    Takes a `guard`, or the options of `LeakGuard` to make one of its own, and installs it.
    """

    def __init__(
        self, app: AsgiApp, guard: LeakGuard | None = None, **options: Unpack[Options]
    ) -> None:
        owned = guard is None
        if guard is None:
            if options.get("mode") is None:
                options["mode"] = default_mode(debug=_debug(app))
            guard = LeakGuard(**options)
        elif not isinstance(guard, LeakGuard):
            raise SettingsError("guard", guard, "must be a LeakGuard, or None for one of its own")
        elif options:
            name, value = next(iter(options.items()))
            where = f"set it on the guard that was given: LeakGuard({name}=...)"
            raise SettingsError(name, value, where)
        self.guard = guard.install()
        core = guard._guard  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]  # of this module
        super().__init__(app, core)
        if owned:
            # Applications come and go in tests: the guard goes with its middleware. Not so where an
            # option refers to the application: an installed guard keeps its options alive, and
            # they the application.
            weakref.finalize(self, WATCH.post, core.abandon).atexit = False


def _metrics() -> Iterator[Observer]:
    """Count in the default registry, unless somebody has other metrics of the same names there.

    Nobody asked for it by name: an application must not fail for it.
    """
    try:
        yield Prometheus()
    except SettingsError as error:
        LOGGER.error("there are no metrics: %s", error)


_DEFAULT_OBSERVERS: Final[dict[Mode, Callable[[], tuple[Observer, ...]]]] = {
    Mode.OFF: lambda: (),
    Mode.PRODUCTION: lambda: (Log(notices=False), *_metrics()),
    Mode.DEVELOPMENT: lambda: (Log(notices=True), Warnings(), *_metrics(), History()),
    Mode.TESTING: lambda: (History(),),
}
"""Makes the observers of a mode, anew for each guard."""


def _debug(app: AsgiApp) -> bool:
    """Find the application's `debug` flag behind the middleware between it and here."""
    flags = (layer.debug for layer in layers(app) if hasattr(layer, "debug"))
    return next(flags, False) is True
