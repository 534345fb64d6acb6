"""The results of a run: what was found in all, what the run ends with, and what it says."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Final

import pytest

from leakguard.testing.leaks import Leaks
from leakguard.testing.options import KINDS, Reaction, Run, Wish, read_wish
from leakguard.testing.protocol import ATTRIBUTE

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable

    from leakguard.core.finding import Finding
    from leakguard.testing.baseline import Baseline
    from leakguard.testing.describe import Leak
    from leakguard.testing.watch import TestWatch

_SUCCESS: Final = (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED)


class Results:
    """Gathers what was found, and has the run end with it."""

    def __init__(self, config: pytest.Config, run: Run, watch: TestWatch) -> None:
        self._config = config
        self._run = run
        self._watch = watch
        self._baseline = _read_baseline(run)
        self.leaks = Leaks()
        self._wishes: dict[str, Wish] = {}
        """What wider fixtures that have ended want, where that is not what the run does."""
        self._late: dict[str, list[Leak]] = {}
        """What no test can fail by any more, by the name of the test or fixture; of nobody where
        that is empty."""
        self._fails_the_run = False
        """Whether that is all the run fails by."""

    def note_late(self, name: str, leaks: Iterable[Leak]) -> None:
        """Note what was found too late for any test to fail, of a test or fixture."""
        self._late.setdefault(name, []).extend(leaks)

    def fixture_ended(self, name: str, wish: Wish) -> None:
        """Remember what a fixture wants: more may be found of it."""
        if wish.reaction is not self._run.reaction or wish.ignore:
            self._wishes[name] = wish

    def leaks_of(self, findings: Iterable[Finding], wish: Wish) -> list[Leak]:
        """Return those findings that are leaks to a test or fixture, written down."""
        return [self._leak(one, wish.reaction) for one in findings if _counts(one, wish)]

    def _leak(self, finding: Finding, reaction: Reaction) -> Leak:
        from leakguard.testing.describe import identity_of, leak_of, warn_of  # noqa: PLC0415  (it needs the core)

        known = self._baseline is not None and identity_of(finding) in self._baseline
        accepted = known or self._run.update_baseline
        fails = not accepted and reaction is Reaction.ERROR
        if not accepted and reaction is Reaction.WARN:
            fails = not warn_of(finding)  # a filter may make an error of the warning
        return leak_of(finding, known=known, fails=fails)

    @pytest.hookimpl(wrapper=True, trylast=True)  # within the wrapper that writes the summary
    def pytest_sessionfinish(self, session: pytest.Session) -> Generator[None]:
        """Write the files, and fail for what was found too late for any test to fail."""
        result = yield
        rest = self._watch.take_rest()
        if rest:
            self._wishes |= {item.nodeid: read_wish(item, self._run) for item in session.items}
        for name, finding in rest:
            wish = self._wishes.get(name, Wish(self._run.reaction))
            self.note_late(name, self.leaks_of([finding], wish))
        output: dict[str, Any] | None = getattr(self._config, "workeroutput", None)
        if output is not None:
            output[ATTRIBUTE] = self._late
            return result
        for name, leaks in self._late.items():
            self.leaks.add(name, leaks)
        late = any(leak["fails"] for leaks in self._late.values() for leak in leaks)
        if late and session.exitstatus in _SUCCESS:
            self._fails_the_run = True
            session.exitstatus = pytest.ExitCode.TESTS_FAILED
        if self._run.report is not None:
            from leakguard.testing.summary import write_report  # noqa: PLC0415  (most runs have none)

            write_report(self._run.report, self.leaks, self._run.reaction.value)
        if self._run.update_baseline and self._baseline is not None:
            self._baseline = self._baseline.updated(self.leaks)
            self._baseline.write()
        return result

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:  # noqa: ANN401  (of pytest-xdist)
        """Take over what a worker found too late for any test to fail."""
        for name, leaks in getattr(node, "workeroutput", {}).get(ATTRIBUTE, {}).items():
            self.note_late(name, leaks)

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Say which distinct leaks there are, in how many tests."""
        if self._run.update_baseline and self._baseline is not None:
            terminalreporter.section("leakguard")
            terminalreporter.write_line(str(self._baseline))
            return
        gone = [] if self._baseline is None else self._baseline.gone(self.leaks)
        if not self.leaks.groups and not gone:
            return
        from leakguard.testing.summary import lines, title, workflow_commands  # noqa: PLC0415  (few runs have leaks)

        terminalreporter.section(f"leakguard: {title(self.leaks)}")
        for line in lines(self.leaks, gone):
            terminalreporter.write_line(line)
        if self._fails_the_run:
            terminalreporter.write_line(
                "known too late for a test to fail by it: the run fails, with exit code 1"
            )
        if os.environ.get("GITHUB_ACTIONS") == "true":
            for line in workflow_commands(self.leaks):
                terminalreporter.write_line(line)


def _read_baseline(run: Run) -> Baseline | None:
    if run.baseline is None:
        return None
    from leakguard.testing.baseline import read_baseline  # noqa: PLC0415  (most runs have none)

    return read_baseline(run.baseline, may_be_missing=run.update_baseline)


def _counts(finding: Finding, wish: Wish) -> bool:
    """Return whether a finding is of those that a test can fail by, and this one does not mind."""
    if wish.reaction is Reaction.OFF or finding.kind.value not in KINDS:
        return False
    return not wish.ignores(finding)
