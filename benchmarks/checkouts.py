"""What a checkout costs among many threads, and with many connections out.

Run it by: python -m benchmarks.checkouts. It takes the time from checkout to checkin, without any
database, in microseconds of the clock.
"""

from __future__ import annotations

from benchmarks.children import Way, compare, measure, to_json
from benchmarks.sections import Options, Results, run_section

WAYS = ("bare", "bare, again", "floor", "leakguard, production")
THREADS = (1, 2, 4, 8, 16, 32)
OUT = (1, 100, 10_000)
_TIMES = 2000


def run(options: Options) -> Results:
    """Measure by threads and by connections out, print tables, and return them for a file."""
    cases = [(f"threads: {number}", number, 0) for number in THREADS]
    cases += [(f"connections out: {number:,}", 1, number) for number in OUT]
    results: Results = []
    for title, threads, out in cases:
        arguments = {way: Way((way, threads, out)) for way in WAYS}
        compared = compare(measure("pool", arguments, options.rounds, _TIMES), "micros")
        print(f"{title}: microseconds for a checkout and its checkin")
        for way, one in compared.items():
            print(f"  {way:<24}{one.value:>8.2f}{one.added:>+8.2f}   x{one.ratio:.2f}")
        results.append({"title": title, "ways": to_json(compared)})
    return results


if __name__ == "__main__":
    run_section(__doc__, run, rounds=20)
