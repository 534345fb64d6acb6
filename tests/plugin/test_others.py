"""Beside plugins that may run a test in a way of their own, as to repeat it."""

from __future__ import annotations

import pytest

from tests.plugin.conftest import ITS_OWN_WAY, Run, Write, ended


def test_a_plugin_that_runs_the_tests_its_own_way(
    write: Write, pytester: pytest.Pytester, run: Run
) -> None:
    """As one that runs those that fail again: the leak is an error of the test's teardown."""
    pytester.makeconftest(ITS_OWN_WAY)
    write(
        "@pytest.fixture(scope='module')\n"
        "def leaky():\n"
        "    take()\n"
        "    yield\n"
        "def test_leaks(): take()\n"
        "def test_behaves(): behave()\n"
        "def test_skipped(leaky): pytest.skip('later')\n"
    )
    result = run("--leakguard=error")
    ended(result, passed=2, skipped=1, errors=2)
    result.stdout.fnmatch_lines(
        [
            "*ERROR at teardown of test_leaks*",
            "leaked: test_suite.py::test_leaks *",
            "*ERROR at teardown of test_skipped*",
            "leaked: module fixture leaky of test_suite.py *",
        ]
    )


def test_a_plugin_that_leaves_a_test_alone(
    write: Write, pytester: pytest.Pytester, run: Run
) -> None:
    """That test fails in its own right, as it does without the plugin."""
    pytester.makeconftest(ITS_OWN_WAY)
    write("def test_idle_leaks(): take()\ndef test_idle(): behave()\ndef test_behaves(): behave()")
    result = run("--leakguard=error")
    ended(result, passed=2, failed=1)
    result.stdout.fnmatch_lines(["*leakguard: 1 test, 1 distinct leak*"])


def test_what_a_teardown_fails_by_is_not_lost(
    write: Write, pytester: pytest.Pytester, run: Run
) -> None:
    """The leak is in the summary."""
    pytester.makeconftest(ITS_OWN_WAY)
    write(
        "@pytest.fixture\n"
        "def broken():\n"
        "    yield\n"
        "    raise LookupError('torn down')\n"
        "def test_leaks(broken): take()\n"
    )
    result = run("--leakguard=error")
    ended(result, passed=1, errors=1)
    result.stdout.fnmatch_lines(
        ["E*LookupError: torn down", "*leakguard: 1 test, 1 distinct leak*"]
    )


def test_one_that_is_meant_to_fail_is_not_judged(
    write: Write, pytester: pytest.Pytester, run: Run
) -> None:
    """It has failed as it should, or passed though it need not."""
    pytester.makeconftest(ITS_OWN_WAY)
    write(
        "def fail():\n"
        "    take()\n"
        "    assert False\n"
        "test_expected = pytest.mark.xfail(fail)\n"
        "@pytest.mark.xfail\n"
        "def test_unexpected(): take()\n"
        "def test_leaks(): take()\n"
    )
    result = run("--leakguard=error")
    ended(result, xfailed=1, xpassed=1, passed=1, errors=1)
    result.stdout.fnmatch_lines(["*ERROR at teardown of test_leaks*"])


def test_one_that_fails_anyway_fails_as_ever(
    write: Write, pytester: pytest.Pytester, run: Run
) -> None:
    """In its setup or by itself, once: what it leaked is in the summary."""
    pytester.makeconftest(ITS_OWN_WAY)
    write(
        "@pytest.fixture\n"
        "def broken():\n"
        "    take()\n"
        "    raise LookupError\n"
        "def test_behaves(): behave()\n"
        "def test_broken(broken): pass\n"
        "def test_fails():\n"
        "    take()\n"
        "    assert False\n"
    )
    result = run("--leakguard=error")
    ended(result, passed=1, errors=1, failed=1)
    result.stdout.fnmatch_lines(["*leakguard: 2 tests, 1 distinct leak*"])


def test_a_plugin_that_runs_the_tests_of_a_worker(write: Write, pytester: pytest.Pytester) -> None:
    """The run has from the worker what it found there, too."""
    pytester.makeconftest(ITS_OWN_WAY)
    write("def test_leaks(): take()\ndef test_behaves(): behave()")
    result = pytester.runpytest_subprocess("-n1", "--leakguard=error", "-pno:randomly")
    ended(result, passed=2, errors=1)
    result.stdout.fnmatch_lines(["  1 test: test_suite.py::test_leaks *"])


FLAKY = """
attempts = []
@pytest.mark.flaky(reruns=2)
def test_flaky():
    attempts.append(1)
    if len(attempts) == 1: take()
    assert len(attempts) > 1
def test_leaks(): take()
def test_behaves(): behave()
"""


def test_pytest_rerunfailures_reruns_what_is_flaky(write: Write, run_with_reruns: Run) -> None:
    """A test fails or passes by its last attempt; one that is not rerun, as without it."""
    write(FLAKY)
    result = run_with_reruns("--leakguard=error")
    assert result.parseoutcomes() == {"rerun": 1, "passed": 2, "failed": 1}
    result.stdout.fnmatch_lines(["*leakguard: 2 tests, 1 distinct leak*"])


def test_pytest_rerunfailures_reruns_what_leaks(write: Write, run_with_reruns: Run) -> None:
    """What leaks at every attempt fails."""
    write("def test_leaks(): take()\ndef test_behaves(): behave()")
    result = run_with_reruns("--leakguard=error", "--reruns=1")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    assert result.parseoutcomes() == {"rerun": 1, "passed": 3, "errors": 1}
