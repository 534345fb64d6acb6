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
    from collections.abc import Callable

    from leakguard.core.guard import Guard
    from leakguard.sources.request import Receive, Send
    from leakguard.sources.routes import AsgiScope

_MODULE: Final = "starlette.applications"
_SEEN: Final = "leakguard.scope"
"""In an ASGI scope: whether an application around this one has opened the scope of the request."""


class StarletteSource:
    """Opens a scope of a guard's around every request of every application."""

    def __init__(self) -> None:
        self._guards: tuple[Guard, ...] = ()
        """The last one opens the scopes: a run of tests may run tests of its own."""
        self._patches: dict[type, Patch] = {}
        """By the class, of which there is another one when Starlette is imported anew."""
        self._give_up: Callable[[], None] = _nothing

    def attach(self, guard: Guard) -> None:
        """Open the scopes of `guard` from now on, or from when Starlette is imported."""
        self._guards = (*self._guards, guard)
        self._give_up()
        self._give_up = when_imported(_MODULE, self._place)

    def detach(self, guard: Guard) -> None:
        """Open none of its own any more; with the last guard, leave Starlette as it was found."""
        self._guards = tuple(one for one in self._guards if one is not guard)
        if not self._guards:
            self._give_up()
            for patch in self._patches.values():
                patch.remove()
            self._patches.clear()

    def dismiss(self, guard: Guard) -> None:
        """Open none of its own any more."""
        self.detach(guard)

    def _place(self) -> None:
        application: Any = sys.modules[_MODULE].Starlette
        patch = Patch(application, "__call__", self._wrap)
        self._patches.setdefault(application, patch).place()

    def _wrap(self, original: AnyFunction, placement: Placement) -> AnyFunction:
        source = self

        async def call(
            self: object,
            scope: AsgiScope,
            receive: Receive,
            send: Send,
        ) -> None:
            guards = source._guards if placement.active or placement.resume() else ()
            if not guards or _SEEN in scope:
                await original(self, scope, receive, send)
                return
            scope[_SEEN] = True
            await ScopeMiddleware(partial(original, self), guards[-1])(scope, receive, send)

        return call


def _nothing() -> None:
    pass


STARLETTE: Final = StarletteSource()
"""The one source of the process."""
