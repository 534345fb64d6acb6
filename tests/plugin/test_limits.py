"""What the plugin cannot know, as docs/testing.md says: pinned, so that the page stays true."""

from __future__ import annotations

import pytest

from tests.plugin.conftest import Run, Write, ended

IN_CONTEXT = """
from contextvars import ContextVar
from leakguard import allow
current = ContextVar("current")


def connect():
    current.set(engine.connect())


def connect_allowed():
    with allow("the fixture closes it"): connect()


@pytest.fixture(scope="module", autouse=True)
def tidy():
    {fixture}()
    yield
    current.get().close()


def test_takes(): {test}()
def test_behaves(): behave()
"""


@pytest.mark.parametrize(
    "fixture, test, failed",
    [
        ("behave", "connect", 1),
        ("connect", "behave", 0),
        ("behave", "connect_allowed", 0),
    ],
    ids=["unknown", "taken in the fixture", "allowed"],
)
def test_what_a_context_variable_has(
    write: Write, run: Run, fixture: str, test: str, failed: int
) -> None:
    """The test is accused though the fixture closes it, unless one does what the page says."""
    write(IN_CONTEXT.format(fixture=fixture, test=test))
    result = run("--leakguard=error")
    ended(result, passed=2 - failed, failed=failed)
    if failed:
        result.stdout.fnmatch_lines(["leaked: test_suite.py::test_takes *"])


@pytest.mark.parametrize("collector", ["pytest.Module", "pytest.Class", "pytest.Session"])
def test_what_a_finalizer_of_a_collector_closes(write: Write, run: Run, collector: str) -> None:
    """It is no fixture's: the test is accused."""
    write(
        "class TestIt:\n"
        "    def test_takes(self, request):\n"
        "        connection = engine.connect()\n"
        f"        request.node.getparent({collector}).addfinalizer(connection.close)\n"
        "    def test_behaves(self): behave()\n"
    )
    result = run("--leakguard=error")
    ended(result, passed=1, failed=1)
    result.stdout.fnmatch_lines(["leaked: test_suite.py::TestIt::test_takes *"])


def test_what_a_hook_of_a_conftest_closes(
    write: Write, run_apart: Run, pytester: pytest.Pytester
) -> None:
    """When all tests have run: the test is accused."""
    pytester.makeconftest("import prelude\ndef pytest_sessionfinish(): prelude.give_back()\n")
    write("def test_takes(): take()\ndef test_behaves(): behave()\n")
    result = run_apart("--leakguard=error")
    ended(result, passed=1, failed=1)
    result.stdout.fnmatch_lines(["leaked: test_suite.py::test_takes *"])


def test_what_a_cleanup_of_a_module_closes(write: Write, run: Run) -> None:
    """As `unittest` has it, and pytest never calls: the test is accused."""
    write(
        "import unittest\n"
        "class TestIt(unittest.TestCase):\n"
        "    def test_takes(self):\n"
        "        unittest.addModuleCleanup(engine.connect().close)\n"
        "    def test_behaves(self): behave()\n"
    )
    result = run("--leakguard=error")
    ended(result, passed=1, failed=1)
    result.stdout.fnmatch_lines(["leaked: test_suite.py::TestIt::test_takes *"])


STANDS_STILL = """
import asyncio
loop = asyncio.new_event_loop()


async def close_later(session, go_on):
    await go_on.wait()
    session.close()


async def take_and_close(go_on):
    session = Session(engine)
    session.execute(text("select 1"))
    await close_later(session, go_on)


async def start():
    global go_on, task
    go_on = asyncio.Event()
    task = asyncio.create_task({})
    await asyncio.sleep(0)


async def end():
    go_on.set()
    await task


def test_starts_it():
    take()
    loop.run_until_complete(start())
    {}
def test_ends_it():
    loop.run_until_complete(end())
    loop.close()
"""


@pytest.mark.parametrize(
    "task, then, failed",
    [
        ("close_later(kept.pop(), go_on)", "pass", 1),
        ("take_and_close(go_on)", "give_back()", 0),
    ],
    ids=["taken by the test", "taken by the task"],
)
def test_what_a_task_closes_whose_loop_stands_still(
    write: Write, run: Run, task: str, then: str, failed: int
) -> None:
    """The test has no loop: it is accused, but of nothing that the task itself took."""
    write(STANDS_STILL.format(task, then))
    result = run("--leakguard=error")
    ended(result, passed=2 - failed, failed=failed)
    if failed:
        result.stdout.fnmatch_lines(["leaked: test_suite.py::test_starts_it *"])
