"""Tests that are run by others: by another plugin, or by the workers of pytest-xdist."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from leakguard.testing.protocol import ATTRIBUTE, expects_failure, text_of

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable

    from leakguard.testing.describe import Leak
    from leakguard.testing.leaks import Leaks
    from leakguard.testing.plugin import LeakPlugin
    from leakguard.testing.watch import Part


class OtherProtocol:
    """Judges tests that another plugin runs in a way of its own, as to repeat them.

    They have been told as passed when it is known what they have left: their teardown fails.
    """

    def __init__(self, plugin: LeakPlugin) -> None:
        self._plugin = plugin
        self._part: Part | None = None
        """The test that runs, where it is one of those."""
        self._passed = False
        """Whether the test itself has passed, and was meant to."""
        self._found: dict[str, list[Leak]] = {}

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> Generator[None]:
        """Begin a test, before its first fixture."""
        __tracebackhide__ = True
        self._passed = False
        self._found = {}
        self._part = None if self._plugin.running else self._plugin.begin(item)
        return (yield)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_teardown(self, item: pytest.Item) -> Generator[None]:
        """Judge a test, after its last fixture."""
        __tracebackhide__ = True
        try:
            result = yield
        finally:  # what its teardown fails by comes first
            if self._part is not None:
                self._found = self._plugin.end(item, self._part)
        found = self._found.items()
        _raise(leaks for name, leaks in found if self._passed or name != item.nodeid)
        return result

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """Send what was found along with the last report."""
        report = yield
        if call.when == "call":
            self._passed = report.passed and not expects_failure(report)
        elif call.when == "teardown" and self._part is not None:
            setattr(report, ATTRIBUTE, self._found)
            self._plugin.results.leaks.note(item.nodeid, self._found, passed=self._passed)
        return report


class Reports:
    """Notes what reports say of tests that workers have run."""

    def __init__(self, leaks: Leaks) -> None:
        self._leaks = leaks
        self._passed: set[str] = set()
        """The tests that have passed, and are yet to be torn down."""

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Note what was found of a test."""
        nodeid = report.nodeid
        if report.when == "call" and report.passed and not expects_failure(report):
            self._passed.add(nodeid)
        elif report.when == "teardown":
            found = getattr(report, ATTRIBUTE, {})
            self._leaks.note(nodeid, found, passed=nodeid in self._passed)
            self._passed.discard(nodeid)


def _raise(found: Iterable[Iterable[Leak]]) -> None:
    texts = [text for text in map(text_of, found) if text]
    if texts:
        raise pytest.fail.Exception("\n\n".join(texts), pytrace=False)
