"""Make or refresh a virtual environment: `_environment.py FOLDER GROUP`, a dependency group.

Started by `scripts/_environment` with whichever Python it found, so the standard library only.
An environment is used as it is if its stamp, which is written last, still describes it; else it is
made anew, because mending one would mean knowing what is broken.
"""

import fcntl
import hashlib
import platform
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PYPROJECT = ROOT / "pyproject.toml"
CONSTRAINTS = ROOT / ".ci" / "constraints.txt"
STAMP = "leakguard-stamp"


def main(folder: str, group: str) -> None:
    venv = ROOT / folder
    with PYPROJECT.open("rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two scripts may start at once
        wanted = key(group)  # before it is made: pyproject.toml may be edited meanwhile
        if not is_fresh(venv, wanted):
            version = platform.python_version()
            print(f"Making {folder} with Python {version}, once ...", file=sys.stderr)
            make(venv, group)
            (venv / STAMP).write_text("\n".join([wanted, *contents(venv)]))


def is_fresh(venv: Path, wanted: str) -> bool:
    """Whether the stamp is the wanted one, and all that it lists is still there."""
    try:
        stamped, *listed = (venv / STAMP).read_text().split("\n")
        return stamped == wanted and set(listed) <= set(contents(venv))
    except (OSError, ValueError):
        return False


def key(group: str) -> str:
    """Everything that decides what the environment holds; the folder too, as it cannot be moved."""
    pyproject = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))
    parts = [
        group,
        *(pyproject[table] for table in ("build-system", "project", "dependency-groups")),
        CONSTRAINTS.read_bytes(),
        Path(__file__).read_bytes(),
        ROOT,
        Path(sys.executable).resolve(),
        sys.version,
    ]
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def contents(venv: Path) -> list[str]:
    """Programs, modules and distributions with their versions; a dangling link is not there."""
    places = (venv / "bin", *venv.glob("lib/python*/site-packages"))
    return sorted(
        str(path.relative_to(venv))
        for place in places
        for path in place.iterdir()
        if path.exists() and path.name != "__pycache__"
    )


def make(venv: Path, group: str) -> None:
    if venv.is_dir() and not venv.is_symlink():
        shutil.rmtree(venv)
    else:
        venv.unlink(missing_ok=True)
    run(sys.executable, "-m", "venv", str(venv))
    pip = [str(venv / "bin" / "python"), "-m", "pip", "--quiet", "--disable-pip-version-check"]
    run(*pip, "install", "--upgrade", "pip>=25.3")  # --group, --build-constraint
    pins = ["--constraint", str(CONSTRAINTS), "--build-constraint", str(CONSTRAINTS)]
    run(*pip, "install", *pins, "--editable", ".", "--group", group)


def run(*command: str) -> None:
    """Run a command, its output among the messages: a script's own output may be piped."""
    subprocess.run(command, cwd=ROOT, stdout=sys.stderr, check=True)


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except subprocess.CalledProcessError as error:
        command = " ".join(error.cmd)
        sys.exit(f"This failed, see above:\n  {command}\nRun the script again to start afresh.")
    except KeyboardInterrupt:
        sys.exit(130)
