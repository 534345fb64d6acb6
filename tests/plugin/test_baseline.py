"""A suite that has leaks today can begin with those that are new."""

from __future__ import annotations

import gc
import json
import os

import pytest

from tests.plugin.conftest import ITS_OWN_WAY, Run, Write, ended

OLD = "def test_old(): take()\n"
OTHER = """
def test_other():
    session = Session(engine)
    session.execute(text("select 1"))
    kept.append(session)
"""
NEW = "def test_new(): engine.raw_connection()\n"
BASELINE = ("--leakguard=error", "--leakguard-baseline=known.json")


def known(pytester: pytest.Pytester) -> list[list[str]]:
    """Return the tests of each leak in the file."""
    content = json.loads((pytester.path / "known.json").read_text())
    return sorted(leak["tests"] for leak in content["leaks"])


def test_what_is_known_does_not_fail(write: Write, run: Run, pytester: pytest.Pytester) -> None:
    """Only what is new does, until that is known, too."""
    write(OLD + OTHER)
    result = run(*BASELINE, "--leakguard-update-baseline")
    ended(result, passed=2)
    result.stdout.fnmatch_lines(["*known.json: 2 known leaks"])
    assert known(pytester) == [["test_suite.py::test_old"], ["test_suite.py::test_other"]]
    result = run(*BASELINE)
    ended(result, passed=2)
    result.stdout.fnmatch_lines(
        ["*leakguard: no new leaks*", "2 leaks of the baseline, in 2 tests"]
    )
    write(OLD + OTHER + NEW)
    result = run(*BASELINE)
    ended(result, passed=2, failed=1)
    result.stdout.fnmatch_lines(["*leakguard: 1 test, 1 distinct leak*", "reclaimed: *"])


def test_what_is_known_is_no_warning(write: Write, run: Run) -> None:
    """Where leaks are warnings."""
    write(OLD)
    run(*BASELINE, "--leakguard-update-baseline")
    write(OLD + NEW)
    result = run("--leakguard=warn", "--leakguard-baseline=known.json")
    ended(result, passed=2, warnings=1)
    result.stdout.fnmatch_lines(["*ConnectionLeakWarning: reclaimed: *"])


def test_what_is_gone_is_told(write: Write, run: Run, pytester: pytest.Pytester) -> None:
    """If a test ran that used to leak; and it is taken out when the file is updated."""
    write(OLD + OTHER)
    run(*BASELINE, "--leakguard-update-baseline")
    write("def test_old(): behave()\n" + OTHER)
    result = run(*BASELINE)
    ended(result, passed=2)
    result.stdout.fnmatch_lines(["gone: leaked: test_suite.py::test_old *"])
    result = run(*BASELINE, "-k", "other")
    result.stdout.no_fnmatch_line("gone: *")
    run(*BASELINE, "--leakguard-update-baseline")
    assert known(pytester) == [["test_suite.py::test_other"]]
    assert run(*BASELINE).ret == pytest.ExitCode.OK


def test_a_part_of_the_suite_updates_its_part(
    write: Write, run: Run, pytester: pytest.Pytester
) -> None:
    """What other tests leak stays known."""
    write(OLD + OTHER + "def test_older(): take()\n")
    run(*BASELINE, "--leakguard-update-baseline")
    run(*BASELINE, "--leakguard-update-baseline", "-k", "test_older")
    assert known(pytester) == [
        ["test_suite.py::test_old", "test_suite.py::test_older"],
        ["test_suite.py::test_other"],
    ]


def test_it_does_not_matter_when_the_collector_came(write: Write, run: Run) -> None:
    """A leak that it gave back before the end of the test is the one that is known."""
    write(
        "import gc\n"
        "def take():\n"
        "    session = Session(engine)\n"
        "    session.execute(text('select 1'))\n"
        "def test_leaks():\n"
        "    take()\n"
        "    if gc.isenabled(): gc.collect()\n"
    )
    gc.disable()
    try:
        run(*BASELINE, "--leakguard-update-baseline")
    finally:
        gc.enable()
    result = run(*BASELINE)
    ended(result, passed=1)
    result.stdout.fnmatch_lines(["1 leak of the baseline, in 1 test"])


def test_a_line_that_moves_is_still_known(write: Write, run: Run) -> None:
    """The leak is known by its function, and its line within."""
    write(OTHER)
    run(*BASELINE, "--leakguard-update-baseline")
    write("# a comment\n\n" + OTHER)
    result = run(*BASELINE)
    ended(result, passed=1)
    result.stdout.fnmatch_lines(["1 leak of the baseline, in 1 test"])
    write(OTHER.replace("():", "():\n    behave()"))
    ended(run(*BASELINE), failed=1)


def test_what_a_fixture_no_longer_leaks_is_gone_too(write: Write, run: Run) -> None:
    """It ran, and so it is known."""
    fixture = "@pytest.fixture(scope='module')\ndef wide():\n    {}()\ndef test_one(wide): pass\n"
    write(fixture.format("take"))
    run(*BASELINE, "--leakguard-update-baseline")
    ended(run(*BASELINE), passed=1)
    write(fixture.format("behave"))
    result = run(*BASELINE)
    ended(result, passed=1)
    result.stdout.fnmatch_lines(["gone: leaked: module fixture wide *"])


MARKED = "@pytest.mark.{}\n{}"
FAILING = "def test_other(): assert False\n"


@pytest.mark.parametrize("workers", ["-pno:xdist", "-n1"])
@pytest.mark.parametrize("conftest", ["", ITS_OWN_WAY], ids=["", "another plugin"])
def test_a_test_that_is_skipped_says_nothing(
    write: Write, run_apart: Run, pytester: pytest.Pytester, conftest: str, workers: str
) -> None:
    """Nor does one that fails, or may: it might have leaked. One that passes does."""
    pytester.makeconftest(conftest)
    write(OLD + OTHER)
    run_apart(*BASELINE, workers, "--leakguard-update-baseline")
    for quiet in (MARKED.format("skip", OLD), MARKED.format("xfail", OLD)):
        write(quiet + FAILING)
        result = run_apart(*BASELINE, workers)
        result.stdout.fnmatch_lines(["*1 failed, 1 *"])
        result.stdout.no_fnmatch_line("gone: *")
    write(OLD.replace("take", "behave") + FAILING)
    result = run_apart(*BASELINE, workers)
    result.stdout.fnmatch_lines(["gone: leaked: test_suite.py::test_old *"])
    assert result.stdout.str().count("gone: ") == 1


def test_a_test_that_is_repaired_is_taken_out(
    write: Write, run: Run, pytester: pytest.Pytester
) -> None:
    """Though another one makes the same leak."""
    write(OLD + "def test_older(): take()\n")
    run(*BASELINE, "--leakguard-update-baseline")
    write(OLD + "def test_older(): behave()\n")
    run(*BASELINE, "--leakguard-update-baseline")
    assert known(pytester) == [["test_suite.py::test_old"]]


def test_it_is_named_by_the_ini_file(write: Write, run: Run, pytester: pytest.Pytester) -> None:
    """It lies beside that file, wherever pytest is started."""
    pytester.makeini("[pytest]\nleakguard = error\nleakguard_baseline = known.json\n")
    write(OLD)
    run("--leakguard-update-baseline")
    assert known(pytester) == [["test_suite.py::test_old"]]
    elsewhere = pytester.mkdir("elsewhere")
    os.chdir(elsewhere)
    result = run("..")
    ended(result, passed=1)
    result.stdout.fnmatch_lines(["1 leak of the baseline, in 1 test"])
    ended(run("--leakguard=off", ".."), passed=1)


def test_the_option_wins_over_the_ini_file(
    write: Write, run: Run, pytester: pytest.Pytester
) -> None:
    """It names a file from where pytest is started; the setting alone has no effect, and may."""
    pytester.makeini("[pytest]\nleakguard_baseline = no.json\n")
    write(OLD)
    ended(run(), passed=1)
    elsewhere = pytester.mkdir("elsewhere")
    os.chdir(elsewhere)
    run(*BASELINE, "--leakguard-update-baseline", "..")
    assert [path.name for path in pytester.path.rglob("*.json")] == ["known.json"]
    assert (elsewhere / "known.json").is_file()


def test_github_shows_no_leak_that_is_known(
    write: Write, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor does the summary describe it again."""
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    write(OLD)
    run(*BASELINE, "--leakguard-update-baseline")
    write(OLD + NEW)
    result = run(*BASELINE)
    ended(result, passed=1, failed=1)
    assert result.stdout.str().count("title=connection leak") == 1
    result.stdout.no_fnmatch_line("leaked: *")


def test_it_is_written_without_a_terminal(
    write: Write, run: Run, pytester: pytest.Pytester
) -> None:
    """That is where it is told."""
    write(OLD)
    run(*BASELINE, "--leakguard-update-baseline", "-pno:terminal")
    assert known(pytester) == [["test_suite.py::test_old"]]
