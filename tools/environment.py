"""Make the environment in .venv, whole or not at all; does nothing where it is whole already.

    python3 tools/environment.py        (what `make env` runs; needs nothing but Python)

Whole means that .venv/complete.json was written, which happens last, and that it names this folder, this Python and
the present content of the files that decide what is installed. An environment without it, from an interrupted run or
a checkout that was moved, is made again from nothing; one whose files have changed is brought up to date in place.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

FLOOR = (3, 11)
ROOT = Path(__file__).resolve().parents[1]
VENV = ROOT / ".venv"
STAMP = VENV / "complete.json"
DECIDING = ("pyproject.toml", "constraints.txt", "tools/environment.py", "tools/cpu_torchvision.py")


def wanted() -> dict[str, str]:
    """What a whole environment says of itself."""
    content = b"\0".join((ROOT / name).read_bytes() for name in DECIDING)
    return {"folder": str(ROOT), "python": python_version(), "content": hashlib.sha256(content).hexdigest()}


def found() -> dict[str, str]:
    """What the environment that is there says of itself; {} if it is not whole."""
    try:
        return json.loads(STAMP.read_text())
    except (OSError, ValueError):
        return {}


def python_version() -> str:
    """Version of the interpreter that runs this, or, unless PYTHON asks for one, of the environment that is there."""
    running = "{}.{}".format(*sys.version_info[:2])
    return running if "PYTHON" in os.environ else found().get("python", running)


def works(python: str) -> bool:
    """Whether there is such an interpreter and it starts (a version manager's shim may be there without one)."""
    return shutil.which(python) is not None and subprocess.run([python, "-c", ""], capture_output=True).returncode == 0


def run(what: str, *command: str) -> None:
    """Run a command under a one-line status in a terminal, silently elsewhere; show its last lines if it fails."""
    width = shutil.get_terminal_size().columns - 1 if sys.stdout.isatty() else 0
    lines: list[str] = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT) as process:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line.rstrip())
            if width:
                print("\r\033[K" + f"    {what}: {line.strip()}"[:width], end="", flush=True)
    if width:
        print("\r\033[K", end="", flush=True)
    if process.returncode:
        print(*lines[-40:], sep="\n")
        sys.exit(f"environment: {what} failed (exit status {process.returncode}): {' '.join(command)}")


def make() -> None:
    """Make or update the environment."""
    python = VENV / "bin" / "python"
    there, here = found(), wanted()
    if there == here:
        return
    start = time.monotonic()
    if all(there.get(key) == here[key] for key in ("folder", "python")):
        print("==> environment: .venv is brought up to date with pyproject.toml and constraints.txt", flush=True)
        STAMP.unlink()
    else:
        print(f"==> environment: making .venv with Python {here['python']} (once; a minute or two)", flush=True)
        run("venv", sys.executable, "-m", "venv", "--clear", str(VENV))
    # Not compiled here, where it takes half a minute for files that are never imported, but at the first import.
    install = ("install", "--disable-pip-version-check", "--no-compile", "-c", "constraints.txt")
    run("pip", str(python), "-m", "pip", *install, "-e", ".[measures,notebooks,test,workflow]")
    run("torchvision", str(python), "tools/cpu_torchvision.py")
    STAMP.write_text(json.dumps(here, indent=1) + "\n")
    print(f"    .venv is ready, {time.monotonic() - start:.0f} s", flush=True)


def main() -> None:
    """Find a Python that is new enough, and make the environment with it, one process at a time."""
    if sys.version_info < FLOOR:
        names = [f"python3.{minor}" for minor in range(FLOOR[1], FLOOR[1] + 10)]
        newer = next(filter(works, names), None)
        if newer is None:
            have, need = (".".join(map(str, version[:2])) for version in (sys.version_info, FLOOR))
            sys.exit(f"environment: needs Python {need} or later, {sys.executable} is {have}; PYTHON=<path> make env")
        os.execvp(newer, [newer, *sys.argv])
    with open(ROOT / "pyproject.toml") as lock:  # a second `make` waits here, and finds the environment whole
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            make()
        except KeyboardInterrupt:
            sys.exit("\nenvironment: interrupted; it is not whole, and the next make begins it again")


if __name__ == "__main__":
    main()
