"""The second experiment: a small pool, and requests that fail."""

from __future__ import annotations

from dataclasses import dataclass
from time import perf_counter, sleep

from sqlalchemy import create_engine

from examples.demo.application import Example
from examples.demo.interruption import heed
from examples.demo.lifecycle import GOOD_ITEM, MISSING_ITEM, listening, uncollected
from examples.demo.observation import Watch
from examples.demo.server import PATIENCE, Answer, get
from leakguard import FindingKind

POOL_SIZE = 3
POOL_TIMEOUT = 0.3
"""Seconds that a request waits for a connection; SQLAlchemy's default is 30."""


@dataclass(frozen=True)
class Request:
    """A row of the table."""

    item: str
    answer: Answer
    seconds: float
    out: int
    """Connections that were out of the pool when it was over."""
    error: str
    """The exception that came out of the application, its type first; empty without one."""
    log: str
    """What leakguard logged meanwhile."""


@dataclass(frozen=True)
class Shortage:
    """What became of the pool."""

    failing: tuple[Request, ...]
    """As many requests for a missing item as the pool has connections."""
    then: Request
    """The one for an item that exists."""
    leaks: int
    """How many leaks leakguard reported."""
    out_when_collected: int
    """Connections that were out when the garbage collector had run."""
    afterwards: Request
    """The last one once more, after the garbage collector."""
    resolutions: tuple[str, ...]
    """How the connections came back, in leakguard's words."""


def run_dry(example: Example, watch: Watch, port: int) -> Shortage:
    """Let requests fail until the pool is as empty as it gets, and then send a good one."""
    use_small_pool(example)
    with uncollected():
        failing = tuple(_send(example, watch, port, MISSING_ITEM) for _ in range(POOL_SIZE))
        then = _send(example, watch, port, GOOD_ITEM)
    leaks = [finding for finding in example.findings() if finding.kind is FindingKind.LEAKED]
    example.collect()
    out = example.connections_out()
    patience = perf_counter() + PATIENCE
    while not all(finding.resolved for finding in leaks) and perf_counter() < patience:
        heed()
        sleep(0.01)  # leakguard learns of it in a thread of its own
    return Shortage(
        failing,
        then,
        len(leaks),
        out,
        _send(example, watch, port, GOOD_ITEM),
        tuple(finding.resolution for finding in leaks if finding.resolution),
    )


def use_small_pool(example: Example) -> None:
    """Give the example a pool that is soon empty."""
    url = example.engine.url
    example.use(create_engine(url, pool_size=POOL_SIZE, max_overflow=0, pool_timeout=POOL_TIMEOUT))


def _send(example: Example, watch: Watch, port: int, item: int) -> Request:
    start = perf_counter()
    with listening() as (log, _), watch.one_request(example) as observation:
        answer = get(port, f"{example.prefix}/items/{item}")
        seconds = perf_counter() - start
    return Request(
        str(item),
        answer,
        seconds,
        example.connections_out(),
        observation.error,
        log.getvalue(),
    )
