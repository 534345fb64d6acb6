"""Every distinct finding is logged in full once, then counted."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Iterator
from queue import SimpleQueue

import pytest

from leakguard import Finding, FindingKind, LeakGuard, Log, SettingsError
from leakguard.core.clock import monotonic
from leakguard.core.faults import FAULTS
from leakguard.core.register import make_finding as finding_of
from leakguard.core.watch import Watch
from leakguard.observers.log import fields_of
from tests.core.fakes import FakeConnection, ended_scope, make_finding, make_guard, site_at
from tests.support import PATIENCE


def logged(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records]


@pytest.fixture(autouse=True)
def watch(monkeypatch: pytest.MonkeyPatch) -> Iterator[Watch]:
    """Return a watch of the test's own: what it logs a minute later is no other test's."""
    own = Watch(FAULTS)
    monkeypatch.setattr("leakguard.observers.log.WATCH", own)
    own.add_user()
    yield own
    own.remove_user()


@pytest.fixture(autouse=True)
def everything(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, logger="leakguard")


def test_the_first_is_logged_in_full_and_the_next_ones_are_counted(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Within the interval there is one line, however many occurrences there are."""
    log = Log(repeat_after=3600)
    finding = make_finding()
    for _ in range(50):
        log.found(finding)
    assert logged(caplog) == [str(finding)]


def test_what_was_counted_is_logged_though_it_was_the_last(
    watch: Watch, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody need come after it: the watch logs it when the interval is over."""
    began = monotonic()
    monkeypatch.setattr("leakguard.observers.log.monotonic", lambda: began)  # whatever it takes
    all_found = threading.Event()

    class Logged(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.put(record.getMessage())

    lines: SimpleQueue[str] = SimpleQueue()
    logger = logging.getLogger("leakguard")
    handler = Logged()
    logger.addHandler(handler)
    log = Log(repeat_after=0.05)
    watch.start()

    def wait() -> None:
        all_found.wait(PATIENCE)

    watch.post(wait)
    for _ in range(3):
        finding = make_finding()
        finding.resolution = "given back"
        log.found(finding)
        log.resolved(finding)
    all_found.set()
    told = [lines.get(timeout=PATIENCE) for _ in range(4)]
    logger.removeHandler(handler)
    assert told[0].startswith("leaked: nightly import ")
    assert told[1].startswith("resolved: leaked connection of pool ")
    assert told[2].startswith("leaked: 2 more times from ")
    assert ": given back, and 1 more like it [" in told[3]
    assert len(caplog.records) == 4


def test_what_was_counted_is_logged_at_the_end_of_the_guard(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Whatever the interval is."""
    log = Log(repeat_after=3600)
    with LeakGuard(mode="testing", observers=[log]):
        for _ in range(3):
            log.found(make_finding())
    assert [line.partition(" from ")[0] for line in logged(caplog)[1:]] == ["leaked: 2 more times"]


def test_after_the_interval_one_line_stands_for_all_since(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says how many."""
    now = [100.0]
    monkeypatch.setattr("leakguard.observers.log.monotonic", lambda: now[0])
    log = Log(repeat_after=60)
    for at in (0.0, 1, 2, 59, 61, 62, 130):
        now[0] = 100.0 + at
        log.found(make_finding())
    lines = logged(caplog)
    assert len(lines) == 3
    assert lines[1].startswith("leaked: 4 more times from ")
    assert lines[2].startswith("leaked: 2 more times from ")


def test_different_findings_do_not_suppress_one_another(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Each mistake has a first time of its own."""
    log = Log()
    for name in ("a", "b", "a", "b"):
        finding = make_finding()
        finding.fingerprint = name
        log.found(finding)
    assert len(logged(caplog)) == 2


def test_functions_of_one_name_do_not_suppress_one_another(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Two endpoints may be called `read`; two lambdas always have the same name."""
    log = Log()
    guard = make_guard()
    for line in (41, 90, 41, 90):
        site = site_at("app/items.py", line, "read")
        hold = FakeConnection(guard, ended_scope(guard, "job"), site)
        log.found(finding_of(hold, FindingKind.LEAKED, ()))
    assert len(logged(caplog)) == 2


def test_one_mistake_is_logged_for_each_pool(caplog: pytest.LogCaptureFixture) -> None:
    """Whose pool runs dry finds its name, though the line leaks another pool's, too."""
    log = Log()
    for pool in ("orders", "billing", "orders"):
        finding = make_finding()
        finding.pool = pool
        finding.resolution = "given back"
        log.found(finding)
        log.resolved(finding)
    found = [line.split("\n")[0] for line in logged(caplog) if line.startswith("leaked")]
    assert [line.rpartition(" ")[2] for line in found] == ['"orders"', '"billing"']
    assert len(logged(caplog)) == 4


def test_of_very_many_pools_most_are_counted_together(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where each of a thousand tenants has an engine: one mistake is a few reports."""
    monkeypatch.setattr(Log, "POOLS", 3)
    log = Log(repeat_after=3600)
    for _ in range(3):
        for number in range(10):
            finding = make_finding()
            finding.pool = f"tenant {number}"
            log.found(finding)
    found = [line.split("\n")[0].rpartition(" of pool ")[2] for line in logged(caplog)]
    assert found == [f'"tenant {number}"' for number in range(4)]


@pytest.mark.parametrize(
    "kind, level",
    [(FindingKind.LEAKED, logging.ERROR), (FindingKind.SYNC_IN_ASYNC, logging.INFO)],
)
def test_the_level_is_by_severity(
    caplog: pytest.LogCaptureFixture, kind: FindingKind, level: int
) -> None:
    """Errors at ERROR, notices at INFO."""
    Log().found(make_finding(kind))
    assert [record.levelno for record in caplog.records] == [level]


def test_notices_are_not_logged_where_nobody_wants_them(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Nor their resolutions."""
    log = Log(notices=False)
    log.found(make_finding(FindingKind.OUTLIVES_SCOPE))
    log.resolved(make_finding(FindingKind.OUTLIVES_SCOPE))
    assert logged(caplog) == []


def test_a_resolution_is_logged_as_often_as_a_finding(caplog: pytest.LogCaptureFixture) -> None:
    """The first one at once, further ones at most once in the interval."""
    log = Log()
    finding = make_finding()
    finding.resolution = "given back 3.2 s later, after 3.4 s out"
    log.resolved(finding)
    log.resolved(finding)
    assert len(logged(caplog)) == 1
    assert "): given back 3.2 s later, after 3.4 s out [" in logged(caplog)[0]
    assert caplog.records[0].levelno == logging.WARNING  # as visible as the error was


def test_records_carry_flat_fields(caplog: pytest.LogCaptureFixture) -> None:
    """A formatter for JSON can show every one of them."""
    finding = make_finding()
    finding.also = (FindingKind.NESTED_CHECKOUT, FindingKind.SYNC_IN_ASYNC)
    Log().found(finding)
    fields = {
        name: value
        for name, value in vars(caplog.records[0]).items()
        if name.startswith("leakguard_")
    }
    assert fields == fields_of(finding)
    assert all(value is None or isinstance(value, str | int | float) for value in fields.values())
    json.dumps(fields)
    assert fields["leakguard_kind"] == "leaked"
    assert fields["leakguard_also"] == "nested_checkout,sync_in_async"
    assert fields["leakguard_acquired_at_function"] == "make_finding"
    assert fields["leakguard_created_at_file"] is None


def test_the_fields_are_the_same_whatever_is_known() -> None:
    """A column is there also where it is empty."""
    finding = make_finding()
    finding.hold = finding.scope = None
    assert set(fields_of(finding)) == set(fields_of(make_finding()))


def test_a_logger_of_one_s_own(caplog: pytest.LogCaptureFixture) -> None:
    """In place of `leakguard`."""
    Log(logger=logging.getLogger("own")).found(make_finding())
    assert [record.name for record in caplog.records] == ["own"]


def test_what_was_logged_is_remembered_up_to_a_bound(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mistake that was not seen for longest is in full again."""
    monkeypatch.setattr(Log, "LIMIT", 2)
    log = Log()
    for name in ("a", "b", "a", "c", "a", "b"):
        finding: Finding = make_finding()
        finding.fingerprint = name
        log.found(finding)
    assert len(logged(caplog)) == 4


@pytest.mark.parametrize(
    "options, allowed",
    [
        ({"repeat_after": -1}, "repeat_after=-1 is not allowed: must be a finite number"),
        ({"notices": "no"}, "notices='no' is not allowed: must be True or False"),
        ({"logger": "own"}, "logger='own' is not allowed: must be a logging.Logger"),
    ],
)
def test_bad_arguments_are_refused(options: dict[str, object], allowed: str) -> None:
    """The error names them."""
    with pytest.raises(SettingsError, match=allowed):
        Log(**options)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]  # the mistake
