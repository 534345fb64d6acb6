"""Every application of Starlette's is watched, with nothing added to it."""

from __future__ import annotations

import sys
from typing import Any

import pytest
from sqlalchemy import Engine
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount, Route

from leakguard.core.guard import Guard
from leakguard.core.settings import build_settings
from leakguard.sources.sqlalchemy import SQLALCHEMY
from leakguard.sources.starlette import StarletteSource
from tests.support import Recorder, fetch


def make_guard(recorder: Recorder, source: StarletteSource) -> Guard:
    """Make a guard that watches applications, too."""
    return Guard(build_settings({"mode": "testing"}), [recorder], (SQLALCHEMY, source))


def make_application() -> Starlette:
    """Make one that answers everywhere, with another one mounted in it."""

    async def answer(_: Request) -> Response:
        return Response()

    inner = Starlette(routes=[Route("/{number}", answer)])
    return Starlette(routes=[Route("/outer", answer), Mount("/inner", inner)])


def test_each_request_is_a_scope_once(recorder: Recorder) -> None:
    """Also where a mounted application answers, which is one of Starlette's, too."""
    original = Starlette.__call__
    app = make_application()
    guard = make_guard(recorder, StarletteSource())
    for _ in range(2):
        with guard:
            fetch(app, "/outer")
            fetch(app, "/inner/7")
        assert Starlette.__call__ is original
        fetch(app, "/outer")
    names = ["GET /outer", "GET /inner/{number}"] * 2
    assert [scope.name for scope in recorder.scopes_closed] == names


def test_a_guard_that_is_abandoned_opens_none(recorder: Recorder) -> None:
    """As one that goes beside requests which go on."""
    guard = make_guard(recorder, StarletteSource()).install()
    guard.abandon()
    fetch(make_application(), "/outer")
    assert recorder.scopes_opened == []


def test_one_that_somebody_wrapped_in_turn_does_nothing(
    recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ours cannot be taken out then, and hands requests on."""
    guard = make_guard(recorder, StarletteSource()).install()
    ours = Starlette.__call__

    async def theirs(self: Starlette, scope: Any, receive: Any, send: Any) -> None:
        await ours(self, scope, receive, send)

    monkeypatch.setattr(Starlette, "__call__", theirs)
    guard.uninstall()
    fetch(make_application(), "/outer")
    assert recorder.scopes_opened == []
    monkeypatch.undo()
    fetch(make_application(), "/outer")
    assert Starlette.__call__ is not ours


def test_starlette_need_not_be_there(
    recorder: Recorder, monkeypatch: pytest.MonkeyPatch, engine: Engine
) -> None:
    """It is watched from when it is imported; not at all where the guard has gone by then."""
    module = sys.modules["starlette.applications"]
    finders = sys.meta_path.copy()
    source = StarletteSource()
    original = Starlette.__call__
    with monkeypatch.context() as patch:
        patch.delitem(sys.modules, "starlette.applications")
        with make_guard(recorder, source), engine.connect():
            assert sys.meta_path != finders
        with make_guard(recorder, source):  # again, and it is still not there
            finder: Any = sys.meta_path.pop(0)
    assert sys.modules["starlette.applications"] is module
    assert sys.meta_path == finders
    finder.job()
    assert Starlette.__call__ is original
    with make_guard(recorder, source):
        assert Starlette.__call__ is not original
    assert Starlette.__call__ is original
