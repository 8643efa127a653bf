"""All tests, stage by stage: `make test`, or `.venv/bin/python tools/test.py unit nbval` for some of the stages.

Every stage runs, whatever became of those before it; the end says which failed. All on the CPU, whatever there is.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
REPORTS = ROOT / "build" / "test"
COLOUR = [] if sys.stdout.isatty() else ["--color=no"]  # nbval colours a log otherwise
WORKERS = [*COLOUR, "-n", "auto", "--maxprocesses", "4", "--dist"]
NBVAL = ["--nbval", "--nbval-current-env", "--nbval-cell-timeout=600", "--timeout=900"]
NBVAL += ["--nbval-sanitize-with", "tests/sanitize.cfg"]
STAGES: dict[str, list[str]] = {
    "style": ["ruff", "check"],
    "format": ["ruff", "format", "--check"],
    "types": ["mypy"],
    "unit": ["pytest", "tests", "-q", *WORKERS, "worksteal", "--junitxml", str(REPORTS / "unit.xml")],
    "fast": ["pytest", "tests", "-q", "-m", "not slow", *WORKERS, "worksteal", "--junitxml", str(REPORTS / "fast.xml")],
    "notebooks": ["companion", "check"],
    "nbval": ["pytest", "notebooks", "-q", *WORKERS, "loadfile", *NBVAL, "--junitxml", str(REPORTS / "nbval.xml")],
}
MEANING = {
    "style": "lint",
    "format": "layout of the code",
    "types": "static types",
    "unit": "unit tests",
    "fast": "unit tests, but for the few that take half a minute",
    "notebooks": "every notebook, reduced parameters",
    "nbval": "committed outputs against new ones",
}


def counts(report: Path) -> tuple[int, int, int]:
    """Passed, failed and skipped tests of a JUnit report; zeros if there is none."""
    if not report.exists():
        return 0, 0, 0
    suite = ElementTree.parse(report).getroot().find("testsuite")
    assert suite is not None
    total, failed, skipped = (int(suite.get(key, 0)) for key in ("tests", "failures", "skipped"))
    failed += int(suite.get("errors", 0))
    return total - failed - skipped, failed, skipped


def main(names: list[str]) -> int:
    """Run the named stages, or all; 0 if all of them passed, 1 if not, 2 for a name that is none."""
    unknown = [name for name in names if name not in STAGES]
    if unknown:
        print(f"stage: got {unknown[0]!r}, takes some of {', '.join(STAGES)}", file=sys.stderr)
        return 2
    variables = {key: value for key, value in os.environ.items() if key != "MPLBACKEND"}
    variables |= {"CUDA_VISIBLE_DEVICES": "", "SEMAUG_OUTPUT": str(ROOT / "build" / "nbval")}
    variables["OMP_NUM_THREADS"] = "1"  # there is a worker a core already
    REPORTS.mkdir(parents=True, exist_ok=True)
    lines, failures, sums = [], [], [0, 0, 0]
    names = names or [name for name in STAGES if name != "fast"]
    for number, name in enumerate(names, start=1):
        print(f"\n==> {number}/{len(names)} {name}: {MEANING[name]}", flush=True)
        report = REPORTS / f"{name}.xml"
        report.unlink(missing_ok=True)
        start = time.monotonic()
        status = subprocess.run([sys.executable, "-m", *STAGES[name]], cwd=ROOT, env=variables).returncode
        seconds = time.monotonic() - start
        passed, failed, skipped = counts(report)
        sums = [total + new for total, new in zip(sums, (passed, failed, skipped), strict=True)]
        tests = f"  {passed} passed, {failed} failed, {skipped} skipped" if report.exists() else ""
        lines.append(f"{'FAILED' if status else 'ok':<6} {name:<10} {seconds:6.1f} s{tests}")
        if status:
            failures.append(name)
    print("\n==> summary", *lines, sep="\n")
    print(f"FAILED: {', '.join(failures)}" if failures else "all stages passed")
    print("{} passed, {} failed, {} skipped".format(*sums))
    return int(bool(failures))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
