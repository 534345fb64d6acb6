"""Fixtures that every test may use."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from sqlalchemy import Engine, create_engine

from leakguard import LeakGuard
from leakguard.core.faults import FAULTS
from leakguard.sources.sqlalchemy import SQLALCHEMY
from tests.support import Recorder

NEED_FASTAPI = [
    "applications/test_around_the_request.py",
    "applications/test_demo.py",
    "applications/test_examples.py",
    "applications/test_fastapi.py",
    "applications/test_requests.py",
    "faults/test_gunicorn.py",
    "faults/test_sentry.py",
    "observability/test_fleet.py",
    "scenarios/test_scenarios.py",
    "scenarios/test_suite.py",
    "sources/test_fastapi_routes.py",
]
"""Tests that are left out where Starlette is alone, as in some environments of scripts/matrix."""

collect_ignore = [] if find_spec("fastapi") else NEED_FASTAPI


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    """Let no test see the guards or the faults of another one."""
    FAULTS.forget()
    before = SQLALCHEMY.guards  # the plugin's, where leaks of these tests are looked for
    yield
    for guard in SQLALCHEMY.guards:
        if guard not in before:
            guard.uninstall()
    SQLALCHEMY.tidy()


@pytest.fixture
def recorder() -> Recorder:
    """Return an observer that keeps what it is told."""
    return Recorder()


@pytest.fixture
def guard(recorder: Recorder) -> Iterator[LeakGuard]:
    """Return an installed guard that tells `recorder` and is taken out after the test."""
    guard = LeakGuard(mode="testing", observers=[recorder])
    with guard:
        yield guard


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    """Return an engine on a SQLite file, with the pool that a server database would have."""
    engine = create_engine(f"sqlite:///{tmp_path / 'test.db'}", pool_logging_name="main")
    yield engine
    engine.dispose()
