"""OpenTelemetry's instrumentation of SQLAlchemy beside the guard, installed before or after it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.orm import Session

from leakguard import FindingKind, LeakGuard
from tests.support import Recorder

QUERY = text("SELECT 1")


def instrumentor() -> Any:
    """Give theirs; it is a package for tests only."""
    return pytest.importorskip("opentelemetry.instrumentation.sqlalchemy").SQLAlchemyInstrumentor()


@pytest.mark.parametrize("first", ["leakguard", "opentelemetry"])
def test_both_watch_the_same_engine(recorder: Recorder, tmp_path: Path, first: str) -> None:
    """Each sees what it came for, and either leaves without taking the other's listeners along."""
    guard = LeakGuard(mode="testing", observers=[recorder])
    engine = create_engine(f"sqlite:///{tmp_path / 'both.db'}")
    theirs = instrumentor()
    if first == "leakguard":
        guard.install()
    # Their list of supported versions ends before SQLAlchemy 2.1; what they listen to is the same.
    theirs.instrument(engine=engine, skip_dep_check=True)
    guard.install()
    with guard.scope("job"):
        with Session(engine) as session:
            session.execute(QUERY)
        leaked = engine.connect()
        leaked.execute(QUERY)
    assert recorder.kinds == [FindingKind.LEAKED]
    leaked.close()
    theirs.uninstrument()
    with guard.scope("after theirs"):
        kept = Session(engine)
        kept.execute(QUERY)
    assert recorder.kinds == [FindingKind.LEAKED] * 2
    kept.close()
    assert guard.open_holds() == ()
    guard.uninstall()
    engine.dispose()
