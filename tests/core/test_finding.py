"""A fingerprint names the mistake, in every process and after a restart."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import CodeType

import pytest

from leakguard import ConnectionLeakError, FindingKind, Severity
from leakguard.core import finding as finding_module
from leakguard.core.callsite import CallSite
from leakguard.core.finding import fingerprint
from tests.core.fakes import make_finding, site_at

SOURCE = """
def get_db():
    db = connect()
    yield db
"""


def site(source: str, file: Path, line_in_function: int = 1) -> CallSite:
    """Return the call site of a line of the function in `source`."""
    module = compile(source, str(file), "exec")
    code = next(const for const in module.co_consts if isinstance(const, CodeType))
    line = code.co_firstlineno + line_in_function
    offset = next(start for start, _, number in code.co_lines() if number == line)
    return CallSite(((code, offset),))


def print_of(source: str, file: Path, line: int = 1) -> str:
    return fingerprint(FindingKind.LEAKED, site(source, file, line), None)


def test_it_survives_another_folder_and_an_edit_above(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the project lies, and what stands above the function, is no part of it."""
    here, there = tmp_path / "here", tmp_path / "there"
    monkeypatch.setattr(sys, "path", [str(here), str(there)])
    original = print_of(SOURCE, here / "app" / "db.py")
    assert print_of(SOURCE, there / "app" / "db.py") == original
    assert print_of("import os\n\n" + SOURCE, here / "app" / "db.py") == original


def test_it_tells_mistakes_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another line, file, function, kind or checkout is another mistake."""
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    file = tmp_path / "db.py"
    here = site(SOURCE, file)
    prints = {
        fingerprint(FindingKind.LEAKED, here, None),
        fingerprint(FindingKind.LEAKED, here, here),
        fingerprint(FindingKind.LEAKED, None, here),
        fingerprint(FindingKind.RECLAIMED, here, None),
        print_of(SOURCE, file, 2),
        print_of(SOURCE, tmp_path / "other.py"),
        print_of(SOURCE.replace("get_db", "get_session"), file),
    }
    assert len(prints) == 7


def test_it_is_the_same_in_another_process() -> None:
    """No random hash is part of it, and no version of leakguard: people write it down."""
    code = (
        "from leakguard import FindingKind\n"
        "from leakguard.core.finding import fingerprint\n"
        "print(fingerprint(FindingKind.LEAKED, None, None))"
    )
    out = subprocess.run(  # noqa: S603  (our own code)
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    assert out.stdout.strip() == fingerprint(FindingKind.LEAKED, None, None) == "85c0ad359106a49f"


def test_severities() -> None:
    """What lost a connection is an error, and what waited for one in vain."""
    errors = [kind for kind in FindingKind if kind.severity is Severity.ERROR]
    assert errors == [FindingKind.LEAKED, FindingKind.RECLAIMED, FindingKind.POOL_EXHAUSTED]


def test_a_finding_knows_whether_it_is_resolved() -> None:
    """By the description of how."""
    finding = make_finding()
    assert finding.severity is Severity.ERROR
    assert not finding.resolved
    finding.resolution = "given back"
    assert finding.resolved
    assert str(ConnectionLeakError([finding])) == str(finding)


def test_the_names_of_lines_are_remembered_up_to_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """A program may generate code without end; a name that was forgotten is found again."""
    monkeypatch.setattr("leakguard.core.finding._positions", {})
    monkeypatch.setattr("leakguard.core.finding._POSITIONS_LIMIT", 2)
    sites = [site_at("app/items.py", line, "read_item") for line in (1, 2, 3)]
    prints = [fingerprint(FindingKind.LEAKED, None, site) for site in sites]
    assert prints == [fingerprint(FindingKind.LEAKED, None, site) for site in sites]
    assert len(finding_module._positions) <= 2  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]  # to count
