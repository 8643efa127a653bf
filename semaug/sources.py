"""Where the images come from: files found, verified, downloaded where the network allows, decoded to uint8.

Each reader takes the folder to look in, the side in pixels for sets that have no size of their own, and whether it may
download; it gives the training part, the test part, and the names of the classes. A missing or damaged file is an
error that names the file, where it is expected, and what to do; nothing that is already there is overwritten.
"""

from __future__ import annotations

import hashlib
import lzma
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Bool, Int64, UInt8
from torch import Tensor

from semaug import shapes


class Part(NamedTuple):
    """Images (N, channels, H, W) uint8, class, and what is known of each image: the fields of ``data.Split``."""

    images: UInt8[Tensor, "N channels H W"]
    target: Int64[Tensor, " N"]
    factors: Mapping[str, Tensor] = {}
    masks: Bool[Tensor, "N H W"] | None = None
    boxes: Int64[Tensor, "N 4"] | None = None


Parts = tuple[Part, Part | None, Sequence[str]]  # train, test (None: to be split off), names of the classes


def data_folder() -> Path:
    """Where sets are looked for and downloaded to: $SEMAUG_DATA, or else ``semaug`` in the user's cache folder."""
    if named := os.environ.get("SEMAUG_DATA"):
        return Path(named).expanduser()
    local = os.environ.get("LOCALAPPDATA") or "~/AppData/Local"
    cache = {"win32": local, "darwin": "~/Library/Caches"}.get(sys.platform, "~/.cache")
    return Path(os.environ.get("XDG_CACHE_HOME") or cache).expanduser() / "semaug"


# -- inside the package ------------------------------------------------------------------------------------------------

FASHION = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
EMBEDDED = Path(__file__).parent / "embedded" / "fashion.xz"
EMBEDDED_SHA256 = "bb49ce4b4943b8293e7e9bddb711a131ee09883f090c5204e205572cd0a40add"  # of the uncompressed content


def embedded(root: Path, size: int | None = None, download: bool = False) -> Parts:
    """8000 + 2000 images of Fashion-MNIST as tools/build_embedded.py wrote them; factor: index in the official file."""
    remedy = f"embedded: {EMBEDDED} is {{}}; install the package again, or restore the file from its repository"
    try:
        content = lzma.decompress(EMBEDDED.read_bytes())
    except FileNotFoundError:
        raise FileNotFoundError(remedy.format("missing")) from None
    except (lzma.LZMAError, EOFError) as error:
        raise ValueError(remedy.format(f"damaged ({error})")) from error
    if hashlib.sha256(content).hexdigest() != EMBEDDED_SHA256:
        raise ValueError(remedy.format("damaged (its content has another SHA-256)"))
    data = torch.frombuffer(bytearray(content), dtype=torch.uint8)
    indices, images = data[:40_000].view(torch.int32).long(), data[40_000:].view(-1, 1, 28, 28)
    parts = []
    for rows in (slice(0, 8000), slice(8000, 10_000)):
        order = indices[rows].argsort()  # stored class after class, wanted as in the official file: mixed
        target = torch.arange(10).repeat_interleave(len(order) // 10)
        parts.append(Part(images[rows][order], target[order], {"index": indices[rows][order]}))
    return parts[0], parts[1], FASHION


def generated(root: Path, size: int | None = None, download: bool = False) -> Parts:
    """8000 + 2000 images of the room ``shapes``, seeds 0 and 1."""
    side = size or 32
    return Part(*shapes.draw(8000, 0, side)), Part(*shapes.draw(2000, 1, side)), shapes.CLASSES


READERS: dict[str, Callable[..., Parts]] = {"embedded": embedded, "shapes": generated}
