"""The Starlette source: every application is watched, also one that has no middleware of ours.

For tests, which look at applications as they are. It needs no import of Starlette's.
"""

from __future__ import annotations

import sys
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from leakguard.sources.asgi import ScopeMiddleware
from leakguard.sources.imports import when_imported
from leakguard.sources.patch import AnyFunction, Patch, Placement

if TYPE_CHECKING:
    from leakguard.core.guard import Guard
    from leakguard.sources.request import Receive, Send
    from leakguard.sources.routes import AsgiScope

_MODULE: Final = "starlette.applications"
_SEEN: Final = "leakguard.scope"
"""In an ASGI scope: whether an application around this one has opened the scope of the request."""


class StarletteSource:
    """Opens a scope of a guard's around every request of every application."""

    def __init__(self) -> None:
        self._guard: Guard | None = None
        self._patch: Patch | None = None
        self._awaited = False

    def attach(self, guard: Guard) -> None:
        """Open the scopes of `guard` from now on, or from when Starlette is imported."""
        self._guard = guard
        if not self._awaited:
            self._awaited = True
            when_imported(_MODULE, self._place)
        elif self._patch is not None:
            self._patch.place()

    def detach(self, guard: Guard) -> None:  # noqa: ARG002  (there is one at a time)
        """Open none any more, and leave Starlette as it was found."""
        self._guard = None
        if self._patch is not None:
            self._patch.remove()

    def dismiss(self, guard: Guard) -> None:
        """Open none any more."""
        self.detach(guard)

    def _place(self) -> None:
        applications: Any = sys.modules[_MODULE]
        self._patch = Patch(applications.Starlette, "__call__", self._wrap)
        if self._guard is not None:
            self._patch.place()

    def _wrap(self, original: AnyFunction, placement: Placement) -> AnyFunction:
        source = self

        async def call(
            self: object,
            scope: AsgiScope,
            receive: Receive,
            send: Send,
        ) -> None:
            guard = source._guard if placement.active or placement.resume() else None
            if guard is None or _SEEN in scope:
                await original(self, scope, receive, send)
                return
            scope[_SEEN] = True
            await ScopeMiddleware(partial(original, self), guard)(scope, receive, send)

        return call


STARLETTE: Final = StarletteSource()
"""The one source of the process."""
