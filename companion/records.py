"""The committed records and the arrays beside them: read, selected, packed."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from semaug.training.record import Record, read


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
