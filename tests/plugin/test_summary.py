"""What a run says at its end: on the terminal, to machines, to GitHub."""

from __future__ import annotations

import json

import pytest

from leakguard.testing.describe import leak_of
from leakguard.testing.leaks import Leaks
from leakguard.testing.summary import lines, title, workflow_commands
from tests.core.fakes import make_finding
from tests.plugin.conftest import PRELUDE, Run, Write, ended

TESTS = """
@pytest.mark.parametrize("number", range(5))
def test_leaks(number): take()
def test_other():
    session = Session(engine)
    session.execute(text("select 1"))
    kept.append(session)
def test_both(request):
    take()
    test_other()
def test_behaves(): behave()
"""


def test_equal_leaks_are_one(write: Write, run: Run) -> None:
    """Over the whole run: how many tests, how many leaks, and which tests each has."""
    write(TESTS)
    result = run("--leakguard=error")
    ended(result, failed=7, passed=1)
    result.stdout.fnmatch_lines(
        [
            "*leakguard: 7 tests, 2 distinct leaks*",
            "leaked: test_suite.py::test_leaks[[]0[]] *",
            "  at   prelude.py:10 in take",
            "  fix  *",
            "  6 tests: test_suite.py::test_leaks[[]0[]], *[[]1[]], *[[]2[]] and 3 more *",
            "leaked: test_suite.py::test_other *",
            "  at   test_suite.py:6 in test_other",
            "  fix  *",
            "  2 tests: test_suite.py::test_other, test_suite.py::test_both *",
        ]
    )


def test_a_run_without_leaks_says_nothing(write: Write, run: Run) -> None:
    """As a run without warnings does."""
    write("def test_behaves(): behave()")
    result = run("--leakguard=error")
    ended(result, passed=1)
    result.stdout.no_fnmatch_line("*leakguard: *")
    write("def test_behaves(): behave()\ndef test_leaks(): take()")
    result = run("--leakguard=error")
    ended(result, passed=1, failed=1)
    result.stdout.fnmatch_lines(["*leakguard: 1 test, 1 distinct leak*"])


def test_the_report_for_machines(write: Write, run: Run, pytester: pytest.Pytester) -> None:
    """Has every leak, with all its tests and facts."""
    write(TESTS)
    ended(run("--leakguard=warn", "--leakguard-report=leaks.json"), passed=8, warnings=8)
    report = json.loads((pytester.path / "leaks.json").read_text())
    assert report["leakguard_report"] == 1
    assert report["reaction"] == "warn"
    assert report["tests_run"] == 8
    first, second = report["leaks"]
    assert first["count"] == len(first["tests"]) == 6
    assert second["tests"] == ["test_suite.py::test_other", "test_suite.py::test_both"]
    assert first["known"] is False
    assert first["fingerprint"] == first["finding"]["fingerprint"]
    assert first["finding"]["created_at"]["function"] == "take"


def test_the_report_of_a_run_without_leaks(
    write: Write, run: Run, pytester: pytest.Pytester
) -> None:
    """Is written, too: a file that is missing means that something went wrong."""
    for suite, number in (
        ("def test_behaves(): behave()\n", 0),
        ("def test_leaks(): take()\n", 1),
        ("def test_behaves(): behave()\ndef test_too(): behave()\n", 0),  # over the last one
    ):
        write(suite)
        run("--leakguard=error", "--leakguard-report=leaks.json")
        report = json.loads((pytester.path / "leaks.json").read_text())
        assert len(report["leaks"]) == number
        assert report["tests_run"] == suite.count("def ")


@pytest.mark.parametrize("reaction, level", [("warn", "warning"), ("error", "error")])
def test_github_shows_each_leak_at_its_line(
    write: Write, run: Run, monkeypatch: pytest.MonkeyPatch, reaction: str, level: str
) -> None:
    """Once, by the commands that its runners read."""
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    write(TESTS)
    result = run(f"--leakguard={reaction}")
    result.stdout.fnmatch_lines(
        [
            f"::{level} file=prelude.py,line=10,title=connection leak::leaked: *%0Afix: *%0A6 *",
            f"::{level} file=test_suite.py,line=6,title=connection leak::leaked: *",
        ]
    )
    assert result.stdout.str().count("title=connection leak") == 2


def test_github_finds_the_file_wherever_pytest_runs(
    write: Write, run: Run, monkeypatch: pytest.MonkeyPatch, pytester: pytest.Pytester
) -> None:
    """By its place in the repository. The level is that of the test."""
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_WORKSPACE", str(pytester.path.parent))
    write("@pytest.mark.leakguard('error')\ndef test_leaks(): take()\n")
    run().stdout.fnmatch_lines([f"::error file={pytester.path.name}/prelude.py,line=10,*"])


def test_elsewhere_nobody_sees_these_commands(
    write: Write, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They mean nothing on a terminal."""
    monkeypatch.delenv("GITHUB_ACTIONS", raising=False)
    write(TESTS)
    result = run("--leakguard=error")
    ended(result, failed=7, passed=1)
    result.stdout.no_fnmatch_line("*title=connection leak*")


def test_a_leak_of_an_unknown_line_has_no_place() -> None:
    """As of a line in a library, where there is none of the user's."""
    leaks = Leaks()
    leak = leak_of(make_finding(), known=False, fails=True)
    leak["file"] = leak["line"] = leak["function"] = None
    leak["headline"] = "100 % leaked"
    leaks.add("", [leak])
    assert title(leaks) == "1 distinct leak"
    assert list(lines(leaks, [])) == [
        "100 % leaked",
        f"  fix  {leak['fix']}",
        f"  found when no test ran [{leak['fingerprint']}]",
    ]
    [command] = workflow_commands(leaks)
    assert command.startswith("::error title=connection leak::100 %25 leaked%0Afix: ")


def test_a_doctest_has_no_file_to_annotate(
    pytester: pytest.Pytester, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The report names the example."""
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    pytester.makepyfile(
        prelude=PRELUDE, test_suite='"""\n>>> from prelude import *\n>>> take()\n"""'
    )
    pytester.makepyfile(
        inline='"""\n>>> from prelude import *\n>>> kept.append(engine.connect())\n"""'
    )
    result = run("--leakguard=error", "--doctest-modules")
    ended(result, failed=2)
    result.stdout.fnmatch_lines(["  checked out       <doctest inline[[]1[]]>:1 in <module>"])
    result.stdout.fnmatch_lines_random(
        [
            "::error title=connection leak::leaked: inline.py::inline *",
            "::error file=prelude.py,line=10,title=connection leak::leaked: test_suite.py::*",
        ]
    )
