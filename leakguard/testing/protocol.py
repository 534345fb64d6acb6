"""The plugin's own way to run a test, which can fail by what is known only after its teardown."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import pytest
from _pytest import runner

if TYPE_CHECKING:
    from collections.abc import Iterable

    import pluggy

    from leakguard.testing.leaks import Leak
    from leakguard.testing.plugin import LeakPlugin

_runner: Any = runner  # some of its parameters have no types
call_and_report: Callable[..., pytest.TestReport] = _runner.call_and_report

ATTRIBUTE: Final = "leakguard"
"""Of the report on a teardown: the leaks by name, as a worker of pytest-xdist sends them."""


class OwnProtocol:
    """Runs tests as pytest does, but tells that one has passed when it is known what it has left.

    Everything else is told at once: pytest decides by it whether to go on.
    """

    def __init__(self, plugin: LeakPlugin) -> None:
        self._plugin = plugin
        self.others: pluggy.HookCaller | None = None
        """Calls plugins that may run a test in a way of their own, as to repeat it."""

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item, nextitem: pytest.Item | None) -> bool:
        """Run a test, unless another plugin does."""
        if self.others is not None and self.others(item=item, nextitem=nextitem):
            return True
        ihook = item.ihook  # once: it takes its time to find out
        nodeid, location = item.nodeid, item.location
        ihook.pytest_runtest_logstart(nodeid=nodeid, location=location)
        self._run(item, nextitem, ihook)
        ihook.pytest_runtest_logfinish(nodeid=nodeid, location=location)
        return True

    def _run(
        self, item: pytest.Item, nextitem: pytest.Item | None, ihook: pluggy.HookRelay
    ) -> None:
        plugin, session = self._plugin, item.session
        waiting: pytest.TestReport | None = None
        part, ended = plugin.begin(item), False
        try:
            passed = call_and_report(item, "setup").passed
            call = _call(item) if passed else None
            if call is not None and _may_change(call):
                waiting = call
            elif call is not None:
                ihook.pytest_runtest_logreport(report=call)
            if session.shouldfail or session.shouldstop:
                nextitem = None
            teardown = call_and_report(item, "teardown", log=False, nextitem=nextitem)
            ended = True
            found = plugin.end(item, part)
            if found:
                setattr(teardown, ATTRIBUTE, found)
                _fail(item.nodeid, call, teardown, found)
            plugin.note(item.nodeid, found)
            if waiting is not None:
                ihook.pytest_runtest_logreport(report=waiting)
                waiting = None
            ihook.pytest_runtest_logreport(report=teardown)
            if nextitem is not None and (session.shouldfail or session.shouldstop):
                _tear_down_the_rest(item, ihook)
        finally:
            if not ended:  # something ends the run in the middle
                plugin.abandon(part)
            if waiting is not None:
                ihook.pytest_runtest_logreport(report=waiting)
            if hasattr(item, "_request"):  # as pytest does: to keep nothing of the fixtures
                function: Any = item
                function._request = False  # noqa: SLF001
                function.funcargs = None


def text_of(leaks: Iterable[Leak]) -> str:
    """Return the reports on those leaks that a test is to fail by."""
    return "\n\n".join(leak["report"] for leak in leaks if leak["fails"])


def _call(item: pytest.Item) -> pytest.TestReport | None:
    """Run the test itself, unless only setups are wanted, and return its report: it is not told."""
    only_setup = bool(item.config.getoption("setuponly"))
    if item.config.getoption("setupshow"):
        runner.show_test_item(item, add_space=not only_setup)
    return None if only_setup else call_and_report(item, "call", log=False)


def _may_change(report: pytest.TestReport) -> bool:
    """Return whether what a test has left may yet change how it went."""
    return report.passed or _unexpectedly_passed(report)


def expects_failure(report: pytest.TestReport) -> bool:
    """Return whether it is of a test that is marked `xfail`."""
    return hasattr(report, "wasxfail") or _unexpectedly_passed(report)


def _unexpectedly_passed(report: pytest.TestReport) -> bool:
    return report.failed and report.longreprtext.startswith("[XPASS(strict)]")


def _fail(
    test: str,
    call: pytest.TestReport | None,
    teardown: pytest.TestReport,
    found: dict[str, list[Leak]],
) -> None:
    """Have a test fail by what it leaked, and its teardown by what a wider fixture did."""
    if call is not None and expects_failure(call) and test in found:
        if _may_change(call) and text_of(found[test]):
            call.wasxfail = getattr(call, "wasxfail", "") or "leaks"
            call.outcome = "skipped"
        del found[test]
    for name, leaks in found.items():
        text = text_of(leaks)
        if not text:
            continue
        if name != test:
            _add_failure(teardown, f"{name} leaks, which has ended here\n\n{text}")
        elif call is not None and _may_change(call):
            _add_failure(call, text)


def _add_failure(report: pytest.TestReport, text: str) -> None:
    """Have a phase of a test fail by `text`, beside what it fails by already."""
    before = f"{report.longreprtext}\n\n" if report.failed else ""
    report.outcome = "failed"
    report.longrepr = before + text


def _tear_down_the_rest(item: pytest.Item, ihook: pluggy.HookRelay) -> None:
    """Tear down wider fixtures where the run ends because this test failed by its leak."""
    session: Any = item.session
    end = session._setupstate.teardown_exact  # noqa: SLF001  (no public way; tested)
    ends_run = (KeyboardInterrupt, pytest.exit.Exception)
    call = pytest.CallInfo[None].from_call(lambda: end(None), "teardown", reraise=ends_run)
    report: pytest.TestReport = ihook.pytest_runtest_makereport(item=item, call=call)
    if report.failed:
        ihook.pytest_runtest_logreport(report=report)
