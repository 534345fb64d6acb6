"""`python -m examples.demo`."""

import sys

NEEDED = ("fastapi", "leakguard", "rich", "sqlalchemy", "starlette", "uvicorn")

try:
    from examples.demo.cli import main
except ModuleNotFoundError as error:
    if error.name not in NEEDED:
        raise
    sys.exit(
        f"The demonstration needs {error.name}, which is not installed here. ./scripts/demo sets "
        f"up all that it needs; or: python -m pip install {' '.join(NEEDED)}"
    )

if __name__ == "__main__":
    sys.exit(main())
