"""A suite to run pytest over, in a folder of its own."""

from __future__ import annotations

from collections.abc import Callable

import pytest

PRELUDE = """
import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.orm import Session

engine = create_engine("sqlite:///suite.db", pool_logging_name="main")
kept = []


def take():
    session = Session(engine)  # leak
    session.execute(text("select 1"))  # checkout
    kept.append(session)


def behave():
    with Session(engine) as session:
        session.execute(text("select 1"))


def give_back():
    while kept:
        kept.pop().close()
"""
"""What most suites begin with."""

WITHOUT = [
    f"-pno:{plugin}"
    for plugin in ("randomly", "asyncio", "cacheprovider", "rerunfailures", "hypothesispytest")
]
"""The plugins that a suite is run without; the last one would import Hypothesis each time."""

OUTLIVED = """
import threading
go_on, has_it = threading.Event(), threading.Event()


def work():
    take()
    has_it.set()
    go_on.wait(10)


thread = threading.Thread(target=work)


def test_starts_it():
    thread.start()
    assert has_it.wait(10)


def test_ends_it():
    go_on.set()
    thread.join()
    behave()
"""
"""A suite in which a thread has a connection at the end of its test, and never gives it back."""

ITS_OWN_WAY = """
from _pytest.runner import runtestprotocol
def pytest_runtest_protocol(item, nextitem):
    if "idle" in item.name: return None
    runtestprotocol(item, nextitem=nextitem)
    return True
"""
"""A plugin that runs all tests but those that it leaves to others."""

Run = Callable[..., pytest.RunResult]
Write = Callable[[str], None]


def ended(
    result: pytest.RunResult, *, code: pytest.ExitCode | None = None, **outcomes: int
) -> None:
    """Check how many tests had which outcome, and that the exit code says the same.

    A `code` is of a run that ends otherwise: by what no test could fail by any more.
    """
    result.assert_outcomes(**outcomes)
    if code is None:
        bad = outcomes.get("failed", 0) + outcomes.get("errors", 0)
        code = pytest.ExitCode.TESTS_FAILED if bad else pytest.ExitCode.OK
    assert result.ret == code


@pytest.fixture(autouse=True)
def nowhere_in_particular(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have pytest print what it prints at a desk, also where this project's tests run in CI.

    There it repeats every report in its short summary, and leakguard annotates lines.
    """
    for name in ("CI", "BUILD_NUMBER", "GITHUB_ACTIONS"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def write(pytester: pytest.Pytester) -> Write:
    """Return what writes the suite: its tests, which have the prelude to use."""

    def write(tests: str) -> None:
        pytester.makepyfile(prelude=PRELUDE, test_suite="from prelude import *\n" + tests)

    return write


@pytest.fixture
def run(pytester: pytest.Pytester) -> Run:
    """Return what runs pytest over it with some arguments, in order and in this process."""

    def run(*arguments: str) -> pytest.RunResult:
        # The filters of this project's own tests are in force in the same process.
        return pytester.runpytest_inprocess(*WITHOUT, "-Wdefault", *arguments)

    return run


@pytest.fixture
def run_with_reruns(pytester: pytest.Pytester) -> Run:
    """Return what does the same beside pytest-rerunfailures."""

    def run(*arguments: str) -> pytest.RunResult:
        without = [one for one in WITHOUT if one != "-pno:rerunfailures"]
        return pytester.runpytest_inprocess(*without, "-Wdefault", *arguments)

    return run


@pytest.fixture
def run_apart(pytester: pytest.Pytester) -> Run:
    """Return what does the same in a process of its own, with which goes what the suite leaks."""

    def run(*arguments: str) -> pytest.RunResult:
        return pytester.runpytest_subprocess(*WITHOUT, *arguments)

    return run
