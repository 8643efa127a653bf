"""Give the committed records their study and arm, the digest of their data, and the embedded set its name; run once.

    python tools/migrate_records.py [NOTEBOOK ...]          with $SEMAUG_DATA where the real images are

A record of before 29 November 2026 does not say which arm of which study it is. Each is matched with the one planned
run of the same configuration and seed. The configuration gains ``data.digest`` (and, of GANs, ``judge``, the set whose
classifier measures them): "unknown" where a set is not at hand, which equals the digest of no set. The set "embedded"
is called "fashion-mini". So hashes and file names change; metrics, curves and all other numbers do not, which
tests/companion/test_migration.py holds against the commit before.
"""

from __future__ import annotations

import inspect
import json
import os
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from companion.records import FIGURES
from companion.runs import Run, planned
from companion.studies import modules
from semaug.data.sets import load
from semaug.methods import gan, objectives
from semaug.training.recipe import Recipe
from semaug.training.record import Record

RENAMED = {"embedded": "fashion-mini"}


def _defaults(function: Any) -> dict[str, Any]:
    parameters = inspect.signature(function).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not p.empty}


def _filled(objective: str, settings: Mapping[str, Any], data: Mapping[str, Any], recipe: Mapping[str, Any]) -> str:
    """A configuration with every default written out, so that an old record and a plan can be compared."""
    settings = _defaults((objectives() | {"GAN": gan.GAN})[objective]) | dict(settings)
    data = _defaults(load) | dict(data)
    content = {
        "objective": objective,
        "settings": {name: value for name, value in settings.items() if value is not None},
        "data": {name: value for name, value in data.items() if name not in ("root", "download", "size", "digest")},
        "recipe": vars(Recipe(**recipe)),
    }
    return json.dumps(content, sort_keys=True, default=str)


def _of_plan(run: Run) -> str:
    return _filled(run.arm.objective, run.arm.settings, run.study.data, vars(run.recipe))


def _of_record(record: Record) -> str:
    config = record.config
    data = config["data"] | {"name": RENAMED.get(config["data"]["name"], config["data"]["name"])}
    return _filled(config["objective"], config["settings"], data, config["recipe"])


@cache
def _loaded(arguments: str) -> dict[str, Any]:
    """Name, settings and digest of a set; "unknown" for one whose images are not at hand."""
    try:
        dataset = load(**json.loads(arguments), download=False)
    except (OSError, RuntimeError, ValueError) as error:
        print(f"not at hand: {arguments} ({error})")
        return {**json.loads(arguments), "digest": "unknown"}
    return {"name": dataset.name, **dataset.settings, "digest": dataset.digest}


def migrate(notebook: str) -> int:
    """Rewrite the records of a notebook; how many were changed."""
    folder = FIGURES / "records" / notebook
    plans: dict[tuple[str, str, int], list[Run]] = {}
    for run in planned(notebook=notebook):
        plans.setdefault((_of_plan(run), run.study.profile, run.seed), []).append(run)
    changed = 0
    for path in sorted(folder.glob("*.json")):
        record = Record.read(path)
        if record.study:
            continue
        matches = plans.get((_of_record(record), record.profile, record.seed), [])
        if len(matches) != 1:
            raise ValueError(f"{path}: got {len(matches)} planned runs of this configuration; takes one")
        (run,) = matches
        stem = record.stem
        data = {name: value for name, value in record.config["data"].items() if value is not None}
        data["name"] = RENAMED.get(data["name"], data["name"])
        found = _loaded(json.dumps(dict(run.study.data), sort_keys=True))
        if found["digest"] == "unknown":
            found = {**data, "digest": "unknown"}
        elif not data.items() <= found.items():
            raise ValueError(f"{path}: its data are {data}; a run of today has {found}")
        record.config["data"] = found
        if run.study.judge is not None:
            record.config["judge"] = _loaded(json.dumps(dict(run.study.judge), sort_keys=True))
        record.study, record.arm = run.study.name, run.arm.name
        path.unlink()
        record.save(folder)
        if (beside := folder / f"{stem}.npz").exists():
            os.replace(beside, folder / f"{record.stem}.npz")
        changed += 1
    return changed


if __name__ == "__main__":
    for name in sys.argv[1:] or modules():
        print(f"{name}: {migrate(name)} records")
