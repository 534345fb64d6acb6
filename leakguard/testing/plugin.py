"""The hooks of a run of tests in which leaks are looked for."""

from __future__ import annotations

import os
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, Final

import pytest
from _pytest import runner

from leakguard.testing.baseline import read_baseline
from leakguard.testing.leaks import Leaks
from leakguard.testing.options import KINDS, Reaction, Run, Wish, read_wish
from leakguard.testing.protocol import expects_failure, fail, fail_as_expected, run_test
from leakguard.testing.summary import lines, title, workflow_commands, write_report
from leakguard.testing.watch import Part, TestWatch

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Iterator

    from leakguard.core.finding import Finding
    from leakguard.testing.leaks import Leak
    from leakguard.testing.watch import Refers

_PART: Final = pytest.StashKey[Part]()
_WISH: Final = pytest.StashKey[tuple[int, Wish]]()
"""What a test wanted when it was collected, and how many markers it had then."""
_LEAKS: Final = pytest.StashKey[dict[str, list["Leak"]]]()
"""What was found of a test, and of the fixtures that ended with it, by their names."""
_OURS: Final = pytest.StashKey[bool]()
"""Whether a test is run by this plugin, so that it can fail when it has passed."""
_PASSED: Final = pytest.StashKey[bool]()
"""Whether the test itself has passed, and was meant to."""
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
        self._default = Wish(run.reaction)
        self._wishes: dict[str, Wish] = {}
        """Of the tests that have ended and want something else."""
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
        findings = self.watch.end(item.stash[_PART], self._keepers())
        del item.stash[_PART]
        wish = self._wish_of(item)
        if wish != self._default:
            self._wishes[item.nodeid] = wish
        if findings:
            item.stash[_LEAKS].setdefault(item.nodeid, []).extend(self._leaks_of(findings, wish))
        if not item.stash.get(_OURS, False):  # another plugin has told already that it passed
            passed = item.stash.get(_PASSED, False)
            _raise(
                leaks for name, leaks in item.stash[_LEAKS].items() if passed or name != item.nodeid
            )

    def _wish_of(self, item: pytest.Item) -> Wish:
        markers, wish = item.stash.get(_WISH, (None, self._default))
        if markers != len(item.own_markers):  # one may have been added at any time
            return read_wish(item, self._run)
        return wish

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_fixture_setup(
        self, fixturedef: pytest.FixtureDef[Any], request: pytest.FixtureRequest
    ) -> Generator[None, Any, Any]:
        """Begin a fixture that serves more than one test: what it takes is its own."""
        if fixturedef.scope == "function":
            return (yield)
        name = _name_of(fixturedef, request)
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
        found = self._leaks_of(self.watch.end(part, self._keepers()), wish)
        into = self._late if self._item is None else self._item.stash[_LEAKS]
        into.setdefault(part.name, []).extend(found)

    def _keepers(self) -> Iterator[tuple[Part, Refers]]:
        """Yield the wider fixtures that go on: what they have is theirs, whoever took it."""
        for fixturedef, (part, _) in self._fixtures.items():
            yield part, partial(_refers_to, fixturedef)

    def _leaks_of(self, findings: list[Finding], wish: Wish) -> list[Leak]:
        return [self._leak(one, wish.reaction) for one in findings if _counts(one, wish)]

    def _leak(self, finding: Finding, reaction: Reaction) -> Leak:
        from leakguard.testing.describe import identity_of, leak_of, warn_of  # noqa: PLC0415  (it needs the core)

        known = identity_of(finding) in self._baseline
        fails = False
        if not known and not self._run.update_baseline:
            # A filter may make an error of the warning.
            fails = reaction is Reaction.ERROR or not warn_of(finding)
        return leak_of(finding, known=known, fails=fails)

    # --- how it is told: the test itself fails ----------------------------------------------------

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Refuse bad markers before the first test runs."""
        for item in items:
            item.stash[_WISH] = len(item.own_markers), read_wish(item, self._run)

    def pytest_runtest_protocol(
        self, item: pytest.Item, nextitem: pytest.Item | None
    ) -> bool | None:
        """Run a test, and hold back that it has passed until it is known what it has left.

        Not where another plugin may want to run it in a way of its own, as to repeat it.
        """
        if self._others_run_tests:
            return None
        item.stash[_OURS] = True
        place, ihook = item.location, item.ihook
        ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=place)
        run_test(item, nextitem, self._fail)
        ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=place)
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
        """Send what was found along with the last report."""
        report = yield
        if call.when == "call":
            expected = expects_failure(report)
            item.stash[_EXPECTED] = expected
            item.stash[_PASSED] = report.passed and not expected
        elif call.when == "teardown" and item.stash.get(_LEAKS, None):
            setattr(report, _ATTRIBUTE, item.stash[_LEAKS])
        return report

    def _fail(
        self, item: pytest.Item, call: pytest.TestReport | None, teardown: pytest.TestReport
    ) -> None:
        """Have the test fail by what it leaked, and its teardown by what a wider fixture did."""
        found = item.stash.get(_LEAKS, dict[str, list["Leak"]]())
        if item.stash.get(_EXPECTED, False) and item.nodeid in found:
            if call is not None and _text(found[item.nodeid]):
                fail_as_expected(call)
            del found[item.nodeid]
        for name, leaks in found.items():
            text = _text(leaks)
            if not text:
                continue
            if name != item.nodeid:
                fail(teardown, f"{name} leaks, which has ended here\n\n{text}")
            elif call is not None:
                fail(call, text)
        item.stash[_LEAKS] = {}  # they are told

    # --- the end of the run -----------------------------------------------------------------------

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Group what was found, also by the workers of pytest-xdist."""
        if report.when == "teardown":
            self._leaks.ran.add(report.nodeid)
            found: dict[str, list[Leak]] = getattr(report, _ATTRIBUTE, {})
            for name, leaks in found.items():
                self._leaks.ran.add(name)
                self._leaks.add(name, leaks)

    @pytest.hookimpl(wrapper=True, trylast=True)  # within the wrapper that writes the summary
    def pytest_sessionfinish(self, session: pytest.Session) -> Generator[None]:
        """Write the files, and fail for what was found too late for any test to fail."""
        result = yield
        for name, finding in self.watch.take_rest():
            wish = self._wishes.get(name, self._default)
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


def _refers_to(fixturedef: pytest.FixtureDef[Any], things: Iterable[object]) -> set[int]:
    from leakguard.testing.keeping import kept  # noqa: PLC0415  (few tests have anything out)

    value = None if fixturedef.cached_result is None else fixturedef.cached_result[0]
    # There is no public way to its teardown. Without, its value has to do.
    finalizers: Iterable[object] = getattr(fixturedef, "_finalizers", ())
    return kept(value, finalizers, things)


def _counts(finding: Finding, wish: Wish) -> bool:
    """Return whether a finding is of those that a test can fail by, and this one does not mind."""
    if wish.reaction is Reaction.OFF or finding.kind.value not in KINDS:
        return False
    return not wish.ignores(finding)


def _raise(found: Iterable[list[Leak]]) -> None:
    texts = [_text(leaks) for leaks in found]
    if any(texts):
        raise pytest.fail.Exception("\n\n".join(filter(None, texts)), pytrace=False)


def _text(leaks: list[Leak]) -> str:
    return "\n\n".join(leak["report"] for leak in leaks if leak["fails"])


def _name_of(fixturedef: pytest.FixtureDef[Any], request: pytest.FixtureRequest) -> str:
    index: int | None = getattr(request, "param_index", None)
    parameter = "" if index is None or not hasattr(request, "param") else f"[{index}]"
    where = f" of {request.node.nodeid}" if request.node.nodeid else ""
    return f"{fixturedef.scope} fixture {fixturedef.argname}{parameter}{where}"
