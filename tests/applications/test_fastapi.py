"""What is FastAPI's own: its dependencies in threads, and the stack that it builds itself."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from fastapi import Depends, FastAPI
from sqlalchemy import Engine, text
from sqlalchemy.orm import Session
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.gzip import GZipMiddleware

from leakguard import LeakGuard, LeakGuardMiddleware, allow
from leakguard.core.settings import MODE_VARIABLE, Mode
from tests.support import Recorder, fetch


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
