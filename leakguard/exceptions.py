"""Errors and warnings that leakguard raises or shows."""

from __future__ import annotations

import pickle
import re
from functools import partial
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from leakguard.core.finding import Finding


class LeakGuardError(Exception):
    """The base of every error that leakguard raises."""


class SettingsError(LeakGuardError, ValueError):
    """A setting has a value that is not allowed.

    The message names the setting, the value and what is allowed. Of a connection string it
    shows no more than the scheme: what follows may be a password. A value that
    cannot be pickled is replaced by its text when the error is.
    """

    def __init__(self, setting: str, value: object, allowed: str) -> None:
        super().__init__(f"{setting}={_show(value)} is not allowed: {allowed}")
        self.setting = setting
        self.value = value
        self.allowed = allowed

    def __reduce__(self) -> tuple[Callable[[], SettingsError], tuple[()], dict[str, object]]:
        # By default an exception is made anew from its message alone, which would fail: the
        # error of a worker process would not reach its parent.
        state = self.__dict__ | {"value": _sendable(self.value)}
        return partial(type(self).__new__, type(self), *self.args), (), state


class ConnectionLeakError(LeakGuardError):
    """Something leaked: raised where a test asks, by the `leakguard` fixture.

    It carries the `findings`. Pickled, as multiprocessing does, they have neither `hold` nor
    `scope`, and tell the same all the same.
    """

    def __init__(self, findings: Iterable[Finding]) -> None:
        self.findings = tuple(findings)
        super().__init__("\n\n".join(str(finding) for finding in self.findings))

    def __reduce__(self) -> tuple[type[ConnectionLeakError], tuple[tuple[Finding, ...]]]:
        return type(self), (self.findings,)


class ConnectionLeakWarning(RuntimeWarning):
    """A request did not give a connection back.

    Its location is the user's line: where the session was constructed, else where the
    connection was checked out. Python's default filters show it.
    """


def _sendable(value: object) -> object:
    try:
        pickle.dumps(value)
    except Exception:  # noqa: BLE001  (whatever a user's class raises)
        return _show(value)
    return value


_BEFORE_SECRETS: Final = re.compile(r"(://|password|passwd|pwd).*", re.DOTALL | re.IGNORECASE)


def _show(value: object) -> str:
    try:
        return _BEFORE_SECRETS.sub(r"\1...", repr(value))
    except Exception:  # noqa: BLE001  (whatever a user's code raises; the message must come out)
        return f"<a {type(value).__name__} whose repr raises>"
