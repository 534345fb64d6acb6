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


def make_pool(size: int) -> QueuePool:
    """Return a pool that is full of connections."""
    connect: Any = Connection
    pool = QueuePool(connect, pool_size=size, max_overflow=0)
    connections = [pool.connect() for _ in range(size)]
    for connection in connections:
        connection.close()
    return pool


def check_out(pool: QueuePool, times: int) -> None:
    """Take a connection and give it back, so many times."""
    for _ in range(times):
        pool.connect().close()


def in_threads(pool: QueuePool, threads: int, times: int) -> None:
    """Do so in several threads, so many times in all."""
    workers = [
        threading.Thread(target=check_out, args=(pool, times // threads)) for _ in range(threads)
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
    pool = make_pool(32)
    others = make_pool(arguments.out)
    out: list[Any] = [others.connect() for _ in range(arguments.out)]
    in_threads(pool, arguments.threads, 1000)
    gc.collect()
    gc.freeze()

    def block(times: int) -> Figures:
        began = time.perf_counter_ns()
        in_threads(pool, arguments.threads, times)
        return {"micros": (time.perf_counter_ns() - began) / times / 1000}

    answer(block)
    out.clear()


if __name__ == "__main__":
    main()
