"""The plugin's own way to run a test, which can fail by what is known only after its teardown."""

from __future__ import annotations

import inspect
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

import pytest
from _pytest import runner

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    import pluggy

    from leakguard.testing.describe import Leak
    from leakguard.testing.plugin import LeakPlugin

_runner: Any = runner  # some of its parameters have no types
_SHOWS_SPACE: Final = "add_space" in inspect.signature(_runner.show_test_item).parameters

_CallInfo: Final[type[pytest.CallInfo[None]]] = pytest.CallInfo
"""Without its type argument, by which everything would be looked up in Python: 6 us a test."""
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
        function: Any = item
        has_request = hasattr(item, "_request")
        if has_request and not function._request:  # noqa: SLF001  # it has run before
            function._initrequest()  # noqa: SLF001
        try:
            self._run(item, nextitem, ihook)
        finally:
            if has_request:  # as pytest does: to keep nothing of the fixtures
                function._request = False  # noqa: SLF001
                function.funcargs = None
        ihook.pytest_runtest_logfinish(nodeid=nodeid, location=location)
        return True

    def _run(
        self, item: pytest.Item, nextitem: pytest.Item | None, ihook: pluggy.HookRelay
    ) -> None:
        plugin, session = self._plugin, item.session
        call: _Phase | None = None
        found: dict[str, list[Leak]] = {}
        waits = ended = noted = False
        part = plugin.begin(item)

        def tear_down() -> None:
            __tracebackhide__ = True
            nonlocal found, ended
            try:
                ihook.pytest_runtest_teardown(item=item, nextitem=nextitem)
            finally:  # within the phase: whatever is raised is an error of this test
                ended = True
                found = plugin.end(item, part)

        try:
            setup = _phase(item, ihook, "setup", partial(ihook.pytest_runtest_setup, item=item))
            _tell(item, ihook, setup)
            if setup.report.passed:
                call = _call(item, ihook)
            waits = call is not None and _may_change(call.report)
            if call is not None and not waits:
                _tell(item, ihook, call)
            if session.shouldfail or session.shouldstop:
                nextitem = None
            passed = call is not None and call.report.passed and not expects_failure(call.report)
            teardown = _phase(item, ihook, "teardown", tear_down)
            self._note(part.name, call, teardown, found, passed=passed)
            noted = True
            if call is not None and waits:
                waits = False
                _tell(item, ihook, call)
            _tell(item, ihook, teardown)
            if nextitem is not None and (session.shouldfail or session.shouldstop):
                _tear_down_the_rest(item, ihook)
        finally:
            if not ended:  # something ends the run in the middle
                plugin.abandon(part)
            elif found and not noted:  # of a teardown that was interrupted, as one that hangs
                self._note(part.name, call, None, found, passed=False)
            if call is not None and waits:
                _tell(item, ihook, call)

    def _note(
        self,
        test: str,
        call: _Phase | None,
        teardown: _Phase | None,
        found: dict[str, list[Leak]],
        *,
        passed: bool,
    ) -> None:
        """Have a test fail by what was found, and note that it has run."""
        if found:
            if teardown is not None:
                setattr(teardown.report, ATTRIBUTE, found)
            _fail(test, call, teardown, found)
        self._plugin.results.leaks.note(test, found, passed=passed)


class _Phase(NamedTuple):
    """The setup, call or teardown of a test, when it is over."""

    call: pytest.CallInfo[None]
    report: pytest.TestReport


def _phase(
    item: pytest.Item,
    ihook: pluggy.HookRelay,
    when: Literal["setup", "call", "teardown"],
    function: Callable[[], None],
) -> _Phase:
    """Run a phase as pytest does, and do not tell of it."""
    ends_run: tuple[type[BaseException], ...] = (pytest.exit.Exception,)
    if not item.config.getoption("usepdb", default=False):
        ends_run += (KeyboardInterrupt,)
    call = _CallInfo.from_call(function, when, reraise=ends_run)
    return _Phase(call, ihook.pytest_runtest_makereport(item=item, call=call))


def _tell(item: pytest.Item, ihook: pluggy.HookRelay, phase: _Phase) -> None:
    """Tell how a phase went, and have a debugger look at it where there is one."""
    ihook.pytest_runtest_logreport(report=phase.report)
    if runner.check_interactive_exception(phase.call, phase.report):
        ihook.pytest_exception_interact(node=item, call=phase.call, report=phase.report)


def text_of(leaks: Iterable[Leak]) -> str:
    """Return the reports on those leaks that a test is to fail by."""
    return "\n\n".join(leak["report"] for leak in leaks if leak["fails"])


def _call(item: pytest.Item, ihook: pluggy.HookRelay) -> _Phase | None:
    """Run the test itself, unless only setups are wanted."""
    only_setup = bool(item.config.getoption("setuponly", default=False))
    if item.config.getoption("setupshow", default=False):
        # From pytest 9.1 on it takes whether something follows on the line.
        spaced = {"add_space": not only_setup} if _SHOWS_SPACE else {}
        _runner.show_test_item(item, **spaced)
    if only_setup:
        return None
    return _phase(item, ihook, "call", partial(ihook.pytest_runtest_call, item=item))


def _may_change(report: pytest.TestReport) -> bool:
    """Return whether what a test has left may yet change how it went."""
    return report.passed or _unexpectedly_passed(report)


def expects_failure(report: pytest.TestReport) -> bool:
    """Return whether it is of a test that is marked `xfail`."""
    return hasattr(report, "wasxfail") or _unexpectedly_passed(report)


def _unexpectedly_passed(report: pytest.TestReport) -> bool:
    return report.failed and report.longreprtext.startswith("[XPASS(strict)]")


def _fail(
    test: str, call: _Phase | None, teardown: _Phase | None, found: dict[str, list[Leak]]
) -> None:
    """Have a test fail by what it leaked, and its teardown by what a wider fixture did."""
    report = None if call is None else call.report
    if report is not None and expects_failure(report) and test in found:
        if _may_change(report) and text_of(found[test]):
            report.wasxfail = getattr(report, "wasxfail", "") or "leaks"
            report.outcome = "skipped"
        del found[test]
    for name, leaks in found.items():
        text = text_of(leaks)
        if not text:
            continue
        if name == test:
            if report is not None and _may_change(report):
                _add_failure(report, text)
        elif teardown is not None:
            _add_failure(teardown.report, f"{name} leaks, which has ended here\n\n{text}")


def _add_failure(report: pytest.TestReport, text: str) -> None:
    """Have a phase of a test fail by `text`, beside what it fails by already."""
    before = f"{report.longreprtext}\n\n" if report.failed else ""
    report.outcome = "failed"
    report.longrepr = before + text


def _tear_down_the_rest(item: pytest.Item, ihook: pluggy.HookRelay) -> None:
    """Tear down wider fixtures where the run ends because this test failed by its leak."""
    session: Any = item.session

    def tear_down() -> None:
        __tracebackhide__ = True
        session._setupstate.teardown_exact(None)  # noqa: SLF001  (no public way; tested)

    phase = _phase(item, ihook, "teardown", tear_down)
    if phase.report.failed:
        _tell(item, ihook, phase)
