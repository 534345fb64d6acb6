"""Route templates: which route answers, never what the client asked for.

Starlette says so in the ASGI scope from 1.7 on, FastAPI in all versions; but neither says so
for the mounts on the way, and `root_path` holds their actual values. There, and for older versions
of Starlette, the routes are matched once more. Where a middleware handed a copy of the ASGI scope
on, with another path maybe, the copy is what the router tells, and is to be found first.
"""

from __future__ import annotations

import re
import sys
import weakref
from collections.abc import Iterable, Iterator, MutableMapping
from types import FrameType, FunctionType
from typing import Any, Final, cast

AsgiScope = MutableMapping[str, Any]

UNMATCHED: Final = "unmatched"
"""The route of a path that no route answers."""

_FULL_MATCH: Final = 2
_PARTIAL_MATCH: Final = 1
_REST_OF_PATH: Final = "/{path}"
"""What Starlette appends to the template of a mount."""
_ROUTING: Final = frozenset({"starlette.routing", "fastapi.routing"})
_WRAPPED_AT_MOST: Final = 100
_MOVES_PATHS: Final = re.compile(r"0\.([12]?\d|3[0-2])\.")
"""The versions of Starlette whose mounts take what they matched away from the path."""


class RouteLookup:
    """Finds the template for a request by its routes.

    It keeps a few strings and a weak reference, not the request.
    """

    __slots__ = ("_request", "_router")

    def __init__(self, scope: AsgiScope) -> None:
        """Take the ASGI scope of a request that was answered."""
        # Named by the outermost router that saw this scope. None did, or none of a mounted
        # application, where a copy was handed on: its path may be any, and tells nothing.
        unseen = _router_behind(scope.get("endpoint")) is not None
        self._router = _weakly(None if unseen else scope.get("router"))
        self._request: dict[str, Any] = {
            "type": scope["type"],
            "method": scope.get("method", "GET"),
            "headers": _host_headers(scope.get("headers", ())),
            "path_params": {},
            **_original_paths(scope),
        }

    def template(self) -> str:
        """Match the routes from the outermost router inwards."""
        try:
            found = _match(getattr(self._router(), "routes", ()), self._request)
        except Exception:  # noqa: BLE001  (a route class of the user's may raise whatever it likes)
            found = None
        return UNMATCHED if found is None else found


def is_routed(scope: AsgiScope) -> bool:
    """Return whether a router found a function, or nothing, for this scope and no copy of it."""
    endpoint = scope.get("endpoint")
    return "router" in scope if endpoint is None else isinstance(endpoint, FunctionType)


def routed_scope(frame: FrameType | None, error: BaseException | None) -> AsgiScope | None:
    """Find the scope that the innermost router got.

    It is looked for among the callers of `frame`, by which a response is sent, and in the
    traceback of the exception that is answered instead. Only the frames of the frameworks' routing
    are looked into: asking a frame for its variables keeps them alive until it ends.
    """
    while frame is not None:
        scope = _scope_of(frame)
        if scope is not None:
            return scope
        frame = frame.f_back
    found: AsgiScope | None = None
    traceback = None if error is None else error.__traceback__
    while traceback is not None:  # from the outermost frame inwards
        found = _scope_of(traceback.tb_frame) or found
        traceback = traceback.tb_next
    return found


def is_routing(frame: FrameType) -> bool:
    """Return whether a frame is of the frameworks' routing, which calls what a route names."""
    return frame.f_globals.get("__name__") in _ROUTING


def _scope_of(frame: FrameType) -> AsgiScope | None:
    if not is_routing(frame):
        return None
    scope = frame.f_locals.get("scope")
    if not isinstance(scope, MutableMapping) or "router" not in scope:
        return None
    return cast("AsgiScope", scope)


def known_template(scope: AsgiScope) -> str | None:
    """Return the template if the ASGI scope tells it; `None` if the routes must be matched."""
    if "app_root_path" in scope:  # a mount was passed
        return None
    fastapi = scope.get("fastapi")
    context = fastapi.get("effective_route_context") if fastapi else None
    route = scope.get("route")
    if context is None:
        path = getattr(route, "path_format", None)  # of most: a call less
        return path if path and type(path) is str else _path(route)
    # Of an included router, whose prefixes nobody else knows.
    return _path(getattr(context, "starlette_route", None)) or _path(context) or _path(route)


def _path(route: object) -> str | None:
    path = getattr(route, "path_format", None) or getattr(route, "path", None)
    return path if isinstance(path, str) and path else None


def _match(routes: Iterable[Any], request: dict[str, Any]) -> str | None:
    partial: tuple[Any, dict[str, Any]] | None = None
    for route in _flattened(routes):
        match, child = route.matches(request)
        if match.value == _FULL_MATCH:
            return _template(route, {**request, **child})
        if match.value == _PARTIAL_MATCH and partial is None:
            partial = route, {**request, **child}
    return None if partial is None else _template(*partial)


def _flattened(routes: Iterable[Any]) -> Iterator[Any]:
    """Return the routes of included routers, which FastAPI keeps in a tree from 0.137 on."""
    for route in routes:
        contexts = getattr(route, "effective_route_contexts", None)
        if contexts is None:
            yield route
        else:
            yield from (context.starlette_route or context for context in contexts())


def _template(route: Any, request: dict[str, Any]) -> str | None:  # noqa: ANN401  (any route class)
    own = _path(route)
    if getattr(route, "endpoint", None) is not None:
        return own
    # A mount, or a host: its endpoint is an application, which may have routes of its own.
    prefix = "" if own is None else own.removesuffix(_REST_OF_PATH)
    router = _router_behind(request.get("endpoint"))
    if router is None:
        return prefix or "/"
    rest = _match(router.routes, request)
    return None if rest is None else prefix + rest


def _router_behind(app: Any) -> Any:  # noqa: ANN401  (any ASGI application)
    """Find what has the routes behind the middleware around it; `None` in other frameworks."""
    for layer in layers(app):
        routes: list[Any] | None = getattr(layer, "routes", None)
        # Other frameworks may call something else their routes; Starlette's can be matched.
        if isinstance(routes, list) and all(hasattr(route, "matches") for route in routes[:1]):
            return layer
    return None


def layers(app: Any) -> Iterator[Any]:  # noqa: ANN401  (any ASGI application)
    """Return an application and what it wraps, from the outside inwards."""
    for _ in range(_WRAPPED_AT_MOST):  # one that wraps itself has no end
        if app is None:
            return
        yield app
        app = getattr(app, "app", None)


def _original_paths(scope: AsgiScope) -> dict[str, str]:
    """Undo what mounts did to the paths.

    Since 0.33 Starlette leaves `path` whole and extends `root_path`; before, it moved what a
    mount matched from one to the other.
    """
    path, root_path = scope["path"], scope.get("root_path", "")
    base = scope.get("app_root_path", root_path)
    if _MOVES_PATHS.match(getattr(sys.modules.get("starlette"), "__version__", "")):
        path = root_path.removeprefix(base) + path
    return {"path": path, "root_path": base}


def _host_headers(headers: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """Keep what routes by host need, and nothing else of the client's."""
    return [header for header in headers if header[0] == b"host"]


def _weakly(router: object) -> Any:  # noqa: ANN401  (whatever the framework put there)
    try:
        return weakref.ref(router)
    except TypeError:
        return lambda: None
