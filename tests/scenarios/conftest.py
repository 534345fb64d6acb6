"""Databases that are started once for all scenarios."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

pytest.register_assert_rewrite(
    "tests.scenarios.lab", "tests.scenarios.suite", "tests.scenarios.rows"
)

from tests.scenarios.databases import Databases  # noqa: E402  (rewritten by then)


@pytest.fixture(scope="session")
def databases(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Databases]:
    """Give the databases of the run; each is started when it is first asked for."""
    with Databases(tmp_path_factory.mktemp("databases")) as databases:
        yield databases
