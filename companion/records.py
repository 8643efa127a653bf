"""The committed records of a notebook, read once, by study, arm and seed; and the arrays that lie beside them."""

from __future__ import annotations

import io
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch

from companion.stats import gains, points, summary
from companion.studies import Arm, NothingToDraw, Study
from semaug.methods.long_tail import many_medium_few
from semaug.training.record import Record, environment

if TYPE_CHECKING:
    from companion.runs import Run
    from semaug.data.sets import Data

FIGURES = Path(__file__).parents[1] / "figures"

TALLEST = 16_000  # pixels: WebP holds 16,383 at most


class Index:
    """The records below a folder, read once.

    ``problems`` names the files that are no records, with the reason: they are skipped, and nothing else suffers.
    """

    def __init__(self, folder: Path | None = None, records: Iterable[Record] = ()) -> None:
        self.folder, self.problems = folder, list[str]()
        self._seen: set[Path] = set()
        self._records: list[Record] = []
        self._by_arm: dict[tuple[str, str, str], dict[int, Record]] = {}
        for record in records:
            self.add(record)
        self.refresh()

    def refresh(self) -> None:
        """Read the files that have come since."""
        paths = sorted(self.folder.glob("*.json")) if self.folder is not None else []
        for path in (path for path in paths if path not in self._seen):
            self._seen.add(path)
            try:
                self.add(Record.read(path))
            except (ValueError, OSError) as error:
                self.problems.append(str(error))

    def add(self, record: Record) -> None:
        """Take in a record; ValueError where its study, arm, profile and seed are there already."""
        runs = self._by_arm.setdefault((record.study, record.arm, record.profile), {})
        if record.seed in runs:
            where = f"study {record.study!r}, arm {record.arm!r}, profile {record.profile}, seed {record.seed}"
            raise ValueError(f"{self.folder or 'records'}: got two records of {where}; takes each seed once")
        runs[record.seed] = record
        self._records.append(record)

    def __iter__(self) -> Iterator[Record]:
        return iter(self._records)

    def __len__(self) -> int:
        return len(self._records)

    def of(self, study: Study, arm: Arm | str) -> list[Record]:
        """The records of an arm, in order of seed; none where it was not run. ValueError for an unknown arm."""
        name = study.arm(arm).name if isinstance(arm, str) else arm.name
        runs = self._by_arm.get((study.name, name, study.profile), {})
        return [runs[seed] for seed in sorted(runs)]

    def by_arm(self, study: Study, arms: Sequence[str] | None = None) -> dict[str, list[Record]]:
        """The records of a study by arm, in the study's order or that of ``arms``; arms without records are left out.

        Empty where the baseline has none: nothing could be compared with it.
        """
        if not self.of(study, study.baseline):
            return {}
        chosen = [study.arm(name) for name in arms] if arms is not None else study.arms
        return {arm.name: runs for arm in chosen if (runs := self.of(study, arm))}

    def blocks(
        self, studies: Iterable[Study], needs: str, arms: Sequence[str] | None = None
    ) -> dict[str, dict[str, list[Record]]]:
        """:meth:`by_arm` of several studies by title, of those with two arms or more.

        Raises NothingToDraw, saying what a figure ``needs``, where there is none.
        """
        found = {study.title: self.by_arm(study, arms) for study in studies}
        return needed({title: by_arm for title, by_arm in found.items() if len(by_arm) > 1}, needs)


@cache
def committed(notebook: str) -> Index:
    """The committed records of a notebook; read at the first call of a process."""
    return Index(FIGURES / "records" / notebook)


def problems(notebooks: Iterable[str]) -> bool:
    """Name the files among the committed records of notebooks that are none; whether there are any."""
    found = [line for notebook in dict.fromkeys(notebooks) for line in committed(notebook).problems]
    for line in found:
        print(f"skipped  {line}", file=sys.stderr)
    return bool(found)


def on_common_seeds(by_arm: Mapping[str, Sequence[Record]]) -> dict[str, list[Record]]:
    """Arms on the seeds that all of them have; as they are where there are none."""
    seeds = set.intersection(*({record.seed for record in runs} for runs in by_arm.values())) if by_arm else set()
    return {name: [record for record in runs if record.seed in seeds or not seeds] for name, runs in by_arm.items()}


def pack(arrays: Mapping[str, np.ndarray]) -> bytes:
    """An .npz file of arrays to lie beside a record.

    Images, uint8 with last axes (1 or 3, H, W), go in as WebP of quality 90: to the eye the same, in a fifth of the
    bytes; all else as it is.
    """
    from PIL import Image

    packed: dict[str, np.ndarray] = {}
    for name, array in arrays.items():
        if array.dtype == np.uint8 and array.ndim > 2 and array.shape[-3] in (1, 3):
            channels, height, width = array.shape[-3:]
            tiles = array.reshape(-1, channels, height, width)
            across = -(-len(tiles) * height // TALLEST)  # tiles beside each other
            tiles = np.concatenate([tiles, np.zeros_like(tiles[: -len(tiles) % across])])
            grid = tiles.reshape(-1, across, channels, height, width).transpose(0, 3, 1, 4, 2)
            grid = grid.reshape(-1, across * width, channels)
            file = io.BytesIO()
            Image.fromarray(grid if channels == 3 else grid[..., 0]).save(file, "webp", quality=90, method=6)
            packed[f"{name}.webp"] = np.frombuffer(file.getvalue(), np.uint8)
            packed[f"{name}.shape"] = np.array(array.shape)
        else:
            packed[name] = array
    file = io.BytesIO()
    np.savez_compressed(file, **packed)  # type: ignore[arg-type]  # numpy's stub of **kwds
    return file.getvalue()


def unpack(path: str | Path) -> dict[str, np.ndarray]:
    """The arrays of a file that :func:`pack` made."""
    from PIL import Image

    with np.load(path) as file:
        packed = dict(file)
    arrays = {name: value for name, value in packed.items() if "." not in name}
    for name in (key.removesuffix(".webp") for key in packed if key.endswith(".webp")):
        *outer, channels, height, width = (int(size) for size in packed[f"{name}.shape"])
        picture = Image.open(io.BytesIO(packed[f"{name}.webp"].tobytes())).convert("RGB" if channels == 3 else "L")
        grid = np.asarray(picture).reshape(-1, height, picture.width // width, width, channels)
        tiles = grid.transpose(0, 2, 4, 1, 3).reshape(-1, channels, height, width)
        arrays[name] = tiles[: math.prod(outer)].reshape(*outer, channels, height, width)
    return arrays


def pictures(notebook: str, record: Record) -> dict[str, np.ndarray]:
    """The arrays beside the committed record of a notebook's run; empty where there are none."""
    path = FIGURES / "records" / notebook / f"{record.stem}.npz"
    return unpack(path) if path.exists() else {}


# ---------------------------------------------------------------------------------------------------------------------
# What the figures and tables of the studies share

Found = TypeVar("Found", bound=Sized)
ByArm = dict[str, list[Record]]
Blocks = Mapping[str, Mapping[str, Sequence[Record]]]
"""Records by title of the study and arm."""


def begun(run: Run, dataset: Data, **config: Any) -> Record:
    """The record of a run that a study executes by itself, on the CPU: its plan, the data's identity, and what is said.

    config: what else decides the result, such as the network.
    """
    whole = {**run.plan, "data": dataset.identity, **config}
    return Record(whole, run.seed, environment=environment("cpu"))


Pictured = dict[str, tuple[Record, dict[str, np.ndarray]]]
"""By arm a run, and the arrays beside its record."""


def pictured(notebook: str, by_arm: Mapping[str, Sequence[Record]]) -> Pictured:
    """By arm the first run of a notebook that has arrays beside its record, and these."""
    found: Pictured = {}
    for name, runs in by_arm.items():
        for run in runs:
            if name not in found and (arrays := pictures(notebook, run)):
                found[name] = run, arrays
    return found


def needed(found: Found, needs: str) -> Found:
    """What was found; raises NothingToDraw, saying what a figure ``needs``, where that is nothing."""
    if not found:
        raise NothingToDraw(needs)
    return found


def runs_of(blocks: Blocks) -> list[Record]:
    """All records of blocks, in their order."""
    return [run for by_arm in blocks.values() for runs in by_arm.values() for run in runs]


def metric(name: str, scale: float = 100) -> Callable[[Record], float]:
    """The score that is a metric of a record times a scale; 100: in percent."""
    return lambda record: scale * record.metrics[name]


def over_first(
    by_arm: Mapping[str, Sequence[Record]], score: Callable[[Record], float] = points
) -> dict[str, list[float]]:
    """Gains over the first arm, of the others that share a seed with it."""
    first, *others = by_arm
    found = {name: gains(by_arm[name], by_arm[first], score) for name in others}
    return {name: values for name, values in found.items() if values}


def gained(
    blocks: Blocks, score: Callable[[Record], float] = points, reached: bool = True
) -> dict[str, dict[str, list[float]]]:
    """:func:`over_first` by title; reached: whether a title says what the first arm reaches, in percent."""
    panels = {}
    for title, by_arm in blocks.items():
        level = f": {summary(map(score, next(iter(by_arm.values())))).mean:.1f}%" if reached else ""
        panels[f"{title}{level}"] = over_first(by_arm, score)
    return panels


def group_scores(record: Record) -> dict[str, float]:
    """Accuracy in percent over all classes alike, and over those with many, medium and few training images."""
    accuracy, counts = torch.tensor(record.class_accuracy, dtype=torch.float64), torch.tensor(record.train_counts)
    fractions = {"all": float(accuracy.mean()), **many_medium_few(accuracy, counts)}
    return {group: 100 * value for group, value in fractions.items()}


def by_frequency(by_arm: Mapping[str, Sequence[Record]]) -> dict[str, dict[str, list[float]]]:
    """:func:`over_first` by the groups of :func:`group_scores` that hold a class."""

    def score(group: str) -> Callable[[Record], float]:
        return lambda record: group_scores(record)[group]

    first = group_scores(next(iter(by_arm.values()))[0])
    return {group: over_first(by_arm, score(group)) for group, value in first.items() if not math.isnan(value)}


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [f"| {' | '.join(row)} |" for row in (head, *rows)]
    return "\n".join([lines[0], "|---" * len(head) + "|", *lines[1:]])
