"""The entry point of the pytest plugin: inert until somebody asks for it.

pytest imports this module wherever leakguard is installed, so that it imports next to nothing.
"""

from __future__ import annotations

from importlib.metadata import version
from inspect import signature
from typing import TYPE_CHECKING, Final

import pytest

from leakguard.testing.options import Reaction, Run, add_options, marked, read_run, read_wish

if TYPE_CHECKING:
    from leakguard.testing.fixture import LeakGuardFixture
    from leakguard.testing.plugin import LeakPlugin

_RUN: Final = pytest.StashKey[Run]()
_PLUGIN: Final = pytest.StashKey["LeakPlugin"]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options and the ini setting."""
    add_options(parser)


def pytest_configure(config: pytest.Config) -> None:
    """Read what the run wants, and begin if it is anything."""
    config.addinivalue_line(
        "markers",
        'leakguard("off" | "warn" | "error", ignore=[...]): what to do about the connection leaks '
        "of this test, and which of them are nothing to it.",
    )
    run = config.stash[_RUN] = read_run(config)
    # The one that distributes tests to workers collects none, and has to gather what they find.
    if run.reaction is not Reaction.OFF or run.distributed:
        _begin(config)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Refuse bad markers before the first test runs, and begin where a test wants it."""
    run = config.stash[_RUN]
    wishes = [read_wish(item, run) for item in marked(items)]
    if _PLUGIN in config.stash:
        return
    if any(wish.reaction is not Reaction.OFF for wish in wishes) or any(map(_uses_fixture, items)):
        _begin(config)


def _uses_fixture(item: pytest.Item) -> bool:
    return "leakguard" in getattr(item, "fixturenames", ())


def _begin(config: pytest.Config) -> LeakPlugin:
    if "wrapper" not in signature(pytest.hookimpl.__call__).parameters:
        raise pytest.UsageError(
            f"to look for connection leaks takes pluggy 1.2 or later, and this is "
            f"{version('pluggy')}: pip install --upgrade pluggy"
        )
    from leakguard.testing.plugin import LeakPlugin  # noqa: PLC0415  (not while inert)

    plugin = config.stash[_PLUGIN] = LeakPlugin(config, config.stash[_RUN])
    config.pluginmanager.register(plugin, "leakguard-run")
    config.pluginmanager.register(plugin.results, "leakguard-results")
    return plugin


@pytest.fixture(name="leakguard")
def _leakguard(request: pytest.FixtureRequest) -> LeakGuardFixture:
    """What was found of this test so far, what it has open, and what it is allowed."""
    from leakguard.testing.fixture import LeakGuardFixture  # noqa: PLC0415  (it imports SQLAlchemy)

    plugin = request.config.stash.get(_PLUGIN, None)
    if plugin is None:
        pytest.fail(
            "the leakguard fixture has to be among the arguments of the test or of its fixtures, "
            "unless leaks are looked for anyway: add --leakguard=error (or warn)",
            pytrace=False,
        )
    return LeakGuardFixture(plugin.watch)
