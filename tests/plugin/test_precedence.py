"""The marker wins over the option, and the option over the ini setting."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.plugin.conftest import OUTLIVED, Run, Write, ended

LEAKS = "def test_leaks(): take()"


def outcome_of(result: pytest.RunResult) -> str:
    """Return what was done about the one test that leaks."""
    outcomes = result.parseoutcomes()
    if "failed" in outcomes:
        assert result.ret == pytest.ExitCode.TESTS_FAILED
        return "error"
    assert result.ret == pytest.ExitCode.OK
    if "warnings" in outcomes:
        return "warn"
    result.stdout.no_fnmatch_line("*distinct leak*")
    return "off"


def test_nothing_is_done_unless_somebody_wants_it(write: Write, run: Run) -> None:
    """Whoever has leakguard installed for production gets no plugin that changes a run."""
    write(LEAKS)
    assert outcome_of(run()) == "off"
    assert outcome_of(run("--leakguard=error")) == "error"


@pytest.mark.parametrize("ini", ["off", "warn", "error"])
def test_the_ini_setting(write: Write, run: Run, pytester: pytest.Pytester, ini: str) -> None:
    """Is for the suite."""
    write(LEAKS)
    pytester.makeini(f"[pytest]\nleakguard = {ini}")
    assert outcome_of(run()) == ini


@pytest.mark.parametrize("ini", ["off", "warn", "error"])
@pytest.mark.parametrize("option", ["off", "warn", "error"])
def test_the_option_wins_over_it(
    write: Write, run: Run, pytester: pytest.Pytester, ini: str, option: str
) -> None:
    """Is for the run."""
    write(LEAKS)
    pytester.makeini(f"[pytest]\nleakguard = {ini}")
    assert outcome_of(run(f"--leakguard={option}")) == option


@pytest.mark.parametrize("option", ["off", "warn", "error"])
@pytest.mark.parametrize("marker", ["off", "warn", "error"])
def test_the_marker_wins_over_both(write: Write, run: Run, option: str, marker: str) -> None:
    """Is for the test, also where the run looks for nothing."""
    write(f"@pytest.mark.leakguard({marker!r})\n{LEAKS}")
    assert outcome_of(run(f"--leakguard={option}")) == marker


def test_the_closest_marker_wins(write: Write, run: Run) -> None:
    """That of the test over that of its class, and that over the module's."""
    write(
        "pytestmark = pytest.mark.leakguard('error')\n"
        "@pytest.mark.leakguard('off')\n"
        "class TestLeaks:\n"
        "    def test_one(self): take()\n"
        "    @pytest.mark.leakguard('error')\n"
        "    def test_two(self): take()\n"
        "    @pytest.mark.leakguard(ignore=['held'])\n"
        "    def test_three(self): take()\n"
        "def test_four(): take()\n"
    )
    ended(run(), passed=2, failed=2)


def test_a_wider_fixture_goes_by_the_markers_around_it(write: Write, run: Run) -> None:
    """Those of its class or module; and for the whole session, by what the run wants."""
    write(
        "@pytest.mark.leakguard('off')\n"
        "class TestOff:\n"
        "    @pytest.fixture(scope='class')\n"
        "    def leaky(self): take()\n"
        "    def test_one(self, leaky): pass\n"
        "class TestOn:\n"
        "    @pytest.fixture(scope='class')\n"
        "    def leaky(self): take()\n"
        "    @pytest.mark.leakguard('off')\n"
        "    def test_one(self, leaky): pass\n"
    )
    ended(run("--leakguard=error"), passed=2, errors=1)


@pytest.mark.parametrize(
    "marker, code",
    [
        ("'off'", pytest.ExitCode.OK),
        ("ignore=['leaked']", pytest.ExitCode.OK),
        ("ignore=['held']", pytest.ExitCode.TESTS_FAILED),
    ],
)
def test_what_comes_to_light_late_goes_by_its_test(
    write: Write, run: Run, marker: str, code: pytest.ExitCode
) -> None:
    """One that may leak may do so in a thread that goes on."""
    write(OUTLIVED + f"test_starts_it = pytest.mark.leakguard({marker})(test_starts_it)\n")
    ended(run("--leakguard=error"), passed=2, code=code)


def test_what_is_ignored_adds_up(write: Write, run: Run) -> None:
    """Kinds by their names, and whatever a function says."""
    write(
        "import leakguard\n"
        "small = create_engine('sqlite:///s.db', pool_size=1, max_overflow=0, pool_timeout=0)\n"
        "pytestmark = pytest.mark.leakguard(ignore=['leaked'])\n"
        "def exhaust():\n"
        "    with small.connect(), pytest.raises(Exception): small.connect()\n"
        "def test_leaks(): take()\n"
        "@pytest.mark.leakguard(ignore=['pool_exhausted'])\n"
        "def test_both():\n"
        "    take()\n"
        "    exhaust()\n"
        "@pytest.mark.leakguard('error')\n"
        "def test_exhausts(): exhaust()\n"
    )
    ended(run("--leakguard=error"), passed=2, failed=1)


@pytest.mark.parametrize("kind", ["leaked", "reclaimed"])
def test_it_does_not_matter_when_the_collector_came(write: Write, run: Run, kind: str) -> None:
    """Before the end of the test or after it is chance, and the mistake is the same."""
    write(
        "def leak(): take()\n"
        "def lose(): engine.raw_connection()\n"
        f"ignored = pytest.mark.leakguard(ignore=[{kind!r}])\n"
        "@ignored\n"
        "def test_leaks(): leak()\n"
        "@ignored\n"
        "def test_reclaims(): lose()\n"
        "def test_fails(): leak()\n"
        "def test_fails_too(): lose()\n"
    )
    ended(run("--leakguard=error"), passed=2, failed=2)


def test_a_function_may_say_what_to_ignore(write: Write, run: Run) -> None:
    """As those that leakguard has ready."""
    write(
        "import leakguard\n"
        "@pytest.mark.leakguard(ignore=[leakguard.ignore_function('take')])\n"
        "def test_passes(): take()\n"
        "@pytest.mark.leakguard(ignore=(leakguard.ignore_function('other'),))\n"
        "def test_fails(): take()\n"
    )
    ended(run("--leakguard=error"), passed=1, failed=1)


def test_a_warning_is_on_the_line_that_leaks(write: Write, run: Run) -> None:
    """In pytest's own summary of warnings, with the test that made it."""
    write("def test_leaks(): take()\ndef test_reclaims(): engine.raw_connection()")
    result = run("--leakguard=warn")
    ended(result, passed=2, warnings=2)
    result.stdout.fnmatch_lines(
        [
            "test_suite.py::test_leaks",
            "*prelude.py:10: ConnectionLeakWarning: *",
            "test_suite.py::test_reclaims",
            "*test_suite.py:3: ConnectionLeakWarning: *",
            "*leakguard: 2 tests, 2 distinct leaks*",
        ]
    )


def test_a_filter_may_make_an_error_of_the_warning(write: Write, run: Run) -> None:
    """As of any other."""
    write("def test_leaks(): take()")
    result = run("--leakguard=warn", "-Werror::leakguard.ConnectionLeakWarning")
    ended(result, failed=1)


def test_an_exhausted_pool_is_found_though_the_test_expects_the_error(
    write: Write, run: Run
) -> None:
    """The line is that of those who have its connections."""
    write(
        "small = create_engine('sqlite:///small.db', pool_size=1, max_overflow=0, pool_timeout=0)\n"
        "def test_exhausts():\n"
        "    with small.connect(), pytest.raises(Exception, match='QueuePool limit'):\n"
        "        small.connect()\n"
    )
    result = run("--leakguard=warn")
    ended(result, passed=1, warnings=1)
    result.stdout.fnmatch_lines(["*test_suite.py:4: ConnectionLeakWarning: pool_exhausted: *"])
    ended(run("--leakguard=error"), failed=1)


def test_a_marker_may_be_added_at_any_time(
    write: Write, run: Run, pytester: pytest.Pytester
) -> None:
    """By a conftest, for a folder; or by the test itself."""
    pytester.makeconftest(
        "import pytest\n"
        "def pytest_collection_modifyitems(items):\n"
        "    for item in items:\n"
        "        if 'legacy' in item.name: item.add_marker(pytest.mark.leakguard('off'))\n"
        "        if 'strict' in item.name: item.add_marker(pytest.mark.leakguard('error'))\n"
    )
    write(
        "def test_legacy(): take()\n"
        "def test_strict(): take()\n"
        "def test_late(request):\n"
        "    request.node.add_marker(pytest.mark.leakguard('off'))\n"
        "    take()\n"
    )
    ended(run("--leakguard=error"), passed=2, failed=1)
    ended(run(), passed=2, failed=1)


def test_the_settings_of_the_page(write: Write, run: Run, pytester: pytest.Pytester) -> None:
    """In CI plain `pytest` fails by new leaks, once the file says so."""
    page = (Path(__file__).parents[2] / "docs" / "testing.md").read_text()
    [settings] = re.findall(r"```toml\n(.*?)```", page, flags=re.DOTALL)
    pytester.makepyprojecttoml(settings)
    write(LEAKS)
    ended(run("--leakguard-update-baseline"), passed=1)
    assert (pytester.path / "leaks.json").is_file()
    ended(run(), passed=1)
    write(LEAKS + "\ndef test_new(): engine.raw_connection()\n")
    ended(run(), passed=1, failed=1)
