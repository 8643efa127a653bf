"""Records: one training run as one JSON file, and the only evidence a figure may be drawn from.

A record is written whole or not at all, one per seed, and names everything needed to run it again: configuration
and its hash, seed, device, versions, commit. ``summary`` turns the records of paired seeds into mean and interval.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import math
import os
import platform
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

PROFILES = ("quick", "cpu", "paper")


def write_whole(path: str | Path, content: bytes | str) -> Path:
    """Write a file so that a reader, or a crash, sees the old content or the new, never a part.

    The content goes to a temporary file in the same folder, is flushed to the disk and renamed over ``path``.
    On any error (a full disk, a read-only folder) the temporary file is removed and the old file stays.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    data = content.encode() if isinstance(content, str) else content
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)  # mkstemp makes files only their owner can read
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return path


def config_hash(config: Mapping[str, Any]) -> str:
    """First 12 hex digits of the SHA-256 of the configuration as canonical JSON (sorted keys)."""
    return hashlib.sha256(json.dumps(config, sort_keys=True, allow_nan=False).encode()).hexdigest()[:12]


def environment(device: str) -> dict[str, Any]:
    """Device, versions, threads and commit of this process, as every record carries them."""
    import torch  # here: what reads records, or plans runs, need not wait seconds for it

    name = platform.machine() + " CPU" if torch.device(device).type == "cpu" else torch.cuda.get_device_name(device)
    versions = {"python": platform.python_version(), "torch": torch.__version__.split("+")[0]}
    return {"device": name, "threads": torch.get_num_threads(), "versions": versions, "commit": _commit()}


@cache
def _commit() -> str:
    """The checkout's commit, '+' appended where tracked files differ from it; outside a checkout $SEMAUG_COMMIT, by
    which an archive or a container can say what it holds, or 'unknown'. Asked for once: what is committed later is not
    what this process has loaded.
    """
    if not (Path(__file__).parents[1] / ".git").exists():  # installed, perhaps inside a checkout of something else
        return os.environ.get("SEMAUG_COMMIT", "unknown")
    try:
        command = [
            "git",
            "-C",
            str(Path(__file__).parent),
            "describe",
            "--always",
            "--abbrev=12",
            "--dirty=+",
            "--exclude=*",
        ]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"


@dataclasses.dataclass
class Record:
    """One run.

    config: everything that decides the result but the seed: objective and its settings, network, data, recipe.
    metrics: final values, the last epoch's and never the best's (accuracies in [0, 1], losses in nats).
    curves: one value an epoch (or whatever the key says), by name; in the file to seven digits, which float32 holds.
    train_counts, class_accuracy: images in train, and accuracy on the test split (nan without an image, in the file
        null), of each class; empty in records of before they were kept.
    seconds: training alone, added up over resumed parts: of the processor on the CPU (by the clock in records of before
        25 November 2026, where other work on the machine counts), by the clock on a GPU.
    peak_memory: bytes, on the CPU the most that the process held so far; on a GPU the most in this run, with what the
        process had there before (workspaces, other runs).
    profile: 'quick', 'cpu' or 'paper'.
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

    def save(self, folder: str | Path) -> Path:
        """Write the record to ``folder/<objective>-<hash>-seed<seed>.json``, a line a field, whole or not at all."""
        content = {"hash": self.hash, **self._content()}
        lines = (f"{json.dumps(key)}: {json.dumps(content[key], sort_keys=True)}" for key in sorted(content))
        return write_whole(Path(folder) / f"{self.stem}.json", "{\n" + ",\n".join(lines) + "\n}\n")

    def __eq__(self, other: object) -> bool:
        """Whether their files say the same: there a class without an image equals another one."""
        return isinstance(other, Record) and self._content() == other._content()

    def _content(self) -> dict[str, Any]:
        """Its fields as the file has them: null for nan in class_accuracy, JSON having no nan; shorter curves."""
        accuracy = [None if math.isnan(value) else value for value in self.class_accuracy]
        curves = {name: [float(f"{value:.7g}") for value in values] for name, values in self.curves.items()}
        return {**dataclasses.asdict(self), "class_accuracy": accuracy, "curves": curves}


def read(path: str | Path) -> Record:
    """One record from its file; raises ValueError naming a file that is no whole record or whose config was edited."""
    try:
        content = json.loads(Path(path).read_text())
        stated = content.pop("hash")
        accuracy = content.get("class_accuracy", [])
        content["class_accuracy"] = [math.nan if value is None else value for value in accuracy]
        record = Record(**content)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: not a whole record ({error}); delete it and run it again") from error
    if stated != record.hash:
        raise ValueError(f"{path}: its configuration hashes to {record.hash} but it says {stated}; run it again")
    return record


def pack(arrays: Mapping[str, np.ndarray]) -> bytes:
    """An .npz file of arrays to lie beside a record. Images, uint8 with last axes (1 or 3, H, W), go in as WebP of
    quality 90: to the eye the same, in a fifth of the bytes; all else as it is.
    """
    from PIL import Image

    kept: dict[str, np.ndarray] = {}
    for name, array in arrays.items():
        if array.dtype == np.uint8 and array.ndim > 2 and array.shape[-3] in (1, 3):
            channels, _, width = array.shape[-3:]
            tall = array.reshape(-1, *array.shape[-3:]).transpose(0, 2, 3, 1).reshape(-1, width, channels)
            file = io.BytesIO()
            Image.fromarray(tall if channels == 3 else tall[..., 0]).save(file, "webp", quality=90, method=6)
            kept[f"{name}.webp"], kept[f"{name}.shape"] = (
                np.frombuffer(file.getvalue(), np.uint8),
                np.array(array.shape),
            )
        else:
            kept[name] = array
    file = io.BytesIO()
    np.savez_compressed(file, **kept)  # type: ignore[arg-type]  # numpy's stub of **kwds
    return file.getvalue()


def unpack(path: str | Path) -> dict[str, np.ndarray]:
    """The arrays of a file that :func:`pack` made."""
    from PIL import Image

    with np.load(path) as file:
        kept = dict(file)
    arrays = {name: value for name, value in kept.items() if "." not in name}
    for name in (key.removesuffix(".webp") for key in kept if key.endswith(".webp")):
        *outer, channels, height, width = (int(size) for size in kept[f"{name}.shape"])
        picture = Image.open(io.BytesIO(kept[f"{name}.webp"].tobytes())).convert("RGB" if channels == 3 else "L")
        tiles = np.asarray(picture).reshape(-1, height, width, channels).transpose(0, 3, 1, 2)
        arrays[name] = tiles.reshape(*outer, channels, height, width)
    return arrays


def committed(notebook: str) -> Path:
    """Where the records of a notebook are committed."""
    return Path(__file__).parents[1] / "figures" / "records" / notebook


def pictures(notebook: str, record: Record) -> dict[str, np.ndarray]:
    """The arrays beside the committed record of a notebook's run; empty where there are none."""
    path = committed(notebook) / f"{record.stem}.npz"
    return unpack(path) if path.exists() else {}


def load(folder: str | Path, **conditions: Any) -> list[Record]:
    """Records below ``folder`` whose configuration (or profile, seed) has the given values, in order of file name.

    A name may stand at any depth of the configuration, and is given with its parent where several parents have it; a
    record without it has the value None. Raises ValueError for a name that is ambiguous.

    >>> load("figures/records/1_isda", objective="ISDA", strength=0.5)      # doctest: +SKIP
    >>> load("figures/records/1_isda", **{"data.name": "cifar10"})          # doctest: +SKIP
    """
    found = [read(path) for path in sorted(Path(folder).rglob("*.json"))]
    return [record for record in found if all(_lookup(record, key) == value for key, value in conditions.items())]


def _lookup(record: Record, key: str) -> Any:
    if key in ("profile", "seed"):
        return getattr(record, key)
    if key in record.config:
        return record.config[key]
    matches = {name: value for name, value in _flat(record.config) if f".{name}".endswith(f".{key}")}
    if len(matches) > 1:
        raise ValueError(f"{key}: got a name that {', '.join(matches)} share; takes one of these")
    return next(iter(matches.values()), None)


def _flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in config.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


class Summary(NamedTuple):
    """Mean, half-width of its 95% interval (Student t; nan for one value), standard deviation, and n."""

    mean: float
    half_width: float
    std: float
    n: int

    def __str__(self) -> str:
        return f"{self.mean:.3f} ± {self.half_width:.3f} (n = {self.n})" if self.n > 1 else f"{self.mean:.3f} (n = 1)"

    def text(self, form: str = ".1f") -> str:
        """For tables: mean ± half-width, to the digits of ``form``; below three values, whose interval is wide, no ±.

        A minus is a minus sign, and never stands before a zero.
        """
        half = f" ± {self.half_width:{form.lstrip('+')}}" if self.n > 2 else ""
        return f"{self.mean:{form.replace('.', 'z.')}}{half}".replace("-", "\N{MINUS SIGN}")


def summary(values: Iterable[float]) -> Summary:
    """Mean with its 95% Student interval: the interval of the mean over seeds, not of one run."""
    numbers = [float(value) for value in values]
    n = len(numbers)
    if n == 0:
        raise ValueError("values: got none; summary needs at least one")
    mean = math.fsum(numbers) / n
    if n == 1:
        return Summary(mean, math.nan, math.nan, 1)
    std = math.sqrt(math.fsum((value - mean) ** 2 for value in numbers) / (n - 1))
    from scipy.stats import t  # here, not at the top: the room has to load without scipy's half second

    quantile = float(t.ppf(0.975, n - 1))
    return Summary(mean, quantile * std / math.sqrt(n), std, n)


def paired(first: Iterable[Record], second: Iterable[Record], metric: str) -> Summary:
    """Summary of the per-seed differences ``second - first`` of a metric: what paired seeds are run for.

    Raises ValueError unless both sides hold the same seeds, each once.
    """
    sides = list(first), list(second)
    one, two = ({record.seed: record.metrics[metric] for record in side} for side in sides)
    for name, side in zip(("first", "second"), sides, strict=True):
        if len(side) != len({record.seed for record in side}):
            raise ValueError(f"{name}: got seeds {sorted(record.seed for record in side)}; takes each seed once")
    if not one or set(one) != set(two):
        raise ValueError(f"seeds: first has {sorted(one)}, second {sorted(two)}; a paired difference needs the same")
    return summary(two[seed] - one[seed] for seed in sorted(one))


def pairs_needed(effect: float, std: float, power: float = 0.8, level: float = 0.05) -> int:
    """Paired seeds that a two-sided t test at ``level`` needs to see a mean difference ``effect`` with ``power``.

    std: standard deviation of the paired differences, in the unit of effect (``Summary.std``). The smallest n of at
    least 2 whose power, by the noncentral t distribution, suffices. Raises ValueError for an effect of 0, a std that
    is not positive, and a power or level outside (0, 1).
    """
    for name, value, good, takes in (
        ("effect", effect, math.isfinite(effect) and effect != 0, "a number other than 0"),
        ("std", std, math.isfinite(std) and std > 0, "a number above 0"),
        ("power", power, level < power < 1, "a fraction between level and 1"),
        ("level", level, 0 < level < 1, "a fraction between 0 and 1"),
    ):
        if not good:
            raise ValueError(f"{name}: got {value}; takes {takes}")
    from scipy.stats import nct, t

    def enough(n: int) -> bool:
        critical, shift = t.ppf(1 - level / 2, n - 1), abs(effect) / std * math.sqrt(n)
        return bool(nct.sf(critical, n - 1, shift) + nct.cdf(-critical, n - 1, shift) >= power)

    n = 2
    while not enough(n):
        n *= 2
    low = n // 2  # not enough, or 1
    while n - low > 1:
        middle = (n + low) // 2
        low, n = (low, middle) if enough(middle) else (middle, n)
    return n
