"""Fixtures that every test may use."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator
from contextlib import contextmanager, nullcontext
from importlib.util import find_spec
from pathlib import Path

import pytest
from sqlalchemy import Engine, create_engine

from leakguard import LeakGuard
from leakguard.core.faults import FAULTS
from leakguard.sources.sqlalchemy import SQLALCHEMY
from leakguard.testing.plugin import LeakPlugin
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
    "test_benchmarks.py",
]
"""Tests that are left out where Starlette is alone, as in some environments of scripts/matrix."""

collect_ignore = [] if find_spec("fastapi") else NEED_FASTAPI

PLANT_LEAKS = (
    "applications/",
    "core/",
    "endurance/",
    "faults/",
    "load/",
    "model/",
    "observers/test_log_formats.py",
    "observers/test_opentelemetry.py",
    "observers/test_prometheus.py",
    "plugin/",
    "scenarios/",
    "sources/test_activity.py",
    "sources/test_asgi.py",
    "sources/test_async_pools.py",
    "sources/test_census.py",
    "sources/test_checkouts.py",
    "sources/test_collector.py",
    "sources/test_engines.py",
    "sources/test_install.py",
    "sources/test_ledger.py",
    "sources/test_ownership.py",
    "sources/test_reconnect.py",
    "sources/test_sessions.py",
    "sources/test_waits.py",
    "sources/test_ways_back.py",
    "test_exceptions.py",
    "test_wiring.py",
)
"""Tests that leak on purpose, under the eyes of guards of their own. With `--leakguard=error` the
plugin stands aside for them, and has the others fail that leak without meaning to. What need not be
here must not: test_planted.py."""

WATCHED = os.environ.get("LEAKGUARD_WATCH_PLANTED")
"""The one entry that is not believed, by test_planted.py, to find out whether it is needed."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that plant leaks."""
    tests = Path(__file__).parent
    planted = tuple(entry for entry in PLANT_LEAKS if entry != WATCHED)
    for item in items:
        if str(item.path.relative_to(tests)).startswith(planted):
            item.add_marker("plants_leaks")
            item.add_marker(pytest.mark.leakguard("off"))


@pytest.fixture(autouse=True)
def nothing_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """Let no test see the guards or the faults of another one."""
    FAULTS.forget()
    planted = request.node.get_closest_marker("plants_leaks") is not None
    with plugin_aside(request.config) if planted else nullcontext():
        before = SQLALCHEMY.guards
        yield
        for guard in SQLALCHEMY.guards:
            if guard not in before:
                guard.uninstall()
        SQLALCHEMY.tidy()


@contextmanager
def plugin_aside(config: pytest.Config) -> Generator[None]:
    """Have the plugin watch nothing in the block, if it does: a guard wants to be the only one."""
    plugins = config.pluginmanager.get_plugins()
    plugin = next((one for one in plugins if isinstance(one, LeakPlugin)), None)
    with nullcontext() if plugin is None else plugin.watch.paused():
        yield


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
