"""The table of open holds, for whoever looks at a process that runs."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Final

from leakguard.core.hold import Hold
from leakguard.core.words import name_of, seconds

if TYPE_CHECKING:
    from leakguard.core.callsite import CallSite


class OpenHolds(tuple[Hold, ...]):
    """A snapshot of the open holds, oldest first; `str()` of it is a table."""

    __slots__ = ()

    def __str__(self) -> str:
        if not self:
            return "no open holds"
        rows = [[title for title, _ in _COLUMNS]]
        rows += [[tell(hold) for _, tell in _COLUMNS] for hold in self]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return "\n".join(_line(row, widths) for row in rows)


def headed(holds: OpenHolds) -> str:
    """Write the table with a headline, as for a log."""
    noun = "hold" if len(holds) == 1 else "holds"
    return f"{len(holds)} open {noun} in process {os.getpid()}\n{holds}"


def _line(row: Iterable[str], widths: Iterable[int]) -> str:
    cells = (f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True))
    return "  ".join(cells).rstrip()


def _site(site: CallSite | None) -> str:
    return "" if site is None else str(site)


_COLUMNS: Final[tuple[tuple[str, Callable[[Hold], str]], ...]] = (
    ("what", lambda hold: hold.resource),
    ("pool", lambda hold: hold.pool),
    ("held", lambda hold: seconds(hold.held_for)),
    ("idle", lambda hold: seconds(hold.idle_for)),
    ("in", lambda hold: name_of(hold.scope)),
    ("session created", lambda hold: _site(hold.created_at)),
    ("checked out", lambda hold: _site(hold.acquired_at)),
)
