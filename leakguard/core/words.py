"""How values are written wherever people read them."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from leakguard.core.scope import Scope

_STATEMENT_WIDTH: Final = 200


def seconds(value: float) -> str:
    """Write a duration so that it reads well: `12 ms`, `3.2 s`, `4 min 10 s`, `3 h 5 min`."""
    # Rounded first: what is written decides the unit.
    if round(value, 3) < 1:
        return f"{value * 1000:.0f} ms"
    if round(value, 1) < _TWO_MINUTES:
        return f"{value:.1f} s"
    if round(value) < _TWO_HOURS:
        minutes, rest = divmod(round(value), 60)
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(round(value / 60), 60)
    return f"{hours} h {minutes} min"


_TWO_MINUTES: Final = 120
_TWO_HOURS: Final = 2 * 3600


def moment(at: datetime) -> str:
    """Write when something was: `10:02:11`, with the date where that was not today."""
    today = datetime.now(at.tzinfo).date()
    return f"{at:%H:%M:%S}" if at.date() == today else f"{at:%Y-%m-%d %H:%M:%S}"


def name_of(scope: Scope | None) -> str:
    """Write whose something is, by its scope."""
    return "no request context" if scope is None else scope.name


def shorten(statement: str) -> str:
    """Write SQL text on one line of bounded length."""
    line = " ".join(statement.split())
    return line if len(line) <= _STATEMENT_WIDTH else line[: _STATEMENT_WIDTH - 1] + "…"
