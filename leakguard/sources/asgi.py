"""The ASGI source: a request or WebSocket connection opens and closes a scope."""

from __future__ import annotations

from sys import modules
from typing import TYPE_CHECKING

from leakguard.core.callsite import mark_boundary
from leakguard.core.lifespan import enter_lifespan
from leakguard.sources.request import REQUEST_TYPES, AsgiApp, Message, Receive, RequestScope, Send
from leakguard.sources.routes import AsgiScope
from leakguard.sources.tracing import TRACING, note_span

if TYPE_CHECKING:
    from leakguard.core.guard import Guard


class ScopeMiddleware:
    """ASGI middleware that opens a scope for every request and WebSocket connection.

    Exceptions and cancellation pass unchanged. The lifespan and types it does not know are
    handed straight on, as is everything while the guard is not installed.
    """

    def __init__(self, app: AsgiApp, guard: Guard) -> None:
        self.app = app
        self._guard = guard

    async def __call__(self, scope: AsgiScope, receive: Receive, send: Send) -> None:
        """Run the application inside a scope; the verdict falls when it has returned or raised."""
        guard = self._guard
        if not guard.installed or scope["type"] not in REQUEST_TYPES:
            if guard.installed and scope["type"] == "lifespan":
                send = _noting_start(send)
            await self.app(scope, receive, send)
            return
        request = RequestScope(guard, scope)
        if TRACING in modules:
            note_span(request)
        guard.open_scope(request)
        receive, send = request.noting(receive, send)
        try:
            await self.app(scope, receive, send)
        except BaseException as error:
            request.note_exception(error)
            raise
        finally:
            request.let_go(scope)
            guard.close_scope(request)


def _noting_start(send: Send) -> Send:
    """Begin a lifespan, and notice that the application has started."""
    lifespan = enter_lifespan()

    async def noting_send(message: Message) -> None:
        if message.get("type") == "lifespan.startup.complete":
            lifespan.started = True
        await send(message)

    return noting_send


# Of this file alone: what the application awaits goes through the wrappers of `sources.request`.
mark_boundary(__file__)
