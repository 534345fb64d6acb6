"""Fixtures for the tests of the sources."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine

from tests.sources.pools import POOLS, make_engine


@pytest.fixture(params=POOLS, ids=lambda pool: pool.__name__)
def any_engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Engine]:
    """Return an engine with a pool of every class."""
    engine = make_engine(tmp_path, request.param)
    yield engine
    engine.dispose()


@pytest.fixture
def collected_before() -> None:
    """Collect what other tests left, so that it is not collected in the middle of one."""
    gc.collect()
