"""The table of open holds, in code and by a signal."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

import pytest

from leakguard.core.guard import Guard
from leakguard.core.table import OpenHolds
from leakguard.exceptions import SettingsError
from tests.core.fakes import construct, installed, make_guard, site_at, take
from tests.support import drain_watch


@pytest.fixture
def guard() -> Iterator[Guard]:
    guard = installed()
    yield guard
    guard.uninstall()


@pytest.fixture(autouse=True)
def handler_restored() -> Iterator[None]:
    before = signal.getsignal(signal.SIGUSR2)
    yield
    signal.signal(signal.SIGUSR2, before)


def test_the_open_holds_are_a_tuple_and_a_table(guard: Guard) -> None:
    """The columns are as wide as what is in them."""
    with guard.scope("nightly import") as scope:
        hold = take(guard, scope, site_at("app/items.py", 41, "read_item"))
        hold.session = construct(guard, None, site_at("app/db.py", 12, "get_db"))
        hold.used_monotonic = hold.acquired_monotonic - 60
        hold.acquired_monotonic -= 90
        holds = guard.open_holds()
        assert holds == (hold, hold.session)
        lines = str(holds).splitlines()
        assert lines[0].split() == [
            *("what", "pool", "held", "idle", "in", "session", "created", "checked", "out")
        ]
        assert lines[1].startswith("connection  main  90.0 s  60.0 s  nightly import")
        assert lines[1].endswith("app/db.py:12 in get_db  app/items.py:41 in read_item")
        assert lines[2].startswith("session     ")
        assert lines[2].endswith("no request context  app/db.py:12 in get_db")
        assert len({line.index("app/db.py") for line in lines[1:]}) == 1
        hold.give_back()
    assert str(OpenHolds()) == "no open holds"


def test_a_signal_writes_the_table_to_the_log(
    guard: Guard, caplog: pytest.LogCaptureFixture
) -> None:
    """And then does what it did before."""
    came: list[tuple[int, str]] = []

    def before(number: int, frame: FrameType | None) -> None:
        assert frame is not None
        came.append((number, frame.f_code.co_filename))

    signal.signal(signal.SIGUSR2, before)
    for _ in range(2):  # asking again changes nothing
        guard.log_on_signal(signal.SIGUSR2)
    hold = take(guard)
    os.kill(os.getpid(), signal.SIGUSR2)
    drain_watch()
    assert came == [(signal.SIGUSR2, __file__)]
    [record] = caplog.records
    assert record.levelno == logging.WARNING
    assert record.getMessage().startswith(f"1 open hold in process {os.getpid()}\nwhat ")
    hold.give_back()
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    guard.log_on_signal(signal.SIGUSR2)
    os.kill(os.getpid(), signal.SIGUSR2)
    drain_watch()
    assert caplog.records[1].getMessage() == (
        f"0 open holds in process {os.getpid()}\nno open holds"
    )
    guard.uninstall()
    os.kill(os.getpid(), signal.SIGUSR2)
    drain_watch()
    assert len(caplog.records) == 2


@pytest.mark.parametrize("number", [signal.SIGKILL, 0, 10_000, "USR2", None])
def test_what_is_no_signal_is_refused(number: Any) -> None:
    """And named, with what is allowed."""
    with pytest.raises(SettingsError) as raised:
        make_guard().log_on_signal(number)
    assert raised.value.value == number
    assert str(raised.value).startswith(
        f"signalnum={number!r} is not allowed: must be a signal that can be handled, such as "
        "signal.SIGUSR2, and be set in the main thread: "
    )


def test_another_thread_may_not_ask_for_it() -> None:
    """Python lets only the main one."""
    errors: list[BaseException] = []

    def ask() -> None:
        try:
            make_guard().log_on_signal(signal.SIGUSR2)
        except SettingsError as error:
            errors.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    thread.join()
    assert "main thread" in str(errors[0])
