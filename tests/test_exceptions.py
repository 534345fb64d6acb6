"""Errors say what happened and survive being sent to another process."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.orm import Session

from leakguard import ConnectionLeakError, LeakGuard, LeakGuardError, SettingsError
from tests.core.fakes import make_finding


class Unprintable:
    """A value whose `repr` raises."""

    def __repr__(self) -> str:
        raise RuntimeError("no words")


def test_a_value_that_cannot_be_shown_is_named_by_its_type() -> None:
    """A user's broken `repr` does not hide the message."""
    error = SettingsError("mode", Unprintable(), "it is a mode")
    assert str(error) == "mode=<a Unprintable whose repr raises> is not allowed: it is a mode"


@pytest.mark.parametrize(
    "value, shown",
    [
        ("postgresql://app:hunter2@db/orders", "'postgresql://..."),
        ("postgresql://app:hun@t/er2@db/orders", "'postgresql://..."),
        ("postgresql://db/orders?user=app&password=hunter2", "'postgresql://..."),
        ("host=db PASSWORD=hunter2\nuser=app", "'host=db PASSWORD..."),
        ({"main": "mysql://app:hunter2@db"}, "{'main': 'mysql://..."),
        ({"user": "app", "password": "hunter2"}, "{'user': 'app', 'password..."),
    ],
)
def test_no_password_is_shown(value: object, shown: str) -> None:
    """A connection string in place of an engine, or of anything else, is a likely mistake."""
    assert str(SettingsError("engines", value, "it is a list")) == (
        f"engines={shown} is not allowed: it is a list"
    )


def test_a_settings_error_can_be_pickled() -> None:
    """The error of a worker process reaches its parent whole."""
    error = pickle.loads(pickle.dumps(SettingsError("frames", 0, "it is 1 or more")))  # noqa: S301  (our own)
    assert (error.setting, error.value, error.allowed) == ("frames", 0, "it is 1 or more")


def test_a_settings_error_can_be_pickled_whatever_the_value() -> None:
    """A function of the user's cannot be sent; the message is the same."""
    error = SettingsError("late_after", lambda: 1, "it is a number")
    sent = pickle.loads(pickle.dumps(error))  # noqa: S301  (our own)
    assert str(sent) == str(error)
    assert (sent.setting, sent.value, sent.allowed) == (
        "late_after",
        repr(error.value),
        "it is a number",
    )


def test_a_leak_error_can_be_pickled(tmp_path: Path) -> None:
    """What it found in a worker process is told by its parent word for word."""
    engine = create_engine(f"sqlite:///{tmp_path / 'test.db'}")
    with LeakGuard(mode="testing") as guard:
        assert guard.history is not None
        with guard.scope("job"):
            session = Session(engine)
            session.execute(text("SELECT 1"))
        error = sent = ConnectionLeakError(guard.history.findings)
        for _ in range(2):  # from a worker's worker, too
            sent = pickle.loads(pickle.dumps(sent))  # noqa: S301  (our own)
    ((finding,), (original,)) = sent.findings, error.findings
    assert str(sent) == str(error) == str(finding)
    assert finding.to_dict() == original.to_dict()
    assert (finding.hold, finding.scope) == (None, None)
    for name in ("kind", "severity", "pool", "hint", "evidence", "usage", "fingerprint", "count"):
        assert getattr(finding, name) == getattr(original, name)
    session.close()
    engine.dispose()


def test_a_leak_error_can_be_copied() -> None:
    """With its findings, and not letter by letter."""
    finding = make_finding()
    error = copy.copy(ConnectionLeakError([finding]))
    assert error.findings == (finding,)
    assert str(error) == str(finding)


def test_a_leak_error_carries_its_findings() -> None:
    """The message is the reports, one after the other."""
    findings = [make_finding(), make_finding()]
    error = ConnectionLeakError(findings)
    assert isinstance(error, LeakGuardError)
    assert error.findings == tuple(findings)
    assert str(error).count("leaked: ") == 2
