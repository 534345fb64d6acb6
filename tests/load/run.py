"""One run: hide the leaks, send the requests, compare what was found with what was hidden."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from time import perf_counter
from urllib.parse import urlsplit

from tests.load.client import InProcess, Request, Server, Tally
from tests.load.examination import Examination, Result, WithEnds
from tests.load.plan import Plan
from tests.load.worker import FOLDER, PLAN
from tests.support import PATIENCE, patiently, serving

ROOT = Path(__file__).parents[2]


@dataclass
class Outcome:
    """What came of a run, in all of its processes."""

    seconds: float
    statuses: Counter[int]
    results: list[Result]
    """What each process found."""
    wrong: list[str] = field(default_factory=list[str])
    """Every disagreement, in words; empty if all is well."""

    @property
    def kinds(self) -> Counter[str]:
        """How many findings of each kind there were."""
        return sum((Counter(result.kinds) for result in self.results), Counter[str]())

    @property
    def found(self) -> int:
        """How many findings there were."""
        return sum(result.found for result in self.results)

    @property
    def resolved(self) -> int:
        """How many findings were resolved."""
        return sum(result.resolved for result in self.results)

    @property
    def open_then(self) -> int:
        """How many connections were out while everything that leaked was."""
        return sum(result.open_then for result in self.results)

    @property
    def open_now(self) -> int:
        """How many holds were open after the clean-up."""
        return sum(result.open_now for result in self.results)


def run(plan: Plan) -> Outcome:
    """Send the requests of a plan to a fresh application, and compare."""
    requests, hidden = plan.hide()
    begun = perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        send = _send_to_workers if plan.server == "workers" else _send_here
        tally, results = send(plan, requests, hidden, Path(folder))
    outcome = Outcome(perf_counter() - begun, tally.statuses, results)
    outcome.wrong += [wrong for result in results for wrong in result.wrong]
    if tally.broken:
        outcome.wrong.append(f"{tally.broken} responses ended in the middle")
    planted = sorted(number for result in results for number in result.planted)
    if planted != sorted(hidden):
        outcome.wrong.append(f"{len(planted)} of {len(hidden)} leaks took place")
    return outcome


# --- in this process ------------------------------------------------------------------------------


def _send_here(
    plan: Plan, requests: Sequence[Request], hidden: Mapping[int, str], folder: Path
) -> tuple[Tally, list[Result]]:
    examination = Examination(folder, plan.mode, hidden)
    try:
        send = _serve if plan.server == "uvicorn" else _call
        return send(examination, requests, plan.clients), [examination.result()]
    finally:
        examination.guard.uninstall()


def _serve(examination: Examination, requests: Sequence[Request], clients: int) -> Tally:
    """Send them to a real server in a thread, and clean up on its loop when it shuts down."""
    cleaned = threading.Event()

    async def stop() -> None:
        await examination.compare_and_clean_up()
        cleaned.set()

    app = WithEnds(examination.site.application(), start=lambda: None, stop=stop)
    with serving(app, lifespan="on", http="h11") as url:
        port = urlsplit(url).port
        assert port is not None
        tally = asyncio.run(Server(port).run(iter(requests), clients))
    assert cleaned.wait(PATIENCE), "comparing and cleaning up failed, see above"
    return tally


def _call(examination: Examination, requests: Sequence[Request], clients: int) -> Tally:
    """Call the application without a server."""

    async def call_all() -> Tally:
        tally = await InProcess(examination.site.application()).run(iter(requests), clients)
        await examination.compare_and_clean_up()
        return tally

    return asyncio.run(call_all())


# --- in processes of their own --------------------------------------------------------------------


def _send_to_workers(
    plan: Plan, requests: Sequence[Request], hidden: Mapping[int, str], folder: Path
) -> tuple[Tally, list[Result]]:
    del hidden  # every worker knows the plan
    with _workers(plan, folder) as port:
        tally = asyncio.run(Server(port).run(iter(requests), plan.clients))
    results = [Result(**json.loads(file.read_text())) for file in sorted(folder.glob("*.json"))]
    assert len(results) == plan.workers, "comparing and cleaning up failed, see above"
    return tally, results


@contextmanager
def _workers(plan: Plan, folder: Path) -> Generator[int]:
    """Start uvicorn with several processes, as in production; give its port."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(128)
        descriptor = listener.fileno()
        process = subprocess.Popen(  # noqa: S603  (our own server)
            [
                *(sys.executable, "-m", "uvicorn", "tests.load.worker:application", "--factory"),
                *("--workers", str(plan.workers), "--fd", str(descriptor)),
                *("--loop", "uvloop", "--http", "httptools", "--log-level", "critical"),
            ],
            cwd=ROOT,
            env={**os.environ, PLAN: json.dumps(asdict(plan)), FOLDER: str(folder)},
            pass_fds=[descriptor],
        )
        try:
            patiently(lambda: len(list(folder.glob("*.started"))) == plan.workers)
            yield listener.getsockname()[1]
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(PATIENCE * 6)
