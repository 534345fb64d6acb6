"""The block that exempts what is acquired inside it from findings."""

from __future__ import annotations

from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Final

from leakguard.exceptions import SettingsError

if TYPE_CHECKING:
    from collections.abc import Generator

allowed_reason: Final[ContextVar[str | None]] = ContextVar("leakguard_allowed", default=None)
"""The reason of the innermost block; `None` outside of any."""


@contextmanager
def allow(reason: str) -> Generator[None, None, None]:
    """Exempt the holds that are acquired inside the block from findings.

    Raises `SettingsError` where no reason is given: the next reader needs it.
    """
    if not isinstance(reason, str) or not reason.strip():
        raise SettingsError("reason", reason, "must say in a few words why the use is deliberate")
    before = allowed_reason.get()
    token = allowed_reason.set(reason)
    try:
        yield
    finally:
        try:
            allowed_reason.reset(token)
        except ValueError:
            # Left in another context than entered: frameworks run the two halves of a
            # synchronous dependency in two threads.
            if allowed_reason.get() is reason:
                allowed_reason.set(before)
