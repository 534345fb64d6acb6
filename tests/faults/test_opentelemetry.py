"""OpenTelemetry's instrumentation of SQLAlchemy beside the guard, installed before or after it."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine

from leakguard import LeakGuard
from tests.faults.neighbours import FIRST, come_together, finds_leaks
from tests.support import Recorder


def instrumentor() -> Any:
    """Return theirs; it is a package for tests only."""
    return pytest.importorskip("opentelemetry.instrumentation.sqlalchemy").SQLAlchemyInstrumentor()


@pytest.mark.parametrize("first", FIRST)
def test_both_watch_the_same_engine(recorder: Recorder, tmp_path: Path, first: str) -> None:
    """Each sees what it came for, and either leaves without taking the other's listeners along."""
    guard = LeakGuard(mode="testing", observers=[recorder])
    engine = create_engine(f"sqlite:///{tmp_path / 'both.db'}")
    theirs = instrumentor()
    # Their list of supported versions ends before SQLAlchemy 2.1; what they listen to is the same.
    come_together(guard, partial(theirs.instrument, engine=engine, skip_dep_check=True), first)
    finds_leaks(guard, recorder, engine)
    theirs.uninstrument()
    finds_leaks(guard, recorder, engine)
    guard.uninstall()
    engine.dispose()
