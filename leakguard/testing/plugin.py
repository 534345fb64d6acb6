"""The hooks of a run of tests in which leaks are looked for."""

from __future__ import annotations

import os
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

import pytest
from _pytest import runner

from leakguard.testing.baseline import read_baseline
from leakguard.testing.leaks import Leaks
from leakguard.testing.options import KINDS, Reaction, Run, Wish, read_wish
from leakguard.testing.summary import lines, title, workflow_commands, write_report
from leakguard.testing.watch import Part, TestWatch

if TYPE_CHECKING:
    from collections.abc import Generator

    from leakguard.core.finding import Finding
    from leakguard.testing.leaks import Leak

_PART: Final = pytest.StashKey[Part]()
_LEAKS: Final = pytest.StashKey[dict[str, list["Leak"]]]()
"""What was found of a test, and of the fixtures that ended with it, by their names."""
_HELD: Final = pytest.StashKey[list[pytest.TestReport]]()
"""The report of the call of a test, which waits until it is known whether the test leaks."""
_EXPECTED: Final = pytest.StashKey[bool]()
"""Whether a test is marked as one that fails."""
_ATTRIBUTE: Final = "leakguard"
"""Of a report: its leaks, as a worker of pytest-xdist sends them to the run."""
_SUCCESS: Final = (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED)


class LeakPlugin:
    """Judges every test at its end, and every wider fixture at its own."""

    def __init__(self, config: pytest.Config, run: Run) -> None:
        self._config = config
        self._run = run
        self._baseline = read_baseline(run.baseline, may_be_missing=run.update_baseline)
        self._leaks = Leaks()
        self._wishes: dict[str, Wish] = {}
        self._fixtures: dict[pytest.FixtureDef[Any], tuple[Part, Wish]] = {}
        self._item: pytest.Item | None = None
        """The test that runs."""
        self._late: dict[str, list[Leak]] = {}
        """What no test can fail by any more, as `_LEAKS`; of nobody where the name is empty."""
        self.watch = TestWatch()
        self.watch.start()

    # --- what is judged: a test with its fixtures, and each wider fixture on its own --------------

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> Generator[None]:
        """Begin a test, before its first fixture."""
        self._item = item
        item.stash[_PART] = self.watch.begin(item.nodeid, "test")
        item.stash[_LEAKS] = {}
        return (yield)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_teardown(self, item: pytest.Item) -> Generator[None]:
        """Judge a test, after its last fixture."""
        try:
            return (yield)
        finally:
            self._item = None
            if _PART in item.stash:  # another plugin's wrapper may have failed before ours began
                self._end(item)

    def _end(self, item: pytest.Item) -> None:
        findings = self.watch.end(item.stash[_PART])
        del item.stash[_PART]
        found = self._leaks_of(findings, self._wish(item))
        if found:
            item.stash[_LEAKS][item.nodeid] = found
        if _HELD not in item.stash:  # another plugin runs the test, and has told that it passed
            _raise(item.stash[_LEAKS])

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_fixture_setup(
        self, fixturedef: pytest.FixtureDef[Any], request: pytest.FixtureRequest
    ) -> Generator[None, Any, Any]:
        """Begin a fixture that serves more than one test: what it takes is its own."""
        if fixturedef.scope == "function":
            return (yield)
        name = f"{fixturedef.scope} fixture {fixturedef.argname}"
        part = self.watch.begin(name, "fixture")
        self._fixtures[fixturedef] = part, read_wish(request.node, self._run)
        try:
            return (yield)
        finally:
            self.watch.leave(part)
            # The last one that is added is the first to be called.
            fixturedef.addfinalizer(lambda: self.watch.enter(part))

    def pytest_fixture_post_finalizer(self, fixturedef: pytest.FixtureDef[Any]) -> None:
        """Judge such a fixture when it has been torn down."""
        begun = self._fixtures.pop(fixturedef, None)
        if begun is None:
            return
        part, wish = begun
        found = self._leaks_of(self.watch.end(part), wish)
        if found:
            into = self._late if self._item is None else self._item.stash[_LEAKS]
            into[part.name] = found

    def _leaks_of(self, findings: list[Finding], wish: Wish) -> list[Leak]:
        return [self._leak(one, wish.reaction) for one in findings if _counts(one, wish)]

    def _leak(self, finding: Finding, reaction: Reaction) -> Leak:
        from leakguard.testing.describe import identity_of, leak_of, warn_of  # noqa: PLC0415  (it needs the core)

        known = identity_of(finding) in self._baseline
        counts = not known and not self._run.update_baseline
        if counts and reaction is Reaction.WARN:
            warn_of(finding)
        return leak_of(finding, known=known, fails=counts and reaction is Reaction.ERROR)

    def _wish(self, item: pytest.Item) -> Wish:
        return self._wishes.get(item.nodeid) or read_wish(item, self._run)

    # --- how it is told: the test itself fails ----------------------------------------------------

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Read what each test wants, before the first of them runs."""
        for item in items:
            self._wishes[item.nodeid] = read_wish(item, self._run)

    def pytest_runtest_protocol(
        self, item: pytest.Item, nextitem: pytest.Item | None
    ) -> bool | None:
        """Run a test, and hold back that it has passed until it is known what it has left.

        Not where another plugin may want to run it in a way of its own, as to repeat it.
        """
        if self._others_run_tests:
            return None
        item.stash[_HELD] = []
        place = item.location
        item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=place)
        try:
            runner.runtestprotocol(item, log=False, nextitem=nextitem)
        finally:
            self._log_held(item)
        item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=place)
        del item.stash[_HELD]
        return True

    @cached_property
    def _others_run_tests(self) -> bool:
        implementations: list[Any] = self._config.hook.pytest_runtest_protocol.get_hookimpls()
        ours = (self, runner)
        return any(
            one.plugin not in ours
            for one in implementations
            if not (one.wrapper or one.hookwrapper)
        )

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """Tell a report at once, but that of a call which may yet fail; and send what was found."""
        report = yield
        if call.when == "teardown" and item.stash.get(_LEAKS, None):
            setattr(report, _ATTRIBUTE, item.stash[_LEAKS])
        held = item.stash.get(_HELD, None)
        if held is None:
            return report
        if call.when == "call":
            item.stash[_EXPECTED] = _expects_failure(report)
            if report.passed or _unexpectedly_passed(report):
                held.append(report)
                return report
        if call.when == "teardown":
            self._fail(item, held[0] if held else None, report)
            self._log_held(item)
        item.ihook.pytest_runtest_logreport(report=report)
        return report

    def _fail(
        self, item: pytest.Item, call: pytest.TestReport | None, teardown: pytest.TestReport
    ) -> None:
        """Have the test fail by what it leaked, and its teardown by what a wider fixture did."""
        found = item.stash.get(_LEAKS, dict[str, list["Leak"]]())
        if item.stash.get(_EXPECTED, False) and item.nodeid in found:
            if call is not None and _text(found[item.nodeid]):
                _fail_as_expected(call)
            del found[item.nodeid]
        for name, leaks in found.items():
            text = _text(leaks)
            if not text:
                continue
            if name != item.nodeid:
                _fail(teardown, f"{name} leaks, which ended with this test\n\n{text}")
            elif call is not None:
                _fail(call, text)

    def _log_held(self, item: pytest.Item) -> None:
        held = item.stash[_HELD]
        while held:
            item.ihook.pytest_runtest_logreport(report=held.pop())

    # --- the end of the run -----------------------------------------------------------------------

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Group what was found, also by the workers of pytest-xdist."""
        if report.when == "teardown":
            self._leaks.ran.add(report.nodeid)
            found: dict[str, list[Leak]] = getattr(report, _ATTRIBUTE, {})
            for name, leaks in found.items():
                self._leaks.add(name, leaks)

    @pytest.hookimpl(wrapper=True, trylast=True)  # within the wrapper that writes the summary
    def pytest_sessionfinish(self, session: pytest.Session) -> Generator[None]:
        """Write the files, and fail for what was found too late for any test to fail."""
        result = yield
        for name, finding in self.watch.take_rest():
            wish = self._wishes.get(name) or Wish(self._run.reaction)
            self._late.setdefault(name, []).extend(self._leaks_of([finding], wish))
        output: dict[str, Any] | None = getattr(self._config, "workeroutput", None)
        if output is not None:
            output[_ATTRIBUTE] = self._late
            return result
        for name, leaks in self._late.items():
            self._leaks.add(name, leaks)
        late = any(leak["fails"] for leaks in self._late.values() for leak in leaks)
        if late and session.exitstatus in _SUCCESS:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED
        if self._run.report is not None:
            write_report(self._run.report, self._leaks, self._run.reaction.value)
        return result

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:  # noqa: ANN401  (of pytest-xdist)
        """Take over what a worker found too late for any test to fail."""
        for name, leaks in getattr(node, "workeroutput", {}).get(_ATTRIBUTE, {}).items():
            self._late.setdefault(name, []).extend(leaks)

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Say which distinct leaks there are, in how many tests."""
        gone = self._baseline.gone(self._leaks)
        if self._run.update_baseline and self._run.baseline is not None:
            number = self._baseline.updated(self._leaks).write(self._run.baseline)
            terminalreporter.section("leakguard")
            terminalreporter.write_line(f"{self._run.baseline}: {number} known leaks")
            return
        if not self._leaks.groups and not gone:
            return
        terminalreporter.section(f"leakguard: {title(self._leaks)}")
        for line in lines(self._leaks, gone):
            terminalreporter.write_line(line)
        if os.environ.get("GITHUB_ACTIONS") == "true":
            for line in workflow_commands(self._leaks, self._run.reaction.value):
                terminalreporter.write_line(line)

    def pytest_unconfigure(self) -> None:
        """Leave SQLAlchemy as it was found."""
        self.watch.stop()


def _counts(finding: Finding, wish: Wish) -> bool:
    """Return whether a finding is of those that a test can fail by, and this one does not mind."""
    if wish.reaction is Reaction.OFF or finding.kind.value not in KINDS:
        return False
    return not wish.ignores(finding)


def _raise(found: dict[str, list[Leak]]) -> None:
    texts = [_text(leaks) for leaks in found.values()]
    if any(texts):
        raise pytest.fail.Exception("\n\n".join(filter(None, texts)), pytrace=False)


def _text(leaks: list[Leak]) -> str:
    return "\n\n".join(leak["report"] for leak in leaks if leak["fails"])


def _fail(report: pytest.TestReport, text: str) -> None:
    before = f"{report.longreprtext}\n\n" if report.failed else ""
    report.outcome = "failed"
    report.longrepr = before + text


def _fail_as_expected(report: pytest.TestReport) -> None:
    report.wasxfail = getattr(report, "wasxfail", "") or "leaks"
    report.outcome = "skipped"


def _expects_failure(report: pytest.TestReport) -> bool:
    return hasattr(report, "wasxfail") or _unexpectedly_passed(report)


def _unexpectedly_passed(report: pytest.TestReport) -> bool:
    return report.failed and report.longreprtext.startswith("[XPASS(strict)]")
