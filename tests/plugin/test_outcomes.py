"""The test that leaks fails, and no other."""

from __future__ import annotations

import pytest

from leakguard.core.process import EVERYWHERE
from leakguard.core.scope import AMBIENT
from leakguard.sources.sqlalchemy import SQLALCHEMY
from tests.plugin.conftest import OUTLIVED, Run, Write, ended


def test_the_test_that_leaks_fails_in_its_own_right(write: Write, run: Run) -> None:
    """With the report on the leak, as a failure and not as an error, and the next one passes."""
    write("def test_leaks(): take()\ndef test_behaves(): behave()")
    result = run("--leakguard=error")
    ended(result, failed=1, passed=1)
    result.stdout.fnmatch_lines(
        [
            "*leaked: test_suite.py::test_leaks (in *) did not give back a connection of pool *",
            "*session created   prelude.py:* in take",
            "*checked out       prelude.py:* in take",
            "*fix  *",
        ]
    )


def test_what_nobody_keeps_is_found_too(write: Write, run: Run) -> None:
    """The collector gives it back at once, which is what makes it silent elsewhere."""
    write(
        "def test_leaks():\n"
        "    connection = engine.raw_connection()\n"
        "    connection = None\n"
        "def test_behaves(): behave()"
    )
    result = run("--leakguard=error")
    ended(result, failed=1, passed=1)
    result.stdout.fnmatch_lines(["*reclaimed: test_suite.py::test_leaks * garbage collector"])


def test_one_that_fails_anyway_fails_as_ever(write: Write, run: Run) -> None:
    """What it leaked is in the summary."""
    write("def test_fails():\n    take()\n    assert 1 == 2")
    result = run("--leakguard=error")
    ended(result, failed=1)
    result.stdout.fnmatch_lines(["E*assert 1 == 2", "*leakguard: 1 test, 1 distinct leak*"])
    assert result.stdout.str().count("\nleaked: ") == 1


def test_one_that_is_skipped_or_fails_in_its_setup_is_judged_too(write: Write, run: Run) -> None:
    """There is no call that could fail: the summary says it."""
    write(
        "@pytest.fixture\n"
        "def broken():\n"
        "    take()\n"
        "    raise LookupError\n"
        "def test_broken(broken): pass\n"
        "def test_skipped():\n"
        "    take()\n"
        "    pytest.skip('later')\n"
    )
    result = run("--leakguard=error")
    ended(result, errors=1, skipped=1)
    result.stdout.fnmatch_lines(["*leakguard: 2 tests, 1 distinct leak*"])


@pytest.mark.parametrize("strict", [True, False])
def test_one_that_is_expected_to_fail_may_leak(write: Write, run: Run, strict: bool) -> None:
    """As a test that shows a leak which is not repaired yet."""
    write(f"@pytest.mark.xfail(strict={strict}, reason='known')\ndef test_leaks(): take()")
    result = run("--leakguard=error")
    ended(result, xfailed=1)
    result.stdout.no_fnmatch_line("*distinct leak*")


def test_one_that_is_expected_to_fail_does_not_by_a_warning(write: Write, run: Run) -> None:
    """Where leaks are no reason to fail it has passed, which nobody expected."""
    write("@pytest.mark.xfail(strict=True, reason='known')\ndef test_leaks(): take()")
    ended(run("--leakguard=warn"), failed=1, warnings=1)


def test_one_that_fails_as_expected_may_leak_too(write: Write, run: Run) -> None:
    """Nobody expects it to clean up as well."""
    write(
        "def fail():\n"
        "    take()\n"
        "    raise LookupError\n"
        "test_expected = pytest.mark.xfail(fail)\n"
        "def test_fails(): fail()\n"
    )
    result = run("--leakguard=error")
    ended(result, xfailed=1, failed=1)
    result.stdout.fnmatch_lines(
        ["*leakguard: 1 test, 1 distinct leak*", "  1 test: test_suite.py::test_fails *"]
    )


def test_fixtures_of_a_test_are_part_of_it(write: Write, run: Run) -> None:
    """What one gives back in its teardown is given back; what it does not is the test's leak."""
    write(
        "@pytest.fixture\n"
        "def db():\n"
        "    with Session(engine) as session: yield session\n"
        "@pytest.fixture\n"
        "def leaky():\n"
        "    take()\n"
        "def test_behaves(db): db.execute(text('select 1'))\n"
        "def test_leaks(leaky): pass\n"
    )
    result = run("--leakguard=error")
    ended(result, passed=1, failed=1)
    result.stdout.fnmatch_lines(["*leaked: test_suite.py::test_leaks *"])


def test_a_wider_fixture_is_judged_at_its_own_end(write: Write, run: Run) -> None:
    """What it holds is nothing to the tests; what it does not give back is its own error."""
    write(
        "@pytest.fixture(scope='module')\n"
        "def db():\n"
        "    with Session(engine) as session:\n"
        "        session.execute(text('select 1'))\n"
        "        yield session\n"
        "        session.execute(text('select 1'))\n"
        "@pytest.fixture(scope='module')\n"
        "def leaky():\n"
        "    take()\n"
        "    yield\n"
        "def test_one(db, leaky): db.execute(text('select 1'))\n"
        "def test_two(db, leaky): db.execute(text('select 1'))\n"
    )
    result = run("--leakguard=error")
    ended(result, passed=2, errors=1)
    result.stdout.fnmatch_lines(
        [
            "*ERROR at teardown of test_two*",
            "module fixture leaky of test_suite.py leaks, which has ended here",
            "leaked: module fixture leaky of test_suite.py (in *",
        ]
    )


def test_a_fixture_and_the_test_with_which_it_ends(write: Write, run: Run) -> None:
    """Each is told what it leaks, and what else a teardown fails by is told, too."""
    write(
        "@pytest.fixture(scope='module')\n"
        "def leaky():\n"
        "    take()\n"
        "    yield\n"
        "@pytest.fixture\n"
        "def broken():\n"
        "    yield\n"
        "    raise LookupError('torn down')\n"
        "def test_leaks(leaky, broken): kept.append(engine.connect())\n"
    )
    result = run("--leakguard=error")
    ended(result, failed=1, errors=1)
    result.stdout.fnmatch_lines(
        [
            "E*LookupError: torn down",
            "module fixture leaky of test_suite.py leaks, which has ended here",
            "leaked: test_suite.py::test_leaks *",
            "*leakguard: 1 test and 1 fixture, 2 distinct leaks*",
        ]
    )


def test_a_wider_fixture_whose_setup_fails(write: Write, run: Run) -> None:
    """It is judged all the same, and the next one asks for it in vain."""
    write(
        "@pytest.fixture(scope='module')\n"
        "def broken():\n"
        "    take()\n"
        "    raise LookupError('broken')\n"
        "def test_one(broken): pass\n"
        "def test_behaves(): behave()\n"
    )
    result = run("--leakguard=error")
    ended(result, errors=2, passed=1)
    result.stdout.fnmatch_lines(["leaked: module fixture broken *"])


def test_a_fixture_that_ends_with_the_run(write: Write, run: Run) -> None:
    """With `--exitfirst` pytest tears wider fixtures down when no test runs any more."""
    write(
        "@pytest.fixture(scope='session')\n"
        "def leaky():\n"
        "    take()\n"
        "    yield\n"
        "def test_leaks(leaky): take()\n"
        "def test_never(leaky): pass\n"
    )
    result = run("--leakguard=error", "--exitfirst")
    ended(result, failed=1)
    result.stdout.fnmatch_lines(
        ["*1 test and 1 fixture: test_suite.py::test_leaks, session fixture leaky *"]
    )


WIDER = """
@pytest.fixture(scope="session")
def wide():
    {}()
    yield
def test_passes(wide, request): request.session.shouldstop = {!r}
def test_never(wide): pass
"""


def test_a_wider_fixture_that_leaks_where_the_run_is_stopped(write: Write, run: Run) -> None:
    """It is the error of the test that is the last one by that; the run was stopped either way."""
    write(WIDER.format("take", "enough"))
    result = run("--leakguard=error")
    ended(result, passed=1, errors=1, code=pytest.ExitCode.INTERRUPTED)
    result.stdout.fnmatch_lines(["session fixture wide leaks, which has ended here"])
    write(WIDER.format("behave", "enough"))
    ended(run("--leakguard=error"), passed=1, code=pytest.ExitCode.INTERRUPTED)


NEVER_THE_LAST = """
from _pytest.runner import runtestprotocol
def pytest_runtest_protocol(item, nextitem):
    runtestprotocol(item, nextitem=nextitem or item)
    return True
"""
"""A plugin that leaves wider fixtures to the end of the run, which tears down what is left."""


@pytest.mark.parametrize("does", ["take", "behave"])
def test_a_wider_fixture_that_ends_when_all_tests_have(
    write: Write, run: Run, pytester: pytest.Pytester, does: str
) -> None:
    """If it leaks, the run fails though every test has passed: nobody can overlook that."""
    pytester.makeconftest(NEVER_THE_LAST)
    write(WIDER.format(does, ""))
    result = run("--leakguard=error")
    if does == "behave":
        ended(result, passed=2)
        return
    ended(result, passed=2, code=pytest.ExitCode.TESTS_FAILED)
    result.stdout.fnmatch_lines(
        ["*leakguard: 1 fixture, 1 distinct leak*", "  1 fixture: session fixture wide *"]
    )


def test_transactions_around_each_test(write: Write, run: Run) -> None:
    """The usual fixture: one connection for the run, a transaction and savepoints for each test."""
    write(
        "@pytest.fixture(scope='session')\n"
        "def connection():\n"
        "    with engine.connect() as connection: yield connection\n"
        "@pytest.fixture\n"
        "def db(connection):\n"
        "    transaction = connection.begin()\n"
        "    session = Session(connection, join_transaction_mode='create_savepoint')\n"
        "    yield session\n"
        "    session.close()\n"
        "    transaction.rollback()\n"
        "@pytest.mark.parametrize('number', range(3))\n"
        "def test_behaves(db, number):\n"
        "    db.execute(text('select 1'))\n"
        "    with db.begin_nested(): db.execute(text('select 1'))\n"
        "    db.commit()\n"
        "def test_leaks(db): take()\n"
    )
    result = run("--leakguard=error")
    ended(result, passed=3, failed=1)
    result.stdout.fnmatch_lines(["*leakguard: 1 test, 1 distinct leak*", "*prelude.py:* in take"])


def test_classes_are_suites_too(write: Write, run: Run) -> None:
    """Those of pytest, and those of `unittest`, with what they set up."""
    write(
        "import unittest\n"
        "class TestPlain:\n"
        "    def setup_method(self): self.session = Session(engine)\n"
        "    def teardown_method(self): self.session.close()\n"
        "    def test_behaves(self): self.session.execute(text('select 1'))\n"
        "    def test_leaks(self): take()\n"
        "class TestUnit(unittest.TestCase):\n"
        "    @classmethod\n"
        "    def setUpClass(cls):\n"
        "        cls.session = Session(engine)\n"
        "        cls.session.execute(text('select 1'))\n"
        "    @classmethod\n"
        "    def tearDownClass(cls): cls.session.close()\n"
        "    def setUp(self):\n"
        "        session = Session(engine)\n"
        "        session.execute(text('select 1'))\n"
        "        self.addCleanup(session.close)\n"
        "    def test_behaves(self): self.session.execute(text('select 1'))\n"
        "    def test_leaks(self): take()\n"
    )
    result = run("--leakguard=error")
    ended(result, passed=2, failed=2)


def test_a_thread_that_still_works_is_not_accused(write: Write, run: Run) -> None:
    """It has the connection, and gives it back when it is told to."""
    write(
        "import threading\n"
        "go_on, has_it = threading.Event(), threading.Event()\n"
        "def work():\n"
        "    with Session(engine) as session:\n"
        "        session.execute(text('select 1'))\n"
        "        has_it.set()\n"
        "        go_on.wait(10)\n"
        "thread = threading.Thread(target=work)\n"
        "def test_starts_it():\n"
        "    thread.start()\n"
        "    assert has_it.wait(10)\n"
        "def test_leaks_beside_it(): take()\n"
        "def test_ends_it():\n"
        "    go_on.set()\n"
        "    thread.join()\n"
    )
    result = run("--leakguard=error")
    ended(result, passed=2, failed=1)
    result.stdout.fnmatch_lines(["leaked: test_suite.py::test_leaks_beside_it *"])


HANDED_OVER = {
    "a timer": "threading.Timer(0.1, kept.pop().close).start()",
    "an executor": "ThreadPoolExecutor().submit(close_later, kept.pop())",
    "a queue": "todo.put(kept.pop())",
}


@pytest.mark.parametrize("to", HANDED_OVER)
def test_what_is_handed_to_a_thread_may_come_back(write: Write, run: Run, to: str) -> None:
    """It gets a moment for it, as a request gives the tasks that it has started."""
    write(
        "import queue, threading, time\n"
        "from concurrent.futures import ThreadPoolExecutor\n"
        "todo = queue.Queue()\n"
        "def close_later(session):\n"
        "    time.sleep(0.1)\n"
        "    session.close()\n"
        "def work():\n"
        "    while session := todo.get(): close_later(session)\n"
        "@pytest.fixture(scope='module', autouse=True)\n"
        "def worker():\n"
        "    thread = threading.Thread(target=work)\n"
        "    thread.start()\n"
        "    yield\n"
        "    todo.put(None)\n"
        "    thread.join()\n"
        f"def test_hands_it_over():\n    take()\n    {HANDED_OVER[to]}\n"
        "def test_leaks(): take()\n"
    )
    result = run("--leakguard=error")
    ended(result, passed=1, failed=1)
    result.stdout.fnmatch_lines(["*leakguard: 1 test, 1 distinct leak*"])


def test_a_leak_that_comes_to_light_later(write: Write, run: Run) -> None:
    """The thread that had it ended without returning it, long after its test: the run fails."""
    write(OUTLIVED)
    result = run("--leakguard=error")
    ended(result, passed=2, code=pytest.ExitCode.TESTS_FAILED)
    result.stdout.fnmatch_lines(
        ["leaked: test_suite.py::test_starts_it *", "  1 test: test_suite.py::test_starts_it *"]
    )


def test_a_leak_that_comes_to_light_when_the_run_was_stopped(write: Write, run: Run) -> None:
    """It is told, and the run has ended as it did."""
    write(OUTLIVED + "def test_stops(request): request.session.shouldstop = 'enough'\n")
    result = run("--leakguard=error")
    ended(result, passed=3, code=pytest.ExitCode.INTERRUPTED)
    result.stdout.fnmatch_lines(["  1 test: test_suite.py::test_starts_it *"])


@pytest.mark.parametrize(
    "marker, option, code",
    [
        ("'off'", "error", pytest.ExitCode.OK),
        ("'warn'", "error", pytest.ExitCode.OK),
        ("ignore=['leaked']", "error", pytest.ExitCode.OK),
        ("'error'", "warn", pytest.ExitCode.TESTS_FAILED),
    ],
)
def test_a_late_leak_of_a_fixture_counts_as_its_marker_says(
    write: Write, run_apart: Run, marker: str, option: str, code: pytest.ExitCode
) -> None:
    """Whatever the run wants of other tests."""
    write(
        "import threading\n"
        f"pytestmark = pytest.mark.leakguard({marker})\n"
        "go_on, has_it = threading.Event(), threading.Event()\n"
        "def work():\n"
        "    take()\n"
        "    has_it.set()\n"
        "    go_on.wait(10)\n"
        "thread = threading.Thread(target=work)\n"
        "@pytest.fixture(scope='class')\n"
        "def starts_it():\n"
        "    thread.start()\n"
        "    assert has_it.wait(10)\n"
        "class TestFirst:\n"
        "    def test_first(self, starts_it): pass\n"
        "def test_ends_it():\n"
        "    go_on.set()\n"
        "    thread.join()\n"
    )
    ended(run_apart(f"--leakguard={option}"), passed=2, code=code)


def test_nothing_is_watched_after_the_run(write: Write, run: Run) -> None:
    """SQLAlchemy is as it was found."""
    write("def test_behaves(): behave()\ndef test_leaks(): take()")
    ended(run("--leakguard=error"), passed=1, failed=1)
    assert SQLALCHEMY.guards == ()
    assert EVERYWHERE == []


@pytest.mark.parametrize("when", ["setup", "call", "teardown"])
def test_nothing_is_watched_after_a_run_that_is_interrupted(
    write: Write, run: Run, when: str
) -> None:
    """Nor is the test that was interrupted still at work when wider fixtures are torn down."""
    write(
        f"def stop(now): now != {when!r} or pytest.exit('enough')\n"
        "@pytest.fixture(scope='session')\n"
        "def wide():\n"
        "    take()\n"
        "    yield\n"
        "@pytest.fixture\n"
        "def interrupted(wide):\n"
        "    stop('setup')\n"
        "    yield\n"
        "    stop('teardown')\n"
        "def test_leaks(): kept.append(engine.connect())\n"
        "def test_stops(interrupted): stop('call')\n"
    )
    result = run("--leakguard=error")
    ended(result, passed=when == "teardown", failed=1, code=pytest.ExitCode.INTERRUPTED)
    result.stdout.fnmatch_lines(["  1 fixture: session fixture wide *"])
    assert SQLALCHEMY.guards == ()
    assert AMBIENT.scope is None


def test_what_interrupts_a_teardown_does_not_lose_the_test(write: Write, run_apart: Run) -> None:
    """That it has passed is told all the same, and what wider fixtures leak which end by that."""
    write(
        "@pytest.fixture(scope='session')\n"
        "def wide():\n"
        "    take()\n"
        "    yield\n"
        "@pytest.fixture\n"
        "def interrupted(wide):\n"
        "    yield\n"
        "    raise KeyboardInterrupt\n"
        "def test_leaks(): take()\n"
        "def test_passes(interrupted): behave()\n"
    )
    result = run_apart("--leakguard=error")
    ended(result, passed=1, failed=1, code=pytest.ExitCode.INTERRUPTED)
    result.stdout.fnmatch_lines(["  1 test and 1 fixture: *::test_leaks, session fixture wide *"])


OF_UNITTEST = """
import unittest
class TestParts(unittest.TestCase):
    def test_parts(self):
        for number in range(3):
            with self.subTest(number=number): assert number != 1
    def test_leaks(self):
        with self.subTest(): take()
"""
OF_PYTEST = """
def test_parts(subtests):
    for number in range(3):
        with subtests.test(number=number): assert number != 1
def test_leaks(subtests):
    with subtests.test(): take()
"""
from_pytest_9 = pytest.mark.skipif(
    not hasattr(pytest, "Subtests"), reason="this pytest has no subtests of its own"
)


@pytest.mark.parametrize(
    "suite", [OF_UNITTEST, pytest.param(OF_PYTEST, marks=from_pytest_9)], ids=["unittest", "pytest"]
)
def test_subtests_are_told_as_ever(write: Write, run: Run, suite: str) -> None:
    """They are reports of their own, beside that of the test."""
    write(suite)
    expected = run("--leakguard=off").parseoutcomes()
    found = run("--leakguard=error").parseoutcomes()
    expected["failed"] += 1
    expected["passed"] -= 1
    assert {**found, "passed": found.get("passed", 0)} == expected


def test_fixtures_of_one_name_are_told_apart(
    write: Write, run: Run, pytester: pytest.Pytester
) -> None:
    """Those that override one another, and those of several parameters."""
    pytester.makeconftest(
        "from prelude import *\n"
        "@pytest.fixture(scope='module', params=['a', 'b'])\n"
        "def leaky(request):\n"
        "    if request.param == 'a': take()\n"
        "    yield\n"
    )
    write(
        "@pytest.fixture(scope='module')\n"
        "def leaky(leaky): kept.append(engine.connect())\n"
        "def test_one(leaky): pass\n"
    )
    result = run("--leakguard=error")
    ended(result, passed=2, errors=1)
    assert result.stdout.str().count("\nleaked: module fixture leaky[0]") == 4
    assert result.stdout.str().count("\nleaked: module fixture leaky[1]") == 1


def test_wider_fixtures_are_torn_down_with_the_last_test(write: Write, run: Run) -> None:
    """Also where it is the last one because it leaks, and their errors are told."""
    write(
        "@pytest.fixture(scope='session')\n"
        "def wide():\n"
        "    yield\n"
        "    raise LookupError('torn down')\n"
        "def test_leaks(wide): take()\n"
        "def test_never(wide): pass\n"
    )
    result = run("--leakguard=error", "--exitfirst")
    ended(result, failed=1, errors=1)
    result.stdout.fnmatch_lines(["E*LookupError: torn down"])


@pytest.mark.parametrize("option", ["--setup-show", "--setup-only"])
def test_setups_are_shown_as_ever(write: Write, run: Run, option: str) -> None:
    """With the tests that they are for; where nothing else runs, the summary has their leaks."""
    write(
        "@pytest.fixture\n"
        "def leaky(): take()\n"
        "def test_behaves(): behave()\n"
        "def test_leaks(leaky): pass\n"
    )
    result = run("--leakguard=error", option)
    result.stdout.fnmatch_lines(
        [
            "*test_suite.py::test_behaves*",
            "*SETUP    F leaky",
            "*test_suite.py::test_leaks (fixtures used: leaky)*",
            "*leakguard: 1 test, 1 distinct leak*",
        ]
    )
    run_too = option == "--setup-show"
    ended(result, passed=run_too, failed=run_too)


def test_tests_need_not_be_functions(write: Write, run: Run, pytester: pytest.Pytester) -> None:
    """As those that a plugin reads from files of its own."""
    pytester.makeconftest(
        "import pytest\n"
        "from prelude import take\n"
        "class Line(pytest.Item):\n"
        "    def runtest(self): take()\n"
        "class Lines(pytest.File):\n"
        "    def collect(self): yield Line.from_parent(self, name='first')\n"
        "def pytest_collect_file(parent, file_path):\n"
        "    if file_path.suffix == '.lines': return Lines.from_parent(parent, path=file_path)\n"
    )
    write("def test_behaves(): behave()")
    pytester.makefile(".lines", suite="")
    result = run("--leakguard=error")
    ended(result, passed=1, failed=1)
    result.stdout.fnmatch_lines(["leaked: suite.lines::first *"])


ENDS = {
    "class": ["test_two", "test_three", "test_four"],
    "module": ["test_three", "test_four"],
    "package": ["test_four"],
    "session": ["test_five"],
}
"""Of each scope: the tests with which its fixtures end."""


@pytest.mark.parametrize("scope", ENDS)
def test_a_fixture_of_any_scope_is_judged_at_its_end(
    pytester: pytest.Pytester, write: Write, run: Run, scope: str
) -> None:
    """And no test before is accused; the fixture is set up anew for what comes after."""
    write("")
    for folder in ("first", "second"):
        pytester.mkpydir(folder)
    (pytester.path / "first" / "conftest.py").write_text(
        f"from prelude import *\n@pytest.fixture(scope='{scope}')\ndef leaky(): take()\n"
    )
    (pytester.path / "first" / "test_a.py").write_text(
        "class TestFirst:\n"
        "    def test_one(self, leaky): pass\n"
        "    def test_two(self, leaky): pass\n"
        "class TestSecond:\n"
        "    def test_three(self, leaky): pass\n"
    )
    (pytester.path / "first" / "test_b.py").write_text(
        "class TestThird:\n    def test_four(self, leaky): pass\n"
    )
    (pytester.path / "second" / "test_c.py").write_text("def test_five(): pass\n")
    result = run("--leakguard=error")
    ended(result, passed=5, errors=len(ENDS[scope]))
    for test in ENDS[scope]:
        result.stdout.fnmatch_lines(
            [f"*ERROR at teardown of *{test} *", f"{scope} fixture leaky* leaks, which has ended *"]
        )


def test_a_warning_of_sqlalchemy_fails_no_test(write: Write, run_apart: Run) -> None:
    """Though it is made an error, it is raised where nobody can catch it."""
    write(
        "import asyncio, gc\n"
        "from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine\n"
        "lost = create_async_engine('sqlite+aiosqlite:///async.db')\n"
        "async def lose(): await AsyncSession(lost).execute(text('select 1'))\n"
        "def test_loses(): asyncio.run(lose())\n"
        "def test_is_innocent(): gc.collect()\n"
    )
    arguments = ("-Werror::sqlalchemy.exc.SAWarning", "-rA")
    without = run_apart(*arguments)
    assert without.ret == pytest.ExitCode.OK
    without.stdout.fnmatch_lines(["*garbage collector is trying to clean up *", "PASSED *loses"])
    result = run_apart(*arguments, "--leakguard=error")
    ended(result, passed=1, failed=1)
    result.stdout.fnmatch_lines(["*leakguard: 1 test, 1 distinct leak*", "PASSED *innocent"])
