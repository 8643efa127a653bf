"""Image sets to train and test on: by name or from your own tensors, whole or as a subset drawn from a seed.

``load(name)`` gives a :class:`Data` with ``train`` and ``test``; your own tensors make one directly:

>>> import torch
>>> from semaug.data import Data, Split
>>> images, target = torch.rand(60, 3, 32, 32), torch.arange(60) % 3
>>> mine = Data("mine", Split.from_float(images[:40], target[:40]), Split.from_float(images[40:], target[40:]))
>>> mine.num_classes, mine.image_shape, mine.counts.tolist()
(3, (3, 32, 32), [14, 13, 13])

Inside the package lie ``fashion-mini``, 8000 + 2000 real images of Fashion-MNIST (Xiao et al., arXiv:1708.07747; MIT),
and ``shapes``, as many generated colour images with known factors, masks and boxes (module ``shapes``). ``mnist``,
``fashion``, ``cifar10``, ``cifar100`` and ``celeba`` are torchvision's, read from its layout, verified by checksum, and
downloaded where the network allows; ``lfw64`` and ``folder`` read what you have. ``hues`` is ``shapes`` in two domains,
``portraits`` one person's faces of ``lfw64``, ``strangers`` all others.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from jaxtyping import Int64
from torch import Tensor

from semaug._checks import check_choice, check_count, check_number, require
from semaug.data import sources
from semaug.data.split import Split

SIZED = ("shapes", "hues", "celeba", "lfw64", "portraits", "strangers", "folder")

"""Sets whose images come in the size that is asked for."""


@dataclass(frozen=True, eq=False)
class Data:
    """A set of images to train and test on.

    Attributes:
        name: how records and figures call it.
        train, test, validation: its splits.
        meta: a few images of every class, kept out of train, for objectives with a second stream.
        classes: their names; by default "0", "1", ... up to the largest target of train.
        settings: what decided the content (the arguments of ``load``), as plain values, for the records.

    Raises:
        ValueError: where splits disagree, one has no images, or a target is no class.
    """

    name: str
    train: Split
    test: Split
    validation: Split | None = None
    meta: Split | None = None
    classes: tuple[str, ...] = ()
    settings: Mapping[str, int | float | str | None] = field(default_factory=dict)
    _digests: dict[tuple[int, ...], str] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        """Hold the splits to one image shape, and their targets and boxes to the values they may have."""
        for name, split in self._splits.items():
            if len(split) == 0:
                none = ", or None" if name in ("validation", "meta") else ""
                raise ValueError(f"{name}: got no images; takes at least one{none}")
        classes = tuple(self.classes) or tuple(str(c) for c in range(int(self.train.target.max()) + 1))
        object.__setattr__(self, "classes", classes)
        for name, split in self._splits.items():
            if (shape := tuple(split.images.shape[1:])) != self.image_shape:
                raise ValueError(f"{name}.images: got (channels, H, W) = {shape}; takes train's, {self.image_shape}")
            low, high = (int(end) for end in split.target.aminmax())
            if not 0 <= low <= high < self.num_classes:
                raise ValueError(f"{name}.target: got classes {low} to {high}; takes 0 to {self.num_classes - 1}")
            if name == "meta" and len(there := split.target.unique()) < self.num_classes:
                missing = next(c for c in range(self.num_classes) if c not in there)
                raise ValueError(f"meta: got no image of class {self.classes[missing]!r}; takes some of every class")
            if split.boxes is not None:
                (y0, x0, y1, x1), (height, width) = split.boxes.T, self.image_shape[1:]
                if not bool(((y0 >= 0) & (y0 < y1) & (y1 <= height) & (x0 >= 0) & (x0 < x1) & (x1 <= width)).all()):
                    raise ValueError(f"{name}.boxes: takes 0 <= y0 < y1 <= {height}, 0 <= x0 < x1 <= {width}")

    @property
    def _splits(self) -> dict[str, Split]:
        """Those that are there, by name."""
        splits = {"train": self.train, "validation": self.validation, "test": self.test, "meta": self.meta}
        return {name: split for name, split in splits.items() if split is not None}

    @property
    def num_classes(self) -> int:
        """C."""
        return len(self.classes)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(channels, H, W)."""
        channels, height, width = self.train.images.shape[1:]
        return channels, height, width

    @property
    def identity(self) -> dict[str, int | float | str | None]:
        """What says in a record which images and labels these are: name, settings and digest."""
        return {"name": self.name, **self.settings, "digest": self.digest}

    @property
    def counts(self) -> Int64[Tensor, " C"]:
        """Training images of each class."""
        return torch.bincount(self.train.target, minlength=self.num_classes)

    @property
    def digest(self) -> str:
        """First 16 hex digits of the SHA-256 of the images and labels of all splits, with their dtypes and shapes.

        Computed once, and again after a tensor was changed in place by torch.
        """
        parts: dict[str, Tensor] = {}
        for name, split in self._splits.items():
            parts |= {f"{name}.images": split.images, f"{name}.target": split.target}
        versions = tuple(0 if tensor.is_inference() else tensor._version for tensor in parts.values())
        if versions not in self._digests:
            content = hashlib.sha256()
            for name, tensor in parts.items():
                content.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
                content.update(tensor.cpu().contiguous().numpy().data)
            self._digests[versions] = content.hexdigest()[:16]
        return self._digests[versions]


def load(
    name: str,
    root: str | Path | None = None,
    *,
    validation: int | float = 0.0,
    train_size: int | None = None,
    test_size: int | None = None,
    imbalance: int | float | None = None,
    imbalance_kind: str = "exp",
    per_class: int | None = None,
    meta: int = 0,
    subset_seed: int = 0,
    size: int | None = None,
    only: str | None = None,
    download: bool = True,
) -> Data:
    r"""A set by name, or the subset of it that the arguments describe: for one ``subset_seed`` the same everywhere.

    The images of each class are put in a random order. Then each step takes of what is left, in the order: ``meta``,
    ``validation``, ``per_class``, ``train_size``, ``imbalance``; so a smaller subset lies in a larger one of the same
    seed. Images keep the order they have in the whole set.

    Where the images tell the person (``factors["person"]``: lfw64, celeba), meta and validation take whole persons, in
    a random order, and nobody stands in two of train, validation and meta. First those are taken who fit into the
    amounts, then those who bring the classes nearer to them: the sizes are near what was asked, not always the same.

    Args:
        name: fashion-mini, shapes, mnist, fashion, cifar10, cifar100, lfw64, portraits, strangers, hues, celeba or
            folder.
        root: where its files are; by default $SEMAUG_DATA, or else a folder in the user's cache. For ``folder`` the
            folder itself, with train/<class>/* and test/<class>/* (val beside them is ``Data.validation``, alone the
            test set), or with <class>/*: a fifth then is the test set.
        meta: so many images of every class are taken out of train, to ``Data.meta``.
        validation: this fraction of every class, rounded, is taken out of train, to ``Data.validation``.
        per_class: so many images of every class stay (few-shot).
        train_size: so many images stay in all, in the proportions of the classes (low-shot).
        imbalance: $\rho \ge 1$, the largest class over the smallest. Of class $c$ stay
            $\lfloor n_{\max}\,\rho^{-c/(C-1)} \rfloor$ images, $n_{\max}$ the size of the smallest class before (long
            tail; Cui et al., https://arxiv.org/abs/1901.05555).
        imbalance_kind: "exp", the long tail, or "step": half of the classes keep $n_{\max}$ images, the others
            $\lfloor n_{\max} / \rho \rfloor$ (Cao et al., https://arxiv.org/abs/1906.07413).
        test_size: so many test images stay, in the proportions of the classes.
        subset_seed: of the random order, below 2**64.
        size: side in pixels, for ``shapes`` and ``hues`` (default 32), ``celeba`` (default 64), ``lfw64``,
            ``portraits`` and ``strangers`` (64, or 32 or 16), and ``folder``, whose pictures are scaled to it by the
            shorter side and cropped to their centre; the other sets have one size.
        only: the name of a class; images of others are left out of all splits first.
        download: whether missing files may be fetched.

    Raises:
        FileNotFoundError: for missing files, naming the file and the remedy.
        ValueError: for damaged files, naming them and the remedy; for an argument that is none, and for a subset that
            the set is too small for.
    """
    require(name != "embedded", "name", name, "'fashion-mini', as the embedded images are called now")
    check_choice("name", name, tuple(sources.READERS))
    train_size, test_size = _optional("train_size", train_size, 1), _optional("test_size", test_size, 1)
    per_class, size = _optional("per_class", per_class, 1), _optional("size", size, 8)
    meta, subset_seed = check_count("meta", meta, 0), check_count("subset_seed", subset_seed, 0)
    require(subset_seed < 2**64, "subset_seed", subset_seed, "a whole number below 2**64")
    validation = check_number("validation", _plain(validation), 0, 1, without=(1,))
    if imbalance is not None:  # 100 and 100.0 are one setting
        imbalance = check_number("imbalance", _plain(imbalance), 1)
        imbalance = int(imbalance) if imbalance.is_integer() else imbalance
    check_choice("imbalance_kind", imbalance_kind, ("exp", "step"))
    one_size = f"None: the images of {name!r} have one size, those of {', '.join(SIZED)} are scaled"
    require(size is None or name in SIZED, "size", size, one_size)
    require(root is not None or name != "folder", "root", root, "the folder that holds the images")
    where = Path(root).expanduser() if root is not None else sources.data_folder()
    train, test, classes, *own = sources.READERS[name](where, size, download)
    require(not (own and validation), "validation", validation, f"0: {where} has validation images of its own")
    if only is not None:
        check_choice("only", only, tuple(classes))
        label = list(classes).index(only)
        train, own, classes = _only(train, label), [_only(part, label) for part in own], (only,)
        test = None if test is None else _only(test, label)
    if test is None:
        queue = _Queue(train.target, classes, subset_seed)
        fifth = queue.cut("a fifth for the test set", [max(1, round(n / 5)) for n in queue.sizes])
        test, train = train.take(fifth), train.take(queue.index())

    parts: dict[str, Split] = {"validation": own[0]} if own else {}
    queue = _Queue(train.target, classes, subset_seed)
    person = train.factors.get("person")
    if meta:
        parts["meta"] = train.take(queue.cut("meta", [meta] * len(classes), person))
    if validation:
        amounts = [max(1, round(validation * n)) for n in queue.sizes]
        parts["validation"] = train.take(queue.cut("validation", amounts, person))
    if per_class is not None:
        queue.keep("per_class", [per_class] * len(classes))
    if train_size is not None:
        queue.keep("train_size", _proportional(queue.sizes, train_size))
    if imbalance is not None:
        largest, last = min(queue.sizes), max(len(classes) - 1, 1)
        rare = [c / last if imbalance_kind == "exp" else c >= len(classes) // 2 for c in range(len(classes))]
        # 1e-9: 5000 * 100 ** -1.0 must not fall to 49
        queue.keep("imbalance", [int(largest * imbalance**-share + 1e-9) for share in rare])
    if sum(queue.sizes) < len(train):
        train = train.take(queue.index())
    if test_size is not None:
        queue = _Queue(test.target, classes, subset_seed)
        queue.keep("test_size", _proportional(queue.sizes, test_size))
        test = test.take(queue.index())
    settings: dict[str, int | float | str | None] = {
        "validation": validation,
        "train_size": train_size,
        "test_size": test_size,
        "imbalance": imbalance,
        "per_class": per_class,
        "meta": meta,
        "subset_seed": subset_seed,
        "size": train.images.shape[-1],
    }
    if imbalance_kind != "exp":  # an option that came later does not make another set of those before it
        settings["imbalance_kind"] = imbalance_kind
    if only is not None:
        settings["only"] = only
    title = name if name != "folder" else f"folder {where.name}"
    return Data(title, train, test, **parts, classes=tuple(classes), settings=settings)


def _only(part: Split, label: int) -> Split:
    """The images of one class, as class 0."""
    part = part.take(part.target == label)
    return replace(part, target=torch.zeros_like(part.target))


class _Queue:
    """The images of each class in a random order, from whose front the steps of ``load`` take."""

    def __init__(self, target: Tensor, classes: Sequence[str], seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        members = [(target == c).nonzero().squeeze(1) for c in range(len(classes))]
        self.classes, self.generator = classes, generator
        self.order = [rows[torch.randperm(len(rows), generator=generator)] for rows in members]

    @property
    def sizes(self) -> list[int]:
        return [len(rows) for rows in self.order]

    def index(self) -> Tensor:
        return torch.cat(self.order).sort().values

    def cut(self, argument: str, amounts: Sequence[int], person: Tensor | None = None) -> Tensor:
        """Take these amounts out of the classes: the exact ones, or whole persons that come near them."""
        self._check(argument, amounts, remain=1)
        if person is not None:
            return self._cut_persons(argument, amounts, person)
        halves = [rows.tensor_split([amount]) for rows, amount in zip(self.order, amounts, strict=True)]
        self.order = [rest for _, rest in halves]
        return torch.cat([front for front, _ in halves]).sort().values

    def _cut_persons(self, argument: str, amounts: Sequence[int], person: Tensor) -> Tensor:
        """Persons in a random order: first those who fit into what is still missing of every class, then those who
        bring the classes nearer to it, in the sum of their distances in parts of the amounts.
        """
        label = torch.cat([torch.full_like(rows, c) for c, rows in enumerate(self.order)])
        rows = torch.cat(self.order)
        names, index = person[rows].unique(return_inverse=True)
        counts = torch.bincount(index * len(amounts) + label, minlength=len(names) * len(amounts))
        brings = [[(c, n) for c, n in enumerate(row) if n] for row in counts.view(len(names), -1).tolist()]
        missing, sizes, chosen = list(amounts), self.sizes, torch.zeros(len(names), dtype=torch.bool)
        order = torch.randperm(len(names), generator=self.generator).tolist()
        for fitting in (True, False):
            for number in order:
                brought = brings[number]
                nearer = sum((abs(missing[c]) - abs(missing[c] - n)) / amounts[c] for c, n in brought)
                wanted = all(n <= missing[c] for c, n in brought) if fitting else nearer > 0
                stays = all(sizes[c] > n for c, n in brought)  # one of each class in train
                if wanted and stays and not chosen[number]:
                    chosen[number] = True
                    for c, n in brought:
                        missing[c], sizes[c] = missing[c] - n, sizes[c] - n
        front = rows[chosen[index]]
        for c, label_name in enumerate(self.classes):
            if not (label[chosen[index]] == c).any():
                raise ValueError(f"{argument}: class {label_name!r} has too few persons to take some out of train")
        self.order = [part[~torch.isin(part, front)] for part in self.order]
        return front.sort().values

    def keep(self, argument: str, amounts: Sequence[int]) -> None:
        """Leave these amounts of the classes."""
        self._check(argument, amounts, remain=0)
        self.order = [rows[:amount] for rows, amount in zip(self.order, amounts, strict=True)]

    def _check(self, argument: str, amounts: Sequence[int], remain: int) -> None:
        for label, size, amount in zip(self.classes, self.sizes, amounts, strict=True):
            if not 1 <= amount <= size - remain:
                stays = ", and one has to stay in train" if remain else ""
                asks = f"{argument}: asks for {amount} images of class {label!r}"
                raise ValueError(f"{asks}; takes at least 1, at most the {size} there are{stays}")


def _optional(name: str, value: int | None, least: int) -> int | None:
    return None if value is None else check_count(name, value, least)


def _plain(value: float) -> float:
    """A number of NumPy's by its digits: np.float32(0.1) is 0.1."""
    return float(str(value)) if type(value).__module__ == "numpy" else value


def _proportional(sizes: Sequence[int], total: int) -> list[int]:
    """Integers in the proportions of ``sizes`` that add up to ``total``; largest remainders are rounded up."""
    amounts = [size * total // sum(sizes) for size in sizes]
    by_remainder = sorted(range(len(sizes)), key=lambda c: -(sizes[c] * total % sum(sizes)))
    for c in by_remainder[: total - sum(amounts)]:
        amounts[c] += 1
    return amounts
