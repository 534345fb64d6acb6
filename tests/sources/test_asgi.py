"""A request or WebSocket connection opens and closes a scope, and the application never notices."""

from __future__ import annotations

import asyncio
import gc
import inspect
import threading
import weakref
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
from sqlalchemy import Engine, text
from sqlalchemy.orm import Session
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from leakguard import FindingKind, LeakGuard, LeakGuardMiddleware, Scope, allow
from leakguard.core.guard import Guard
from leakguard.core.scope import current_scope
from leakguard.core.watch import WATCH
from leakguard.sources.asgi import ScopeMiddleware
from leakguard.sources.sqlalchemy import SQLALCHEMY
from tests.support import PATIENCE, Recorder, core_of

QUERY = text("SELECT 1")
Message = dict[str, Any]
App = Callable[[Any, Any, Any], Awaitable[None]]


class Client:
    """Calls an application the way a server does, and keeps what it sends."""

    def __init__(self, app: App, **asgi: Any) -> None:
        self.app = app
        method: dict[str, str] = {} if asgi.get("type") == "websocket" else {"method": "GET"}
        self.asgi: dict[str, Any] = {
            "type": "http",
            **method,
            "path": "/",
            "headers": [],
            "query_string": b"",
            **asgi,
        }
        self.sent: list[Message] = []
        self.incoming: list[Message] = [{"type": "http.request", "body": b""}]

    async def receive(self) -> Message:
        """Return the next message of the client."""
        return self.incoming.pop(0) if self.incoming else {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        """Take a message of the application."""
        self.sent.append(message)

    def run(self) -> None:
        """Make the call."""
        asyncio.run(self.call())

    async def call(self) -> None:
        """Make the call in the running loop."""
        await self.app(self.asgi, self.receive, self.send)


def middleware(app: App, guard: LeakGuard) -> App:
    return LeakGuardMiddleware(app, guard=guard)


async def respond(send: Any, *bodies: Message, status: int = 200) -> None:
    await send({"type": "http.response.start", "status": status, "headers": []})
    for body in bodies or ({"body": b""},):
        await send({"type": "http.response.body", **body})


async def answer(scope: Any, receive: Any, send: Any) -> None:
    await respond(send)


def only_scope(recorder: Recorder) -> Scope:
    (scope,) = recorder.scopes_closed
    return scope


def test_other_types_are_handed_straight_on(guard: LeakGuard, recorder: Recorder) -> None:
    """Types that nobody knows yet get the server's own receive and send."""
    seen: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.extend([scope, receive, send])

    client = Client(middleware(app, guard), type="something new")
    client.run()
    assert seen == [client.asgi, client.receive, client.send]
    assert recorder.scopes_opened == []


def test_a_lifespan_is_no_scope(guard: LeakGuard, recorder: Recorder) -> None:
    """What the application says of its start is handed on."""
    said = [{"type": f"lifespan.{what}.complete"} for what in ("startup", "shutdown")]

    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert (scope, receive) == (client.asgi, client.receive)
        for message in said:
            await send(message)

    client = Client(middleware(app, guard), type="lifespan")
    client.run()
    assert client.sent == said
    assert recorder.scopes_opened == []


@pytest.mark.parametrize("mode", ["off", "uninstalled"])
def test_without_a_guard_everything_is_handed_straight_on(mode: str) -> None:
    """In mode "off", and after an uninstallation, the middleware is not there."""
    seen: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.extend([scope, receive, send])

    guard = LeakGuard(mode="off" if mode == "off" else "testing")
    client = Client(middleware(app, guard))
    guard.uninstall()
    client.run()
    assert seen == [client.asgi, client.receive, client.send]


def test_a_request_is_a_scope(guard: LeakGuard, recorder: Recorder) -> None:
    """It has a method, a status and a duration, and is current while the application runs."""
    current: list[Scope | None] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        current.append(current_scope.get())
        await receive()
        await respond(send, {"body": b"1", "more_body": True}, {"body": b"2"}, status=201)

    client = Client(middleware(app, guard), method="POST")
    client.run()
    scope = only_scope(recorder)
    assert current == [scope]
    assert (scope.type, scope.method, scope.status) == ("http", "POST", 201)
    assert (scope.exception, scope.cancelled) == (None, False)
    assert scope.name == "POST unmatched"
    assert scope.duration >= 0
    assert [event.what for event in scope.events] == [
        "request received",
        "response started",
        "last byte handed to the server",
        "scope closed",
    ]
    assert [message["type"] for message in client.sent] == [
        "http.response.start",
        "http.response.body",
        "http.response.body",
    ]


def test_only_the_last_part_of_a_response_ends_it(guard: LeakGuard) -> None:
    """A return during a long stream is in time."""
    ended: list[bool] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        async def send_and_look(message: Any) -> None:
            await send(message)
            request = current_scope.get()
            assert request is not None
            ended.append(request.responded_at is not None)

        part = {"body": b"1", "more_body": True}
        await respond(send_and_look, part, part, {"body": b"2"})

    Client(middleware(app, guard)).run()
    assert ended == [False, False, False, True]


def test_a_file_that_the_server_sends_is_a_last_byte(guard: LeakGuard, recorder: Recorder) -> None:
    """The extension that hands a path to the server ends the response, too."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.pathsend", "path": "/srv/file"})

    Client(middleware(app, guard)).run()
    assert only_scope(recorder).responded_at is not None


def test_an_exception_passes_unchanged(guard: LeakGuard, recorder: Recorder) -> None:
    """The very exception comes out; the client will get a 500 for it."""
    error = KeyError("missing")

    async def app(scope: Any, receive: Any, send: Any) -> None:
        raise error

    with pytest.raises(KeyError) as raised:
        Client(middleware(app, guard)).run()
    assert raised.value is error
    scope = only_scope(recorder)
    assert (scope.status, scope.exception, scope.cancelled) == (500, "KeyError", False)


def test_an_exception_after_the_response_began_keeps_its_status(
    guard: LeakGuard, recorder: Recorder
) -> None:
    """What was sent was sent."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await respond(send)
        raise KeyError("too late")

    with pytest.raises(KeyError):
        Client(middleware(app, guard)).run()
    assert only_scope(recorder).status == 200


def test_a_cancellation_passes_unchanged(guard: LeakGuard, recorder: Recorder) -> None:
    """A cancelled request is cancelled, and has no status."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        raise asyncio.CancelledError("by the server")

    async def main() -> None:
        with pytest.raises(asyncio.CancelledError, match="by the server"):
            await Client(middleware(app, guard)).call()

    asyncio.run(main())
    scope = only_scope(recorder)
    assert (scope.status, scope.cancelled) == (None, True)


def test_a_client_that_goes_away_early_cancels(guard: LeakGuard, recorder: Recorder) -> None:
    """Gone before the last byte is a cancellation, gone after it is the usual end."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        if scope["path"] == "/late":
            await respond(send)
        await receive()

    Client(middleware(app, guard), path="/early").run()
    Client(middleware(app, guard), path="/late").run()
    assert [scope.cancelled for scope in recorder.scopes_closed] == [True, False]


def test_a_websocket_is_a_scope(guard: LeakGuard, recorder: Recorder) -> None:
    """It has no method, and a status only where it was refused."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "websocket.http.response.start", "status": 403, "headers": []})

    Client(middleware(app, guard), type="websocket", path="/ws").run()
    scope = only_scope(recorder)
    assert (scope.type, scope.method, scope.status) == ("websocket", None, 403)
    assert scope.name == "WEBSOCKET unmatched"


def test_a_websocket_that_fails_has_no_status(guard: LeakGuard, recorder: Recorder) -> None:
    """There is no response that a server could send."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        raise KeyError("gone")

    client = Client(middleware(app, guard), type="websocket")
    with pytest.raises(KeyError):
        client.run()
    assert only_scope(recorder).status is None


@pytest.mark.parametrize("shared", [True, False])
def test_nested_middleware_finds_each_leak_once(engine: Engine, shared: bool) -> None:
    """Sharing a guard or not: the innermost scope has the leak, the outer one has none."""
    recorder = Recorder()
    kept: list[Session] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        session = Session(engine)
        await asyncio.to_thread(session.execute, QUERY)
        kept.append(session)
        await respond(send)

    outer = LeakGuard(mode="testing", observers=[recorder])
    inner = outer if shared else LeakGuard(mode="testing", observers=[recorder])
    with outer, inner:
        Client(middleware(middleware(app, inner), outer)).run()
    leaks = [finding for finding in recorder.findings if finding.kind is FindingKind.LEAKED]
    assert len(leaks) == 1
    assert leaks[0].scope is recorder.scopes_opened[1]
    assert len(recorder.scopes_closed) == 2
    kept[0].invalidate()


def test_a_connection_that_comes_back_late_is_noticed(recorder: Recorder, engine: Engine) -> None:
    """Later than `late_after` seconds after the last byte, and taken before it."""
    guard = LeakGuard(mode="testing", observers=[recorder], late_after=0.0)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        def close() -> None:
            session.close()
            with engine.connect():  # taken and given back after the response: fine
                pass

        session = Session(engine)
        await asyncio.to_thread(session.execute, QUERY)
        await respond(send)
        await asyncio.to_thread(close)

    Client(middleware(app, guard)).run()
    guard.uninstall()
    (finding,) = recorder.findings
    assert finding.kind is FindingKind.RETURNED_LATE
    assert finding.evidence.late_by is not None
    assert finding.evidence.late_by > 0


def test_in_time_is_not_late(recorder: Recorder, engine: Engine) -> None:
    """A background task that is quick enough is nothing to mention."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        session = Session(engine)
        await asyncio.to_thread(session.execute, QUERY)
        await respond(send)
        await asyncio.to_thread(session.close)

    patient = LeakGuard(mode="testing", observers=[recorder], late_after=PATIENCE)
    Client(middleware(app, patient)).run()
    patient.uninstall()
    assert recorder.findings == []


def test_a_guard_that_goes_in_the_middle_of_a_request_is_gone(
    recorder: Recorder, engine: Engine
) -> None:
    """What an uninstalled guard had in hand is not judged any more."""
    guard = LeakGuard(mode="testing", observers=[recorder])
    kept: list[Session] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        session = Session(engine)
        await asyncio.to_thread(session.execute, QUERY)
        kept.append(session)
        guard.uninstall()

    Client(middleware(app, guard)).run()
    assert recorder.findings == []
    kept[0].invalidate()


def test_the_guard_of_an_application_that_is_gone_is_uninstalled(
    guard: LeakGuard, engine: Engine
) -> None:
    """A test suite that makes a thousand applications does not pile up their guards."""
    app = LeakGuardMiddleware(answer, mode="testing")
    own = app.guard
    assert own.installed
    with guard.scope("job"), engine.connect():  # so that the watch runs
        pass
    del app
    gc.collect()
    done = threading.Event()
    WATCH.post(done.set)
    assert done.wait(PATIENCE)
    assert not own.installed


def test_the_core_middleware_takes_any_guard(guard: LeakGuard, recorder: Recorder) -> None:
    """`ScopeMiddleware` is the middleware without the wiring."""
    Client(ScopeMiddleware(answer, core_of(guard))).run()
    assert len(recorder.scopes_closed) == 1


def test_the_request_is_not_kept(guard: LeakGuard, recorder: Recorder) -> None:
    """A scope that outlives its request keeps neither its headers nor its application."""

    def endpoint(request: Request) -> Response:
        return PlainTextResponse(request.url.path)

    app = Starlette(routes=[Route("/items/{item_id}", endpoint)])
    gone = weakref.ref(app)
    secret = b"a secret header"
    Client(middleware(app, guard), path="/items/7", headers=[(b"authorization", secret)]).run()
    scope = only_scope(recorder)
    assert scope.endpoint is endpoint.__code__
    assert not any(one is secret for one in within(scope))
    assert scope.name == "GET /items/{item_id}"
    del app
    gc.collect()
    assert gone() is None


def within(scope: Scope) -> list[object]:
    """List what a scope refers to, itself and through leakguard's own objects but its guard."""
    seen: dict[int, object] = {id(scope.guard): scope.guard}
    pending: list[object] = [scope]
    while pending:
        one = pending.pop()
        if id(one) not in seen:
            seen[id(one)] = one
            if type(one) in {dict, list, tuple} or type(one).__module__.startswith("leakguard."):
                pending.extend(gc.get_referents(one))
    return list(seen.values())


def test_routes_that_raise_are_not_felt(
    guard: LeakGuard, recorder: Recorder, engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    """The request is answered and judged all the same; only its name is not known."""
    kept: list[Session] = []

    class Odd:
        """An application whose routes cannot be read."""

        @property
        def routes(self) -> Any:
            raise KeyError("no routes")

        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            scope["endpoint"] = self
            kept.append(Session(engine))
            kept[0].execute(QUERY)
            await respond(send, {"body": b""})

    client = Client(middleware(Odd(), guard))
    client.run()
    assert client.sent[0]["status"] == 200
    assert recorder.kinds == [FindingKind.LEAKED]
    assert only_scope(recorder).name == "GET unmatched"
    assert len([record for record in caplog.records if record.levelname == "ERROR"]) == 1
    kept[0].close()


def test_a_fault_of_ours_in_the_search_for_the_route_is_not_felt(
    guard: LeakGuard,
    recorder: Recorder,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The response is sent; only the name of the request is not known."""

    def search(*_: object) -> None:
        raise KeyError

    monkeypatch.setattr("leakguard.sources.request.routed_scope", search)
    client = Client(middleware(answer, guard))
    client.run()
    assert client.sent[0]["status"] == 200
    assert only_scope(recorder).name == "GET unmatched"
    assert len([record for record in caplog.records if record.levelname == "ERROR"]) == 1


def test_a_method_that_a_client_made_up_is_no_name(guard: LeakGuard, recorder: Recorder) -> None:
    """What clients send does not become a name, of which there would be no end."""
    Client(middleware(answer, guard), method="EVIL-1").run()
    assert only_scope(recorder).method == "_OTHER"
    assert only_scope(recorder).name == "_OTHER unmatched"


def test_the_guard_of_an_application_that_took_nothing_goes_with_the_next(
    recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread that would uninstall it starts with the first hold, or with the next guard."""
    gone = threading.Event()
    abandon = Guard.abandon

    def abandon_and_tell(guard: Guard) -> None:
        abandon(guard)
        gone.set()

    def one() -> None:
        LeakGuardMiddleware(answer, observers=[])

    monkeypatch.setattr(Guard, "abandon", abandon_and_tell)
    one()
    gc.collect()
    with LeakGuard(mode="testing", observers=[recorder]) as guard:
        assert gone.wait(PATIENCE)
        assert SQLALCHEMY.guards == (core_of(guard),)


def test_notices_of_a_long_scope_are_told_as_they_come(recorder: Recorder, engine: Engine) -> None:
    """A WebSocket that is open for days does not remember all that it has to say at its end."""
    with LeakGuard(mode="testing", observers=[recorder]) as guard:
        with guard.scope("ws", type="websocket") as scope:
            for _ in range(250):
                with engine.connect(), engine.connect():
                    pass
            assert len(recorder.findings) >= 200
            assert len(scope.notable or ()) < 100
        assert recorder.kinds == [FindingKind.NESTED_CHECKOUT] * 250


@pytest.mark.parametrize(
    "around, exempt",
    [("the first request's block", False), ("the test's block", True), ("its own block", True)],
)
def test_the_block_of_another_request_exempts_nothing(
    guard: LeakGuard, recorder: Recorder, engine: Engine, around: str, exempt: bool
) -> None:
    """A server starts the next of pipelined requests in a copy of the context of the first."""
    kept: list[Session] = []
    tasks: list[asyncio.Task[None]] = []

    def block(name: str) -> AbstractContextManager[None]:
        return allow(name) if name == around else nullcontext()

    def leak() -> None:
        kept.append(session := Session(engine))
        session.execute(QUERY)

    async def second(scope: Any, receive: Any, send: Any) -> None:
        with block("its own block"):
            leak()
        await respond(send)

    async def first(scope: Any, receive: Any, send: Any) -> None:
        with (
            allow("the first request's") if around == "the first request's block" else nullcontext()
        ):
            next_one = Client(middleware(second, guard), path="/second", headers=[(b"x", b"y")])
            tasks.append(asyncio.create_task(next_one.call()))
            await respond(send)

    async def main() -> None:
        with block("the test's block"):
            await Client(middleware(first, guard), path="/first").call()
            await tasks[0]

    asyncio.run(main())
    assert recorder.kinds == ([] if exempt else [FindingKind.LEAKED])


def rewritten(asgi: dict[str, Any]) -> dict[str, Any]:
    """Hand a copy on, and let the original have a new list, as Starlette's `Headers` does."""
    copy = {**asgi}
    if "headers" in asgi:
        asgi["headers"] = [*asgi["headers"]]
    return copy


@pytest.mark.parametrize("headers", [True, False])
@pytest.mark.parametrize("hand_on", [dict, rewritten])
def test_the_block_of_the_same_request_exempts_in_a_mounted_application(
    guard: LeakGuard,
    recorder: Recorder,
    engine: Engine,
    hand_on: Callable[[dict[str, Any]], dict[str, Any]],
    headers: bool,
) -> None:
    """Which has a middleware of its own: it is no other request, and it may have no headers."""
    kept: list[Session] = []

    async def inner(scope: Any, receive: Any, send: Any) -> None:
        kept.append(session := Session(engine))
        session.execute(QUERY)
        await respond(send)

    async def outer(scope: Any, receive: Any, send: Any) -> None:
        with allow("meant to be"):
            await middleware(inner, guard)(hand_on(scope), receive, send)

    client = Client(middleware(outer, guard))
    if not headers:
        del client.asgi["headers"]
    client.run()
    assert recorder.kinds == []
    kept.pop().close()


def test_a_block_exempts_what_a_mounted_application_takes(
    guard: LeakGuard, recorder: Recorder, engine: Engine
) -> None:
    """It may have a middleware of its own: the request is the same."""
    kept: list[Session] = []

    async def mounted(scope: Any, receive: Any, send: Any) -> None:
        kept.append(session := Session(engine))
        session.execute(QUERY)

    inner = middleware(mounted, guard)

    async def outer(scope: Any, receive: Any, send: Any) -> None:
        with allow("whatever is mounted"), guard.scope("a part of the request"):
            await inner(dict(scope), receive, send)

    Client(middleware(outer, guard)).run()
    assert recorder.findings == []
    kept.pop().close()


def test_a_client_that_goes_away_is_noticed_without_a_log_of_events(recorder: Recorder) -> None:
    """As in production."""

    async def app(_scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await receive()
        await respond(send)

    with LeakGuard(mode="production", observers=[recorder]) as guard:
        Client(middleware(app, guard)).run()
    (scope,) = recorder.scopes_closed
    assert scope.cancelled
    assert scope.events == ()


def test_what_sends_and_receives_is_asynchronous(guard: LeakGuard) -> None:
    """Libraries ask whether it is."""
    asked: list[bool] = []

    async def app(_scope: Any, receive: Any, send: Any) -> None:
        asked.extend(map(inspect.iscoroutinefunction, (receive, send)))
        await respond(send)

    Client(middleware(app, guard)).run()
    assert asked == [True, True]
