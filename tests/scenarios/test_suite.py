"""The suite itself: it is complete, it would notice a wrong verdict, and its table is right."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from leakguard import FindingKind
from tests.scenarios.accuracy import TABLE, expected, render
from tests.scenarios.databases import DRIVERS, Databases
from tests.scenarios.rows import SCENARIOS
from tests.scenarios.suite import Scenario, observe

SYNC_ONLY = {21}
"""Rows that have no asynchronous form: they are about synchronous sessions."""
ASYNC_ONLY = {6, 31}
"""Rows that have no synchronous form: about asynchronous generators, and about tasks."""


def test_every_row_has_scenarios() -> None:
    """Every row of the list is there, in both forms where both exist."""
    forms = {(one.number, one.form) for one in SCENARIOS}
    rows = range(1, 40)
    assert {row for row in rows if (row, "sync") not in forms} == ASYNC_ONLY
    assert {row for row in rows if (row, "async") not in forms} == SYNC_ONLY
    assert {number for number, _ in forms} == set(rows)


def test_names_are_unique() -> None:
    """No two scenarios have the same name."""
    assert max(Counter(one.name for one in SCENARIOS).values()) == 1


def test_every_kind_is_expected_by_a_scenario() -> None:
    """There is no kind of finding that the suite does not provoke."""
    kinds = {one.kind for scenario in SCENARIOS for one in scenario.usual}
    assert kinds == set(FindingKind)


def test_the_table_is_what_the_scenarios_expect() -> None:
    """The table of accuracy lists every scenario, every driver and the right verdicts."""
    assert TABLE.read_text() == render(expected), "run: python -m tests.scenarios"


def leak() -> Scenario:
    return next(one for one in SCENARIOS if one.name == "01-no-finally-raises-sync")


@pytest.mark.parametrize(
    "wrong",
    [
        {"created": "checkout"},
        {"acquired": "leak"},
        {"scope": "GET /"},
        {"status": 200},
        {"kind": FindingKind.RECLAIMED},
        {"resolved": True},
        {"times": 2},
    ],
    ids=lambda wrong: next(iter(wrong)),
)
def test_a_wrong_finding_is_noticed(wrong: dict[str, object], databases: Databases) -> None:
    """A finding that differs in anything is not the expected one."""
    one = leak()
    (right,) = one.usual
    other = replace(one, usual=(replace(right, **wrong),))  # type: ignore[arg-type]
    seen = observe(one, DRIVERS[0], databases.of(DRIVERS[0]))
    assert seen == one.all_expected()
    assert seen != other.all_expected()


def test_a_missing_clause_of_a_report_is_noticed(databases: Databases) -> None:
    """A report must say what the scenario wants to read in it."""
    one = leak()
    other = replace(one, usual=(replace(one.usual[0], says="something else"),))
    with pytest.raises(AssertionError, match="did not give back a connection"):
        observe(other, DRIVERS[0], databases.of(DRIVERS[0]))


def test_a_leak_is_not_clean(databases: Databases, monkeypatch: pytest.MonkeyPatch) -> None:
    """A scenario that should be clean and is not fails, whatever was found."""
    monkeypatch.setattr("tests.scenarios.lab.PATIENCE", 1.0)  # nobody gives it back
    with pytest.raises(AssertionError, match="first extra item: <Hold session from"):
        observe(replace(leak(), usual=()), DRIVERS[0], databases.of(DRIVERS[0]))
