"""A test is run as pytest runs it, whatever interrupts it, repeats it or looks at it."""

from __future__ import annotations

import pytest

from tests.plugin.conftest import Run, Write, ended


def test_a_predicate_that_raises_is_an_error_of_its_test(write: Write, run: Run) -> None:
    """With what it was asked about; the run goes on."""
    write(
        "@pytest.mark.leakguard(ignore=[lambda finding: 'export' in finding.scope.route])\n"
        "def test_leaks(): take()\n"
        "def test_behaves(): behave()\n"
    )
    result = run("--leakguard=error")
    ended(result, passed=2, errors=1)
    result.stdout.fnmatch_lines(
        [
            "E*TypeError: *",
            "E*raised by <lambda>, of @pytest.mark.leakguard(ignore=[[]...[]]), when *",
            "E*leaked: test_suite.py::test_leaks *",
        ]
    )


def test_what_is_raised_while_a_test_is_judged_is_its_error(
    write: Write, run_apart: Run, pytester: pytest.Pytester
) -> None:
    """As by a plugin that ends a test after some time: with a signal, wherever the test is."""
    pytester.makeconftest(
        "import pytest\n"
        "from leakguard.testing.stages import Stages\n"
        "settle = Stages.settle\n"
        "def interrupted(self, stage):\n"
        "    if 'slow' in stage.name: pytest.fail('Timeout')\n"
        "    settle(self, stage)\n"
        "Stages.settle = interrupted\n"
    )
    write("def test_slow(): behave()\ndef test_leaks(): take()\n")
    result = run_apart("--leakguard=error")
    ended(result, passed=1, errors=1, failed=1)
    result.stdout.fnmatch_lines(["*Failed: Timeout", "*leakguard: 1 test, 1 distinct leak*"])


def test_a_test_may_run_twice(write: Write, run: Run, pytester: pytest.Pytester) -> None:
    """Where a plugin repeats what was collected."""
    pytester.makeconftest("def pytest_collection_modifyitems(items): items[:] = items * 2")
    write(
        "@pytest.fixture\ndef one(): return 1\n"
        "def test_behaves(one): behave()\n"
        "def test_leaks(one): take()\n"
    )
    ended(run("--leakguard=error"), passed=2, failed=2)


def test_nothing_is_kept_of_the_fixtures_of_a_test(write: Write, run: Run) -> None:
    """Its item stays until the end of the run."""
    write(
        "import gc, weakref\n"
        "class Value: pass\n"
        "@pytest.fixture\n"
        "def value():\n"
        "    global seen\n"
        "    value = Value()\n"
        "    seen = weakref.ref(value)\n"
        "    return value\n"
        "def test_leaks(value): take()\n"
        "def test_looks():\n"
        "    gc.collect()\n"
        "    assert seen() is None\n"
    )
    ended(run("--leakguard=error"), passed=1, failed=1)


@pytest.mark.parametrize("failing", ["setup", "call", "teardown"])
def test_a_failure_is_told_before_a_debugger_looks_at_it(
    write: Write, pytester: pytest.Pytester, run_apart: Run, failing: str
) -> None:
    """To leave the debugger may end the run."""
    pytester.makeconftest(
        "import pytest\ndef pytest_exception_interact(): pytest.exit('left the debugger')\n"
    )
    write(
        "@pytest.fixture\n"
        "def phases():\n"
        f"    assert {failing!r} != 'setup'\n"
        "    yield\n"
        f"    assert {failing!r} != 'teardown'\n"
        "def test_leaks(): take()\n"
        f"def test_fails(phases): assert {failing!r} != 'call'\n"
    )
    without, found = run_apart(), run_apart("--leakguard=error")
    assert found.ret == without.ret == pytest.ExitCode.INTERRUPTED
    expected = without.parseoutcomes()
    expected["failed"] = expected.get("failed", 0) + 1  # by its leak, which is no exception
    expected["passed"] -= 1
    assert {"passed": 0, **found.parseoutcomes()} == expected
    found.stdout.fnmatch_lines(["leaked: test_suite.py::test_leaks *", "E*assert * != *"])


def test_a_plugin_that_pytest_never_asks_runs_no_test(
    write: Write, pytester: pytest.Pytester, run: Run
) -> None:
    """It comes after pytest's own way to run a test."""
    pytester.makeconftest(
        "import pytest\n"
        "@pytest.hookimpl(trylast=True)\n"
        "def pytest_runtest_protocol(item): return True\n"
    )
    write("def test_leaks(): take()")
    ended(run("--leakguard=error"), failed=1)


@pytest.mark.parametrize("marker", ["", "@pytest.mark.flaky(reruns=1)\n"])
def test_tracebacks_begin_with_the_user_s_code(
    write: Write, pytester: pytest.Pytester, run_with_reruns: Run, marker: str
) -> None:
    """And not with the plugin's, which is around it."""
    pytester.makeconftest(
        "import pytest\n"
        "@pytest.fixture(scope='module')\n"
        "def user():\n"
        "    raise LookupError\n"
        "@pytest.fixture(scope='session')\n"
        "def wide():\n"
        "    yield\n"
        "    raise LookupError\n"
    )
    write(f"{marker}def test_setup(user): pass\n{marker}def test_leaks(wide): take()\n")
    result = run_with_reruns("--leakguard=error")
    result.stdout.fnmatch_lines(["*leakguard: 1 test, 1 distinct leak*"])
    outcomes = {"rerun": 2, "passed": 2, "errors": 2} if marker else {"failed": 1, "errors": 2}
    assert result.parseoutcomes() == outcomes
    result.stdout.no_fnmatch_line("*leakguard?testing*")


def test_no_tests_are_run_elsewhere_without_workers(write: Write, run: Run) -> None:
    """`--dist` alone has no effect: it may be among the options that a suite always has."""
    write("def test_leaks(): take()")
    ended(run("--leakguard=error", "--dist=loadfile"), failed=1)


def test_a_debugger_has_nothing_to_look_at(write: Write, run: Run) -> None:
    """Where no test fails but by its leak: nothing was raised."""
    write("def test_behaves(): behave()\ndef test_leaks(): take()")
    ended(run("--leakguard=error", "--pdb"), passed=1, failed=1)


def test_pytest_may_be_without_its_option_to_show_setups(write: Write, run: Run) -> None:
    """Its plugins can be left out."""
    write("def test_behaves(): behave()\ndef test_leaks(): take()")
    ended(run("--leakguard=error", "-pno:setuponly"), passed=1, failed=1)


HANGS = """
@pytest.fixture{scope}
def tables():
    yield
    raise KeyboardInterrupt  # from whoever is tired of waiting for the lock
def test_leaks(tables): take()
"""


@pytest.mark.parametrize("scope", ["", "(scope='session')"])
def test_who_interrupts_a_run_that_hangs_has_the_report(
    write: Write, run_apart: Run, scope: str
) -> None:
    """A fixture that drops tables waits for the transaction of the test that has leaked."""
    write(HANGS.format(scope=scope))
    result = run_apart("--leakguard=error")
    ended(result, failed=1, code=pytest.ExitCode.INTERRUPTED)
    result.stdout.fnmatch_lines(["leaked: test_suite.py::test_leaks *"])
