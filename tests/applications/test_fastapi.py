"""What is FastAPI's own: its dependencies in threads, and the stack that it builds itself."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi import Depends, FastAPI, Request, Response
from sqlalchemy import Engine, text
from sqlalchemy.orm import Session
from starlette.middleware.base import RequestResponseEndpoint
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.gzip import GZipMiddleware

from leakguard import Finding, FindingKind, LeakGuard, LeakGuardMiddleware, allow
from leakguard.core.settings import MODE_VARIABLE, Mode
from tests.support import PATIENCE, Recorder, fetch, line_marked

HERE = sys.modules[__name__]


def test_a_synchronous_dependency_may_allow(
    guard: LeakGuard, recorder: Recorder, engine: Engine
) -> None:
    """FastAPI runs its two halves in two threads, each with a context of its own."""
    kept: list[Session] = []

    def get_db() -> Iterator[Session]:
        with allow("kept on purpose"):
            kept.append(Session(engine))
            yield kept[0]

    app = FastAPI()

    @app.get("/")
    def read(db: Session = Depends(get_db)) -> int:  # noqa: B008, FAST002  (the form that most code has)
        return int(db.execute(text("SELECT 1")).scalar_one())

    app.add_middleware(LeakGuardMiddleware, guard=guard)
    assert fetch(app, "/").json() == 1
    assert recorder.findings == []
    kept[0].close()


@pytest.mark.parametrize("path", ["/async", "/sync"])
def test_what_is_slow_is_named_behind_a_middleware_of_functions(path: str, engine: Engine) -> None:
    """Starlette runs the application in another task: the one of the request waits for it."""
    found = threading.Event()

    class Slow(Recorder):
        def found(self, finding: Finding) -> None:
            super().found(finding)
            found.set()

    def get_db() -> Iterator[Session]:
        with Session(engine) as db:
            yield db

    def get_user(db: Session = Depends(get_db)) -> int:  # noqa: B008  (the form that most code has)
        return int(db.execute(text("SELECT 1")).scalar_one())

    recorder = Slow()
    app = FastAPI()

    @app.middleware("http")
    async def timing(request: Request, call_next: RequestResponseEndpoint) -> Response:
        return await call_next(request)

    @app.get("/async")
    async def read_async(user: int = Depends(get_user)) -> int:  # noqa: FAST002  (the same)
        await asyncio.to_thread(found.wait, PATIENCE)  # slow async
        return user

    @app.get("/sync")
    def read_sync(user: int = Depends(get_user)) -> int:  # noqa: FAST002  (the same)
        found.wait(PATIENCE)  # slow sync
        return user

    guard = LeakGuard(mode="testing", observers=[recorder], held_after=0.05)
    app.add_middleware(LeakGuardMiddleware, guard=guard)
    with guard:
        assert fetch(app, path).json() == 1
    finding = next(one for one in recorder.findings if one.kind is FindingKind.HELD)
    assert finding.evidence.now_at is not None
    assert finding.evidence.now_at.line == line_marked(HERE, f"slow {path[1:]}")


@pytest.mark.parametrize("debug, mode", [(True, Mode.DEVELOPMENT), (False, Mode.PRODUCTION)])
def test_the_application_s_debug_flag_is_found(
    debug: bool, mode: Mode, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Behind whatever middleware stands between it and leakguard."""
    monkeypatch.delenv(MODE_VARIABLE, raising=False)
    app = FastAPI(debug=debug)
    app.add_middleware(GZipMiddleware)
    app.add_middleware(CORSMiddleware)
    app.add_middleware(LeakGuardMiddleware, observers=[])
    stack: Any = app.build_middleware_stack()
    while not isinstance(stack, LeakGuardMiddleware):
        stack = stack.app
    assert stack.guard.settings.mode is mode
