"""The block of `guard.scope(...)`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from leakguard.core.callsite import Place, is_generator, place_of
from leakguard.core.scope import Scope
from leakguard.exceptions import LeakGuardError

if TYPE_CHECKING:
    from types import FrameType, TracebackType

    from leakguard.core.guard import Guard


class ScopeBlock:
    """The block of `guard.scope(...)`; it can be entered once, else raises `LeakGuardError`."""

    def __init__(self, guard: Guard, name: str, type: str) -> None:  # noqa: A002  (the field's name for it)
        self._guard = guard
        self._name = name
        self._type = type
        self._scope: Scope | None = None

    def __enter__(self) -> Scope:
        return self._open(sys._getframe(1))  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]  # documented

    def _open(self, frame: FrameType) -> Scope:
        """Open the scope for the block of `frame`."""
        if self._scope is not None:
            raise LeakGuardError(
                f"the block of scope {self._name!r} was entered before, and stands for one scope "
                "only: call guard.scope() for each"
            )
        guard = self._guard
        scope = self._scope = Scope(guard, self._name, self._type)
        scope.opener = id(frame), frame.f_code
        if _is_iterated(frame):
            scope.iterated = True
        guard.open_scope(scope)
        return scope

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        scope = self._scope
        # Nothing to do where it was never entered, or was left before.
        if scope is not None and scope.closed_at is None:
            if error is not None:
                scope.note_exception(error)
            self._guard.close_scope(scope)

    async def __aenter__(self) -> Scope:
        return self._open(sys._getframe(1))  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]  # documented

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.__exit__(kind, error, traceback)


def _is_iterated(frame: FrameType) -> bool:
    """Return whether it is of a generator that the user's code iterates.

    That of a context manager, a fixture or a dependency is resumed by a library, and what is done
    between its two steps is done in its scope.
    """
    if not is_generator(frame.f_code):
        return False
    return frame.f_back is not None and place_of(frame.f_back) is Place.USER
