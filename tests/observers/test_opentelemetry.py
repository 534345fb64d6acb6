"""OpenTelemetry: metrics that equal the truth, and findings in the traces of their requests."""

from __future__ import annotations

import importlib
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from opentelemetry import context, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader, NumberDataPoint
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import NonRecordingSpan, SpanContext, use_span
from sqlalchemy import create_engine, text
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.orm import Session
from sqlalchemy.pool import QueuePool
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from leakguard import FindingKind, LeakGuard, LeakGuardMiddleware, SettingsError
from leakguard.observers.opentelemetry import OpenTelemetry
from tests.core.fakes import make_finding
from tests.support import PATIENCE, Recorder, drain_watch, fetch

asgi: Any = importlib.import_module("opentelemetry.instrumentation.asgi")  # has no types
QUERY = text("SELECT 1")
POOL, STATE = "db.client.connection.pool.name", "db.client.connection.state"
Point = tuple[str, tuple[tuple[str, Any], ...]]


class Telemetry:
    """OpenTelemetry's SDK, which keeps what it gets, and the observer that uses it."""

    def __init__(self, **options: Any) -> None:
        self._reader = InMemoryMetricReader()
        self._exporter = InMemorySpanExporter()
        self.meters = MeterProvider([self._reader])
        self.tracers = TracerProvider(**options)
        self.tracers.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.tracer = self.tracers.get_tracer("test")
        self.observer = OpenTelemetry(meter_provider=self.meters, tracer_provider=self.tracers)

    def points(self) -> dict[Point, float]:
        """Give every value by its name and attributes; of a histogram, how many it has."""
        drain_watch()
        data = self._reader.get_metrics_data()
        if data is None:  # nothing was measured yet
            return {}
        scopes = [scope for resource in data.resource_metrics for scope in resource.scope_metrics]
        return {
            (metric.name, tuple(sorted((point.attributes or {}).items()))): (
                point.value if isinstance(point, NumberDataPoint) else point.count
            )
            for scope in scopes
            for metric in scope.metrics
            for point in metric.data.data_points
        }

    def value(self, name: str, **attributes: str) -> float:
        """Give the value of one point; 0 where there is none. `pool` and `state` are short."""
        short = {"pool": POOL, "state": STATE}
        wanted = {short.get(key, key): value for key, value in attributes.items()}
        return self.points().get((name, tuple(sorted(wanted.items()))), 0)

    def connections(self) -> tuple[float, float]:
        """Give how many are idle and used."""
        name = "db.client.connection.count"
        idle, used = (self.value(name, pool="main", state=state) for state in ("idle", "used"))
        return idle, used

    @property
    def spans(self) -> dict[str, ReadableSpan]:
        """The spans that have ended, by their name."""
        return {span.name: span for span in self._exporter.get_finished_spans()}


@pytest.fixture
def telemetry() -> Iterator[Telemetry]:
    telemetry = Telemetry()
    yield telemetry
    telemetry.meters.shutdown()
    telemetry.tracers.shutdown()


@pytest.fixture
def guard(telemetry: Telemetry, recorder: Recorder) -> Iterator[LeakGuard]:
    observers = [telemetry.observer, recorder]
    with LeakGuard(mode="production", observers=observers) as guard:
        yield guard


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'traced.db'}"


# --- metrics --------------------------------------------------------------------------------------


def test_connections_are_counted_in_the_pool_and_out_of_it(
    telemetry: Telemetry, guard: LeakGuard, url: str
) -> None:
    """They equal the truth at every step, and nothing is left when the pool goes."""
    engine = create_engine(url, pool_size=2, max_overflow=1, pool_logging_name="main")
    with guard.scope("work"):
        first = engine.connect()
        assert telemetry.connections() == (0, 1)
        second = engine.connect()
        assert telemetry.connections() == (0, 2)
        first.close()
        assert telemetry.connections() == (1, 1)
        second.invalidate()
        assert telemetry.connections() == (1, 0)
        second.close()
    assert telemetry.value("db.client.connection.max", pool="main") == 3
    assert telemetry.value("db.client.connection.use_time", pool="main") == 2
    assert telemetry.value("db.client.connection.wait_time", pool="main") == 2
    assert telemetry.value("db.client.connection.timeouts", pool="main") == 0
    engine.dispose()
    assert telemetry.connections() == (0, 0)


def test_a_checkout_that_times_out_is_counted(
    telemetry: Telemetry, guard: LeakGuard, url: str
) -> None:
    """As one that waited, as one that had to give up, and as a finding."""
    engine = create_engine(
        url, pool_size=1, max_overflow=0, pool_timeout=0.01, pool_logging_name="main"
    )
    with guard.scope("work"), engine.connect(), pytest.raises(PoolTimeoutError):
        engine.connect()
    assert telemetry.value("db.client.connection.timeouts", pool="main") == 1
    assert telemetry.value("db.client.connection.wait_time", pool="main") == 2
    kind = {"leakguard.kind": "pool_exhausted"}
    assert telemetry.value("leakguard.findings", pool="main", **kind) == 1
    engine.dispose()


def test_a_leak_is_unresolved_until_it_comes_back(
    telemetry: Telemetry, guard: LeakGuard, recorder: Recorder, url: str
) -> None:
    """By route and method it is counted once; whoever uninstalls follows it no more."""
    engine = create_engine(url, pool_logging_name="main")
    kept: list[Session] = []

    def leak(_: Request) -> PlainTextResponse:
        kept.append(Session(engine))
        kept[-1].execute(QUERY)
        return PlainTextResponse("leaked")

    app = Starlette(
        routes=[Route("/leak/{number}", leak)],
        middleware=[Middleware(LeakGuardMiddleware, guard=guard)],
    )
    for number in (1, 2):
        fetch(app, f"/leak/{number}")
    where = {"http.route": "/leak/{number}", "http.request.method": "GET"}
    found = {"leakguard.kind": "leaked", "pool": "main", **where}
    assert telemetry.value("leakguard.findings", **found) == 2
    assert telemetry.value("leakguard.unresolved_leaks", pool="main") == 2
    kept.pop().close()
    recorder.wait_for(lambda: recorder.resolutions)
    assert telemetry.value("leakguard.unresolved_leaks", pool="main") == 1
    guard.uninstall()
    assert telemetry.value("leakguard.unresolved_leaks", pool="main") == 0
    kept.pop().close()
    engine.dispose()


def test_a_finding_that_nothing_is_known_of_is_counted_all_the_same(telemetry: Telemetry) -> None:
    """A session outside of any request has neither route nor pool."""
    finding = make_finding(FindingKind.UNCLOSED_SESSION)
    finding.scope = finding.pool = None
    telemetry.observer.found(finding)
    assert telemetry.value("leakguard.findings", **{"leakguard.kind": "unclosed_session"}) == 1


# --- traces ---------------------------------------------------------------------------------------


def leaking(url: str, kept: list[Session]) -> Starlette:
    """Make an application that takes a session and does not close it."""
    engine = create_engine(url, pool_logging_name="main")

    def leak(_: Request) -> PlainTextResponse:
        kept.append(Session(engine))
        kept[-1].execute(QUERY)
        return PlainTextResponse("leaked")

    return Starlette(routes=[Route("/leak/{number}", leak)])


@pytest.fixture
def kept() -> Iterator[list[Session]]:
    kept: list[Session] = []
    yield kept
    for session in kept:
        session.close()
        session.get_bind().engine.dispose()


@pytest.fixture(params=["around leakguard", "within leakguard"])
def traced(
    request: pytest.FixtureRequest, telemetry: Telemetry, guard: LeakGuard
) -> Callable[[Any], Any]:
    """Give what puts OpenTelemetry's middleware and leakguard's around an application."""

    def tracing(app: Any) -> Any:
        return asgi.OpenTelemetryMiddleware(app, tracer_provider=telemetry.tracers)

    def guarding(app: Any) -> Any:
        return LeakGuardMiddleware(app, guard=guard)

    if request.param == "around leakguard":
        return lambda app: tracing(guarding(app))
    return lambda app: guarding(tracing(app))


def ids(span: ReadableSpan) -> tuple[str, str]:
    """Give the ids of a span as they are written everywhere."""
    context = span.get_span_context()
    assert context is not None
    return f"{context.trace_id:032x}", f"{context.span_id:016x}"


def only_event(span: ReadableSpan) -> dict[str, Any]:
    """Give the attributes of the one event that a span has."""
    (event,) = span.events
    assert event.name == "leakguard.finding"
    return dict(event.attributes or {})


def test_a_finding_is_an_event_on_the_span_of_its_request(
    telemetry: Telemetry, guard: LeakGuard, recorder: Recorder, url: str, kept: list[Session]
) -> None:
    """Where that span is around leakguard, and ends when the application has returned."""
    guarded = LeakGuardMiddleware(leaking(url, kept), guard=guard)

    async def app(*call: Any) -> None:
        with telemetry.tracer.start_as_current_span("request"):
            await guarded(*call)

    fetch(app, "/leak/1")
    span = telemetry.spans["request"]
    facts = only_event(span)
    assert facts["leakguard.kind"] == "leaked"
    assert facts["leakguard.route"] == "/leak/{number}"
    assert facts["leakguard.created_at_function"] == "leaking.<locals>.leak"
    assert facts["leakguard.pool"] == "main"
    assert all(isinstance(value, str | bool | int | float) for value in facts.values())
    (finding,) = recorder.findings
    assert finding.scope is not None
    assert (finding.scope.trace_id, finding.scope.span_id) == ids(span)


def test_where_the_span_has_ended_the_event_has_one_of_its_own_in_the_trace(
    telemetry: Telemetry,
    traced: Callable[[Any], Any],
    recorder: Recorder,
    url: str,
    kept: list[Session],
) -> None:
    """OpenTelemetry's middleware ends it with the last byte, before any verdict can fall."""
    fetch(traced(leaking(url, kept)), "/leak/1")
    spans = telemetry.spans
    span = spans["leakguard.finding"]
    (request,) = [one for one in spans.values() if one.parent is None]
    assert span.parent == request.get_span_context()
    assert span.start_time == span.end_time
    assert only_event(span)["leakguard.trace_id"] == ids(request)[0]
    (finding,) = recorder.findings
    assert finding.to_dict()["span_id"] == ids(request)[1]


def test_what_is_found_during_the_request_is_on_its_span(
    telemetry: Telemetry, traced: Callable[[Any], Any], url: str
) -> None:
    """Such as the pool that had no connection left for it."""
    engine = create_engine(url, pool_size=1, max_overflow=0, pool_timeout=0.01)

    def wait(_: Request) -> PlainTextResponse:
        with engine.connect(), pytest.raises(PoolTimeoutError):
            engine.connect()
        return PlainTextResponse("waited")

    fetch(traced(Starlette(routes=[Route("/", wait)])), "/")
    (request,) = [span for span in telemetry.spans.values() if span.parent is None]
    assert only_event(request)["leakguard.kind"] == "pool_exhausted"
    engine.dispose()


def test_a_job_is_traced_by_the_span_in_which_it_takes_what_it_needs(
    telemetry: Telemetry, guard: LeakGuard, recorder: Recorder, url: str
) -> None:
    """The first one counts; a checkout tells it as well as a session."""
    engine = create_engine(url)
    with guard.scope("job"), telemetry.tracer.start_as_current_span("first") as span:
        connection = engine.connect()
        with telemetry.tracer.start_as_current_span("second"):
            connection.execute(QUERY)
    connection.close()
    engine.dispose()
    (finding,) = recorder.findings
    assert finding.scope is not None
    assert finding.scope.span_id == f"{span.get_span_context().span_id:016x}"


def test_a_session_may_be_older_than_the_span_in_which_it_is_used(
    telemetry: Telemetry, guard: LeakGuard, recorder: Recorder, url: str
) -> None:
    """As one of a middleware outside of the tracing."""
    engine = create_engine(url)
    with guard.scope("job"):
        session = Session(engine)
        with telemetry.tracer.start_as_current_span("request") as span:
            session.execute(QUERY)
    session.close()
    engine.dispose()
    (finding,) = recorder.findings
    assert finding.scope is not None
    assert finding.scope.span_id == f"{span.get_span_context().span_id:016x}"


def test_a_request_that_only_waited_is_in_the_trace_too(
    telemetry: Telemetry, guard: LeakGuard, recorder: Recorder, url: str
) -> None:
    """It never took a connection: the span is the one in which it waited for it."""
    engine = create_engine(url, pool_size=1, max_overflow=0, pool_timeout=0.01)
    with (
        engine.connect(),
        guard.scope("waits"),
        telemetry.tracer.start_as_current_span("wait"),
        pytest.raises(PoolTimeoutError),
    ):
        engine.connect()
    assert only_event(telemetry.spans["wait"])["leakguard.kind"] == "pool_exhausted"
    engine.dispose()


def test_the_span_of_a_request_is_not_kept(
    telemetry: Telemetry, guard: LeakGuard, recorder: Recorder, url: str
) -> None:
    """Only its ids are: a finding is in the history for long, and a span has much in it."""
    engine = create_engine(url)
    with guard.scope("job"), telemetry.tracer.start_as_current_span("work"):
        connection = engine.connect()
    (finding,) = recorder.findings
    assert finding.scope is not None
    assert finding.scope.trace is not None
    assert finding.scope.trace.span() is None
    connection.close()
    engine.dispose()


def test_what_is_not_sampled_is_not_traced(guard: LeakGuard, recorder: Recorder, url: str) -> None:
    """The ids are known all the same, to be found in the logs of other services."""
    telemetry = Telemetry(sampler=ALWAYS_OFF)
    engine = create_engine(url)
    with (
        LeakGuard(mode="testing", observers=[telemetry.observer, recorder]) as unsampled,
        telemetry.tracer.start_as_current_span("job"),
        unsampled.scope("job"),
    ):
        connection = engine.connect()
    (finding,) = recorder.findings
    assert finding.scope is not None
    assert finding.scope.trace_id is not None
    assert telemetry.spans == {}
    connection.close()
    engine.dispose()


def test_a_context_of_another_kind_is_asked_for_what_is_current(
    monkeypatch: pytest.MonkeyPatch,
    telemetry: Telemetry,
    guard: LeakGuard,
    recorder: Recorder,
    url: str,
) -> None:
    """It is chosen by an environment variable, and need not have a `ContextVar`."""
    usual: Any = context._RUNTIME_CONTEXT  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]  # the one in use
    methods = {name: getattr(usual, name) for name in ("attach", "detach", "get_current")}
    monkeypatch.setattr(context, "_RUNTIME_CONTEXT", SimpleNamespace(**methods))
    engine = create_engine(url)
    with guard.scope("job"), telemetry.tracer.start_as_current_span("first"):
        connection = engine.connect()
    connection.close()
    engine.dispose()
    (finding,) = recorder.findings
    assert finding.scope is not None
    assert finding.scope.span_id is not None


def test_a_trace_that_comes_from_elsewhere(
    telemetry: Telemetry, guard: LeakGuard, recorder: Recorder, url: str
) -> None:
    """A span of another service's, which is the current one where this service traces nothing."""
    engine = create_engine(url)
    context = SpanContext(0xABC, 0xDEF, is_remote=True, trace_flags=trace.TraceFlags(1))
    with guard.scope("job"), use_span(NonRecordingSpan(context)):
        connection = engine.connect()
    (finding,) = recorder.findings
    facts = finding.to_dict()
    assert (facts["trace_id"], facts["span_id"]) == (f"{0xABC:032x}", f"{0xDEF:016x}")
    assert telemetry.spans["leakguard.finding"].parent == context
    connection.close()
    engine.dispose()


def test_without_a_span_there_is_nothing_in_traces(
    telemetry: Telemetry, guard: LeakGuard, recorder: Recorder, url: str
) -> None:
    """Findings without a request, and of requests that nobody traces."""
    engine = create_engine(url)
    token = context.attach(context.set_value("something", "else than a span"))
    with guard.scope("job"):
        connection = engine.connect()
    context.detach(token)
    (finding,) = recorder.findings
    assert finding.scope is not None
    assert (finding.scope.trace_id, finding.scope.span_id) == (None, None)
    assert telemetry.spans == {}
    connection.close()
    engine.dispose()


def test_a_tracing_library_that_fails_is_no_matter_of_the_request(
    monkeypatch: pytest.MonkeyPatch,
    guard: LeakGuard,
    recorder: Recorder,
    caplog: pytest.LogCaptureFixture,
    url: str,
) -> None:
    """It is logged once."""

    def fail(*_: object) -> None:
        raise RuntimeError

    monkeypatch.setattr(trace, "get_current_span", fail)
    engine = create_engine(url)
    token = context.attach(context.set_value("something", "of theirs"))
    with guard.scope("job"):
        connection = engine.connect()
    context.detach(token)
    assert len(recorder.findings) == 1
    assert "leakguard's look at the current span raised RuntimeError" in caplog.text
    connection.close()
    engine.dispose()


# --- settings -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["meter_provider", "tracer_provider"])
def test_a_bad_provider_is_an_error(name: str) -> None:
    """That names it, and says what is allowed."""
    options: dict[str, Any] = {name: "console"}
    with pytest.raises(SettingsError, match=f"{name}='console'.*must be an OpenTelemetry"):
        OpenTelemetry(**options)


def test_by_default_it_uses_the_global_providers(url: str) -> None:
    """Which do nothing until the application sets them up."""
    engine = create_engine(url)
    with LeakGuard(mode="testing", observers=[OpenTelemetry()]) as guard, guard.scope("job"):
        engine.connect().close()
    engine.dispose()


def test_it_is_imported_by_whoever_wants_it_alone() -> None:
    """Nothing else imports OpenTelemetry, and where it is not installed the error says so."""
    program = """
import sys
import leakguard
assert not [name for name in sys.modules if name.startswith("opentelemetry")]
sys.modules["opentelemetry"] = None
try:
    import leakguard.observers.opentelemetry
except ImportError as error:
    print(error)
"""
    done = subprocess.run(  # noqa: S603  (the program above)
        [sys.executable, "-c", program],
        check=True,
        capture_output=True,
        text=True,
        timeout=PATIENCE * 3,
        cwd=Path(__file__).parents[2],
    )
    assert done.stdout == (
        'leakguard.observers.opentelemetry needs more: pip install "leakguard[otel]"\n'
    )


def test_many_threads_are_counted_exactly(telemetry: Telemetry, guard: LeakGuard, url: str) -> None:
    """Nothing is lost where all of them take and give back at once."""
    engine = create_engine(url, pool_size=8, max_overflow=0, pool_logging_name="main")
    pool = engine.pool
    assert isinstance(pool, QueuePool)

    def work() -> None:
        for _ in range(50):
            with guard.scope("work"), engine.connect():
                pass

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert telemetry.value("db.client.connection.use_time", pool="main") == 400
    idle, used = telemetry.connections()
    assert used == 0
    assert idle == pool.checkedin()
    engine.dispose()
