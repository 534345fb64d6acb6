"""gunicorn with `--preload`: guard, engine and an open connection are there before its workers."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Collection, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any, Literal, NamedTuple

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.faults.preloaded import Diary, Entry, Site
from tests.support import PATIENCE, line_marked, patiently

ROOT = Path(__file__).parents[2]
WORKERS = 4
CLIENTS = 3
"""How many each worker has, all at once."""
WAYS = ("healthy", "kept", "healthy", "dropped", "elsewhere") * 3
"""What each client asks for, one after the other."""
LINES = {way: line_marked(Site, way) for way in ("kept", "dropped", "elsewhere", "migration")}


class Planted(NamedTuple):
    """A request, and the worker that answered it."""

    worker: int
    way: str
    number: int

    def found(self) -> list[Entry]:
        """List what the worker has to find."""
        if self.way == "healthy":
            return []
        return [self._entry("found", "leaked" if self.way == "kept" else "reclaimed")]

    def resolved(self) -> list[Entry]:
        """List what it has to say when all that was kept is given back."""
        return [self._entry("resolved", "leaked")] if self.way == "kept" else []

    def _entry(self, what: Literal["found", "resolved"], kind: str) -> Entry:
        return Entry(
            pid=self.worker,
            what=what,
            kind=kind,
            scope=None if self.way == "elsewhere" else f"GET /{self.way}/{{number}}",
            line=LINES[self.way],
            statement=f"SELECT {self.number}",
        )


@dataclass
class Gunicorn:
    """A running one, and clients of it."""

    process: subprocess.Popen[bytes]
    url: str
    diary: Diary
    log: Path
    clients: dict[int, list[httpx.Client]] = field(default_factory=dict[int, Any])
    """Those of each worker: a client keeps its connection, and so its worker."""
    _numbers: Iterator[int] = field(default_factory=lambda: count(1))

    def meet_workers(self) -> None:
        """Connect until every worker has its clients."""
        patiently(self._connected)

    def plant(self) -> list[Planted]:
        """Have all clients at once ask for everything, each its own worker."""
        with ThreadPoolExecutor(WORKERS * CLIENTS) as pool:
            work = [
                pool.submit(self._plant_all, worker, client)
                for worker, clients in self.clients.items()
                for client in clients
            ]
        return [planted for one in work for planted in one.result()]

    def plant_one(self, worker: int, client: httpx.Client, way: str) -> Planted:
        """Have one client ask for one thing."""
        number = next(self._numbers)
        assert answer(client, f"/{way}/{number}") == worker
        return Planted(worker, way, number)

    def give_back(self) -> None:
        """Have every worker give back what it kept."""
        for worker, clients in self.clients.items():
            assert answer(clients[0], "/give_back") == worker

    def await_told(self, expected: Iterable[Entry]) -> None:
        """Wait until all of it is told: a scope ends after the answer has been sent."""
        entries = Counter(expected)
        with suppress(AssertionError):  # the next line says what is missing
            patiently(lambda: not entries - Counter(self.diary.read()))
        assert entries - Counter(self.diary.read()) == Counter(), self.log.read_text()

    def tells(self, expected: Collection[Entry]) -> None:
        """Assert that all of it is told, each thing once, and nothing else."""
        self.await_told(expected)
        for clients in self.clients.values():
            assert answer(clients[0], "/out") == []  # and whatever else there is has been told
        assert Counter(self.diary.read()) == Counter(expected)

    def metrics(self) -> dict[str, Counter[str]]:
        """Scrape; give the values of each metric by its labels, but for those that are 0."""
        text = httpx.get(f"{self.url}/metrics/", trust_env=False, timeout=PATIENCE).text
        found: dict[str, Counter[str]] = {}
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                if sample.value and "le" not in sample.labels:
                    values = found.setdefault(sample.name, Counter())
                    values[" ".join(sample.labels.values())] = int(sample.value)
        return found

    def counts(self, told: Sequence[Entry]) -> None:
        """Assert that the metrics are exact."""
        expected = counted(told, self.clients)
        metrics = self.metrics()
        assert {name: metrics.get(name, Counter()) for name in expected} == expected
        # The one of the master's, which is out, and what the workers have kept.
        kept = expected["leakguard_unresolved_leaks"].total()
        assert metrics["db_client_connection_count"]["main used"] == 1 + kept

    def kill(self, worker: int) -> None:
        """Kill a worker, as the system does where memory is short."""
        os.kill(worker, signal.SIGKILL)
        patiently(lambda: not exists(worker))
        for client in self.clients.pop(worker):
            client.close()

    def stop(self) -> int:
        """Stop it as a service manager does; give the exit code."""
        self.hang_up()
        self.process.terminate()
        return self.process.wait(PATIENCE * 3)

    def hang_up(self) -> None:
        """Close every connection."""
        for client in (client for clients in self.clients.values() for client in clients):
            client.close()

    def _plant_all(self, worker: int, client: httpx.Client) -> list[Planted]:
        return [self.plant_one(worker, client, way) for way in WAYS]

    def _connected(self) -> bool:
        """Connect once more; say whether that is enough."""
        limits = httpx.Limits(keepalive_expiry=None)
        client = httpx.Client(base_url=self.url, timeout=PATIENCE, limits=limits, trust_env=False)
        clients = self.clients.setdefault(answer(client, "/pid"), [])
        if len(clients) < CLIENTS:
            clients.append(client)
        else:
            client.close()
        return [len(clients) for clients in self.clients.values()] == [CLIENTS] * WORKERS


def exists(process: int) -> bool:
    """Return whether a process runs, or nobody has asked how it ended."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def answer(client: httpx.Client, path: str) -> Any:
    response = client.get(path)
    assert response.status_code == 200, response.text
    return response.json()


@pytest.fixture
def gunicorn(tmp_path: Path) -> Generator[Gunicorn, None, None]:
    """Start it on a socket that is there already, so that clients need not ask whether it is up."""
    command = [
        *(sys.executable, "-m", "gunicorn", "--preload", "--workers", str(WORKERS)),
        *("--worker-class", "uvicorn_worker.UvicornWorker", "--keep-alive", "600"),
        "--no-control-socket",  # it would be in the home folder
    ]
    log, metrics = tmp_path / "log", tmp_path / "metrics"
    metrics.mkdir()
    with socket.socket() as listener, log.open("wb") as output:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        process = subprocess.Popen(  # noqa: S603  (the command above)
            [
                *command,
                *("--bind", f"fd://{listener.fileno()}"),
                f"tests.faults.preloaded:preload({str(tmp_path)!r})",
            ],
            pass_fds=[listener.fileno()],
            stdout=output,
            stderr=output,
            cwd=ROOT,
            start_new_session=True,
            env=os.environ | {"PROMETHEUS_MULTIPROC_DIR": str(metrics)},
        )
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    running = Gunicorn(process, url, Diary(tmp_path / "diary"), log)
    yield running
    running.hang_up()
    with suppress(ProcessLookupError):  # all gone: else what a failed test left
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(PATIENCE)


def counted(told: Sequence[Entry], living: Collection[int]) -> dict[str, Counter[str]]:
    """Say what the metrics must be, of all processes and of those that live."""
    found = [entry for entry in told if entry.what == "found"]
    out = Counter(entry.what for entry in told if entry.kind == "leaked" and entry.pid in living)
    kept = out["found"] - out["resolved"]
    return {
        "leakguard_findings_total": Counter(map(_labels, found)),
        "leakguard_unresolved_leaks": Counter({"main": kept} if kept else {}),
        "leakguard_open_scopes": Counter({"http": 1}),  # the scrape
    }


def _labels(entry: Entry) -> str:
    method, _, route = (entry.scope or "none none").partition(" ")
    return f"{entry.kind} {method} main {route}"


def test_workers_of_a_preloaded_application(gunicorn: Gunicorn) -> None:
    """Every worker finds its own leaks once, its successor, too; the master's are the master's."""
    gunicorn.meet_workers()
    planted = gunicorn.plant()
    gunicorn.give_back()
    told = [entry for one in planted for entry in one.found() + one.resolved()]
    gunicorn.tells(told)
    gunicorn.counts(told)

    victim, clients = next(iter(gunicorn.clients.items()))
    told += gunicorn.plant_one(victim, clients[0], "kept").found()  # it is out for good
    gunicorn.await_told(told)
    gunicorn.counts(told)
    gunicorn.kill(victim)
    gunicorn.counts(told)
    gunicorn.meet_workers()
    assert victim not in gunicorn.clients
    planted = gunicorn.plant()
    gunicorn.give_back()
    told += [entry for one in planted for entry in one.found() + one.resolved()]
    gunicorn.tells(told)
    gunicorn.counts(told)

    assert gunicorn.stop() == 0
    master, line = gunicorn.process.pid, LINES["migration"]
    told.append(Entry(master, "still out", None, None, line, "SELECT 0"))
    assert Counter(gunicorn.diary.read()) == Counter(told)
    assert "Traceback" not in gunicorn.log.read_text()
