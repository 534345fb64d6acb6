"""The hooks by which leaks are looked for, from the beginning of a test or fixture to its end."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from _pytest import runner

from leakguard.testing.options import Run, Wish, read_wish
from leakguard.testing.protocol import OwnProtocol
from leakguard.testing.results import Results
from leakguard.testing.watch import TestWatch

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Iterator

    import pluggy

    from leakguard.testing.describe import Leak
    from leakguard.testing.watch import Part, Refers


class LeakPlugin:
    """Judges every test at its end, and every wider fixture at its own."""

    def __init__(self, config: pytest.Config, run: Run) -> None:
        self._config = config
        self._run = run
        self._fixtures: dict[pytest.FixtureDef[Any], tuple[Part, Wish]] = {}
        self._item: pytest.Item | None = None
        """The test that runs."""
        self._found: dict[str, list[Leak]] = {}
        """What was found of it, and of the fixtures that ended with it, by their names."""
        self.watch = TestWatch()
        self.results = Results(config, run, self.watch)
        self.watch.start()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtestloop(self) -> Generator[None, object, object]:
        """Take part in how tests are run: every plugin is there by now."""
        manager = self._config.pluginmanager
        if self._run.distributed:
            from leakguard.testing.others import Reports  # noqa: PLC0415  (few runs)

            manager.register(Reports(self.results.leaks), "leakguard-reports")
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
            leaks = self.results.leaks_of(findings, read_wish(item, self._run))
            self._found.setdefault(item.nodeid, []).extend(leaks)
        return self._found

    def abandon(self, part: Part) -> None:
        """End a test that something interrupts, whatever it has left."""
        self._item = None
        self.watch.end(part)

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
        found = self.results.leaks_of(self.watch.end(part, self._keepers()), wish)
        self.results.fixture_ended(part.name, wish)
        if self._item is None:
            self.results.note_late(part.name, found)
        else:
            self._found.setdefault(part.name, []).extend(found)

    def _keepers(self) -> Iterator[tuple[Part, Refers]]:
        """Yield the wider fixtures that go on: what they have is theirs, whoever took it."""
        for fixturedef, (part, _) in self._fixtures.items():
            yield part, partial(_refers_to, fixturedef)

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


def _refers_to(fixturedef: pytest.FixtureDef[Any], things: Iterable[object]) -> set[int]:
    from leakguard.testing.keeping import kept  # noqa: PLC0415  (few tests have anything out)

    value = None if fixturedef.cached_result is None else fixturedef.cached_result[0]
    # There is no public way to its teardown. Without, its value has to do.
    finalizers: Iterable[object] = getattr(fixturedef, "_finalizers", ())
    return kept(value, finalizers, things)


def _name_of(fixturedef: pytest.FixtureDef[Any], request: pytest.FixtureRequest) -> str:
    index: int | None = getattr(request, "param_index", None)
    parameter = "" if index is None or not hasattr(request, "param") else f"[{index}]"
    where = f" of {request.node.nodeid}" if request.node.nodeid else ""
    return f"{fixturedef.scope} fixture {fixturedef.argname}{parameter}{where}"
