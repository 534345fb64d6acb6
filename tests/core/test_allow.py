"""Deliberate use is sayable, wherever the block is entered and left."""

from __future__ import annotations

import contextvars
from collections.abc import Iterator

from fastapi import Depends, FastAPI
from sqlalchemy import Engine, text
from sqlalchemy.orm import Session

from leakguard import LeakGuard, LeakGuardMiddleware, allow
from tests.core.fakes import installed, take
from tests.support import Recorder, fetch


def test_the_block_s_end_is_its_end() -> None:
    """Also within another one, whose reason is in force again."""
    guard = installed()
    with allow("outer"):
        with allow("inner"):
            assert take(guard).allowed == "inner"
        assert take(guard).allowed == "outer"
    assert take(guard).allowed is None
    guard.uninstall()


def test_a_block_that_is_left_in_a_copy_of_its_context_ends_there() -> None:
    """In the copy nothing is allowed any more."""
    guard = installed()
    block = allow("streams the export")
    entered = contextvars.copy_context()
    entered.run(block.__enter__)
    copy = entered.copy()
    assert copy.run(take, guard).allowed == "streams the export"
    copy.run(block.__exit__, None, None, None)
    assert copy.run(take, guard).allowed is None
    guard.uninstall()


def test_a_block_that_is_left_elsewhere_changes_nothing_there() -> None:
    """What is in force in the other context is none of its business."""
    guard = installed()
    block = allow("streams the export")
    contextvars.copy_context().run(block.__enter__)
    with allow("something else"):
        block.__exit__(None, None, None)
        assert take(guard).allowed == "something else"
    guard.uninstall()


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
