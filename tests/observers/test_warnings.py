"""A leak is a Python warning on the user's line."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from leakguard import ConnectionLeakWarning, FindingKind, Warnings
from tests.core.fakes import construct, make_finding, make_guard, site_at, take

ROOT = Path(__file__).parents[2]
SCRIPT = """
from sqlalchemy import create_engine, text
from sqlalchemy.orm import Session
from leakguard import LeakGuard

engine = create_engine("sqlite://")

def get_db():
    return Session(engine)  # leak

guard = LeakGuard(mode="development").install()
for _ in range(2):
    with guard.scope("job"):
        db = get_db()
        db.execute(text("SELECT 1"))
    db.close()
print("still running")
"""


def run_script(tmp_path: Path, *arguments: str) -> tuple[str, str, int]:
    script = tmp_path / "job.py"
    script.write_text(SCRIPT)
    out = subprocess.run(  # noqa: S603  (our own code)
        [sys.executable, *arguments, str(script)],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": ""},
    )
    line = SCRIPT.splitlines().index("    return Session(engine)  # leak") + 1
    return out.stdout, out.stderr, line


@pytest.mark.parametrize("arguments", [[], ["-W", "error::RuntimeWarning"]], ids=["plain", "error"])
def test_it_is_shown_on_the_line_that_constructs(tmp_path: Path, arguments: list[str]) -> None:
    """Once, under Python's default filters, and where warnings are errors without raising one."""
    out, err, line = run_script(tmp_path, *arguments)
    assert out == "still running\n"
    assert err.count(f"{tmp_path / 'job.py'}:{line}: ConnectionLeakWarning: leaked: job") == 1
    assert "get_db constructs the session and does not close it" in err
    assert "return Session(engine)  # leak" in err


def test_it_is_shown_after_python_c() -> None:
    """The text on the command line is the user's, too."""
    out = subprocess.run(  # noqa: S603  (our own code)
        [sys.executable, "-c", SCRIPT],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": ""},
    )
    line = SCRIPT.splitlines().index("    return Session(engine)  # leak") + 1
    assert out.stderr.count(f"<string>:{line}: ConnectionLeakWarning: leaked: job") == 1


def test_it_is_on_the_line_of_the_checkout_where_there_is_no_session() -> None:
    """A Core connection has only that."""
    with pytest.warns(ConnectionLeakWarning, match="did not give back") as caught:
        Warnings().found(make_finding())
    finding = make_finding()
    assert finding.hold is not None
    assert finding.hold.acquired_at is not None
    assert (caught[0].filename, caught[0].lineno) == (
        finding.hold.acquired_at.file,
        finding.hold.acquired_at.line,
    )


def test_it_prefers_the_line_of_the_construction() -> None:
    """That is the one to fix."""
    finding = make_finding()
    guard = make_guard()
    hold = take(guard, None, site_at("app/items.py", 41, "read_item"))
    hold.session = construct(guard, None, site_at("app/db.py", 12, "get_db"))
    finding.hold = hold
    with pytest.warns(ConnectionLeakWarning) as caught:
        Warnings().found(finding)
    assert caught[0].lineno == 12
    assert caught[0].filename.endswith("db.py")


def test_only_errors_with_a_line_are_warned_of(recwarn: pytest.WarningsRecorder) -> None:
    """A notice is no warning, a pool has no line, and neither has code that is nobody's."""
    observer = Warnings()
    observer.found(make_finding(FindingKind.SYNC_IN_ASYNC))
    pool = make_finding()
    pool.hold = None
    observer.found(pool)
    nobody = make_finding()
    nobody.hold = take(make_guard())
    observer.found(nobody)
    assert list(recwarn) == []


def test_once_for_each_mistake_up_to_a_bound(
    recwarn: pytest.WarningsRecorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then the log must do."""
    warnings.simplefilter("always")
    monkeypatch.setattr(Warnings, "LIMIT", 2)
    observer = Warnings()
    for name in ("a", "a", "b", "c"):
        finding = make_finding()
        finding.fingerprint = name
        observer.found(finding)
    # Python 3.13 may warn meanwhile of connections of earlier tests that are collected.
    assert sum(one.category is ConnectionLeakWarning for one in recwarn) == 2


def test_a_filter_that_makes_it_an_error_raises_nothing() -> None:
    """The request that would get the exception did nothing wrong: it is shown all the same."""
    finding = make_finding()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("error")
        Warnings().found(finding)
    assert finding.hold is not None
    assert finding.hold.acquired_at is not None
    assert [(one.filename, one.lineno) for one in caught] == [
        (finding.hold.acquired_at.file, finding.hold.acquired_at.line)
    ]
