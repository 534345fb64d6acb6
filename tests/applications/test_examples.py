"""The examples: the correct ones are left in peace, the others are named to the line."""

from __future__ import annotations

import ast
import asyncio
import gc
import importlib
import logging
import os
import re
import signal
import subprocess
import sys
import threading
import warnings
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import pytest
from sqlalchemy import Engine
from sqlalchemy.exc import SAWarning
from sqlalchemy.ext.asyncio import AsyncEngine

import examples
from leakguard import CallSite, ConnectionLeakWarning, Finding, FindingKind, LeakGuardMiddleware
from tests.support import PATIENCE, line_marked, serving

ROOT = Path(__file__).parents[2]

APPLICATIONS = (
    "with_finally",
    "without_finally",
    "async_finally",
    "async_engine",
    "starlette_alone",
    "existing.main",
    "observability.application",
)
"""The examples that uvicorn starts."""

CORRECT = {
    "with_finally": (("GET", "/items/1", 200), ("GET", "/items/404", 500)),
    "without_finally": (("GET", "/items/1", 200),),
    "async_finally": (
        ("GET", "/items/1", 200),
        ("GET", "/items/404", 500),
        ("GET", "/without-finally/items/1", 200),
    ),
    "async_engine": (
        ("GET", "/items/1", 200),
        ("GET", "/items/404", 500),
        ("GET", "/forgetful/items/1", 200),
    ),
    "starlette_alone": (
        ("GET", "/items/1", 200),
        ("GET", "/items/404", 404),
        ("GET", "/forgetful/items/1", 200),
    ),
    "existing.main": (("GET", "/api/items", 200), ("POST", "/api/items/1/orders", 201)),
    "observability.application": (
        ("GET", "/items/1", 200),
        ("GET", "/slow/items/1", 200),
        ("GET", "/metrics/", 200),
    ),
}
"""The requests that give everything back, and the status of their answers."""


@dataclass(frozen=True)
class Leak:
    """A request that leaks, and what there is to say of it."""

    example: str
    path: str
    route: str
    status: int
    function: str
    """The function that checks the connection out."""
    constructor: str | None
    """The function that constructs the session; `None` where there is no session."""
    method: str = "GET"
    file: str | None = None
    """The module that does it, where it is not the application's own."""

    @property
    def module(self) -> ModuleType:
        return sys.modules[f"examples.{self.file or self.example}"]


LEAKS = (
    Leak("without_finally", "/items/404", "/items/{item_id}", 500, "read_item", "get_db"),
    Leak(
        "async_finally",
        "/without-finally/items/404",
        "/without-finally/items/{item_id}",
        500,
        "read_item_without_finally",
        "get_db_without_finally",
    ),
    Leak(
        "async_engine",
        "/forgetful/items/404",
        "/forgetful/items/{item_id}",
        500,
        "read_item_and_forget",
        None,
    ),
    Leak(
        "starlette_alone",
        "/forgetful/items/404",
        "/forgetful/items/{item_id}",
        404,
        "read_item_and_forget",
        "read_item_and_forget",
    ),
    Leak(
        "existing.main",
        "/api/items/2/orders",
        "/api/items/{item_id}/orders",
        409,
        "place_order",
        "place_order",
        method="POST",
        file="existing.routers.orders",
    ),
    Leak(
        "observability.application",
        "/kept/items/1",
        "/kept/items/{item_id}",
        200,
        "show",
        "read_item_and_keep_it",
    ),
)


@pytest.fixture(autouse=True)
def garbage() -> Iterator[None]:
    """Leave what leaks alone during a test, and collect it afterwards.

    Whether the collector comes before the end of a request or after it is chance. And where
    the driver is asynchronous, it makes SQLAlchemy warn on whatever line it interrupts.
    """
    gc.disable()
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SAWarning)
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()
    gc.enable()


@pytest.fixture(autouse=True)
def database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Give the examples a database of their own."""
    monkeypatch.setenv("EXAMPLES_DATABASE", str(tmp_path / "examples.db"))
    monkeypatch.setenv("DATABASE_URL", f"sqlite:///{tmp_path / 'shop.db'}")


@contextmanager
def loaded(name: str) -> Generator[Any, None, None]:
    """Load an example as if for the first time, so that its engine is on the test's database."""
    package = f"examples.{name}".removesuffix(".main")
    forget(package)
    module = importlib.import_module(f"examples.{name}")
    try:
        yield module
    finally:
        forget(package)
        dispose(module.engine)


def dispose(engine: Engine | AsyncEngine) -> None:
    """Close the connections that are in the pool; those that leaked are for `garbage`."""
    if isinstance(engine, AsyncEngine):
        asyncio.run(engine.dispose())
    else:
        engine.dispose()


def forget(package: str) -> None:
    for name in [name for name in sys.modules if f"{name}.".startswith(f"{package}.")]:
        del sys.modules[name]


@dataclass
class Told:
    """Everything that leakguard told anybody."""

    findings: tuple[Finding, ...] = ()
    log: list[str] = field(default_factory=list[str])
    warnings: list[warnings.WarningMessage] = field(default_factory=list[warnings.WarningMessage])


class _Records(logging.Handler):
    def __init__(self, kept: list[str]) -> None:
        super().__init__()
        self._kept = kept

    def emit(self, record: logging.LogRecord) -> None:
        self._kept.append(record.getMessage())


@contextmanager
def listening(caplog: pytest.LogCaptureFixture) -> Generator[Told, None, None]:
    """Listen to the log and to Python's warnings, as they are without any configuration."""
    told = Told()
    handler = _Records(told.log)
    logger = logging.getLogger("leakguard")
    logger.addHandler(handler)
    try:
        with caplog.at_level(logging.DEBUG, "leakguard"), warnings.catch_warnings(record=True) as w:
            warnings.simplefilter("always", ConnectionLeakWarning)
            told.warnings = w
            yield told
    finally:
        logger.removeHandler(handler)


def guard_of(app: Any) -> Any:
    """Find the guard that the one line installed, when the application has been started."""
    layer = app.middleware_stack
    while not isinstance(layer, LeakGuardMiddleware):
        layer = layer.app
    return layer.guard


def send(module: Any, requests: Iterable[tuple[str, str]], told: Told) -> list[int]:
    """Serve an example as it is, send it requests, note the findings; give the statuses."""
    with serving(module.app) as url:
        statuses = [httpx.request(method, url + path).status_code for method, path in requests]
        history = guard_of(module.app).history
    told.findings = () if history is None else history.findings
    return statuses


@pytest.mark.parametrize("mode", ["production", "development", "testing"])
@pytest.mark.parametrize("example", APPLICATIONS)
def test_an_example_that_gives_its_connections_back_is_left_in_peace(
    example: str, mode: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Requests that are fine leave no finding, no log record and no warning, in any mode."""
    monkeypatch.setenv("LEAKGUARD_MODE", mode)
    requests = [(method, path) for method, path, _ in CORRECT[example]]
    with loaded(example) as module, listening(caplog) as told:
        statuses = send(module, requests, told)
    assert statuses == [status for _, _, status in CORRECT[example]]
    assert told == Told()


@pytest.mark.parametrize("leak", LEAKS, ids=lambda leak: leak.example)
def test_an_example_that_leaks_is_named_to_the_line(
    leak: Leak, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The finding, the report and the warning have the marked lines, the route and the status."""
    monkeypatch.setenv("LEAKGUARD_MODE", "development")
    with loaded(leak.example) as module, listening(caplog) as told:
        statuses = send(module, [(leak.method, leak.path)], told)
        file = str(leak.module.__file__)
        checkout = line_marked(leak.module, "checkout")
        created = None if leak.constructor is None else line_marked(leak.module, "leak")
    assert statuses == [leak.status]

    (finding,) = told.findings
    assert finding.kind is FindingKind.LEAKED
    assert finding.scope is not None
    assert (finding.scope.name, finding.scope.status) == (
        f"{leak.method} {leak.route}",
        leak.status,
    )
    assert finding.hold is not None
    assert place(finding.hold.acquired_at) == (file, checkout, leak.function)
    assert place(finding.hold.created_at) == (created and (file, created, leak.constructor))

    assert told.log == [str(finding)]
    (warning,) = told.warnings
    assert (warning.filename, warning.lineno) == (file, created or checkout)


def place(site: CallSite | None) -> tuple[str, int, str] | None:
    return None if site is None else (site.file, site.line, site.function)


def test_production_mode_needs_no_more_than_the_one_line(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Without any setting, the log has the report, and there is no warning."""
    monkeypatch.delenv("LEAKGUARD_MODE", raising=False)
    with loaded("without_finally") as module, listening(caplog) as told:
        send(module, [("GET", "/items/404")], told)
        created = line_marked(module, "leak")
    (report,) = told.log
    assert report.startswith("leaked: GET /items/{item_id} (500")
    assert f"without_finally.py:{created} in get_db" in report
    assert told.warnings == []


@pytest.mark.parametrize("name", APPLICATIONS)
def test_the_commands_of_a_docstring_show_what_it_says(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Started and asked as its docstring says, an example makes its one leak known, or none."""
    monkeypatch.delenv("EXAMPLES_DATABASE")
    monkeypatch.delenv("DATABASE_URL")
    docstring = docstring_of(name)
    assert f"Start   LEAKGUARD_MODE=development uvicorn examples.{name}:app" in docstring
    with started(f"examples.{name}:app", tmp_path) as (url, process):
        for method, path in re.findall(r"curl (?:-X (\w+) )?http://127.0.0.1:8000(\S+)", docstring):
            httpx.request(method or "GET", url + path)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=PATIENCE)
    reports = re.findall(r"^leaked: (\w+) (\S+)", errors, re.MULTILINE)
    assert reports == [(leak.method, leak.route) for leak in LEAKS if leak.example == name]
    assert errors.count("ConnectionLeakWarning: leaked:") == len(reports)


def docstring_of(name: str) -> str:
    """Read a docstring without importing its module. A package has that of its application."""
    path = ROOT / "examples" / f"{name.replace('.', '/')}.py"
    if path.name == "main.py":
        path = path.with_name("__init__.py")
    return ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""


@contextmanager
def started(app: str, folder: Path) -> Generator[tuple[str, subprocess.Popen[str]], None, None]:
    """Start uvicorn's command in a folder; give the URL that it says it listens on."""
    command = [sys.executable, "-m", "uvicorn", app, "--port", "0"]
    environment = {**os.environ, "LEAKGUARD_MODE": "development", "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(  # noqa: S603  (the example's own command)
        command, cwd=folder, env=environment, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        watchdog = threading.Timer(PATIENCE, process.kill)
        watchdog.start()
        try:
            seen = iter(process.stderr.readline, "")
            found = (re.search(r"running on (http://\S+)", line) for line in seen)
            yield next(match[1] for match in found if match), process
        finally:
            watchdog.cancel()
            process.kill()


def test_a_job_is_named_where_its_scope_ends(tmp_path: Path) -> None:
    """The script reports the job that keeps its session, and not the one that closes it."""
    with loaded("job") as job:
        created, checkout = line_marked(job, "leak"), line_marked(job, "checkout")
    done = subprocess.run(
        [sys.executable, "-m", "examples.job"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "EXAMPLES_DATABASE": str(tmp_path / "job.db")},
    )
    assert done.stdout == "tidy job: 1 item\nforgetful job: 1 item\n"
    assert done.stderr.startswith("leaked: forgetful job (")
    assert f"session created   examples/job.py:{created} in forgetful_job" in done.stderr
    assert f"checked out       examples/job.py:{checkout} in forgetful_job" in done.stderr
    assert f"job.py:{created}: ConnectionLeakWarning: leaked: forgetful job" in done.stderr
    assert "tidy job" not in done.stderr


def test_the_two_with_and_without_finally_differ_in_get_db_alone() -> None:
    """Apart from their docstrings and `get_db`, the two examples are the same code."""
    rests = [
        [
            ast.dump(node)
            for node in ast.parse((ROOT / "examples" / name).read_text(encoding="utf-8")).body[1:]
            if not (isinstance(node, ast.FunctionDef) and node.name == "get_db")
        ]
        for name in ("with_finally.py", "without_finally.py")
    ]
    assert rests[0] == rests[1]


def test_only_one_file_of_the_existing_application_knows_leakguard() -> None:
    """In `existing`, leakguard is one import and one marked line."""
    knowing = [
        (path.name, line.partition("#")[0].strip())
        for path in (ROOT / "examples" / "existing").rglob("*.py")
        if path.name != "__init__.py"
        for line in path.read_text(encoding="utf-8").splitlines()
        if "leakguard" in line.lower() and not line.startswith('"""')
    ]
    assert knowing == [
        ("main.py", "from leakguard import LeakGuardMiddleware"),
        ("main.py", "app.add_middleware(LeakGuardMiddleware)"),
    ]


def test_every_example_is_listed() -> None:
    """The package's docstring names every file and folder of the examples."""
    there = {
        path.stem
        for path in (ROOT / "examples").iterdir()
        if path.name not in ("__init__.py", "__pycache__", "database.py")
    }
    listed = re.findall(r"^(?:\d\. )?`(\w+)`", examples.__doc__ or "", re.MULTILINE)
    assert len(listed) == len(set(listed))
    assert set(listed) == there
