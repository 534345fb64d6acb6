"""Work in threads, tasks and event loops that know nothing of tests."""

from __future__ import annotations

import pytest

from tests.plugin.conftest import Run, Write, ended

WORKERS = """
import asyncio, threading
from concurrent.futures import ThreadPoolExecutor


@pytest.fixture(scope="session")
def in_thread():
    with ThreadPoolExecutor(1) as executor:
        yield lambda function: executor.submit(function).result(10)


@pytest.fixture(scope="session")
def loop():
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    yield loop
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


@pytest.fixture(scope="session")
def in_loop(loop):
    async def call(function): function()
    return lambda function: asyncio.run_coroutine_threadsafe(call(function), loop).result(10)
"""
"""Fixtures that work for all tests, from before the first one on."""


@pytest.mark.parametrize("where", ["in_thread", "in_loop"])
def test_what_is_taken_elsewhere_counts_for_the_test_that_runs(
    write: Write, run_apart: Run, where: str
) -> None:
    """By a thread or a loop from before it, which has other tests to serve after it."""
    write(
        WORKERS + f"def test_begins({where}): {where}(behave)\n"
        f"def test_leaks({where}): {where}(take)\n"
        f"def test_behaves({where}): {where}(behave)\n"
    )
    result = run_apart("--leakguard=error")
    ended(result, passed=2, failed=1)
    result.stdout.fnmatch_lines(["leaked: test_suite.py::test_leaks *"])


def test_a_task_that_still_works_is_not_accused(write: Write, run_apart: Run) -> None:
    """It has the connection, and gives it back when it is told to."""
    write(
        WORKERS + "async def work():\n"
        "    global go_on\n"
        "    go_on = asyncio.Event()\n"
        "    with Session(engine) as session:\n"
        "        session.execute(text('select 1'))\n"
        "        has_it.set()\n"
        "        await go_on.wait()\n"
        "has_it = threading.Event()\n"
        "def test_starts_it(loop):\n"
        "    global work\n"
        "    work = asyncio.run_coroutine_threadsafe(work(), loop)\n"
        "    assert has_it.wait(10)\n"
        "def test_leaks_beside_it(in_loop): in_loop(take)\n"
        "def test_ends_it(loop):\n"
        "    loop.call_soon_threadsafe(go_on.set)\n"
        "    work.result(10)\n"
    )
    result = run_apart("--leakguard=error")
    ended(result, passed=2, failed=1)
    result.stdout.fnmatch_lines(
        ["*leakguard: 1 test, 1 distinct leak*", "  1 test: *::test_leaks_beside_it *"]
    )


def test_what_is_handed_to_a_thread_and_comes_too_late(write: Write, run_apart: Run) -> None:
    """It gets a second: the test cannot wait for ever, and fails."""
    write(
        "import threading\n"
        "go_on = threading.Event()\n"
        "def close_later(session):\n"
        "    go_on.wait(10)\n"
        "    session.close()\n"
        "def test_hands_it_over():\n"
        "    take()\n"
        "    threading.Thread(target=close_later, args=[kept.pop()]).start()\n"
        "def test_lets_it_go_on(): go_on.set()\n"
    )
    result = run_apart("--leakguard=error")
    ended(result, passed=1, failed=1)
    result.stdout.fnmatch_lines(["leaked: test_suite.py::test_hands_it_over *"])
