"""A storm: what it costs when every request leaks: python -m benchmarks.storm.

Applications in production, each with a mistake that is known by the time that counts. What is told
is the CPU time of the process for a request, beside that of a request without the mistake; and by
how much the process grew.
"""

from __future__ import annotations

from benchmarks.children import Compared, Way, compare, measure, to_json
from benchmarks.sections import Options, Results, run_section

_WATCHED = "leakguard, production"
MISTAKES = {
    "leaking": ("sync", "a session that is not closed"),
    "dropping": ("without session", "a connection that is dropped"),
}
"""What an application does, with what it does without the mistake, and what that is."""
_BLOCK = 100


def run(options: Options) -> Results:
    """Measure each mistake, print tables, and return them for a file."""
    results: Results = []
    for work, (clean, title) in MISTAKES.items():
        ways = {
            "without it": Way((_WATCHED, clean, 1, 0, "")),
            "without it, again": Way((_WATCHED, clean, 1, 0, "")),
            "in every request": Way((_WATCHED, work, 1, 0, "")),
            "without it, bare": Way(("bare", clean, 1, 0, "")),
            "in every request, bare": Way(("bare", work, 1, 0, "")),
        }
        figures = measure("application", ways, options.rounds, _BLOCK)
        compared = compare(figures, "micros", "without it")
        # In the units of the system, which on Linux are KiB.
        grown = {way: of_way[-1]["peak"] - of_way[0]["peak"] for way, of_way in figures.items()}
        requests = _BLOCK * (options.rounds - 1)
        print_table(f"{title}, {requests} requests", compared, grown)
        results.append(
            {"title": title, "ways": to_json(compared), "requests": requests, "grown_kib": grown}
        )
    return results


def print_table(title: str, compared: dict[str, Compared], grown: dict[str, float]) -> None:
    """Print what the ways cost."""
    print(f"{title}: microseconds of CPU for each, and KiB in all")
    for way, one in compared.items():
        print(f"  {way:<24}{one.value:>8.1f}   x{one.ratio:.2f}{grown[way]:>+8.0f} KiB")


if __name__ == "__main__":
    run_section(__doc__, run, rounds=40)
