"""What the sections of the benchmark have in common: each is a command of its own, too."""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

Results = list[dict[str, Any]]
"""The tables of a section, as they go into a file."""


class Options(NamedTuple):
    """What a section is told."""

    rounds: int
    """How many blocks of each way are measured."""
    older: str | None = None
    """The interpreter of an environment with SQLAlchemy 2.0, for what does not support 2.1."""


def run_section(doc: str | None, run: Callable[[Options], Results], rounds: int) -> None:
    """Run one section as a command."""
    parser = argparse.ArgumentParser(description=doc)
    add_arguments(parser)
    parser.add_argument("--rounds", type=int, default=rounds, help="how many blocks of each way")
    arguments = parser.parse_args()
    results = run(Options(arguments.rounds, arguments.older))
    if arguments.json is not None:
        write_json(arguments.json, {"machine": machine(), "results": results})


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what all commands of the benchmark take."""
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, too")
    parser.add_argument(
        "--older",
        metavar="PYTHON",
        help="the interpreter of an environment with SQLAlchemy 2.0, for peers that do not "
        "support 2.1",
    )


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a file that shows what changes, line by line."""
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def machine() -> dict[str, str]:
    """Say what the figures were measured on."""
    return {
        "date": datetime.now().astimezone().date().isoformat(),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "system": f"{platform.system()} on {platform.machine()}, {os.cpu_count()} processors",
        **{name: version(name) for name in _NAMED if is_installed(name)},
    }


_NAMED = (
    *("sqlalchemy", "fastapi", "starlette", "anyio", "uvicorn", "psycopg", "aiosqlite"),
    *("prometheus-client", "asgi-correlation-id", "prometheus-fastapi-instrumentator"),
    *("starlette-exporter", "opentelemetry-sdk", "opentelemetry-instrumentation-fastapi"),
    *("opentelemetry-instrumentation-sqlalchemy", "sentry-sdk"),
)
"""The packages whose versions are told."""


def is_installed(name: str) -> bool:
    """Return whether a package is there."""
    try:
        version(name)
    except PackageNotFoundError:
        return False
    return True


def sqlalchemy_of(python: str) -> str:
    """Return the version of SQLAlchemy that an environment has."""
    if python == sys.executable:
        return version("sqlalchemy")
    code = "from importlib.metadata import version; print(version('sqlalchemy'))"
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True)  # noqa: S603  (our own command)
    return done.stdout.strip()
