"""What a checkout costs among many threads, and with many connections out.

Run it by: python -m benchmarks.checkouts. It takes the time from checkout to checkin, without any
database, in microseconds of the clock.
"""

from __future__ import annotations

from typing import Any

from benchmarks.children import compare, measure, to_json
from benchmarks.sections import run_section

WAYS = ("bare", "bare, again", "floor", "leakguard, production")
THREADS = (1, 2, 4, 8, 16, 32)
OUT = (1, 100, 10_000)
_TIMES = 2000


def run(rounds: int) -> list[dict[str, Any]]:
    """Measure by threads and by connections out, print tables, and return them for a file."""
    cases = [(f"{number} threads", number, 0) for number in THREADS]
    cases += [(f"{number} connections out", 1, number) for number in OUT]
    results: list[dict[str, Any]] = []
    for title, threads, out in cases:
        arguments = {way: [way, threads, out] for way in WAYS}
        compared = compare(measure("pool", arguments, rounds, _TIMES), "micros")
        print(f"{title}: microseconds for a checkout and its checkin")
        for way, one in compared.items():
            print(f"  {way:<24}{one.value:>8.2f}{one.added:>+8.2f}   x{one.ratio:.2f}")
        results.append({"title": title, "ways": to_json(compared)})
    return results


if __name__ == "__main__":
    run_section(__doc__, run, rounds=20)
