"""Every scenario comes to its verdict, with every driver; those that are clean, in every mode."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from leakguard.core.settings import Mode
from tests.scenarios.databases import Database, Databases, Driver, Unavailable
from tests.scenarios.rows import SCENARIOS
from tests.scenarios.suite import COPIES, Scenario, observe

MODES = [Mode.PRODUCTION, Mode.DEVELOPMENT, Mode.TESTING]


def cases(scenarios: list[Scenario]) -> list[Any]:
    """List every scenario with each of its drivers."""
    return [
        pytest.param(one, driver, id=f"{one.name}-{driver.name}")
        for one in scenarios
        for driver in one.drivers
    ]


@pytest.fixture
def database(databases: Databases, driver: Driver) -> Database:
    """Return the database that the driver of the test is for."""
    try:
        return databases.of(driver)
    except Unavailable as reason:
        pytest.skip(str(reason))


@pytest.mark.parametrize("one, driver", cases([one for one in SCENARIOS if not one.clean]))
def test_a_leak_is_found(one: Scenario, driver: Driver, database: Database) -> None:
    """Exactly the expected findings are made, with their lines, routes and statuses."""
    assert observe(one, driver, database) == one.all_expected()


@pytest.mark.parametrize("mode", MODES, ids=[mode.value for mode in MODES])
@pytest.mark.parametrize("one, driver", cases([one for one in SCENARIOS if one.clean]))
def test_what_is_clean_is_left_in_peace(
    one: Scenario,
    driver: Driver,
    database: Database,
    mode: Mode,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Nothing is found and nothing is logged, whatever the mode."""
    with caplog.at_level(logging.DEBUG, "leakguard"):
        assert observe(one, driver, database, mode=mode) == []
    assert [record for record in caplog.records if record.name == "leakguard"] == []


@pytest.mark.parametrize(
    "one, driver", cases([one for one in SCENARIOS if one.clean and one.crowd])
)
def test_what_is_clean_is_left_in_peace_in_a_crowd(
    one: Scenario, driver: Driver, database: Database
) -> None:
    """Nothing is found where many requests are made to a real server at once."""
    assert observe(one, driver, database, mode=Mode.PRODUCTION, copies=COPIES) == []
