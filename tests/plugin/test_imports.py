"""A suite that imports SQLAlchemy late is watched from then on, whatever it is about."""

from __future__ import annotations

import pytest

from tests.plugin.conftest import Run, ended

LATE = """
import pytest
kept = []


def take():
    from sqlalchemy import create_engine, text
    from sqlalchemy.orm import Session
    session = Session(create_engine("sqlite:///late.db", pool_logging_name="main"))
    session.execute(text("select 1"))
    kept.append(session)
"""


def test_in_a_test(pytester: pytest.Pytester, run_apart: Run) -> None:
    """It is that test's leak; what it can tell of itself is told before, too."""
    pytester.makepyfile(
        LATE + "def test_leaks(leakguard):\n"
        "    assert leakguard.findings == ()\n"
        "    assert leakguard.open_holds() == ()\n"
        "    take()\n"
        "    assert len(leakguard.open_holds()) == 2\n"
    )
    result = run_apart("--leakguard=error")
    ended(result, failed=1)
    result.stdout.fnmatch_lines(["leaked: *::test_leaks *"])


def test_in_a_wider_fixture(pytester: pytest.Pytester, run_apart: Run) -> None:
    """It is the fixture's leak, also where it began before."""
    pytester.makepyfile(
        LATE + "@pytest.fixture(scope='module')\n"
        "def earlier():\n"
        "    global connection\n"
        "    yield\n"
        "    from sqlalchemy import create_engine\n"
        "    connection = create_engine('sqlite:///late.db').connect()\n"
        "@pytest.fixture(scope='module')\n"
        "def leaky(earlier):\n"
        "    take()\n"
        "    yield\n"
        "def test_passes(leaky): pass\n"
    )
    result = run_apart("--leakguard=error")
    ended(result, passed=1, errors=1)
    result.stdout.fnmatch_lines(
        ["module fixture leaky of * leaks, *", "module fixture earlier of * leaks, *"]
    )


def test_in_a_test_before_the_teardown_of_a_wider_fixture(
    pytester: pytest.Pytester, run_apart: Run
) -> None:
    """What the fixture takes then is its own."""
    pytester.makepyfile(
        LATE + "@pytest.fixture(scope='module')\n"
        "def leaky():\n"
        "    yield\n"
        "    take()\n"
        "def test_imports(leaky): import sqlalchemy\n"
    )
    result = run_apart("--leakguard=error")
    ended(result, passed=1, errors=1)
    result.stdout.fnmatch_lines(["module fixture leaky of * leaks, *"])


def test_in_the_teardown_of_a_wider_fixture(pytester: pytest.Pytester, run_apart: Run) -> None:
    """It had begun and was left when nothing was there to see."""
    pytester.makepyfile(
        LATE + "@pytest.fixture(scope='module')\n"
        "def leaky():\n"
        "    yield\n"
        "    take()\n"
        "def test_passes(leaky): pass\n"
    )
    result = run_apart("--leakguard=error")
    ended(result, passed=1, errors=1)
    result.stdout.fnmatch_lines(["module fixture leaky of * leaks, *"])


def test_while_the_tests_are_collected(pytester: pytest.Pytester, run_apart: Run) -> None:
    """What a module takes belongs to no test: no test is accused."""
    pytester.makepyfile(
        LATE + "from leakguard import LeakGuard\n"
        "with LeakGuard(observers=[]) as guard, guard.scope('of a module'): take()\n"
        "kept.pop().close()\n"
        "take()\n"
        "def test_passes(): pass\n"
        "def test_leaks(): take()\n"
    )
    result = run_apart("--leakguard=error")
    ended(result, passed=1, failed=1)
    result.stdout.fnmatch_lines(["*leakguard: 1 test, 1 distinct leak*"])


def test_what_is_lost_while_they_are_collected(pytester: pytest.Pytester, run_apart: Run) -> None:
    """It belongs to no test, and the run fails."""
    pytester.makepyfile(
        "from sqlalchemy import create_engine\n"
        "create_engine('sqlite:///late.db').raw_connection()\n"
        "def test_passes(): pass\n"
    )
    result = run_apart("--leakguard=error")
    ended(result, passed=1, code=pytest.ExitCode.TESTS_FAILED)
    result.stdout.fnmatch_lines(["*leakguard: 1 distinct leak*", "  found when no test ran *"])


def test_inert_it_imports_no_more_than_its_options(
    pytester: pytest.Pytester, run_apart: Run
) -> None:
    """Nor does it have SQLAlchemy imported, which takes longer than many a suite."""
    pytester.makepyfile(
        "import sys\n"
        "def test_imports():\n"
        "    assert 'sqlalchemy' not in sys.modules\n"
        "    assert {name for name in sys.modules if name.startswith('leakguard')} == {\n"
        "        'leakguard', 'leakguard.pytest_plugin', 'leakguard.testing',\n"
        "        'leakguard.testing.options',\n"
        "    }\n"
    )
    ended(run_apart(), passed=1)
    ended(run_apart("--leakguard=off"), passed=1)
    active = run_apart("--leakguard=error")
    ended(active, failed=1)
    active.stdout.fnmatch_lines(["E*Extra items in the left set*", "E*'leakguard.*'"])


def test_a_run_within_a_run_that_is_the_first_to_import_it(
    pytester: pytest.Pytester, run_apart: Run
) -> None:
    """Each of the two begins to watch, and neither in the middle of the other one's import."""
    pytester.makepyfile(
        "pytest_plugins = ['pytester']\n"
        "def test_within(pytester):\n"
        "    pytester.makepyfile('import sqlalchemy.orm\\ndef test_it(): pass')\n"
        "    pytester.runpytest_inprocess('--leakguard=error').assert_outcomes(passed=1)\n"
    )
    ended(run_apart("--leakguard=error"), passed=1)
