"""The files of `examples/observability`, read without more than the standard library."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from leakguard.observers.prometheus.metrics import Metrics

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "examples" / "observability"


@dataclass(frozen=True)
class Rule:
    """One rule of `rules.yml`."""

    kind: str
    """`record` or `alert`."""
    name: str
    text: str
    """Everything below its first line."""

    @property
    def expr(self) -> str:
        """The expression, which is a block of its own."""
        found = re.search(r"^ {8}expr: \|\n((?: {10}.*\n|\n)+)", self.text, re.MULTILINE)
        assert found is not None, self.name
        return found[1]


def rules() -> list[Rule]:
    """Read the rules, in their order."""
    text = (FOLDER / "rules.yml").read_text(encoding="utf-8")
    _, *parts = re.split(r"^ {6}- (record|alert): ", text, flags=re.MULTILINE)
    return [
        Rule(kind, *body.split("\n", 1)) for kind, body in zip(parts[::2], parts[1::2], strict=True)
    ]


def dashboard() -> dict[str, Any]:
    """Read the dashboard."""
    read: dict[str, Any] = json.loads((FOLDER / "dashboard.json").read_text(encoding="utf-8"))
    return read


def queries() -> list[tuple[str, str, str]]:
    """List the title, the expression and the legend of every query of the dashboard."""
    return [
        (panel["title"], target["expr"], target["legendFormat"])
        for panel in dashboard()["panels"]
        for target in panel["targets"]
    ]


def exported() -> dict[str, set[str]]:
    """List what a scrape shows of leakguard, with its labels."""
    found: dict[str, set[str]] = {}
    for metric in vars(Metrics()).values():
        labels = {*metric._labelnames}  # noqa: SLF001  (no public way)
        for suffix in _SUFFIXES[metric._type]:  # noqa: SLF001
            found[metric._name + suffix] = labels | ({"le"} if suffix == "_bucket" else set())  # noqa: SLF001
    return found


_SUFFIXES = {
    "counter": ("_total",),
    "gauge": ("",),
    "histogram": ("_bucket", "_count", "_sum"),
}


def program(name: str) -> str:
    """Find a program of Prometheus's; skip the test where it is not there."""
    found = shutil.which(name)
    if found is None:
        pytest.skip("needs Prometheus: apt-get install prometheus")
    return found


def promtool(*arguments: str, folder: Path = FOLDER) -> str:
    """Have promtool check something in a folder; give what it prints."""
    command = [program("promtool"), *arguments]
    done = subprocess.run(command, cwd=folder, check=False, capture_output=True, text=True)  # noqa: S603  (found by its name in the system's folders)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
