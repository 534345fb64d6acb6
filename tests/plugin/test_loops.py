"""An event loop that several tests share stands still between them: what its tasks have is theirs.

Whether they give it back is known when the loop has gone on.
"""

from __future__ import annotations

import pytest

from tests.plugin.conftest import Run, Write, ended

BACKGROUND = """
import asyncio, httpx
from fastapi import FastAPI
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

async_engine = create_async_engine("sqlite+aiosqlite:///async.db", pool_logging_name="async")
go_on = asyncio.Event()
tasks = []
sessions = []
app = FastAPI()


async def take():
    session = AsyncSession(async_engine)
    await session.execute(text("select 1"))
    return session


async def clean_up(session, closes):
    await go_on.wait()
    if closes:
        await session.close()


@app.get("/later/{closes}")
async def later(closes: bool):
    tasks.append(asyncio.create_task(clean_up(await take(), closes)))


@app.get("/leak")
async def leak():
    sessions.append(await take())


async def get(path):
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        assert (await client.get(path)).status_code == 200


async def test_the_tasks_end():
    go_on.set()
    await asyncio.gather(*tasks)
"""
"""Requests and tests that leave what they took to a task of their loop."""

AS_TEST = (
    "async def test_later(): tasks.append(asyncio.create_task(clean_up(await take(), {closes})))\n"
)
AS_REQUEST = "async def test_later(): await get('/later/{closes}')\n"

by_whom = pytest.mark.parametrize("test", [AS_TEST, AS_REQUEST], ids=["test", "request"])


@pytest.fixture
def run_on_one_loop(pytester: pytest.Pytester, write: Write, run_apart: Run) -> Run:
    """Return what runs tests on an event loop for all of them, and ends their tasks last."""
    pytester.makeini(
        "[pytest]\nasyncio_mode = auto\nasyncio_default_fixture_loop_scope = session\n"
        "asyncio_default_test_loop_scope = session"
    )

    def run(tests: str) -> pytest.RunResult:
        prelude, last = BACKGROUND.split("async def test_the_tasks_end")
        write(f"{prelude}{tests}\nasync def test_the_tasks_end{last}")
        return run_apart("--leakguard=error", "-p", "asyncio", "-Wignore")

    return run


@by_whom
def test_a_task_that_closes_it_is_waited_for(run_on_one_loop: Run, test: str) -> None:
    """As a clean-up that a library starts when the request ends."""
    result = run_on_one_loop(
        test.format(closes=True) + "async def test_leaks(): await get('/leak')\n"
    )
    result.assert_outcomes(passed=2, failed=1)
    result.stdout.fnmatch_lines(["leaked: GET /leak *", "*leakguard: 1 test, 1 distinct leak*"])


@by_whom
def test_a_task_that_does_not_close_it_leaks(run_on_one_loop: Run, test: str) -> None:
    """No test can fail by it any more, but the run can, and names the test."""
    result = run_on_one_loop(test.format(closes=False))
    result.assert_outcomes(passed=2)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(
        [
            "*leakguard: 1 test, 1 distinct leak*",
            "*::test_later*",
            "known too late for a test to fail by it: the run fails, with exit code 1",
        ]
    )


@pytest.mark.parametrize("leak", ["sessions.append(await take())", "await get('/leak')"])
def test_a_task_that_has_nothing_to_do_with_it_saves_nobody(
    run_on_one_loop: Run, leak: str
) -> None:
    """As the lifespan of an application, or one that reads a queue."""
    result = run_on_one_loop(
        f"async def test_begins(): tasks.append(asyncio.create_task(go_on.wait()))\n"
        f"async def test_leaks(): {leak}\n"
    )
    result.assert_outcomes(passed=2, failed=1)
    result.stdout.fnmatch_lines(["*FAILED* test_suite.py::test_leaks*"])


CLOSED = """
import asyncio
tasks = []


async def keep():
    connection = engine.connect()
    await asyncio.Event().wait()
    connection.close()


def test_closes_its_loop():
    loop = asyncio.new_event_loop()
    tasks.append(loop.create_task(keep()))
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()
"""


def test_a_loop_that_is_closed_never_goes_on(write: Write, run_apart: Run) -> None:
    """What its tasks have is not given back: their test fails, and not the run at its end."""
    write(CLOSED)
    result = run_apart("--leakguard=error", "-Wignore")
    ended(result, failed=1)
    result.stdout.fnmatch_lines(
        ["leaked: test_suite.py::test_closes_its_loop *", "*loop was closed*"]
    )


WORKER = """
@pytest.fixture(scope="session", autouse=True)
async def worker():
    queue = asyncio.Queue()
    task = asyncio.create_task(work(queue))
    yield queue
    task.cancel()
    await asyncio.wait([task])


async def work(queue):
    global connection
    try:
        while True:
            done = await queue.get()
            connection = await asyncio.wait_for(async_engine.connect(), 10)
            await connection.execute(text("select 1"))
            done.set_result(None)
    finally:
        {}


async def test_works(worker):
    done = asyncio.get_running_loop().create_future()
    worker.put_nowait(done)
    await done
"""


def test_a_task_that_has_it_in_a_global_variable(run_on_one_loop: Run) -> None:
    """Which its code names that is yet to run, as the end of a worker does."""
    ended(run_on_one_loop(WORKER.format("await connection.close()")), passed=2)
    result = run_on_one_loop(WORKER.format("print(connection)"))
    ended(result, passed=2, code=pytest.ExitCode.TESTS_FAILED)
    result.stdout.fnmatch_lines(["  1 test: test_suite.py::test_works *"])
