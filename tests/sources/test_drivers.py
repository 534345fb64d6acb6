"""What drivers tell without a round trip, by stand-ins of each driver's shape."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from leakguard.sources.sqlalchemy.drivers import backend_pid, driver_in_transaction


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
