"""Requests: what is known of one, and what is noticed of it on its way to the server and back."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable, MutableMapping
from types import CodeType, FunctionType
from typing import TYPE_CHECKING, Any, Final

from leakguard.core.allow import allowed_block
from leakguard.core.clock import monotonic
from leakguard.core.faults import FAULTS
from leakguard.core.scope import Scope, current_scope
from leakguard.core.stacks import frames_of
from leakguard.sources.routes import (
    UNMATCHED,
    AsgiScope,
    RouteLookup,
    is_routed,
    is_routing,
    known_template,
    routed_scope,
)

if TYPE_CHECKING:
    from leakguard.core.allow import AllowedBlock
    from leakguard.core.guard import Guard
    from leakguard.core.stacks import Stack

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
AsgiApp = Callable[[AsgiScope, Receive, Send], Awaitable[None]]


class RequestScope(Scope):
    """The scope of an HTTP request or a WebSocket connection."""

    _lookup: RouteLookup | None = None
    _route = UNMATCHED
    block_before: AllowedBlock | None = None
    """The block of `allow` in which it began."""

    def __init__(self, guard: Guard, asgi: AsgiScope) -> None:
        self._asgi: AsgiScope | None = asgi
        method = asgi.get("method")
        self._method: str | None = method if method is None or method in _METHODS else _OTHER_METHOD
        kind = asgi["type"]
        super().__init__(guard, self._method or REQUEST_TYPES[kind], kind)
        self.headers_id = id(asgi.get("headers"))
        """Known of the request it is for: copies of an ASGI scope share their headers."""
        block = allowed_block.get()
        if block is not None:
            self.block_before = block
            self._disown_block()
        if self.event_log is not None:
            self.event_log.add("request received")

    def _disown_block(self) -> None:
        """Take no part in a block of `allow` in another request.

        A server starts the next of pipelined requests from within the one before, in a copy of its
        context. A mounted application with a middleware of its own is no other request.
        """
        other = current_scope.get()  # which may have ended, unlike the parent
        while other is not None and not isinstance(other, RequestScope):
            other = other.parent
        if other is None or other.headers_id == self.headers_id:
            return
        if other.block_before is not self.block_before:
            self.foreign_block = self.block_before

    @property
    def name(self) -> str:
        """The method, or `WEBSOCKET`, and the route."""
        return f"{self._name} {self.route}"

    @property
    def route(self) -> str:
        """The full template of the route that answers, `unmatched` where none does."""
        asgi, lookup = self._asgi, self._lookup
        if asgi is not None:
            return known_template(asgi) or RouteLookup(asgi).template()
        if lookup is not None:
            self._route = lookup.template()
            self._lookup = None  # last: another thread finds one or the other
        return self._route

    @property
    def route_known(self) -> bool:
        """Whether a router has said which one answers, or the request is over."""
        asgi = self._asgi
        return asgi is None or known_template(asgi) is not None

    @property
    def method(self) -> str | None:
        """The HTTP method; `None` for a WebSocket connection."""
        return self._method

    def serves(self, stack: Stack) -> bool:
        """Return whether it runs what the router chose, for which a middleware may only wait."""
        return any(is_routing(frame) for frame in frames_of(stack))

    def note_exception(self, error: BaseException) -> None:
        """Note the exception that leaves the application, and what the client gets for it."""
        super().note_exception(error)
        self._see_copy(error, sending=False)
        self._see_error_handler()
        if self.type == "http" and self.status is None and not self.cancelled:
            self.status = _SERVER_ERROR

    def _see_error_handler(self) -> None:
        """See whether the application handles every exception: outside of all its middleware."""
        try:
            handlers = getattr((self._asgi or {}).get("app"), "exception_handlers", ())
            self.handled_outside = _SERVER_ERROR in handlers or Exception in handlers
        except Exception as fault:  # noqa: BLE001  (applications of whatever framework)
            FAULTS.report("leakguard's look at the error handlers", fault, "None is expected.")

    def let_go(self, asgi: AsgiScope) -> None:
        """Keep what the name depends on, and not the request: contexts may outlive it."""
        try:
            asgi = self._asgi or asgi
            code = getattr(asgi.get("endpoint"), "__code__", None)
            if isinstance(code, CodeType):
                self.endpoint = code
            known = known_template(asgi)
            if known is None:
                self._lookup = RouteLookup(asgi)
            else:
                self._route = known
        except Exception as error:  # noqa: BLE001  (routes are objects of the user's)
            FAULTS.report(_LOOK, error, "Its name is not known.")
        self._asgi = None  # last: a thread in `route` finds it, or what was kept of it

    def _see_copy(self, error: BaseException | None, *, sending: bool) -> None:
        """Go by the scope that the router got where a middleware handed a copy on."""
        try:
            asgi = self._asgi
            if asgi is None or is_routed(asgi):
                return
            frame = sys._getframe() if sending else None  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]  # documented
            self._asgi = routed_scope(frame, error) or asgi
        except Exception as fault:  # noqa: BLE001  (frames and scopes of whatever framework)
            FAULTS.report(_LOOK, fault, "Its name may not be known.")

    def noting(self, receive: Receive, send: Send) -> tuple[Receive, Send]:
        """Notice the response on its way to the server, and a client that goes away before it."""

        async def noting_receive() -> Message:
            message = await receive()
            if message.get("type") == "http.disconnect" and self.responded_at is None:
                self.cancelled = True
                if self.event_log is not None:
                    self.event_log.add("client disconnected")
            return message

        async def noting_send(message: Message) -> None:
            kind = message.get("type")
            if kind in _LAST_MESSAGES:
                if not message.get("more_body", False):
                    self.responded_at = monotonic()
                    if self.event_log is not None:
                        self.event_log.add("last byte handed to the server")
            elif kind in _FIRST_MESSAGES:
                self._note_beginning(message)
            await send(message)

        return noting_receive, noting_send

    def _note_beginning(self, message: Message) -> None:
        """Note the status of the response, which is being sent."""
        accepted = message["type"] == "websocket.accept"
        if not accepted:
            self.status = message.get("status")
            if self.event_log is not None:
                self.event_log.add("response started")
        asgi = self._asgi
        # What most routes name is looked at here already, because that is a call less.
        if asgi is not None and type(asgi.get("endpoint")) is not FunctionType:
            self._see_copy(None if accepted else sys.exception(), sending=True)


_LOOK: Final = "leakguard's look at the route"
REQUEST_TYPES: Final = {"http": "HTTP", "websocket": "WEBSOCKET"}
"""The types of an ASGI scope that is a request or WebSocket connection, and their names."""
_METHODS: Final = frozenset(
    {"CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "QUERY", "TRACE"}
)
_OTHER_METHOD: Final = "_OTHER"
"""What a client made up, as OpenTelemetry calls it: names must not depend on what clients send."""
_SERVER_ERROR: Final = 500
"""What the server, or the error handler outside, answers when no response was begun."""
_LAST_MESSAGES: Final = frozenset({"http.response.body", "http.response.pathsend"})
_FIRST_MESSAGES: Final = frozenset(
    {"http.response.start", "websocket.http.response.start", "websocket.accept"}
)
