"""What drivers tell without a round trip, by stand-ins of each driver's shape."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from leakguard.sources.sqlalchemy.drivers import (
    backend_pid,
    driver_in_transaction,
    is_active,
    listens,
    read_position,
)


class Dead:
    """A connection that raises whatever a driver's connection is asked."""

    @property
    def info(self) -> Any:
        raise OSError("connection lost")

    in_transaction = get_server_pid = thread_id = get_backend_pid = info


@pytest.mark.parametrize(
    "connection, pid",
    [
        (SimpleNamespace(info=SimpleNamespace(backend_pid=11)), 11),
        (SimpleNamespace(get_server_pid=lambda: 12), 12),
        (SimpleNamespace(thread_id=lambda: 13), 13),
        (SimpleNamespace(get_backend_pid=lambda: 14), 14),
        (SimpleNamespace(thread_id=lambda: "no number"), None),
        (SimpleNamespace(), None),
        (Dead(), None),
        (None, None),
    ],
    ids=["psycopg", "asyncpg", "PyMySQL", "psycopg2", "odd", "another", "dead", "none"],
)
def test_the_server_s_process(connection: object, pid: int | None) -> None:
    """Each driver has its own way to say it, and many have none."""
    assert backend_pid(connection) == pid


@pytest.mark.parametrize(
    "connection, state",
    [
        (SimpleNamespace(in_transaction=True), True),
        (SimpleNamespace(in_transaction=False), None),
        (SimpleNamespace(in_transaction=lambda: True), None),
        (Dead(), None),
        (None, None),
    ],
)
def test_an_open_transaction(connection: object, state: bool | None) -> None:
    """Only a plain yes counts: SQLAlchemy begins earlier than SQLite's driver."""
    assert driver_in_transaction(connection) is state


@pytest.mark.parametrize(
    "connection, active",
    [
        (SimpleNamespace(pgconn=SimpleNamespace(transaction_status=1)), True),
        (SimpleNamespace(pgconn=SimpleNamespace(transaction_status=2)), False),
        (SimpleNamespace(get_transaction_status=lambda: 1), True),
        (SimpleNamespace(get_transaction_status=lambda: 0), False),
        (Dead(), False),
        (SimpleNamespace(get_transaction_status=lambda: True), False),
        (None, False),
    ],
    ids=["psycopg", "psycopg-idle", "psycopg2", "psycopg2-idle", "dead", "aiomysql", "none"],
)
def test_a_command_that_runs(connection: object, active: bool) -> None:
    """The drivers on libpq know; of another one, a method of the same name says something else."""
    assert is_active(connection) is active


@pytest.mark.parametrize(
    "connection, listening",
    [
        (SimpleNamespace(_listeners={"orders": {print}}), True),
        (SimpleNamespace(_listeners={}), False),
        (Dead(), False),
        (None, False),
    ],
    ids=["asyncpg", "asyncpg-idle", "dead", "none"],
)
def test_who_waits_for_notifications(connection: object, listening: bool) -> None:
    """Of a connection that listens nobody expects statements."""
    assert listens(connection) is listening


def test_the_position_of_a_cursor() -> None:
    """It changes when rows are read, of the cursor or of the one that it adapts."""
    inner = SimpleNamespace(rownumber=1)
    adapted = SimpleNamespace(_cursor=inner)
    before = read_position(adapted)
    assert read_position(adapted) == before
    inner.rownumber = 2
    assert read_position(adapted) != before


def test_where_a_driver_does_not_tell_there_is_no_position() -> None:
    """Nothing is made up."""
    assert read_position(None) is None
    assert read_position(SimpleNamespace(_cursor=None)) is None
