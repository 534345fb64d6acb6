"""`python -m examples.demo`."""

import sys

NEEDED = ("fastapi", "leakguard", "rich", "sqlalchemy", "starlette", "uvicorn")

try:
    from examples.demo.cli import main
except ModuleNotFoundError as error:
    missing = (error.name or "").partition(".")[0]
    if missing not in NEEDED:
        raise
    sys.exit(
        f"The demonstration needs {missing}, which is not installed here. ./scripts/demo sets up "
        f"all that it needs; or install it: python -m pip install {missing}"
    )

if __name__ == "__main__":
    sys.exit(main())
