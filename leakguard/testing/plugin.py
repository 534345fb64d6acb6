"""The hooks of a run of tests in which leaks are looked for."""

from __future__ import annotations

import os
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import pytest
from _pytest import runner

from leakguard.testing.leaks import Leaks
from leakguard.testing.options import KINDS, Reaction, Run, Wish, read_wish
from leakguard.testing.protocol import ATTRIBUTE, OwnProtocol
from leakguard.testing.watch import TestWatch

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Iterator

    import pluggy

    from leakguard.core.finding import Finding
    from leakguard.testing.baseline import Baseline
    from leakguard.testing.leaks import Leak
    from leakguard.testing.watch import Part, Refers

_SUCCESS: Final = (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED)


class LeakPlugin:
    """Judges every test at its end, and every wider fixture at its own."""

    def __init__(self, config: pytest.Config, run: Run) -> None:
        self._config = config
        self._run = run
        self._baseline = _read_baseline(run)
        self._leaks = Leaks()
        self._fixtures: dict[pytest.FixtureDef[Any], tuple[Part, Wish]] = {}
        self._item: pytest.Item | None = None
        """The test that runs."""
        self._found: dict[str, list[Leak]] = {}
        """What was found of it, and of the fixtures that ended with it, by their names."""
        self._wishes: dict[str, Wish] = {}
        """What wider fixtures that have ended want, where that is not what the run does."""
        self._late: dict[str, list[Leak]] = {}
        """What no test can fail by any more, by the name of the test or fixture; of nobody where
        that is empty."""
        self.watch = TestWatch()
        self.watch.start()

    # --- what is judged: a test with its fixtures, and each wider fixture on its own --------------

    @pytest.hookimpl(wrapper=True)
    def pytest_runtestloop(self) -> Generator[None, object, object]:
        """Take part in how tests are run: every plugin is there by now."""
        manager = self._config.pluginmanager
        if self._run.distributed:
            from leakguard.testing.others import Reports  # noqa: PLC0415  (few runs)

            manager.register(Reports(self), "leakguard-reports")
        else:
            own = OwnProtocol(self)
            manager.register(own, "leakguard-tests")
            own.others = _others_that_run_tests(manager, own)
            if own.others is not None:
                from leakguard.testing.others import OtherProtocol  # noqa: PLC0415  (few runs)

                manager.register(OtherProtocol(self), "leakguard-other-tests")
        return (yield)

    @property
    def running(self) -> bool:
        """Whether a test has begun."""
        return self._item is not None

    def begin(self, item: pytest.Item) -> Part:
        """Begin a test, before its first fixture."""
        self._item = item
        self._found = {}
        return self.watch.begin(item.nodeid, "test")

    def end(self, item: pytest.Item, part: Part) -> dict[str, list[Leak]]:
        """Judge a test after its last fixture: return its leaks, and those of fixtures that ended.

        By their names.
        """
        self._item = None
        findings = self.watch.end(part, self._keepers())
        if findings:
            leaks = self._leaks_of(findings, read_wish(item, self._run))
            self._found.setdefault(item.nodeid, []).extend(leaks)
        return self._found

    def abandon(self, part: Part) -> None:
        """End a test that something interrupts, whatever it has left."""
        self._item = None
        self.watch.end(part)

    def note(self, test: str, found: dict[str, list[Leak]], *, passed: bool) -> None:
        """Note that a test has run, and what was found of it and of fixtures that ended with it."""
        self._leaks.note(test, found, passed=passed)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_fixture_setup(
        self, fixturedef: pytest.FixtureDef[Any], request: pytest.FixtureRequest
    ) -> Generator[None, Any, Any]:
        """Begin a fixture that serves more than one test: what it takes is its own."""
        __tracebackhide__ = True
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
        if wish.reaction is not self._run.reaction or wish.ignore:
            self._wishes[part.name] = wish
        found = self._leaks_of(self.watch.end(part, self._keepers()), wish)
        into = self._late if self._item is None else self._found
        into.setdefault(part.name, []).extend(found)

    def _keepers(self) -> Iterator[tuple[Part, Refers]]:
        """Yield the wider fixtures that go on: what they have is theirs, whoever took it."""
        for fixturedef, (part, _) in self._fixtures.items():
            yield part, partial(_refers_to, fixturedef)

    def _leaks_of(self, findings: list[Finding], wish: Wish) -> list[Leak]:
        return [self._leak(one, wish.reaction) for one in findings if _counts(one, wish)]

    def _leak(self, finding: Finding, reaction: Reaction) -> Leak:
        from leakguard.testing.describe import identity_of, leak_of, warn_of  # noqa: PLC0415  (it needs the core)

        known = self._baseline is not None and identity_of(finding) in self._baseline
        accepted = known or self._run.update_baseline
        fails = not accepted and reaction is Reaction.ERROR
        if not accepted and reaction is Reaction.WARN:
            fails = not warn_of(finding)  # a filter may make an error of the warning
        return leak_of(finding, known=known, fails=fails)

    # --- the end of the run -----------------------------------------------------------------------

    @pytest.hookimpl(wrapper=True, trylast=True)  # within the wrapper that writes the summary
    def pytest_sessionfinish(self, session: pytest.Session) -> Generator[None]:
        """Write the files, and fail for what was found too late for any test to fail."""
        result = yield
        rest = self.watch.take_rest()
        if rest:
            self._wishes |= {item.nodeid: read_wish(item, self._run) for item in session.items}
        for name, finding in rest:
            wish = self._wishes.get(name, Wish(self._run.reaction))
            self._late.setdefault(name, []).extend(self._leaks_of([finding], wish))
        output: dict[str, Any] | None = getattr(self._config, "workeroutput", None)
        if output is not None:
            output[ATTRIBUTE] = self._late
            return result
        for name, leaks in self._late.items():
            self._leaks.add(name, leaks)
        late = any(leak["fails"] for leaks in self._late.values() for leak in leaks)
        if late and session.exitstatus in _SUCCESS:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED
        if self._run.report is not None:
            from leakguard.testing.summary import write_report  # noqa: PLC0415  (most runs have none)

            write_report(self._run.report, self._leaks, self._run.reaction.value)
        if self._run.update_baseline and self._baseline is not None:
            self._baseline = self._baseline.updated(self._leaks)
            self._baseline.write()
        return result

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:  # noqa: ANN401  (of pytest-xdist)
        """Take over what a worker found too late for any test to fail."""
        for name, leaks in getattr(node, "workeroutput", {}).get(ATTRIBUTE, {}).items():
            self._late.setdefault(name, []).extend(leaks)

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Say which distinct leaks there are, in how many tests."""
        if self._run.update_baseline and self._baseline is not None:
            terminalreporter.section("leakguard")
            terminalreporter.write_line(str(self._baseline))
            return
        gone = [] if self._baseline is None else self._baseline.gone(self._leaks)
        if not self._leaks.groups and not gone:
            return
        from leakguard.testing.summary import lines, title, workflow_commands  # noqa: PLC0415  (few runs have leaks)

        terminalreporter.section(f"leakguard: {title(self._leaks)}")
        for line in lines(self._leaks, gone):
            terminalreporter.write_line(line)
        if os.environ.get("GITHUB_ACTIONS") == "true":
            for line in workflow_commands(self._leaks):
                terminalreporter.write_line(line)

    def pytest_unconfigure(self) -> None:
        """Leave SQLAlchemy as it was found."""
        self.watch.stop()


def _others_that_run_tests(
    manager: pytest.PytestPluginManager, own: OwnProtocol
) -> pluggy.HookCaller | None:
    """Return the hook of plugins that may run a test in a way of their own; `None` without any.

    Those that pytest asks before it runs a test itself: it asks the last ones of the list first.
    """
    implementations: list[Any] = manager.hook.pytest_runtest_protocol.get_hookimpls()
    plugins = [one.plugin for one in implementations]
    around = [one.plugin for one in implementations if one.wrapper or one.hookwrapper]
    known = {own, *around, *plugins[: plugins.index(runner) + 1]}
    if known.issuperset(plugins):
        return None
    return manager.subset_hook_caller("pytest_runtest_protocol", known)


def _read_baseline(run: Run) -> Baseline | None:
    if run.baseline is None:
        return None
    from leakguard.testing.baseline import read_baseline  # noqa: PLC0415  (most runs have none)

    return read_baseline(run.baseline, may_be_missing=run.update_baseline)


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


def _name_of(fixturedef: pytest.FixtureDef[Any], request: pytest.FixtureRequest) -> str:
    index: int | None = getattr(request, "param_index", None)
    parameter = "" if index is None or not hasattr(request, "param") else f"[{index}]"
    where = f" of {request.node.nodeid}" if request.node.nodeid else ""
    return f"{fixturedef.scope} fixture {fixturedef.argname}{parameter}{where}"
