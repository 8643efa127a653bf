"""Benchmarks run by ``--benchmark-only`` alone, without the shape checks of the tests; what they found is a table."""

from __future__ import annotations

import sys


def pytest_configure(config):
    if config.option.benchmark_only:  # the checks would be timed too
        sys.meta_path[:] = [finder for finder in sys.meta_path if not type(finder).__module__.startswith("jaxtyping")]


def pytest_ignore_collect(collection_path, config):
    return True if collection_path.name.startswith("test_") and not config.option.benchmark_only else None


def pytest_terminal_summary(terminalreporter, config):
    session = getattr(config, "_benchmarksession", None)
    found = [bench.extra_info for bench in session.benchmarks if bench.extra_info] if session else []
    for columns in dict.fromkeys(tuple(row) for row in found):
        terminalreporter.write_line("\n| " + " | ".join(columns) + " |\n|" + "---|" * len(columns))
        for row in found:
            if tuple(row) == columns:
                terminalreporter.write_line("| " + " | ".join(map(str, row.values())) + " |")
