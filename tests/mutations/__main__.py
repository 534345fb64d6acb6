"""`python -m tests.mutations`: break each rule of the verdicts, and see that a test fails."""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.mutations.rules import MUTATIONS, Mutation

ROOT = Path(__file__).parents[2]
COPIED = ("leakguard", "tests", "docs", "examples", "README.md", "pyproject.toml")
TESTS = ("tests/core", "tests/sources")
"""They are quick. What they do not notice counts as unnoticed, whatever the others say."""
TIMEOUT = 600
"""Seconds for the tests; a broken rule may make one wait for ever."""


def main() -> int:
    """Try those that the command line names, or all; give the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutations", description=__doc__)
    parser.add_argument("words", nargs="*", help="only those whose text has these words")
    words = " ".join(parser.parse_args().words)
    chosen = [mutation for mutation in MUTATIONS if words in mutation.breaks]
    if not chosen:
        parser.error(f"no rule has {words!r} in its text")
    with tempfile.TemporaryDirectory(prefix="leakguard-mutations-") as folder:
        copy = Path(folder)
        for name in COPIED:
            _copy(ROOT / name, copy / name)
        failure = first_failure(copy)
        if failure is not None:
            sys.stdout.write(f"with all rules as they are: {failure}\n")
            return 1
        unnoticed = [mutation for mutation in chosen if not _is_noticed(mutation, copy)]
    noticed = len(chosen) - len(unnoticed)
    sys.stdout.write(f"{noticed} of {len(chosen)} broken rules made a test fail\n")
    return 1 if unnoticed else 0


def _copy(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
    else:
        shutil.copy(source, target)


def _is_noticed(mutation: Mutation, copy: Path) -> bool:
    module = copy / "leakguard" / mutation.file
    before = module.read_text()
    module.write_text(mutate(before, mutation))
    try:
        failure = first_failure(copy)
    finally:
        module.write_text(before)
    sys.stdout.write(f"{mutation.breaks}: {failure or 'NOTICED BY NO TEST'}\n")
    sys.stdout.flush()
    return failure is not None


def mutate(text: str, mutation: Mutation) -> str:
    """Return the text of a module with the rule broken."""
    if (count := text.count(mutation.code)) != 1:
        message = f"{mutation.file} has the code of {mutation.breaks!r} {count} times"
        raise ValueError(message)
    return text.replace(mutation.code, mutation.broken)


def first_failure(copy: Path, tests: Sequence[str] = TESTS) -> str | None:
    """Run the tests until one fails, and name it; `None` where all pass.

    Raises `RuntimeError` where they cannot be run.
    """
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests]
    environment = {**os.environ, "PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        run = subprocess.run(  # noqa: S603  (our own command)
            command,
            cwd=copy,
            env=environment,
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return "the tests hang"
    named = re.search(r"^(?:FAILED|ERROR) (\S+)", run.stdout, re.MULTILINE)
    if run.returncode == pytest.ExitCode.OK:
        return None
    if named is None:
        raise RuntimeError(f"pytest ended with {run.returncode}:\n{run.stdout}{run.stderr}")
    return named[1]


if __name__ == "__main__":
    sys.exit(main())
