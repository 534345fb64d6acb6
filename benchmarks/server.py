"""A real server at saturation, with and without leakguard: python -m benchmarks.server.

Every way is an uvicorn of its own; a client on the loopback keeps some connections busy, at one
server after the other. The second bare server shows what the machine makes of the same.
"""

from __future__ import annotations

import asyncio
import random
import statistics
import subprocess
import sys
import time
from contextlib import ExitStack
from typing import Any

import uvicorn

from benchmarks.application import Workload, make
from benchmarks.children import Figures, compare, to_json
from benchmarks.sections import Options, Results, run_section

WAYS = ("bare", "bare, again", "floor", "leakguard, production", "asgi-correlation-id")
_CONNECTIONS = 16
"""How many clients there are, each of which waits for its answer before it asks again."""
_SECONDS = 1.0
"""How long each server is kept busy in a round."""
_REQUEST = b"GET /item HTTP/1.1\r\nHost: bench\r\n\r\n"


def serve(way: str, work: str) -> None:
    """Serve the application; print the port."""
    config = uvicorn.Config(make(way, Workload(work)), port=0, log_level="error", access_log=False)

    class Server(uvicorn.Server):
        async def startup(self, sockets: Any = None) -> None:
            await super().startup(sockets)
            print(self.servers[0].sockets[0].getsockname()[1], flush=True)

    Server(config).run()


async def keep_busy(port: int, seconds: float) -> list[float]:
    """Send requests over one connection, each when the last is answered; return their times."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    times: list[float] = []
    end = time.perf_counter() + seconds
    while (began := time.perf_counter()) < end:
        writer.write(_REQUEST)
        head = await reader.readuntil(b"\r\n\r\n")
        if b" 200 " not in head.split(b"\r\n", 1)[0]:
            raise SystemExit(f"the server answered {head!r}")
        await reader.readexactly(_length(head))
        times.append(time.perf_counter() - began)
    writer.close()
    return times


def _length(head: bytes) -> int:
    name = b"content-length: "
    start = head.index(name) + len(name)
    return int(head[start : head.index(b"\r\n", start)])


async def saturate(port: int, seconds: float) -> Figures:
    """Keep all connections busy, and return how many requests a second that makes, and how long."""
    busy = [keep_busy(port, seconds) for _ in range(_CONNECTIONS)]
    times = [one for of_one in await asyncio.gather(*busy) for one in of_one]
    cuts = statistics.quantiles(times, n=100)
    return {"per_second": len(times) / seconds, "p50": cuts[49] * 1000, "p99": cuts[98] * 1000}


def measure(work: str, rounds: int) -> dict[str, list[Figures]]:
    """Saturate all servers by turns."""
    with ExitStack() as stack:
        ports: dict[str, int] = {}
        for way in WAYS:
            command = [sys.executable, "-m", "benchmarks.server", "--serve", way, work]
            server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)  # noqa: S603  (our own command)
            stack.enter_context(server)
            stack.callback(server.terminate)
            line = "" if server.stdout is None else server.stdout.readline().strip()
            if line:
                ports[way] = int(line)
            else:
                print(f"  {way} is left out", file=sys.stderr)
        figures: dict[str, list[Figures]] = {way: [] for way in ports}
        for number in range(rounds + 1):  # the first one warms up
            for way in random.sample(list(ports), len(ports)):
                one = asyncio.run(saturate(ports[way], _SECONDS))
                if number:
                    figures[way].append(one)
        return figures


def run(options: Options) -> Results:
    """Measure all kinds of endpoints, print tables, and return them for a file."""
    results: Results = []
    for work in ("nothing", "sync", "async"):
        figures = measure(work, options.rounds)
        print(f"{work}, {_CONNECTIONS} connections at once: throughput and latency")
        names = {"per_second": "requests/s", "p50": "p50 ms", "p99": "p99 ms"}
        compared = {name: compare(figures, name) for name in names}
        for way in figures:
            cells = [
                f"{compared[name][way].value:>9.2f} {label} x{compared[name][way].ratio:.3f} "
                f"({compared[name][way].ratio_low:.3f} to {compared[name][way].ratio_high:.3f})"
                for name, label in names.items()
            ]
            print(f"  {way:<24}" + "".join(cells))
        results.append({"title": work, **{name: to_json(one) for name, one in compared.items()}})
    return results


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        serve(*sys.argv[2:])
    else:
        run_section(__doc__, run, rounds=12)
