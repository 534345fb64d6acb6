"""How values are written wherever people read them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from leakguard.core.scope import Scope

_STATEMENT_WIDTH: Final = 200


def seconds(value: float) -> str:
    """Write a duration so that it reads well: `12 ms`, `3.2 s`, `4 min 10 s`."""
    if value < 1:
        return f"{value * 1000:.0f} ms"
    if value < 120:  # noqa: PLR2004  (two minutes)
        return f"{value:.1f} s"
    minutes, rest = divmod(round(value), 60)
    return f"{minutes} min {rest} s"


def name_of(scope: Scope | None) -> str:
    """Write whose something is, by its scope."""
    return "no request context" if scope is None else scope.name


def shorten(statement: str) -> str:
    """Write SQL text on one line of bounded length."""
    line = " ".join(statement.split())
    return line if len(line) <= _STATEMENT_WIDTH else line[: _STATEMENT_WIDTH - 1] + "…"
