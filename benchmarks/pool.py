"""A pool without a database: what leakguard costs a checkout, and nothing else.

A child that checks connections out and in, in some threads, while others are out all the time.
`benchmarks.checkouts` starts one of these for each way.
"""

from __future__ import annotations

import argparse
import gc
import threading
import time
from typing import Any

from sqlalchemy import Engine, create_engine
from sqlalchemy.pool import QueuePool

from benchmarks.application import listen_to_nothing
from benchmarks.children import Figures, answer
from leakguard import LeakGuard


class Connection:
    """A connection of a driver's, as far as a pool asks for one."""

    def rollback(self) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""

    def create_function(self, *_: object, **__: object) -> None:
        """Do nothing; SQLAlchemy's dialect asks for it."""


def make_engine(size: int) -> Engine:
    """Return an engine whose pool is full of connections."""
    engine = create_engine(
        "sqlite://", poolclass=QueuePool, pool_size=size, max_overflow=0, creator=Connection
    )
    # What a dialect finds out by its first connection takes a database.
    vars(engine.dialect).update(initialize=nothing)
    connections = [engine.raw_connection() for _ in range(size)]
    for connection in connections:
        connection.close()
    return engine


def nothing(_: object) -> None:
    """Do nothing."""


def check_out(engine: Engine, times: int) -> None:
    """Take a connection and give it back, so many times."""
    for _ in range(times):
        engine.raw_connection().close()


def in_threads(engine: Engine, threads: int, times: int) -> None:
    """Do so in several threads, so many times in all."""
    workers = [
        threading.Thread(target=check_out, args=(engine, times // threads)) for _ in range(threads)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()


def watch(way: str) -> None:
    """Begin what the way is about."""
    if way == "floor":
        listen_to_nothing()
    elif way.startswith("leakguard"):
        LeakGuard(mode="production").install()


def main() -> None:
    """Answer the blocks: with the time of the clock, since threads may wait for one another."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("way")
    parser.add_argument("threads", type=int)
    parser.add_argument("out", type=int)
    arguments = parser.parse_args()
    watch(arguments.way)
    engine = make_engine(32)
    others = make_engine(max(1, arguments.out))
    out: list[Any] = [others.raw_connection() for _ in range(arguments.out)]
    in_threads(engine, arguments.threads, 1000)
    gc.collect()
    gc.freeze()

    def block(times: int) -> Figures:
        began = time.perf_counter_ns()
        in_threads(engine, arguments.threads, times)
        return {"micros": (time.perf_counter_ns() - began) / times / 1000}

    answer(block)
    out.clear()


if __name__ == "__main__":
    main()
