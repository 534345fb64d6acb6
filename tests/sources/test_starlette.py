"""Every application of Starlette's is watched, with nothing added to it."""

from __future__ import annotations

import importlib
import sys
from typing import Any

import pytest
import starlette.applications
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


def test_of_several_guards_the_last_one_opens_the_scope(recorder: Recorder) -> None:
    """As where a run of tests runs tests of its own; the first one goes on afterwards."""
    source, inner, original = StarletteSource(), Recorder(), Starlette.__call__
    app = make_application()
    with make_guard(recorder, source):
        with make_guard(inner, source):
            fetch(app, "/outer")
        fetch(app, "/inner/7")
    assert [scope.name for scope in inner.scopes_opened] == ["GET /outer"]
    assert [scope.name for scope in recorder.scopes_opened] == ["GET /inner/{number}"]
    assert Starlette.__call__ is original


def test_starlette_need_not_be_there(recorder: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is watched from when it is imported, and not awaited when the guard has gone."""
    source, original = StarletteSource(), Starlette.__call__
    finders = sys.meta_path.copy()
    with monkeypatch.context() as patch:
        patch.delitem(sys.modules, "starlette.applications")
        for _ in range(2):
            with make_guard(recorder, source), make_guard(recorder, source):
                assert len(sys.meta_path) == len(finders) + 1
            assert sys.meta_path == finders
    assert Starlette.__call__ is original


def test_starlette_may_be_imported_anew(
    recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With another class, as where a test runs tests in its own process; the first goes on."""
    source, original, inner = StarletteSource(), Starlette.__call__, Recorder()
    app = make_application()
    with monkeypatch.context() as patch, make_guard(recorder, source):
        patch.setattr(starlette, "applications", starlette.applications)  # put back, too
        patch.delitem(sys.modules, "starlette.applications")
        with make_guard(inner, source):
            anew: Any = importlib.import_module("starlette.applications")
            fetch(anew.Starlette(), "/nowhere")
        fetch(app, "/outer")
    assert len(inner.scopes_opened) == len(recorder.scopes_opened) == 1
    assert Starlette.__call__ is original
