"""The template of the route that answered, where FastAPI includes routers in one another."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from fastapi import APIRouter, FastAPI, WebSocket

from leakguard import LeakGuard
from tests.sources.test_routes import VALUE, WAYS, name_of, request
from tests.support import Recorder


def fastapi_app() -> FastAPI:
    inner = APIRouter(prefix="/inner/{group}")
    outer = APIRouter(prefix="/outer")

    @inner.get("/leaf/{leaf_id}")
    def leaf(group: str, leaf_id: str) -> str:
        return "fine"

    @inner.websocket("/ws/{room}")
    async def room(websocket: WebSocket, group: str, room: str) -> None:
        await websocket.accept()
        await websocket.close()

    outer.include_router(inner, prefix="/between")
    app = FastAPI()
    app.include_router(outer, prefix="/api")

    @app.get("/items/{item_id}")
    def item(item_id: str) -> str:
        return "fine"

    @app.get("/numbers/{number}")
    def number(number: int) -> str:
        return "fine"

    child = FastAPI()
    child.include_router(outer, prefix="/child")
    app.mount("/sub/{tenant}", child)
    return app


FASTAPI: list[tuple[str, dict[str, Any], str]] = [
    (f"/items/{VALUE}", {}, "GET /items/{item_id}"),
    (f"/numbers/{VALUE}", {}, "GET /numbers/{number}"),  # 422
    (
        f"/api/outer/between/inner/{VALUE}/leaf/{VALUE}",
        {},
        "GET /api/outer/between/inner/{group}/leaf/{leaf_id}",
    ),
    (
        f"/api/outer/between/inner/{VALUE}/ws/{VALUE}",
        {"kind": "websocket"},
        "WEBSOCKET /api/outer/between/inner/{group}/ws/{room}",
    ),
    (
        f"/sub/{VALUE}/child/outer/between/inner/{VALUE}/leaf/{VALUE}",
        {},
        "GET /sub/{tenant}/child/outer/between/inner/{group}/leaf/{leaf_id}",
    ),
    (f"/sub/{VALUE}/nowhere", {}, "GET unmatched"),
]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("path, asgi, name", FASTAPI)
def test_the_template_is_named(  # noqa: PLR0913, PLR0917  (the columns of the table above)
    guard: LeakGuard,
    recorder: Recorder,
    path: str,
    asgi: dict[str, Any],
    name: str,
    way: Callable[[Any, LeakGuard], Any],
) -> None:
    """Added to the application or put around it, the template is the same, and complete."""
    app = way(fastapi_app(), guard)
    request(app, path, **asgi)
    assert name_of(app, recorder) == name
    assert VALUE not in repr(recorder.scopes_closed)
