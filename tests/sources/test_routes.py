"""The template of the route that answered, and nothing of what the client asked for."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any

import pytest
import starlette
from starlette.applications import Starlette
from starlette.endpoints import HTTPEndpoint
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import BaseRoute, Host, Match, Mount, Route, Router, WebSocketRoute
from starlette.websockets import WebSocket

from leakguard import LeakGuard, LeakGuardMiddleware
from leakguard.sources.asgi import ScopeMiddleware
from leakguard.sources.routes import RouteLookup
from tests.support import Recorder, core_of

VALUE = "client-value"
"""What clients put into paths; it must never come out."""


async def endpoint(request: Request) -> Response:
    return PlainTextResponse("fine")


async def socket(websocket: WebSocket) -> None:
    await websocket.accept()
    await websocket.close()


async def opaque(scope: Any, receive: Any, send: Any) -> None:
    await PlainTextResponse("fine")(scope, receive, send)


class Items(HTTPEndpoint):
    """An endpoint that is a class."""

    async def get(self, request: Request) -> Response:
        """Answer."""
        return PlainTextResponse("fine")


def starlette_app() -> Starlette:
    tenant = Router(
        [
            Route("/orders/{order_id:int}", endpoint),
            Mount("/{kind}", routes=[Route("/deep", endpoint)]),
        ]
    )
    return Starlette(
        routes=[
            Host("{client}.example.org", Router([Route("/hosted/{page}", endpoint)])),
            Route("/items/{item_id}", endpoint, methods=["GET"]),
            Route("/class/{item_id}", Items),
            Route("/files/{path:path}", endpoint),
            Mount("/static", opaque),
            Mount("/v1", routes=[Route("/items/{item_id}", endpoint), Route("/", endpoint)]),
            Mount("/tenants/{tenant}", tenant),
            Mount(
                "/wrapped",
                Starlette(
                    routes=[Route("/items/{item_id}", endpoint)],
                    middleware=[Middleware(PassThrough)],
                ),
            ),
            WebSocketRoute("/ws/{room}", socket),
        ]
    )


class PassThrough:
    """Middleware that hands a copy of the ASGI scope on."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Hand a copy on."""
        await self.app(dict(scope), receive, send)


def request(app: Any, path: str, kind: str = "http", **asgi: Any) -> None:
    """Call `app` the way a server does."""
    first = "websocket.connect" if kind == "websocket" else "http.request"
    messages = iter([first])

    async def receive() -> dict[str, Any]:
        return {"type": next(messages, f"{kind}.disconnect")}

    async def send(message: Any) -> None:
        pass

    scope: dict[str, Any] = {
        "type": kind,
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "scheme": "http",
        "headers": [(b"host", b"test")],
        "query_string": f"q={VALUE}".encode(),
        **({"method": "GET"} if kind == "http" else {"subprotocols": []}),
        **asgi,
    }
    asyncio.run(app(scope, receive, send))


def name_of(app: Any, recorder: Recorder) -> str:
    (scope,) = recorder.scopes_closed
    return scope.name


STARLETTE: list[tuple[str, dict[str, Any], str]] = [
    (f"/items/{VALUE}", {}, "GET /items/{item_id}"),
    (f"/items/{VALUE}", {"method": "POST"}, "POST /items/{item_id}"),  # 405
    (f"/items/{VALUE}/", {}, "GET unmatched"),  # redirected
    (f"/class/{VALUE}", {}, "GET /class/{item_id}"),
    (f"/files/a/b/{VALUE}", {}, "GET /files/{path}"),
    (f"/nowhere/{VALUE}", {}, "GET unmatched"),
    (f"/static/{VALUE}.css", {}, "GET /static"),
    (f"/v1/items/{VALUE}", {}, "GET /v1/items/{item_id}"),
    (f"/v1/items/{VALUE}", {"method": "POST"}, "POST /v1/items/{item_id}"),  # 405
    ("/v1/", {}, "GET /v1/"),
    (f"/v1/nowhere/{VALUE}", {}, "GET unmatched"),
    (f"/tenants/{VALUE}/orders/12345", {}, "GET /tenants/{tenant}/orders/{order_id}"),
    (f"/tenants/{VALUE}/{VALUE}/deep", {}, "GET /tenants/{tenant}/{kind}/deep"),
    ("/tenants/tenants/orders/deep/deep", {}, "GET unmatched"),
    (f"/wrapped/items/{VALUE}", {}, "GET /wrapped/items/{item_id}"),
    (f"/ws/{VALUE}", {"kind": "websocket"}, "WEBSOCKET /ws/{room}"),
    (
        f"/hosted/{VALUE}",
        {"headers": [(b"host", f"{VALUE}.example.org".encode())]},
        "GET /hosted/{page}",
    ),
]


def added(app: Any, guard: LeakGuard) -> Any:
    app.add_middleware(LeakGuardMiddleware, guard=guard)
    return app


def around(app: Any, guard: LeakGuard) -> Any:
    return LeakGuardMiddleware(app, guard=guard)


def before_a_copy(app: Any, guard: LeakGuard) -> Any:
    app.add_middleware(PassThrough)
    return added(app, guard)


WAYS = [added, around, before_a_copy]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("path, asgi, name", STARLETTE)
def test_the_template_is_named(  # noqa: PLR0913, PLR0917  (the columns of the table above)
    guard: LeakGuard,
    recorder: Recorder,
    path: str,
    asgi: dict[str, Any],
    name: str,
    way: Callable[[Any, LeakGuard], Any],
) -> None:
    """Added to the application or put around it, the template is the same, and complete."""
    app = way(starlette_app(), guard)
    request(app, path, **asgi)
    assert name_of(app, recorder) == name
    assert VALUE not in repr(recorder.scopes_closed)


class Rewriting:
    """Middleware that hands on a copy of the ASGI scope with another path, by the language."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Take the language out of the path."""
        await self.app({**scope, "path": scope["path"].replace("/de", "")}, receive, send)


async def failing(request: Request) -> Response:
    raise RuntimeError


def translated_app(*middleware: Any) -> Starlette:
    routes = [
        Route("/items/{item_id}", endpoint),
        Route("/failing/{item_id}", failing),
        Route("/{path:path}", endpoint),
    ]
    return Starlette(routes=routes, middleware=[Middleware(one) for one in middleware])


@pytest.mark.parametrize(
    "path, name",
    [
        (f"/de/items/{VALUE}", "GET /items/{item_id}"),
        (f"/de/failing/{VALUE}", "GET /failing/{item_id}"),
        (f"/de/nowhere/{VALUE}", "GET /{path}"),
    ],
)
def test_a_rewritten_path_is_named_by_the_route_that_answered(
    guard: LeakGuard, recorder: Recorder, path: str, name: str
) -> None:
    """The path that the client asked for would have been another route's."""
    app = added(translated_app(Rewriting), guard)
    with contextlib.suppress(RuntimeError):
        request(app, path)
    assert name_of(app, recorder) == name


def test_a_path_that_is_rewritten_in_a_mount(guard: LeakGuard, recorder: Recorder) -> None:
    """The router around it saw the path before, the one inside another one."""
    app = Starlette(routes=[Mount("/{tenant}", translated_app(Rewriting))])
    request(added(app, guard), f"/{VALUE}/de/items/{VALUE}")
    assert name_of(app, recorder) == "GET /{tenant}/items/{item_id}"


async def in_another_task(request: Request, call_next: Any) -> Response:
    response: Response = await call_next(request)
    return response


class ByDispatch(BaseHTTPMiddleware):
    """Middleware whose application runs in another task."""

    def __init__(self, app: Any) -> None:
        super().__init__(app, dispatch=in_another_task)


@pytest.mark.parametrize("mounted", [False, True])
def test_nothing_is_guessed_where_the_copy_is_out_of_sight(
    guard: LeakGuard, recorder: Recorder, mounted: bool
) -> None:
    """The path may have been rewritten, and the router runs in a task of its own."""
    app = translated_app(ByDispatch, Rewriting)
    if mounted:
        app = Starlette(routes=[Mount("/mounted", app)])
    request(added(app, guard), f"{'/mounted' if mounted else ''}/de/items/{VALUE}")
    assert name_of(app, recorder) == "GET unmatched"


def test_the_name_is_known_while_the_request_runs(guard: LeakGuard, recorder: Recorder) -> None:
    """An observer that asks before the end gets the template as soon as the route is known."""
    names: list[str] = []

    async def asking(request: Request) -> Response:
        names.append(recorder.scopes_opened[0].name)
        return PlainTextResponse("fine")

    app = Starlette(routes=[Mount("/v1", routes=[Route("/items/{item_id}", asking)])])
    request(LeakGuardMiddleware(app, guard=guard), f"/v1/items/{VALUE}")
    assert names == ["GET /v1/items/{item_id}"]


def test_a_root_path_is_no_part_of_the_template(guard: LeakGuard, recorder: Recorder) -> None:
    """Where a proxy puts the application is not the application's route."""
    app = LeakGuardMiddleware(starlette_app(), guard=guard)
    modern = not starlette.__version__.startswith(("0.1", "0.2", "0.30", "0.31", "0.32"))
    path = "/proxied/v1/items/1" if modern else "/v1/items/1"
    request(app, path, root_path="/proxied")
    assert name_of(app, recorder) == "GET /v1/items/{item_id}"


def test_middleware_in_a_mounted_application_knows_the_whole_route(
    guard: LeakGuard, recorder: Recorder
) -> None:
    """The template begins at the outermost router, wherever the middleware is."""
    child = Starlette(routes=[Route("/items/{item_id}", endpoint)])
    child.add_middleware(LeakGuardMiddleware, guard=guard)
    request(Starlette(routes=[Mount("/{tenant}", child)]), f"/{VALUE}/items/1")
    assert name_of(child, recorder) == "GET /{tenant}/items/{item_id}"


def test_mounts_that_moved_the_path_are_undone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before 0.33, Starlette took what a mount matched away from the path."""
    monkeypatch.setattr(starlette, "__version__", "0.27.0")
    app = starlette_app()
    scope = {
        "type": "http",
        "method": "GET",
        "path": f"/items/{VALUE}",
        "root_path": "/v1",
        "app_root_path": "",
        "router": app.router,
    }
    lookup = RouteLookup(scope)
    monkeypatch.undo()
    assert lookup.template() == "/v1/items/{item_id}"


class Stubborn(BaseRoute):
    """A route class of somebody's that fails when it is asked once more."""

    asked = 0

    def matches(self, scope: Any) -> Any:
        """Match the first time."""
        self.asked += 1
        if self.asked > 1:
            raise RuntimeError("asked again")
        return Match.FULL, {"endpoint": opaque, "app_root_path": ""}

    async def handle(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer."""
        await opaque(scope, receive, send)


def test_a_route_that_cannot_be_matched_again_is_unmatched(
    guard: LeakGuard, recorder: Recorder
) -> None:
    """A route class that raises does not get in the way."""
    app = LeakGuardMiddleware(Starlette(routes=[Stubborn()]), guard=guard)
    request(app, f"/{VALUE}")
    assert name_of(app, recorder) == "GET unmatched"


class Slotted:
    """A router of another framework that cannot be referred to weakly."""

    __slots__ = ("routes",)


def test_other_frameworks_have_no_routes_of_ours(guard: LeakGuard, recorder: Recorder) -> None:
    """Whatever another framework calls its routes is not touched."""

    async def framework(scope: Any, receive: Any, send: Any) -> None:
        scope["router"] = Slotted()
        await opaque(scope, receive, send)

    framework.routes = ["not", "Starlette's"]  # type: ignore[attr-defined]  # pyright: ignore[reportFunctionMemberAccess]  # as they do
    app = ScopeMiddleware(framework, core_of(guard))
    request(app, f"/{VALUE}")
    assert name_of(app, recorder) == "GET unmatched"


def test_an_endless_chain_of_middleware_ends(guard: LeakGuard, recorder: Recorder) -> None:
    """Something whose `app` is itself is not searched for ever."""

    class Loop:
        """An application that wraps itself."""

        @property
        def app(self) -> Loop:
            return self

        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            """Answer."""
            await opaque(scope, receive, send)

    app = ScopeMiddleware(Loop(), core_of(guard))
    request(app, f"/{VALUE}")
    assert name_of(app, recorder) == "GET unmatched"
