"""What the sections of the benchmark have in common: each is a command of its own, too."""

from __future__ import annotations

import argparse
import json
import os
import platform
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any


def run_section(doc: str | None, run: Callable[[int], object], rounds: int) -> None:
    """Run one section as a command."""
    parser = argparse.ArgumentParser(description=doc)
    parser.add_argument("--rounds", type=int, default=rounds, help="how many blocks of each way")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, too")
    arguments = parser.parse_args()
    results = run(arguments.rounds)
    if arguments.json is not None:
        write_json(arguments.json, {"machine": machine(), "results": results})


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a file that shows what changes, line by line."""
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def machine() -> dict[str, str]:
    """Say what the figures were measured on."""
    names = ("sqlalchemy", "fastapi", "starlette", "prometheus-client")
    return {
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "system": f"{platform.system()} on {platform.machine()}, {os.cpu_count()} processors",
        **{name: version(name) for name in names},
    }
