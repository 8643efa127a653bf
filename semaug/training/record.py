"""Records: one training run as one JSON file, and the only evidence a figure may be drawn from.

A record is written whole or not at all, one per seed, and names everything needed to run it again: configuration
and its hash, seed, device, versions, commit.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import math
import os
import platform
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

from semaug.core.files import write_whole

PROFILES = ("quick", "cpu", "paper")

_KINDS: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("profile", "study", "arm", "date"), (str,)),
    **dict.fromkeys(("config", "environment"), (dict,)),
    **dict.fromkeys(("seed", "peak_memory"), (int,)),
    **{"train_counts": (list,), "seconds": (float, int)},
}

"""What a file may hold where numbers are not checked one by one."""


def config_hash(config: Mapping[str, Any]) -> str:
    """First 12 hex digits of the SHA-256 of the configuration as canonical JSON (sorted keys)."""
    return hashlib.sha256(json.dumps(config, sort_keys=True, allow_nan=False).encode()).hexdigest()[:12]


def environment(device: str) -> dict[str, Any]:
    """Device, versions, threads and commit of this process, as every record carries them."""
    import torch  # here: what reads records, or plans runs, need not wait seconds for it

    name = platform.machine() + " CPU" if torch.device(device).type == "cpu" else torch.cuda.get_device_name(device)
    versions = {"python": platform.python_version(), "torch": torch.__version__.split("+")[0]}
    return {"device": name, "threads": torch.get_num_threads(), "versions": versions, "commit": commit()}


@cache
def commit() -> str:
    """The commit of the checkout this file lies in, '+' appended where tracked files differ from it.

    An installed package, also one inside a checkout of something else, has $SEMAUG_COMMIT, by which an archive or a
    container can say what it holds, or 'unknown'. Asked for once: what is committed later is not what this process has
    loaded.
    """
    root = Path(__file__).parents[2]
    if not (root / ".git").exists() or not (root / "pyproject.toml").exists():
        return os.environ.get("SEMAUG_COMMIT", "unknown")
    command = ["git", "-C", str(root), "describe", "--always", "--abbrev=12", "--dirty=+", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"


@dataclasses.dataclass
class Record:
    """One run.

    Attributes:
        config: everything that decides the result but the seed: objective and its settings, network, data with the
            digest of its images and labels, recipe.
        metrics: final values, the last epoch's and never the best's (accuracies in [0, 1], losses in nats).
        curves: one value an epoch (or whatever the key says), by name; in the file to seven digits, which float32
            holds. A value that is not finite is null in the file and NaN when it is read, here and in metrics.
        train_counts: images in train of each class; empty in records of before they were kept.
        class_accuracy: accuracy on the test split of each class, NaN without an image; empty likewise.
        seconds: training alone, added up over resumed parts: of the processor on the CPU (by the clock in records of
            before 25 November 2026, where other work on the machine counts), by the clock on a GPU.
        peak_memory: bytes, on the CPU the most that the process held so far; on a GPU the most in this run, with what
            the process had there before (workspaces, other runs).
        profile: 'quick', 'cpu' or 'paper'.
        study, arm: the comparison that the run belongs to, and which side of it; they decide nothing of the result.
    """

    config: dict[str, Any]
    seed: int
    metrics: dict[str, float] = dataclasses.field(default_factory=dict)
    curves: dict[str, list[float]] = dataclasses.field(default_factory=dict)
    train_counts: list[int] = dataclasses.field(default_factory=list)
    class_accuracy: list[float] = dataclasses.field(default_factory=list)
    seconds: float = 0.0
    peak_memory: int = 0
    profile: str = "quick"
    study: str = ""
    arm: str = ""
    environment: dict[str, Any] = dataclasses.field(default_factory=dict)
    date: str = dataclasses.field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))

    @property
    def hash(self) -> str:
        """Hash of the configuration: equal for the seeds of one experiment."""
        return config_hash(self.config)

    @property
    def stem(self) -> str:
        """What its file is called, without the ending."""
        return f"{self.config.get('objective', 'run')}-{self.hash}-seed{self.seed}"

    @contextmanager
    def measuring(self, what: str) -> Iterator[None]:
        """What stands inside measures a trained model: where it fails, the record says so as ``environment["failed"]``.

        A training is not lost by what is asked of it afterwards.
        """
        try:
            yield
        except Exception as error:  # whatever it is
            self.environment["failed"] = f"{what}: {type(error).__name__}: {error}"
            logging.getLogger("semaug").warning("not measured, the record stays: %s", self.environment["failed"])

    def save(self, folder: str | Path) -> Path:
        """Write the record to ``folder/<objective>-<hash>-seed<seed>.json``, a line a field, whole or not at all."""
        content = {"hash": self.hash, **self._content()}
        lines = (f"{json.dumps(key)}: {json.dumps(content[key], sort_keys=True)}" for key in sorted(content))
        return write_whole(Path(folder) / f"{self.stem}.json", "{\n" + ",\n".join(lines) + "\n}\n")

    @classmethod
    def read(cls, path: str | Path) -> Record:
        """One record from its file.

        Raises:
            ValueError: naming a file that is no whole record, or whose configuration was edited.
            OSError: where there is no file, or it cannot be read.
        """
        try:
            if Path(path).is_fifo():
                raise ValueError("a pipe")
            content = json.loads(Path(path).read_text(encoding="utf-8-sig"))
            stated = content.pop("hash")
            curves, metrics = content.get("curves", {}), content.get("metrics", {})
            content["curves"] = {name: [_number(value) for value in values] for name, values in curves.items()}
            content["metrics"] = {name: _number(value) for name, value in metrics.items()}
            content["class_accuracy"] = [_number(value) for value in content.get("class_accuracy", [])]
            record = cls(**content)
            own = record.hash
            for name, kind in _KINDS.items():
                if type(value := getattr(record, name)) not in kind:
                    raise TypeError(f"{name} is {value!r}")
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(f"{path}: not a whole record ({error!r}); restore it, or run it again") from error
        if stated != own:
            raise ValueError(f"{path}: its configuration hashes to {own} but it says {stated}; run it again")
        return record

    def __eq__(self, other: object) -> bool:
        """Whether their files say the same: there every value that is not finite is null."""
        return isinstance(other, Record) and self._content() == other._content()

    def _content(self) -> dict[str, Any]:
        """Its fields as the file has them, in plain values of JSON."""
        curves = {name: [_plain(float(f"{value:.7g}")) for value in values] for name, values in self.curves.items()}
        metrics = {name: _plain(value) for name, value in self.metrics.items()}
        accuracy = [_plain(value) for value in self.class_accuracy]
        return {**dataclasses.asdict(self), "curves": curves, "metrics": metrics, "class_accuracy": accuracy}


def _plain(value: float) -> float | None:
    """A number as JSON has it, which knows neither NaN nor infinity, nor numbers of NumPy and torch."""
    value = value if isinstance(value, int | float) else float(value)
    return value if math.isfinite(value) else None


def _number(value: object) -> float:
    """A number out of a file, where null is NaN; raises TypeError for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float | None):
        raise TypeError(f"got {value!r} for a number")
    return math.nan if value is None else value
