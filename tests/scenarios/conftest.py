"""Databases that are started once for all scenarios."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.register_assert_rewrite(
    "tests.scenarios.lab", "tests.scenarios.suite", "tests.scenarios.rows"
)

from tests.scenarios.databases import Databases  # noqa: E402  (rewritten by then)


@pytest.fixture(scope="session")
def databases() -> Iterator[Databases]:
    """Return the databases of the run; each is started when it is first asked for."""
    # Not in pytest's folder: every run that starts closes it to all but its own user, and
    # PostgreSQL does not run as root.
    with tempfile.TemporaryDirectory() as folder, Databases(Path(folder)) as databases:
        yield databases
