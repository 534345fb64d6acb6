"""The database is killed and started again under load: every leak is found once, nothing else is.

A real server answers many clients at once while all processes of its database are killed as in a
crash, and started again, twice; the moments are counted in requests. What the application knows of
its own statements says what must be found:

- A connection that was taken and kept has leaked. That its server has died since makes no
  difference: its pool still counts it, until somebody closes or uses it.
- One that SQLAlchemy gave up (`error.connection_invalidated`) is no longer out, so that only an
  untidy session is left, as where there was no server to connect to. That is a mere notice.
- Statements of the driver's own that fail tell SQLAlchemy nothing: that connection has leaked, too.
- A request that closes what it opened is left in peace, whatever failed, and wherever.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import random
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, NamedTuple
from urllib.parse import urlsplit

import pytest

from leakguard import CallSite, Finding, FindingKind, LeakGuard
from tests.faults import killed
from tests.faults.killed import ENGINES, HEALTHY, LEAKING, Kept, Site
from tests.load import client
from tests.load.examination import WithEnds
from tests.scenarios.databases import DRIVERS, Databases, Server, Unavailable
from tests.support import PATIENCE, Recorder, drain_watch, line_marked, patiently, serving

CLIENTS: Final = 32
CALM: Final = 160
"""How many requests there are before, between and after the outages."""
OUTAGE: Final = 80
"""How many there are, at least, between a crash and the restart."""
LEAKS: Final = 0.1
"""The share of the requests that leak."""
DRIVER: Final = {driver.name: driver for driver in DRIVERS}


class Load:
    """The requests, and the crashes between them, in the order in which clients ask for them."""

    def __init__(self, database: Server, site: Site) -> None:
        self._database = database
        self._site = site
        self._choice = random.Random(1)  # noqa: S311  (no secret)
        self.asked: list[tuple[str, str]] = []
        """The route and the engine of each request, by its number."""
        self.recovered = 0
        """The first request after the last restart."""

    def __iter__(self) -> Iterator[client.Request]:
        for _ in range(2):
            yield from self._some(CALM)
            yield from self._outage()
        self.recovered = len(self.asked)
        yield from self._some(CALM)

    def _outage(self) -> Iterator[client.Request]:
        """Kill the server while statements run, start it again, and never stop asking."""
        obstacle = self._database.obstacle(self._site.engines["plain"])
        try:
            for name in HEALTHY + LEAKING:
                for engine in ENGINES:
                    self._site.waits[len(self.asked)] = obstacle.statement
                    yield self._request(name, engine)
            yield from self._during(self._crash)
            yield from self._some(OUTAGE)
            yield from self._during(self._database.restart)
        finally:
            obstacle.remove()

    def _crash(self) -> None:
        # One may have failed at once, on a connection that died in the last crash.
        patiently(lambda: self._site.waits.keys() <= self._site.reached | self._site.left.keys())
        self._database.crash()

    def _during(self, work: Callable[[], None]) -> Iterator[client.Request]:
        """Go on with requests until `work()` is done."""
        with ThreadPoolExecutor(1) as thread:
            working = thread.submit(work)
            while not working.done():
                yield from self._some(1)
            working.result()

    def _some(self, times: int) -> Iterator[client.Request]:
        for _ in range(times):
            names = LEAKING if self._choice.random() < LEAKS else HEALTHY
            yield self._request(self._choice.choice(names), self._choice.choice([*ENGINES]))

    def _request(self, name: str, engine: str) -> client.Request:
        number = len(self.asked)
        self.asked.append((name, engine))
        return client.Request(f"/{name}/{engine}/{number}")


# --- what is compared -----------------------------------------------------------------------------


class Seen(NamedTuple):
    """What is compared of a finding."""

    number: int | None
    """The request that kept something in the finding's scope; `None` where none did."""
    kind: FindingKind
    route: str | None
    pool: str | None
    created: int | None
    """The line that constructed the session."""
    taken: int | None
    """The line that checked the connection out."""


def expected(load: Load, site: Site) -> list[Seen]:
    """Return what must be found of what the requests kept."""
    return sorted(
        (
            _expected_of(number, *load.asked[number], kept)
            for number, kept in site.kept.items()
            if kept.connected or kept.is_session
        ),
        key=str,
    )


def _expected_of(number: int, name: str, engine: str, kept: Kept) -> Seen:
    route = f"/{name}/{{engine}}/{{number}}"
    created = line_marked(killed, f"created {name}") if kept.is_session else None
    if not kept.connected:
        return Seen(number, FindingKind.UNCLOSED_SESSION, route, None, created, None)
    form, _, _ = name.partition("_")
    taken = line_marked(killed, f"taken {name}")
    return Seen(number, FindingKind.LEAKED, route, f"{form} {engine}", created, taken)


def see(finding: Finding, number: int | None) -> Seen:
    """Return what is compared of a finding."""
    hold, scope = finding.hold, finding.scope
    return Seen(
        number,
        finding.kind,
        None if scope is None else scope.route,
        finding.pool,
        None if hold is None else _line(hold.created_at),
        None if hold is None else _line(hold.acquired_at),
    )


def _line(site: CallSite | None) -> int | None:
    return None if site is None else site.line


class Look:
    """What is found and what is out while all that was kept is still kept."""

    def __init__(self, site: Site, guard: LeakGuard, recorder: Recorder) -> None:
        drain_watch()
        number_of = {id(kept.scope): number for number, kept in site.kept.items()}
        findings = list(recorder.findings)
        self.leaks = [one for one in findings if one.kind is FindingKind.LEAKED]
        self.seen = sorted((see(one, number_of.get(id(one.scope))) for one in findings), key=str)
        self.resolved = [one for one in findings if one.resolved]
        self.connections = sum(hold.resource == "connection" for hold in guard.open_holds())
        self.pools = site.out()


def serve(load: Load, site: Site, guard: LeakGuard, recorder: Recorder) -> Look:
    """Send all requests to a server; look, and clean up, on its loop when it shuts down."""
    looks: list[Look] = []
    cleaned: list[bool] = []

    async def look_and_clean_up() -> None:
        looks.append(Look(site, guard, recorder))
        await site.clean_up()
        cleaned.append(True)

    app = WithEnds(site.application(guard), start=lambda: None, stop=look_and_clean_up)
    with serving(app, lifespan="on") as url:
        port = urlsplit(url).port
        assert port is not None
        asyncio.run(client.Server(port).run(iter(load), CLIENTS))
    assert cleaned, "looking or cleaning up failed"
    return looks[0]


# --- the test -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def databases() -> Iterator[Databases]:
    """Return databases of the module's own: no other test must notice that they are killed."""
    # Not in pytest's folder, for the reason that the scenarios have.
    with tempfile.TemporaryDirectory() as folder, Databases(Path(folder)) as databases:
        yield databases


@pytest.fixture
def database(databases: Databases, sync: str) -> Server:
    """Return the server that the drivers of the test are for."""
    try:
        database = databases.of(DRIVER[sync])
    except Unavailable as reason:
        pytest.skip(str(reason))
    assert isinstance(database, Server)
    return database


@pytest.fixture(autouse=True)
def sockets_collected() -> Iterator[None]:
    """Have the sockets that drivers leave open collected before the next test, which would mind."""
    yield
    gc.collect()


@pytest.fixture(autouse=True)
def nobody_logs(caplog: pytest.LogCaptureFixture) -> None:
    """Keep what others say of dead connections, tracebacks included, out of logs; not leakguard."""
    for name in ("asyncio", "sqlalchemy", "uvicorn"):
        caplog.set_level(logging.CRITICAL + 1, name)


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")  # PyMySQL's and aiomysql's failures
@pytest.mark.parametrize(
    "sync, asynchronous",
    [("psycopg", "asyncpg"), ("psycopg", "psycopg-async"), ("pymysql", "aiomysql")],
)
def test_a_database_that_is_killed_under_load(
    database: Server,
    recorder: Recorder,
    caplog: pytest.LogCaptureFixture,
    sync: str,
    asynchronous: str,
) -> None:
    """Each leak is found once and resolved when it is closed; of the others nothing is said."""
    site = Site(database, DRIVER[sync], DRIVER[asynchronous])
    load = Load(database, site)
    with LeakGuard(mode="testing", observers=[recorder], late_after=PATIENCE) as guard:
        look = serve(load, site, guard, recorder)

        assert look.seen == expected(load, site)
        assert look.connections == look.pools == sum(kept.connected for kept in site.kept.values())
        assert look.resolved == []
        assert site.arrived == site.left
        assert [error for error in site.left.values() if error.startswith("leakguard")] == []

        drain_watch()
        # The holds last: asking for them finds out what was missed.
        assert Counter(recorder.resolutions) == Counter(look.leaks)
        assert Counter(recorder.holds_released) == Counter(set(recorder.holds_acquired))
        assert guard.open_holds() == ()
        assert site.out() == 0
        assert len(recorder.findings) == len(look.seen), "found only while everything was closed"
    assert [record for record in caplog.records if record.name == "leakguard"] == []
    it_was_as_planned(load, site)


def it_was_as_planned(load: Load, site: Site) -> None:
    """See that the crashes met what they were to meet, and that the database came back."""
    kept = site.kept.values()
    waited = [site.kept[number] for number in site.waits.keys() & site.kept.keys()]
    assert any(one.given_up for one in waited), "no leak was undone by a crash"
    assert any(one.connected for one in waited), "no leak survived a crash"
    assert any(one.is_session and not one.connected for one in kept), "every leak got a connection"
    assert len(site.left) > OUTAGE, "hardly anything failed while the database was down"
    late = {number for number in site.left if number >= load.recovered}
    # Without a ping, the pool has dead connections, and says so once for each.
    assert [site.left[number] for number in late if load.asked[number][1] == "ping"] == []
