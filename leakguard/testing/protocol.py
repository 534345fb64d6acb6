"""Running a test so that it can fail by what is known only after its teardown."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pluggy
import pytest
from _pytest import runner

_runner: Any = runner  # some of its parameters have no types
call_and_report: Callable[..., pytest.TestReport] = _runner.call_and_report

Judge = Callable[[pytest.Item, pytest.TestReport | None, pytest.TestReport], None]
"""Changes the reports of a call, if there is one that has passed, and of a teardown."""


def run_test(item: pytest.Item, nextitem: pytest.Item | None, judge: Judge) -> None:
    """Run a test as pytest does, but tell that it has passed when `judge` has seen it.

    Everything else is told at once: pytest decides by it whether to go on.
    """
    function: Any = item
    call: pytest.TestReport | None = None
    ihook = item.ihook  # once: to ask for it takes as long as all that is done here
    try:
        if call_and_report(item, "setup").passed:
            call = _call(item, ihook)
        if item.session.shouldfail or item.session.shouldstop:
            nextitem = None
        teardown = call_and_report(item, "teardown", log=False, nextitem=nextitem)
        judge(item, call, teardown)
        _log(ihook, call)
        call = None
        _log(ihook, teardown)
        _tear_down_the_rest(item, nextitem)
    finally:
        _log(ihook, call)  # where something ends the run in the middle of the teardown
        if hasattr(item, "_request"):  # as pytest does: to keep nothing of the fixtures
            function._request = False  # noqa: SLF001
            function.funcargs = None


def _call(item: pytest.Item, ihook: pluggy.HookRelay) -> pytest.TestReport | None:
    """Run the test itself, and return its report where that is to wait."""
    only_setup = bool(item.config.getoption("setuponly"))
    if item.config.getoption("setupshow"):
        runner.show_test_item(item, add_space=not only_setup)
    if only_setup:
        return None
    report = call_and_report(item, "call", log=False)
    if report.passed or _unexpectedly_passed(report):
        return report
    _log(ihook, report)
    return None


def _log(ihook: pluggy.HookRelay, report: pytest.TestReport | None) -> None:
    if report is not None:
        ihook.pytest_runtest_logreport(report=report)


def _tear_down_the_rest(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """Tear down wider fixtures where the run ends because this test failed by its leak."""
    if nextitem is not None and (item.session.shouldfail or item.session.shouldstop):
        session: Any = item.session
        end = session._setupstate.teardown_exact  # noqa: SLF001  (no public way; tested)
        ends_run = (KeyboardInterrupt, pytest.exit.Exception)
        call = pytest.CallInfo[None].from_call(lambda: end(None), "teardown", reraise=ends_run)
        report: pytest.TestReport = item.ihook.pytest_runtest_makereport(item=item, call=call)
        if report.failed:
            _log(item.ihook, report)


def fail(report: pytest.TestReport, text: str) -> None:
    """Have a test fail by `text`, beside what it fails by already."""
    before = f"{report.longreprtext}\n\n" if report.failed else ""
    report.outcome = "failed"
    report.longrepr = before + text


def fail_as_expected(report: pytest.TestReport) -> None:
    """Have a test that is marked `xfail`, and passed, fail as it should."""
    report.wasxfail = getattr(report, "wasxfail", "") or "leaks"
    report.outcome = "skipped"


def expects_failure(report: pytest.TestReport) -> bool:
    """Return whether it is of a test that is marked so."""
    return hasattr(report, "wasxfail") or _unexpectedly_passed(report)


def _unexpectedly_passed(report: pytest.TestReport) -> bool:
    return report.failed and report.longreprtext.startswith("[XPASS(strict)]")
