"""Route templates: which route answered, never what the client asked for.

Starlette says so in the ASGI scope from 1.7 on, FastAPI in all versions; but neither says so
for the mounts on the way, and `root_path` holds their actual values. There, and for older
versions of Starlette, the routes are matched once more.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping, MutableMapping
from typing import Any, Final

AsgiScope = MutableMapping[str, Any]

UNMATCHED: Final = "unmatched"
"""The route of a path that no route answers."""

_FULL_MATCH: Final = 2
_PARTIAL_MATCH: Final = 1


class RouteLookup:
    """Finds the template for a request that has been routed.

    It keeps a few strings and a weak reference, not the request.
    """

    __slots__ = ("_request", "_router")

    def __init__(self, scope: AsgiScope) -> None:
        self._router = _weakly(scope.get("router"))
        self._request: dict[str, Any] = {
            "type": scope["type"],
            "method": scope.get("method", "GET"),
            "headers": (),
            "path_params": {},
            **_original_paths(scope),
        }

    def template(self) -> str:
        """Match the routes from the outermost router inwards."""
        router = self._router()
        routes = getattr(router, "routes", None)
        try:
            found = None if routes is None else _match(routes, self._request)
        except Exception:  # noqa: BLE001  (a route class of the user's may raise whatever it likes)
            found = None
        return UNMATCHED if found is None else found


def known_template(scope: AsgiScope) -> str | None:
    """Give the template where the ASGI scope tells it; `None` where the routes must be matched."""
    if "endpoint" not in scope:
        return UNMATCHED
    if "app_root_path" in scope:  # a mount was passed
        return None
    return _own_template(scope.get("route"), scope)


def _own_template(route: object, scope: Mapping[str, Any]) -> str | None:
    """Give the template of a route within its application."""
    fastapi = scope.get("fastapi")
    context = fastapi.get("effective_route_context") if fastapi else None
    if context is not None:  # the route of an included router: only this knows the prefixes
        inner = getattr(context, "starlette_route", None)
        path = _path(inner) or _path(context)
        if path:
            return path
    return _path(route)


def _path(route: object) -> str | None:
    path = getattr(route, "path_format", None) or getattr(route, "path", None)
    return path if isinstance(path, str) and path else None


def _match(routes: Iterable[Any], request: dict[str, Any]) -> str | None:
    partial: tuple[Any, dict[str, Any]] | None = None
    for route in routes:
        match, child = route.matches(request)
        if match.value == _FULL_MATCH:
            return _template(route, {**request, **child})
        if match.value == _PARTIAL_MATCH and partial is None:
            partial = route, {**request, **child}
    return None if partial is None else _template(*partial)


def _template(route: Any, request: dict[str, Any]) -> str | None:  # noqa: ANN401  (any route class)
    inner = getattr(request.get("endpoint"), "routes", None)
    own = _own_template(route, request) or ""
    if getattr(route, "endpoint", None) is not None or inner is None:
        return own or None
    # A mount, or a host: its endpoint is an application that has routes of its own.
    request.pop("fastapi", None)
    rest = _match(inner, request)
    return None if rest is None else own.rstrip("/") + rest


def _original_paths(scope: AsgiScope) -> dict[str, str]:
    """Undo what mounts did to the paths.

    Since 0.33 Starlette leaves `path` whole and extends `root_path`; before, it moved what a
    mount matched from one to the other.
    """
    path, root_path = scope["path"], scope.get("root_path", "")
    base = scope.get("app_root_path", root_path)
    passed = root_path.removeprefix(base)
    if passed and not path.startswith(root_path):
        path = passed + path
    return {"path": path, "root_path": base}


def _weakly(router: object) -> Any:  # noqa: ANN401  (whatever the framework put there)
    try:
        return weakref.ref(router)
    except TypeError:
        return lambda: None
