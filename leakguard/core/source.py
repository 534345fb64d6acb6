"""Sources: what tells the guards of the process what happens in a library."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from leakguard.core.guard import Guard


class Source(Protocol):
    """Where a guard learns what happens."""

    def attach(self, guard: Guard) -> None:
        """Tell `guard` from now on."""
        ...

    def detach(self, guard: Guard) -> None:
        """Tell it no more, and leave the library as it was found."""
        ...

    def dismiss(self, guard: Guard) -> None:
        """Tell it no more, and leave the library alone: somebody may be in the middle of it."""
        ...
