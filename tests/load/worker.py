"""The application of a server with several processes; each writes down what it found."""

from __future__ import annotations

import asyncio
import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tests.load.examination import Examination, WithEnds
from tests.load.plan import Plan

PLAN = "LEAKGUARD_LOAD_PLAN"
FOLDER = "LEAKGUARD_LOAD_FOLDER"
"""The environment variables by which a worker knows what it is part of."""


def application() -> Any:
    """Make the application of this process."""
    plan = Plan(**json.loads(os.environ[PLAN]))
    common, name = Path(os.environ[FOLDER]), str(os.getpid())
    folder = common / name
    folder.mkdir()
    _, hidden = plan.hide()
    examination = Examination(folder, plan.mode, hidden)

    async def stop() -> None:
        await examination.compare_and_clean_up()
        result = await asyncio.to_thread(examination.result)
        (common / f"{name}.json").write_text(json.dumps(asdict(result)))

    return WithEnds(
        examination.site.application(), start=(common / f"{name}.started").touch, stop=stop
    )
