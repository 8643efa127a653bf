"""Where the images come from: files found, verified, downloaded where the network allows, decoded to uint8.

Each reader takes the folder to look in, the side in pixels for sets that have no size of their own, and whether it may
download; it gives the training split, the test split, and the names of the classes. A missing or damaged file is an
error that names the file, where it is expected, and what to do; nothing that is already there is overwritten.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import lzma
import os
import re
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from semaug.core.files import below, listed, write_whole
from semaug.data import shapes
from semaug.data.split import Split

if TYPE_CHECKING:
    from PIL import Image

TIMEOUT = 60.0

"""Seconds without an answer after which a download has failed."""

# Train, test (None: to be taken from train), names of the classes; where the set has one, validation.
Splits = tuple[Split, Split | None, Sequence[str], *tuple[Split, ...]]


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


def fashion_mini(root: Path, size: int | None = None, download: bool = False) -> Splits:
    """8000 + 2000 images of Fashion-MNIST as tools/build_embedded.py wrote them; factor: index in the official file."""
    remedy = f"fashion-mini: {EMBEDDED} is {{}}; install the package again, or restore the file from its repository"
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
    splits = []
    for rows in (slice(0, 8000), slice(8000, 10_000)):
        order = indices[rows].argsort()  # stored class after class, wanted as in the official file: mixed
        target = torch.arange(10).repeat_interleave(len(order) // 10)
        splits.append(Split(images[rows][order], target[order], {"index": indices[rows][order]}))
    return splits[0], splits[1], FASHION


def generated(root: Path, size: int | None = None, download: bool = False, domains: bool = False) -> Splits:
    """8000 + 2000 images of the module ``shapes``, seeds 0 and 1.

    In two domains: to train on, shapes from red by green to cyan; to test on, the other hues.
    """
    train, test = ((0.0, 0.5), (0.5, 1.0)) if domains else (shapes.RANGES["hue"],) * 2
    return shapes.draw(8000, 0, size or 32, hue=train), shapes.draw(2000, 1, size or 32, hue=test), shapes.CLASSES


hues = partial(generated, domains=True)


# -- torchvision's sets ------------------------------------------------------------------------------------------------

RAW_MD5 = {  # of the unpacked files of MNIST and Fashion-MNIST: torchvision verifies their archives only
    "mnist": {
        "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
        "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
        "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
        "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
    },
    "fashion": {
        "train-images-idx3-ubyte": "f4a8712d7a061bf5bd6d2ca38dc4d50a",
        "train-labels-idx1-ubyte": "9018921c3c673c538a1fc5bad174d6f9",
        "t10k-images-idx3-ubyte": "8181f5470baa50b63fa0f6fddb340f0a",
        "t10k-labels-idx1-ubyte": "15d484375f8d13e6eb1aabb0c3f46965",
    },
}


def mnist(root: Path, size: int | None = None, download: bool = True, name: str = "mnist") -> Splits:
    """MNIST or Fashion-MNIST: 60000 + 10000 grey images of 28 x 28."""
    from torchvision import datasets

    dataset = {"mnist": datasets.MNIST, "fashion": datasets.FashionMNIST}[name]
    files = {f"{dataset.__name__}/raw/{file}": md5 for file, md5 in RAW_MD5[name].items()}
    _verify(name, dataset, files, root, dataset.mirrors[0], download)
    train, test = (dataset(root, train=train) for train in (True, False))
    classes = tuple(label.split(" - ")[0] for label in dataset.classes)
    return Split(train.data[:, None], train.targets), Split(test.data[:, None], test.targets), classes


def cifar(root: Path, size: int | None = None, download: bool = True, name: str = "cifar10") -> Splits:
    """CIFAR-10 or CIFAR-100: 50000 + 10000 colour images of 32 x 32."""
    from torchvision import datasets

    dataset = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[name]
    listed = [*dataset.train_list, *dataset.test_list, (dataset.meta["filename"], dataset.meta["md5"])]
    _verify(name, dataset, {f"{dataset.base_folder}/{file}": md5 for file, md5 in listed}, root, dataset.url, download)
    sets = [dataset(root, train=train) for train in (True, False)]
    images = (torch.from_numpy(each.data).permute(0, 3, 1, 2).contiguous() for each in sets)
    train, test = (Split(part, torch.tensor(each.targets)) for part, each in zip(images, sets, strict=True))
    return train, test, sets[0].classes


def celeba(root: Path, size: int | None = None, download: bool = True) -> Splits:
    """CelebA (Liu et al., arXiv:1411.7766), cropped to its centre and scaled to ``size`` (64); classes: gender x smile.

    162770 training and 19962 test images, as published; its own validation images are left unused. Decoding takes
    minutes and is done once: the result is kept beside the files (2 GB at 64 pixels).
    """
    from torchvision import datasets

    size, dataset, folder = size or 64, datasets.CelebA, root / "celeba"
    files = {f"celeba/{file}": md5 for _, md5, file in dataset.file_list if file.endswith(".txt")}
    _verify("celeba", dataset, {**files, "celeba/img_align_celeba": None}, root, "mmlab.ie.cuhk.edu.hk", download)
    splits = []
    for split in ("train", "test"):
        listed = dataset(root, split=split)
        male, smiling = (listed.attr[:, listed.attr_names.index(name)].long() for name in ("Male", "Smiling"))
        decoded = folder / f"decoded-{size}-{split}.npy"
        images = _kept(decoded, [folder / "img_align_celeba" / file for file in listed.filename], size)
        factors = {"male": male, "smiling": smiling, "person": listed.identity[:, 0]}
        splits.append(Split(images, 2 * male + smiling, factors))
    return splits[0], splits[1], FACES


def _verify(
    name: str, dataset: Callable[..., object], files: Mapping[str, str | None], root: Path, source: str, download: bool
) -> None:
    """Raise unless every file is there with its MD5; download first if one is missing and that is allowed."""
    from torchvision.datasets.utils import check_integrity

    def faults() -> tuple[list[str], list[str]]:
        missing = [file for file in files if not (root / file).exists()]
        present = {file: md5 for file, md5 in files.items() if md5 and file not in missing}
        return missing, [file for file, md5 in present.items() if not check_integrity(root / file, md5)]

    missing, damaged = faults()
    remedy = "load(..., download=True) fetches it where the network allows"
    if missing and not damaged and download:
        before = socket.getdefaulttimeout()
        try:
            socket.setdefaulttimeout(TIMEOUT)  # torchvision names none: where nobody answers it would wait for ever
            dataset(root, download=True)
        except (OSError, RuntimeError, ImportError, EOFError) as error:  # no network, refused, cut off; gdown missing
            remedy = f"downloading it failed: {' '.join(str(error).split())}"
        finally:
            socket.setdefaulttimeout(before)
        missing, damaged = faults()
    if damaged:
        raise ValueError(
            f"{name}: {root / damaged[0]} is damaged{_others(damaged)}: its MD5 is not the official file's. Delete it "
            f"and load again, which downloads it, or copy it there once more; its origin is {source}"
        )
    if missing:
        raise FileNotFoundError(
            f"{name}: {root / missing[0]} is missing{_others(missing)}. Put it there, or name another folder as root "
            f"or in $SEMAUG_DATA; its origin is {source}; {remedy}"
        )


def _others(files: Sequence[str]) -> str:
    return f" (and {len(files) - 1} more)" if len(files) > 1 else ""


# -- what you have -----------------------------------------------------------------------------------------------------

FACES = ("woman, not smiling", "woman, smiling", "man, not smiling", "man, smiling")


def lfw64(root: Path, size: int | None = None, download: bool = True) -> Splits:
    """Faces of LFW (Huang et al., 2007), cropped, 64 x 64 colour or ``size``, 32 or 16; classes: gender x smile.

    Reads lfw64/images.npy, (N, 64, 64, 3) uint8, and lfw64/labels.csv, whose columns ``image`` (name of the person, _
    and a number), ``male`` and ``smiling`` are 0 or 1, or -1 where unknown: those images are left out. Nobody stands in
    both: persons in a random but fixed order make up the test split until it has a fifth of the images.
    """
    import numpy as np

    folder = root / "lfw64"
    for file in (folder / "images.npy", folder / "labels.csv"):
        if not file.exists():
            raise FileNotFoundError(
                f"lfw64: {file} is missing, and cannot be downloaded. Put it there, or name another folder as root or "
                "in $SEMAUG_DATA; images.npy is (N, 64, 64, 3) uint8, labels.csv has the columns image, male, smiling"
            )
    try:
        images = torch.from_numpy(np.load(folder / "images.npy", allow_pickle=False)).permute(0, 3, 1, 2)
        rows = list(csv.DictReader((folder / "labels.csv").read_text("utf-8-sig").splitlines()))
        names = [row["image"] for row in rows]
        male, smiling = (torch.tensor([int(row[column]) for row in rows]) for column in ("male", "smiling"))
        if images.dtype != torch.uint8 or images.shape != (len(rows), 3, 64, 64):
            raise ValueError(f"{images.dtype} {tuple(images.shape)} for {len(rows)} labels")
    except (ValueError, EOFError, KeyError, TypeError, RuntimeError) as error:
        raise ValueError(
            f"lfw64: {folder} is damaged or of another form ({error!r}): copy its two files again"
        ) from error
    if size is not None:
        if size not in (64, 32, 16):
            raise ValueError(f"size: got {size} for lfw64; takes 64, or 32 or 16: means of its pixels")
        images = torch.cat([F.avg_pool2d(part.float(), 64 // size).round().byte() for part in images.split(1000)])
    persons, numbers = np.unique([name.rsplit("_", 1)[0] for name in names], return_inverse=True)
    person = torch.from_numpy(numbers)
    known = (male >= 0) & (smiling >= 0)
    order = torch.randperm(len(persons), generator=torch.Generator().manual_seed(0))
    portraits = torch.bincount(person[known], minlength=len(persons))
    in_test = torch.zeros(len(persons), dtype=torch.bool)
    in_test[order[portraits[order].cumsum(0) <= int(known.sum()) / 5]] = True
    faces = Split(images.contiguous(), 2 * male + smiling, {"male": male, "smiling": smiling, "person": person})
    return faces.take(known & ~in_test[person]), faces.take(known & in_test[person]), FACES


def portraits(root: Path, size: int | None = None, download: bool = True) -> Splits:
    """Faces of the one person whom ``lfw64`` shows most often, in a fixed random order: half to train on, half to test.

    For GANs of a hundred images. Classes: smiling or not.
    """
    parts, shown = _most_shown(root, size)
    faces, target = torch.cat([part.images for part in parts]), torch.cat([part.target for part in parts])
    rows = torch.cat(shown).nonzero().squeeze(1)
    rows = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))]
    train, test = (Split(faces[half], target[half] % 2) for half in rows.tensor_split(2))
    return train, test, ("not smiling", "smiling")


def strangers(root: Path, size: int | None = None, download: bool = True) -> Splits:
    """``lfw64`` without the person of ``portraits``: to judge images of the one by a network that never saw them."""
    train, test = (part.take(~those) for part, those in zip(*_most_shown(root, size), strict=True))
    return train, test, FACES


def _most_shown(root: Path, size: int | None) -> tuple[list[Split], list[Tensor]]:
    """The splits of ``lfw64``, and of each which images are of the person that it shows most often."""
    parts = [part for part in lfw64(root, size)[:2] if isinstance(part, Split)]
    one = torch.cat([part.factors["person"] for part in parts]).mode().values
    return parts, [part.factors["person"] == one for part in parts]


_ENDING = r"([ _.-]?(set|data|images|split|\d+))*"

ROLES = {
    "train": f"train(ing)?{_ENDING}",
    "test": f"test(ing)?{_ENDING}",
    "validation": f"(val(id(ation)?)?|dev(elopment)?|eval(uation)?){_ENDING}",
}

"""What the folders of a set's splits are called, also in capitals or with an ending such as _set or 2017."""

NOTES = (".txt", ".md", ".rst", ".csv", ".tsv", ".json", ".xml", ".html", ".yaml", ".yml", ".pdf")

"""Endings of what may lie beside pictures. Any other file in a class is a picture, or refused by name."""


def folder(root: Path, size: int | None = None, download: bool = True) -> Splits:
    """Any pictures in folders, one a class, as RGB: with train and test, train and validation or all three, or without.

    The names of the splits may be those of ``ROLES``. Folders within that of a class belong to it.
    """
    if not root.is_dir():
        raise FileNotFoundError(
            f"folder: {root} is no folder; takes one with train/<class>/*, test/<class>/*, or <class>/*"
        )
    parts = _parts(root)
    seen = {root.resolve(): root}
    pictures = {role: _classes(path, seen) for role, path in (parts or {"train": root}).items()}
    classes = list(pictures["train"])
    splits = []
    for role in sorted(pictures, key=tuple(ROLES).index):
        if (names := list(pictures[role])) != classes:
            raise ValueError(f"folder: train has the classes {classes}, {parts[role]} has {names}")
        paths = [path for some in pictures[role].values() for path in some]
        target = torch.arange(len(classes)).repeat_interleave(torch.tensor([*map(len, pictures[role].values())]))
        splits.append(Split(_decode(paths, size), target))
    return splits[0], splits[1] if parts else None, classes, *splits[2:]


def _parts(root: Path) -> dict[str, Path]:
    """The folders of the splits by role, none in a folder of classes; ValueError for what is neither."""
    parts: dict[str, Path] = {}
    others = []
    for path in listed(root)[0]:
        role = next((role for role, name in ROLES.items() if re.fullmatch(name, path.name, re.IGNORECASE)), "")
        if role in parts:
            raise ValueError(f"folder: {root} has both {parts[role].name} and {path.name}; takes one for {role}")
        if role:
            parts[role] = path
        else:
            others.append(path.name)
    if parts and ("train" not in parts or len(parts) == 1):
        raise ValueError(f"folder: {root} has only one of train and test (or val); takes both, or folders of classes")
    if parts and others:
        raise ValueError(
            f"folder: {root} has {others[0]} beside train; takes {', '.join(ROLES)}, or folders of classes"
        )
    return parts


def _classes(root: Path, seen: dict[Path, Path]) -> dict[str, list[Path]]:
    """The pictures of every class below a folder, in order of their names."""
    from PIL import Image

    folders, files = listed(root)
    if loose := [path for path in files if path.suffix.lower() in Image.registered_extensions()]:
        raise ValueError(f"folder: {loose[0]} is in no class; takes {root}/<class>/{loose[0].name}")
    classes = {path.name: [file for file in below(path, seen) if file.suffix.lower() not in NOTES] for path in folders}
    if empty := [name for name, pictures in (classes or {"<class>": []}).items() if not pictures]:
        raise FileNotFoundError(f"folder: {root / empty[0]} has no picture; put some there, or take the folder away")
    return classes


def _picture(path: Path) -> Image.Image:
    """A picture in RGB as a viewer shows it: upright, its first frame, grey of 16 bits scaled, over white.

    Raises ValueError naming a file that is none, or whose numbers have no range that viewers agree on.
    """
    import numpy as np
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as image:
            tags = getattr(
                image, "tag_v2", {}
            )  # of TIFF: 258 bits, 262 whether 0 is white, which Pillow leaves as it is
            picture = ImageOps.exif_transpose(image)
        if picture.mode.startswith("I;16") or (picture.mode == "I" and image.format in ("PNG", "PPM")):
            levels, top = np.asarray(picture, np.int64), 2 ** tags.get(258, (16,))[0] - 1
            levels = np.where(levels == picture.info.get("transparency", -1), top, levels)
            levels = top - levels if tags.get(262) == 0 else levels
            picture = Image.fromarray(((levels * 255 + top // 2) // top).astype(np.uint8))
        elif picture.mode in ("I", "F"):
            raise ValueError(f"its numbers, of mode {picture.mode}, have no known range: save it with 8 or 16 bits")
        if picture.mode in ("LA", "PA", "RGBA", "RGBa") or "transparency" in picture.info:
            picture = picture.convert("RGBA")
            picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
        return picture.convert("RGB")
    except Exception as error:  # Pillow raises nearly every kind for one or another damage
        raise ValueError(f"{path}: not a whole image ({error}); replace it or take it away") from error


def _decode(paths: Sequence[Path], size: int | None) -> Tensor:
    """(N, 3, H, W) uint8 from image files; with a size: the shorter side scaled to it, the centre kept."""
    import numpy as np
    from PIL import Image, ImageOps

    def read(path: Path) -> Tensor:
        picture = _picture(path)
        if size is not None:
            picture = ImageOps.fit(picture, (size, size), Image.Resampling.BILINEAR)
        return torch.from_numpy(np.array(picture)).permute(2, 0, 1).contiguous()

    with ThreadPoolExecutor() as pool:  # decoding runs outside Python's lock
        images = list(pool.map(read, paths))
    for path, image in zip(paths, images, strict=True):
        if image.shape != images[0].shape:
            (height, width), (h, w) = image.shape[1:], images[0].shape[1:]
            raise ValueError(
                f"{path}: is {width} x {height}, {paths[0]} is {w} x {h}; give size=, the side to scale to"
            )
    return torch.stack(images)


def _kept(file: Path, paths: Sequence[Path], size: int) -> Tensor:
    """``_decode``, or its result as an earlier run has left it in ``file``."""
    import numpy as np

    with contextlib.suppress(OSError, ValueError, EOFError):  # not there, or damaged: decode
        images = torch.from_numpy(np.load(file, allow_pickle=False))
        if images.shape == (len(paths), 3, size, size):
            return images
    images = _decode(paths, size)
    with contextlib.suppress(OSError):  # a full disk, a folder one may not write to: decode every time
        write_whole(file, lambda whole: np.save(whole, images.numpy()))
    return images


READERS: dict[str, Callable[..., Splits]] = {
    "fashion-mini": fashion_mini,
    "shapes": generated,
    "mnist": mnist,
    "fashion": partial(mnist, name="fashion"),
    "cifar10": cifar,
    "cifar100": partial(cifar, name="cifar100"),
    "lfw64": lfw64,
    "portraits": portraits,
    "strangers": strangers,
    "hues": hues,
    "celeba": celeba,
    "folder": folder,
}
