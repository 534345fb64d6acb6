"""A fault of leakguard's own is logged once and never raised."""

from __future__ import annotations

import logging

import pytest

from leakguard.core.faults import LOGGER, Faults


def test_a_fault_is_logged_once_for_every_place(caplog: pytest.LogCaptureFixture) -> None:
    """With its traceback, and what follows from it."""
    faults = Faults()
    error = ValueError("wrong")
    for place in ("the judge", "the judge", "the register"):
        faults.report(place, error, "Please report it.")
    assert [record.getMessage() for record in caplog.records] == [
        f"{place} raised ValueError; the application is not affected. Please report it."
        for place in ("the judge", "the register")
    ]
    assert [record.levelno for record in caplog.records] == [logging.ERROR] * 2
    assert caplog.records[0].exc_info is not None
    assert caplog.records[0].exc_info[1] is error


def test_another_fault_in_the_same_place_is_news(caplog: pytest.LogCaptureFixture) -> None:
    """The first one does not hide the next, up to a bound."""
    faults = Faults()
    for error in (KeyError(), ValueError(), KeyError()):
        faults.report("our judge", error, "")
    assert len(caplog.records) == 2
    for number in range(200):
        faults.report("our judge", type(f"Error{number}", (Exception,), {})(), "")
    assert len(caplog.records) == 100


def test_what_happens_once_anyway_is_logged_every_time(caplog: pytest.LogCaptureFixture) -> None:
    """Nothing is held back that was not said before about the same thing."""
    faults = Faults()
    faults.log("the observer Pager", ValueError(), "It will not be called again.")
    faults.log("the observer Pager", ValueError(), "It will not be called again.")
    assert len(caplog.records) == 2


def test_after_forgetting_everything_is_news(caplog: pytest.LogCaptureFixture) -> None:
    """As in a new process."""
    faults = Faults()
    faults.report("the judge", ValueError(), "")
    faults.forget()
    faults.report("the judge", ValueError(), "")
    assert len(caplog.records) == 2


def test_a_handler_that_raises_is_not_felt() -> None:
    """Whoever reports a fault may stand in a listener in which an exception costs a connection."""

    class Broken(logging.Handler):
        """A handler that does not keep its own errors."""

        def emit(self, record: logging.LogRecord) -> None:
            records.append(record)
            raise OSError

    records: list[logging.LogRecord] = []
    handler = Broken()
    LOGGER.addHandler(handler)
    try:
        Faults().report("the judge", ValueError(), "")
    finally:
        LOGGER.removeHandler(handler)
    assert len(records) == 1
