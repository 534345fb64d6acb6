"""What holds beside any other tool that watches SQLAlchemy in the same process."""

from __future__ import annotations

import sys
from collections.abc import Callable

from sqlalchemy import Engine, text
from sqlalchemy.orm import Session

from leakguard import FindingKind, LeakGuard
from tests.support import Recorder, line_marked

FIRST = ("leakguard", "neighbour")
"""Who may be there before the other."""


def come_together(guard: LeakGuard, arrive: Callable[[], object], first: str) -> None:
    """Install the guard, and the neighbour before or after it."""
    if first == "leakguard":
        guard.install()
    arrive()
    guard.install()


def finds_leaks(guard: LeakGuard, recorder: Recorder, engine: Engine) -> None:
    """Assert that a clean job is silent, and that both leaks of the other are found exactly."""
    so_far = len(recorder.findings)
    with guard.scope("clean"), Session(engine) as closed:
        closed.execute(text("SELECT 1"))
    assert recorder.findings[so_far:] == []
    with guard.scope("leaky"):
        session = Session(engine)  # session
        session.execute(text("SELECT 2"))
    with guard.scope("leaky, too"):
        connection = engine.connect()  # connection
        connection.execute(text("SELECT 3"))
    findings = recorder.findings[so_far:]
    assert [finding.kind for finding in findings] == [FindingKind.LEAKED] * 2
    for finding, marker, number in zip(findings, ("session", "connection"), (2, 3), strict=True):
        assert finding.hold is not None
        site = finding.hold.created_at or finding.hold.acquired_at
        assert site is not None
        assert site.line == line_marked(sys.modules[__name__], marker)
        assert finding.hold.statement == f"SELECT {number}"
    session.close()
    connection.close()
    recorder.wait_for(lambda: set(findings) <= set(recorder.resolutions))
    assert guard.open_holds() == ()
