"""The documents and the code say the same."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from enum import StrEnum
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import pytest
from opentelemetry.metrics import NoOpMeterProvider

import leakguard
from leakguard import (
    CallSite,
    Conclusion,
    Event,
    Evidence,
    Exhaustion,
    Finding,
    FindingKind,
    Frame,
    Group,
    Hint,
    Hold,
    LeakGuard,
    Limits,
    Observer,
    PoolChange,
    PoolUsage,
    PoolUsers,
    Scope,
    Settings,
    Severity,
    Use,
    Wait,
)
from leakguard.core.clock import monotonic
from leakguard.core.diagnosis import Case, diagnose
from leakguard.core.settings import Mode, Options, build_settings
from leakguard.observers.opentelemetry import OpenTelemetry
from leakguard.observers.prometheus.metrics import Metrics
from leakguard.testing.describe import leak_of
from leakguard.testing.fixture import LeakGuardFixture
from leakguard.testing.leaks import Leaks
from leakguard.testing.options import KINDS, add_options
from leakguard.testing.summary import title
from tests.core import fakes
from tests.core.fakes import make_finding

ROOT = Path(__file__).parents[1]
REFERENCE = (ROOT / "docs" / "reference.md").read_text()
PAGE = (ROOT / "docs" / "metrics.md").read_text()
EXHAUSTED = (ROOT / "docs" / "pool-exhausted.md").read_text()
TESTING = (ROOT / "docs" / "testing.md").read_text()
README = (ROOT / "README.md").read_text()


def rows(heading: str, page: str = REFERENCE) -> list[list[str]]:
    """Return the cells of the first table of a page with `heading` in its first line."""
    lines = iter(page.splitlines())
    for line in lines:
        if line.startswith(f"| {heading} |"):
            break
    next(lines)  # the rule below the heading
    found: list[list[str]] = []
    for line in lines:
        if not line.startswith("|"):
            break
        found.append([cell.strip() for cell in line.strip("|").split("|")])
    return found


def names(text: str) -> set[str]:
    """Return the words in backticks."""
    return set(re.findall(r"`(\w+)", text))


WORD = re.compile(r"`(\w+)`")
"""A word that stands alone between backticks."""


def test_every_public_name_is_documented() -> None:
    """The reference names all of `__all__`."""
    assert set(leakguard.__all__) <= names(REFERENCE)


def test_all_is_what_there_is() -> None:
    """`__all__` is sorted, and names all that the package has beside its modules."""
    assert leakguard.__all__ == sorted(leakguard.__all__, key=lambda name: (name.islower(), name))
    for name in leakguard.__all__:
        assert getattr(leakguard, name).__module__.startswith("leakguard.")
    public = {name for name in dir(leakguard) if not name.startswith("_")}
    modules = {name for name in public if isinstance(getattr(leakguard, name), ModuleType)}
    assert public - modules - {"TYPE_CHECKING", "annotations", "import_module"} == {
        *leakguard.__all__
    }
    with pytest.raises(AttributeError, match=r"module 'leakguard' has no attribute 'Leakguard'"):
        _ = leakguard.Leakguard


def test_the_package_imports_nothing_until_it_is_asked() -> None:
    """Pytest imports it for its plugin, also where nobody uses SQLAlchemy."""
    program = "import sys, leakguard; print('sqlalchemy' in sys.modules, leakguard.Log.__name__)"
    done = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, check=True)  # noqa: S603
    assert done.stdout.split() == [b"False", b"Log"]


def test_every_kind_is_documented_with_its_severity() -> None:
    """The table of kinds is the enumeration, in its order."""
    table = [(cells[0].strip("`"), cells[1]) for cells in rows("`FindingKind`")]
    assert table == [(kind.value, kind.severity.value) for kind in FindingKind]


def test_every_setting_is_documented() -> None:
    """The table of settings is the options, in their order."""
    assert [cells[0].strip("`") for cells in rows("setting")] == list(Options.__annotations__)


def test_the_presets_are_documented() -> None:
    """The table of presets says what the modes really set."""
    modes = [Mode.OFF, Mode.PRODUCTION, Mode.DEVELOPMENT, Mode.TESTING]
    presets = [build_settings({"mode": mode}) for mode in modes]
    told = {cells[0].strip("`"): cells[1:] for cells in rows("by mode")}
    assert told["frames"] == [str(preset.frames) for preset in presets]
    assert told["held_after"] == [
        "none" if preset.held_after is None else f"{preset.held_after:g} s" for preset in presets
    ]
    for name in ("statements", "events"):
        assert told[name] == ["yes" if getattr(preset, name) else "no" for preset in presets]
    observers = [[type(one).__name__ for one in LeakGuard(mode=mode).observers] for mode in modes]
    assert [WORD.findall(cell) for cell in told["observers"]] == observers
    defaults = {cells[0].strip("`"): cells[1] for cells in rows("setting")}
    assert {float(defaults["late_after"])} == {preset.late_after for preset in presets}


def test_every_fact_is_documented() -> None:
    """The table of `to_dict()` has all of its names."""
    documented = [name for cells in rows("`to_dict()`") for name in WORD.findall(cells[0])]
    assert sorted(documented) == sorted(make_finding().to_dict())


def description(noun: type) -> str:
    """Return the parts of the reference, between empty lines, that speak of a noun."""
    parts = REFERENCE.split("\n\n")
    told = [number for number, part in enumerate(parts) if f"`{noun.__name__}" in part]
    # The list after a line that announces it.
    told += [number + 1 for number in told if parts[number].endswith(":")]
    return "\n\n".join(parts[number] for number in told)


def attributes(noun: type) -> set[str]:
    """Return what instances have without an underscore, inherited or set by the constructor."""
    instances: dict[type, object] = {
        Finding: (finding := make_finding()),
        Hold: finding.hold,
        Scope: finding.scope,
        LeakGuard: LeakGuard(mode="off"),
    }
    of_instance = vars(instances[noun]) if hasattr(instances.get(noun), "__dict__") else ()
    declared = {name for base in noun.__mro__ for name in getattr(base, "__annotations__", ())}
    inherited = set(dir(())) if tuple in noun.__mro__ else set[str]()
    names = {*dir(noun), *declared, *of_instance} - inherited
    return {name for name in names if not name.startswith("_")}


INTERNAL: dict[type, set[str]] = {
    Hold: {
        *("guard", "site", "holder", "session", "nested", "asynchronous", "allowed", "collected"),
        *("acquired_monotonic", "released_monotonic", "used_monotonic", "open", "came_back"),
        *("usage", "lost_when_collected", "find_session", "outlived_by", "waited_for_return"),
        "subject",
        *("fake_usage", "is_lost_when_collected", "is_open"),
    },
    Scope: {
        *("guard", "opened_by", "loop", "opener", "parent", "before", "trace", "event_log"),
        *("opened_at", "closed_at", "responded_at", "open_connections", "open_sessions"),
        *("notable", "note", "take_out", "take_all_out", "note_exception", "handled_outside"),
        *("endpoint", "foreign_block", "sessions_collected", "sessions_unclosed", "serves"),
        "iterated",
        "strand",
    },
    Finding: {"mistake"},
    CallSite: {"code"},
    Settings: {"follow_statements"},
}
"""What the reference calls internal, because it does not name it: what it may not name either."""

NOUNS = [
    CallSite,
    Event,
    Evidence,
    Exhaustion,
    Finding,
    Frame,
    Group,
    Hint,
    Hold,
    LeakGuard,
    Limits,
    Observer,
    PoolChange,
    PoolUsage,
    PoolUsers,
    Scope,
    Settings,
    Wait,
]


@pytest.mark.parametrize("noun", NOUNS)
def test_every_attribute_of_the_nouns_is_documented(noun: type) -> None:
    """What a noun offers publicly is in the part of the reference that speaks of it."""
    internal = INTERNAL.get(noun, set())
    public = attributes(noun)
    assert internal <= public, "which are gone"
    assert public - internal <= names(description(noun))


@pytest.mark.parametrize("folder", ["leakguard", "examples", "tests"])
def test_a_function_that_returns_something_says_so_and_no_other_does(folder: str) -> None:
    """A docstring that begins with "Return" is of a function that does."""
    wrong = [
        f"{file}:{node.lineno}"
        for file in sorted((ROOT / folder).rglob("*.py"))
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (ast.get_docstring(node) or "").startswith("Return ")
        and isinstance(node.returns, ast.Constant)
        and node.returns.value is None
    ]
    assert not wrong


@pytest.mark.parametrize("values", [Use, Conclusion])
def test_every_value_of_an_exhausted_pool_is_documented(values: type[StrEnum]) -> None:
    """With its quotes, as `to_dict()` gives it."""
    assert {one.value for one in values} <= set(re.findall(r'`"(\w+)"`', REFERENCE))


def test_what_the_pytest_plugin_offers_is_documented() -> None:
    """Every option, every kind that a test can fail by, and all of the fixture."""

    class Parser:
        """Notes the options that are added."""

        names: ClassVar[list[str]] = []

        def addini(self, name: str, *_: object, **__: object) -> None:
            self.names.append(f"{name} = ")

        def addoption(self, name: str, *_: object, **__: object) -> None:
            self.names.append(name)

        def getgroup(self, *_: object) -> Parser:
            return self

    parser: Any = Parser()
    add_options(parser)
    assert len(Parser.names) == 6
    assert all(name in TESTING for name in Parser.names)
    assert {cells[0].strip("`").partition("(")[0] for cells in rows("of the fixture", TESTING)} == {
        name for name in vars(LeakGuardFixture) if not name.startswith("_")
    }
    assert set(KINDS) <= names(TESTING)
    worst = (Severity.WARNING, Severity.ERROR)
    assert set(KINDS) == {kind.value for kind in FindingKind if kind.severity in worst}


def test_every_metric_is_documented() -> None:
    """Its name, its type and its labels, in the order of the code."""
    metrics: list[Any] = list(vars(Metrics()).values())
    suffix = {"counter": "_total"}
    made = [
        [f"`{one._name}{suffix.get(one._type, '')}`", one._type, list(one._labelnames)]  # noqa: SLF001  (no public way)
        for one in metrics
    ]
    told = [[name, kind, WORD.findall(labels)] for name, kind, labels, _ in rows("metric", PAGE)]
    assert told == made


def test_every_instrument_of_opentelemetry_is_documented() -> None:
    """Its name and its type, in the order of the code."""
    made: list[list[str]] = []

    class Recording(NoOpMeterProvider):
        def get_meter(self, *_: object, **__: object) -> Any:
            return self

        def __getattr__(self, name: str) -> Any:
            kind = name.removeprefix("create_").replace("up_down", "up-down").replace("_", " ")

            def create(name: str, *_: object, **__: object) -> None:
                made.append([f"`{name}`", kind])

            return create

    OpenTelemetry(meter_provider=Recording())
    assert sorted([name, kind] for name, kind, _ in rows("instrument", PAGE)) == sorted(made)


def test_the_report_of_the_readme_is_one() -> None:
    """It is what `str(finding)` gives for such a leak, word for word."""
    scope = fakes.ended_scope(fakes.make_guard())
    scope.status, scope.exception = 500, "NoResultFound"
    hold = fakes.take(scope.guard, scope, fakes.site_at("app/items.py", 41, "read_item"))
    hold.session = fakes.construct(scope.guard, None, fakes.site_at("app/db.py", 12, "get_db"))
    hold.statement_text = "SELECT items.id, items.name FROM items WHERE items.id = ?"
    get_db: dict[str, Any] = {}
    exec("def get_db():\n db = Session()\n yield db\n db.close()", get_db)  # noqa: S102  (our own)
    case = Case(
        FindingKind.LEAKED,
        constructor=get_db["get_db"].__code__,
        by_session=True,
        exception=scope.exception,
    )
    finding = Finding(
        kind=case.kind,
        hold=hold,
        scope=scope,
        pool="main",
        hint=diagnose(case),
        fingerprint="aec4887136a72ccd",
        evidence=Evidence(held_for=0.011, idle_for=0.004, in_transaction=True),
        usage=PoolUsage(1, 15, 1),
    )
    assert f"```\n{finding}\n```" in README


def test_the_report_of_a_failing_test_is_the_one_of_the_readme() -> None:
    """What the page on tests leaves out of it aside."""
    [sample] = re.findall(r"```\n(_+ test_read_item _+\n.*?)```", TESTING, flags=re.DOTALL)
    _, *report, summary = sample.splitlines()
    assert len(report) == 6
    assert [line for line in report if line not in README.splitlines()] == ["  ..."]
    leaks = Leaks()
    leak = leak_of(make_finding(), known=False, fails=True)
    for number in range(7):
        leaks.note(
            f"{number}", {f"{number}": [{**leak, "fingerprint": f"{number % 2}"}]}, passed=True
        )
    assert summary.strip("= ") == f"leakguard: {title(leaks)}"


def test_the_report_on_an_exhausted_pool_is_what_leakguard_writes() -> None:
    """As an error shows it: the one who waited, who has the connections, and the cause."""
    guard = fakes.make_guard()
    scope = fakes.ended_scope(guard, "GET /items")
    get_db = fakes.site_at("app/db.py", 12, "get_db")
    found = Exhaustion(
        Limits(5, 10, 30.0),
        15,
        (
            PoolUsers("GET /items/{item_id}", get_db, Use.LEAKED, 11, 250.0),
            PoolUsers(
                "POST /orders", get_db, Use.IDLE, 4, 12.0, fakes.site_at("app/pay.py", 41, "charge")
            ),
        ),
        (PoolUsers("GET /items", fakes.site_at("app/items.py", 41, "read_items"), None, 25, 30.0),),
        blocks_loop=False,
        threads=None,
    )
    finding = guard.exhausted(found, scope, "main", 30.0)
    scope.opened_at, scope.closed_at = monotonic() - 30.0, None
    *report, seen = str(finding).splitlines()
    error = "sqlalchemy.exc.TimeoutError: QueuePool limit of size 5 overflow 10 reached"
    assert error in README
    assert error in EXHAUSTED
    assert "\n".join(report) in README
    assert "\n".join([*report, re.sub(r"\[.*\]", "[4f629a26f1535531]", seen)]) in EXHAUSTED


def python_blocks() -> list[str]:
    return re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


@pytest.mark.parametrize("number", range(len(python_blocks())))
def test_the_code_of_the_readme_runs(number: int) -> None:
    """Each block of the README is a program of its own."""
    exec(compile(python_blocks()[number], "README.md", "exec"), {"__name__": "readme"})  # noqa: S102  (our own)


def test_the_readme_keeps_its_order() -> None:
    """First one sentence, the line, the report, the demo, the limits; then everything else."""
    headings = re.findall(r"^## (.+)$", README, flags=re.MULTILINE)
    assert headings == [
        "One line",
        "What you get",
        "See it run",
        "What it cannot know",
        "Everything else",
    ]
    assert README.split("\n## ")[0].count(".") == 1


@pytest.mark.parametrize(
    "document",
    [
        "README.md",
        "CONTRIBUTING.md",
        "CHANGELOG.md",
        "examples/observability/README.md",
        *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").glob("*.md")),
    ],
)
def test_links_between_documents_lead_somewhere(document: str) -> None:
    """Every relative link names a file, and every anchor a heading."""
    text = (ROOT / document).read_text()
    for target in re.findall(r"\]\((?!https?:)([^)]+)\)", text):
        path, _, anchor = target.partition("#")
        file = (ROOT / document).parent / path
        assert file.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.+)$", file.read_text(), flags=re.MULTILINE)
            assert anchor in {heading.lower().replace(" ", "-") for heading in headings}
