"""Everything, one section after the other: python -m benchmarks.

`--write` makes the tables, the figures and the plot of docs/performance.md anew. It takes about
half an hour, on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from benchmarks import checkouts, memory, page, pytest_plugin, requests, server, storm
from benchmarks.sections import Options, Results, add_arguments, machine, sqlalchemy_of, write_json

SECTIONS: dict[str, tuple[Callable[[Options], Results], int]] = {
    "requests": (requests.run, 11),
    "server": (server.run, 12),
    "checkouts": (checkouts.run, 20),
    "memory": (memory.run, 1),
    "storm": (storm.run, 40),
    "pytest_plugin": (pytest_plugin.run, 10),
}
"""What measures each, and how many rounds."""
DOCS = Path(__file__).parent.parent / "docs"


def main() -> None:
    """Run the sections, and write what is asked for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    add_arguments(parser)
    parser.add_argument("--quick", action="store_true", help="a few rounds only, to try it out")
    parser.add_argument("--write", action="store_true", help="write docs/performance.*")
    arguments = parser.parse_args()
    if arguments.quick and arguments.write:
        parser.error("--quick measures too little to be written: leave out one of the two")
    about = machine()
    if arguments.older is not None:
        about["sqlalchemy of OpenTelemetry"] = sqlalchemy_of(arguments.older)
    results: dict[str, Results] = {}
    for name, (run, rounds) in SECTIONS.items():
        print(f"\n=== {name}\n", flush=True)
        few = 3 if arguments.quick else rounds
        results[name] = run(Options(min(few, rounds), arguments.older))
    content = {"machine": about, "sections": results}
    if arguments.json is not None:
        write_json(arguments.json, content)
    if arguments.write:
        write_json(DOCS / "performance.json", content)
        page.write(DOCS, content)


if __name__ == "__main__":
    main()
