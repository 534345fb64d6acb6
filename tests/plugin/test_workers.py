"""With pytest-xdist, and in random order, each leak is pinned on the test that made it."""

from __future__ import annotations

import json

import pytest

from tests.plugin.conftest import OUTLIVED, Write, ended

TESTS = """
import asyncio
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

async_engine = create_async_engine("sqlite+aiosqlite:///async.db", pool_logging_name="async")


@pytest.mark.parametrize("number", range(12))
def test_one(number):
    async def work():
        session = AsyncSession(async_engine)
        await session.execute(text("select 1"))
        if number % 4:
            await session.close()
    asyncio.run(work())
    behave()
"""
LEAKY = [f"test_suite.py::test_one[{number}]" for number in (0, 4, 8)]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("workers", ["0", "2"])
def test_the_test_that_leaks_is_the_one_that_fails(
    write: Write, pytester: pytest.Pytester, workers: str, seed: int
) -> None:
    """Though only the collector would have shown it, in whatever test came next."""
    write(TESTS)
    result = pytester.runpytest_subprocess(
        "-pno:hypothesispytest",
        f"--numprocesses={workers}",
        f"--randomly-seed={seed}",
        "--leakguard=error",
        "--leakguard-report=leaks.json",
        "-Wignore",
    )
    ended(result, failed=3, passed=9)
    [leak] = json.loads((pytester.path / "leaks.json").read_text())["leaks"]
    assert sorted(leak["tests"]) == LEAKY
    result.stdout.fnmatch_lines(["*leakguard: 3 tests, 1 distinct leak*"])


def test_what_a_worker_finds_too_late_fails_the_run(
    write: Write, pytester: pytest.Pytester
) -> None:
    """No test is left that could fail: the run has it from the worker."""
    write(OUTLIVED)
    result = pytester.runpytest_subprocess("-n1", "--leakguard=error", "-pno:randomly")
    ended(result, passed=2, code=pytest.ExitCode.TESTS_FAILED)
    result.stdout.fnmatch_lines(["  1 test: test_suite.py::test_starts_it *"])


def test_the_workers_share_the_baseline(write: Write, pytester: pytest.Pytester) -> None:
    """The run writes it, from what they found."""
    write(TESTS)
    arguments = ("--leakguard=error", "--leakguard-baseline=known.json", "-n2", "-Wignore")
    pytester.runpytest_subprocess(*arguments, "--leakguard-update-baseline")
    [leak] = json.loads((pytester.path / "known.json").read_text())["leaks"]
    assert leak["tests"] == sorted(LEAKY)
    result = pytester.runpytest_subprocess(*arguments)
    ended(result, passed=12)
    result.stdout.fnmatch_lines(["1 leak of the baseline, in 3 tests"])


def test_a_worker_is_no_part_of_a_test(write: Write, pytester: pytest.Pytester) -> None:
    """It runs code that it was sent, which has no file."""
    write("def test_leaks(): take()\n")
    result = pytester.runpytest_subprocess("--leakguard=error", "-n1", "-pno:randomly")
    result.stdout.fnmatch_lines(
        [
            "  checked out       prelude.py:11 in take",
            "    called from     test_suite.py:2 in test_leaks",
            "  last statement    select 1",
        ],
        consecutive=True,
    )


def test_markers_alone_are_enough(write: Write, pytester: pytest.Pytester) -> None:
    """The run collects no tests itself, and has the summary all the same."""
    write("@pytest.mark.leakguard('error')\ndef test_leaks(): take()\n")
    result = pytester.runpytest_subprocess("-n1", "-pno:randomly")
    ended(result, failed=1)
    result.stdout.fnmatch_lines(["*leakguard: 1 test, 1 distinct leak*"])
