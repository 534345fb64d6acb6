"""`python -m tests.overhead production`: what a clean request costs in that mode, in numbers."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from tests.overhead.counting import count

parser = argparse.ArgumentParser(prog="python -m tests.overhead", description=__doc__)
parser.add_argument("mode", choices=["production", "development"])
with tempfile.TemporaryDirectory() as folder:
    counts = count(Path(folder), parser.parse_args().mode)
sys.stdout.write(" ".join(map(str, counts)) + "\n")
