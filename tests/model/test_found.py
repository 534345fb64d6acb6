"""What the random programs found, each as the shortest program that shows it."""

from __future__ import annotations

import contextvars
import weakref
from pathlib import Path

import pytest
from sqlalchemy import Connection, Engine, create_engine, text
from sqlalchemy.orm import Session
from sqlalchemy.pool import StaticPool

from leakguard import FindingKind, LeakGuard
from tests.model.test_model import Worker
from tests.support import Recorder, drain_watch

QUERY = text("SELECT 1")


@pytest.fixture
def engine(tmp_path: Path) -> Engine:
    url = f"sqlite:///{tmp_path / 'found.db'}"
    return create_engine(url, connect_args={"check_same_thread": False})


def test_a_thread_that_works_for_two_scopes(
    guard: LeakGuard, recorder: Recorder, engine: Engine
) -> None:
    """A thread that took a connection in one scope, then in another, still runs for the first."""
    with guard.scope("outer"):
        session = Session(engine)
        with guard.scope("inner"):
            worker = Worker(contextvars.copy_context())
            taken: list[Connection] = []
            worker.do(lambda: taken.append(engine.connect()))
            worker.do(lambda: session.execute(QUERY))
        drain_watch()
        assert recorder.kinds == [FindingKind.OUTLIVES_SCOPE]
        worker.do(lambda: taken.pop().close())
        worker.end()
        session.close()
    drain_watch()
    assert recorder.kinds == [FindingKind.OUTLIVES_SCOPE]
    assert len(recorder.resolutions) == 1


def test_a_look_at_the_open_holds_while_the_collector_is_at_work(
    guard: LeakGuard, recorder: Recorder, engine: Engine
) -> None:
    """A collected connection is reclaimed also where somebody looks before its finalizer ran."""
    connection = engine.raw_connection()
    looks = [weakref.ref(connection, lambda _: guard.open_holds())]
    del connection
    drain_watch()
    assert looks[0]() is None
    assert recorder.kinds == [FindingKind.RECLAIMED]


def test_a_new_static_connection_in_the_place_of_a_detached_one(
    guard: LeakGuard, recorder: Recorder, tmp_path: Path
) -> None:
    """Closing a detached connection says nothing about one that its pool made afterwards."""
    engine = create_engine(f"sqlite:///{tmp_path / 'static.db'}", poolclass=StaticPool)
    for _ in range(20):  # the pool's third entry often, not always, gets the first one's address
        detached = engine.raw_connection()
        detached.detach()
        engine.raw_connection().invalidate()
        later = engine.raw_connection()
        detached.close()
        open_holds = guard.open_holds()
        later.close()
        engine.dispose()
        assert len(open_holds) == 1


def test_a_notice_that_became_a_leak_is_resolved_with_it(
    guard: LeakGuard, recorder: Recorder, engine: Engine
) -> None:
    """As the reference says, either finding is resolved when the connection comes back."""
    taken: list[Session] = []
    with guard.scope("job"):
        worker = Worker(contextvars.copy_context())
        worker.do(lambda: taken.append(Session(engine)))
        worker.do(lambda: taken[0].execute(QUERY))
    worker.end()
    drain_watch()
    taken[0].close()
    drain_watch()
    assert recorder.kinds == [FindingKind.OUTLIVES_SCOPE, FindingKind.LEAKED]
    assert [finding.resolved for finding in recorder.findings] == [True, True]
