"""Data refuses what does not fit together; load draws the subsets it documents, in the order it documents."""

import json
import re
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from PIL import Image

from semaug.data import sets, sources
from semaug.data.sets import Data, Split, load

SUBSETS = {"meta": 10, "validation": 0.1, "per_class": 300, "train_size": 1000, "imbalance": 10.0, "test_size": 500}


def split(*target, shape=(1, 4, 4), **parts):
    return Split(torch.zeros(len(target), *shape, dtype=torch.uint8), torch.tensor(target), **parts)


@pytest.fixture
def balanced(monkeypatch):
    """A set with the counts of CIFAR-10 and images of one pixel, under the name cifar10."""
    train = Split(torch.zeros(50_000, 1, 1, 1, dtype=torch.uint8), torch.arange(50_000) % 10)
    test = Split(torch.zeros(10_000, 1, 1, 1, dtype=torch.uint8), torch.arange(10_000) % 10)
    labels = tuple("abcdefghij")
    monkeypatch.setitem(sources.READERS, "cifar10", lambda root, size, download: (train, test, labels))


@pytest.fixture
def uneven(monkeypatch):
    """Three classes with 60, 30 and 6 training images, whose factor is their number."""
    target = torch.tensor([0] * 60 + [1] * 30 + [2] * 6)
    train = Split(torch.zeros(96, 1, 4, 4, dtype=torch.uint8), target, {"number": torch.arange(96)})
    labels = ("many", "some", "few")
    monkeypatch.setitem(sources.READERS, "mnist", lambda root, size, download: (train, split(0, 1, 2), labels))


# -- Data --------------------------------------------------------------------------------------------------------------


def test_digest_is_of_images_and_labels_of_every_split():
    def build(**changes):
        generator = torch.Generator().manual_seed(0)
        parts = {}
        for name in ("train", "validation", "test", "meta"):
            images = torch.randint(256, (4, 1, 4, 4), generator=generator, dtype=torch.uint8)
            parts[name] = Split(images, torch.tensor([0, 1, 0, 1]))
        return Data("one", **(parts | {name: change(parts[name]) for name, change in changes.items()}))

    def recoloured(split):
        images = split.images.clone()
        images[-1, 0, -1, -1] ^= 1
        return Split(images, split.target)

    def relabelled(split):
        return Split(split.images, torch.tensor([0, 1, 1, 0]))

    def wider(split):  # the same bytes
        return Split(split.images.view(4, 1, 2, 8), split.target)

    one = build()
    assert one.digest == build().digest == replace(one, name="two", settings={"size": 4}).digest
    assert re.fullmatch("[0-9a-f]{16}", one.digest)
    others = [build(**{name: change}) for change in (recoloured, relabelled) for name in ("train", "test", "meta")]
    others += [build(validation=recoloured), build(validation=lambda split: None), build(meta=lambda split: None)]
    others += [replace(one, validation=one.meta, meta=one.validation), replace(one, validation=None, meta=one.meta)]
    others += [build(**dict.fromkeys(("train", "validation", "test", "meta"), wider))]
    digests = [other.digest for other in [one, *others]]
    assert len(set(digests)) == len(digests) - 1, "without validation stands there twice"


def test_digest_after_an_edit_in_place_and_of_any_layout():
    images = torch.arange(32, dtype=torch.uint8).view(2, 1, 4, 4)
    one = Data("one", Split(images, torch.tensor([0, 1])), split(1))
    before = one.digest
    across = images.mT.contiguous().mT
    assert not across.is_contiguous()
    assert Data("one", Split(across, torch.tensor([0, 1])), split(1)).digest == before
    images[0, 0, 0, 0] += 1
    assert one.digest != before
    images[0, 0, 0, 0] -= 1
    assert one.digest == before


def test_digest_of_a_set_loaded_twice_and_of_another_subset():
    one, again, other = (load("fashion-mini", train_size=100, test_size=10, subset_seed=seed) for seed in (0, 0, 1))
    assert one.digest == again.digest != other.digest


def test_digest_of_a_large_set_takes_less_than_a_second():
    train = Split(torch.zeros(50_000, 3, 32, 32, dtype=torch.uint8), torch.arange(50_000) % 10)
    large = Data("large", train, train.take(slice(0, 10_000)))
    started = time.process_time()
    digest = large.digest
    assert time.process_time() - started < 1
    started = time.process_time()
    assert large.digest == digest
    assert time.process_time() - started < 0.01, "computed once"


def test_your_own_tensors():
    mine = Data("mine", split(0, 1, 2, 2), split(1), settings={"from": "here"})
    assert mine.classes == ("0", "1", "2")
    assert mine.num_classes == 3
    assert mine.image_shape == (1, 4, 4)
    assert mine.counts.tolist() == [1, 1, 2]
    assert mine.counts.dtype == torch.int64
    named = Data("mine", split(0, 1), split(1), classes=("a", "b", "never seen"))
    assert named.counts.tolist() == [1, 1, 0]


BOX = torch.tensor([[0, 0, 4, 4]])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"train": split(0).take([])}, "train: got no images"),
        ({"test": split(0).take([])}, "test: got no images; takes at least one"),
        ({"validation": split(0).take([])}, "validation: got no images; takes at least one, or None"),
        ({"meta": split(0).take([])}, "meta: got no images; takes at least one, or None"),
        (
            {"test": split(0, shape=(3, 4, 4))},
            "test.images: got (channels, H, W) = (3, 4, 4); takes train's, (1, 4, 4)",
        ),
        ({"validation": split(0, shape=(1, 4, 5))}, "validation.images: got (channels, H, W) = (1, 4, 5)"),
        ({"test": split(0, 3)}, "test.target: got classes 0 to 3; takes 0 to 1"),
        ({"meta": split(1, 1)}, "meta: got no image of class '0'; takes some of every class"),
        ({"meta": split(-1, 0)}, "meta.target: got classes -1 to 0; takes 0 to 1"),
        ({"train": split(0, 1, 5), "classes": ("a", "b")}, "train.target: got classes 0 to 5; takes 0 to 1"),
        ({"train": split(0, -2)}, "train.target: got classes -2 to 0"),
        ({"test": split(1, boxes=BOX + torch.tensor([0, 0, 1, 0]))}, "test.boxes: takes 0 <= y0 < y1 <= 4"),
        ({"test": split(1, boxes=BOX * 0)}, "test.boxes: takes 0 <= y0 < y1 <= 4"),
        ({"test": split(1, boxes=BOX - torch.tensor([0, 1, 0, 0]))}, "test.boxes"),
    ],
)
def test_data_refuses(fields, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        Data("mine", **{"train": split(0, 1), "test": split(0, 1), **fields})


# -- subsets -----------------------------------------------------------------------------------------------------------


def test_whole_set_in_its_own_order():
    whole = load("fashion-mini")
    assert whole.name == "fashion-mini"
    assert (len(whole.train), len(whole.test), whole.validation, whole.meta) == (8000, 2000, None, None)
    assert torch.equal(whole.train.factors["index"], sources.fashion_mini(Path())[0].factors["index"])


def test_parts_are_disjoint_balanced_and_nothing_else():
    whole, parts = load("fashion-mini"), load("fashion-mini", **SUBSETS)
    index = [part.factors["index"] for part in (parts.train, parts.validation, parts.meta)]
    assert len(torch.cat(index).unique()) == sum(map(len, index))
    assert torch.bincount(parts.meta.target).tolist() == [10] * 10
    assert torch.bincount(parts.validation.target).tolist() == [79] * 10  # a tenth of 790
    assert parts.counts.tolist() == [int(100 * 10 ** (-c / 9)) for c in range(10)]
    assert torch.bincount(parts.test.target).tolist() == [50] * 10
    position = {int(official): row for row, official in enumerate(whole.train.factors["index"])}
    for part in (parts.train, parts.validation, parts.meta):  # each image with its own label, in the whole set's order
        rows = [position[int(official)] for official in part.factors["index"]]
        assert rows == sorted(rows)
        assert torch.equal(part.images, whole.train.images[rows])
        assert torch.equal(part.target, whole.train.target[rows])


def test_subsets_follow_from_their_seed():
    first, again, other = (load("fashion-mini", subset_seed=seed, **SUBSETS) for seed in (7, 7, 8))
    for name in ("train", "test", "validation", "meta"):
        one, two, three = (getattr(which, name).factors["index"] for which in (first, again, other))
        assert torch.equal(one, two)
        assert not torch.equal(one, three)
    # On every machine these, since torch's generator and randperm are its own on the CPU.
    assert load("fashion-mini", train_size=10).train.factors["index"].tolist() == GOLDEN


GOLDEN = [429, 1115, 1368, 2306, 2483, 2898, 3789, 4175, 5692, 6135]


def test_smaller_subsets_lie_in_larger_ones():
    def kept(**subset):
        return set(load("fashion-mini", meta=10, validation=0.1, **subset).train.factors["index"].tolist())

    assert kept(train_size=100) < kept(train_size=500) < kept(per_class=60) < kept()
    assert kept(per_class=60, imbalance=10.0) < kept(per_class=60)
    assert kept(imbalance=50.0) < kept(imbalance=10.0)


def test_long_tail_of_cifar10(balanced):
    """The counts printed by the code of Cui et al. (2019) and Cao et al. (2019) for n_max = 5000."""
    counts = [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50]
    assert load("cifar10", imbalance=100).counts.tolist() == counts
    assert load("cifar10", imbalance=1).counts.tolist() == [5000] * 10
    assert load("cifar10", imbalance=10.0).counts[-1] == 500
    assert load("cifar10", meta=10, imbalance=100.0).counts[0] == 4990


def test_validation_is_drawn_before_the_long_tail(balanced):
    parts = load("cifar10", validation=0.1, imbalance=100.0)
    assert torch.bincount(parts.validation.target).tolist() == [500] * 10
    assert parts.counts[[0, -1]].tolist() == [4500, 45]


def test_uneven_classes(uneven):
    assert load("mnist", train_size=48).counts.tolist() == [30, 15, 3]
    assert load("mnist", train_size=20).counts.tolist() == [13, 6, 1]  # 12.5, 6.25, 1.25: adds up, ties to the first
    assert load("mnist", per_class=6).counts.tolist() == [6, 6, 6]
    assert load("mnist", imbalance=3.0).counts.tolist() == [6, 3, 2]  # from the smallest class: 6, 6 / sqrt(3), 2
    parts = load("mnist", validation=0.1)
    assert torch.bincount(parts.validation.target).tolist() == [6, 3, 1]
    assert load("mnist", meta=2).meta.factors["number"].tolist() == sorted(load("mnist", meta=2).meta.factors["number"])


@given(st.lists(st.integers(1, 5000), min_size=1, max_size=40), st.floats(0, 1))
def test_proportional_amounts_add_up(sizes, fraction):
    total = round(sum(sizes) * fraction)
    amounts = sets._proportional(sizes, total)
    assert sum(amounts) == total
    for size, amount in zip(sizes, amounts, strict=True):
        assert amount <= size
        assert abs(amount - size * total / sum(sizes)) < 1 + 1e-9


@pytest.mark.parametrize(
    ("subset", "message"),
    [
        (
            {"name": "imagenet"},
            "name: got 'imagenet'; takes one of fashion-mini, shapes, mnist, fashion, cifar10, cifar100, ",
        ),
        ({"train_size": 0}, "train_size: got 0; takes a whole number from 1"),
        ({"per_class": -3}, "per_class: got -3"),
        ({"meta": -1}, "meta: got -1; takes a whole number from 0"),
        ({"meta": True}, "meta: got True; takes a whole number from 0"),
        ({"test_size": 2.5}, "test_size: got 2.5; takes a whole number"),
        ({"subset_seed": -1}, "subset_seed: got -1"),
        ({"subset_seed": 2**64}, f"subset_seed: got {2**64}; takes a whole number below 2**64"),
        ({"name": "embedded"}, "name: got 'embedded'; takes 'fashion-mini'"),
        ({"only": "none"}, "only: got 'none'; takes one of "),
        ({"imbalance_kind": "linear"}, "imbalance_kind: got 'linear'; takes one of exp, step"),
        ({"validation": 1.0}, "validation: got 1.0; takes a finite number in [0, 1)"),
        ({"validation": -0.1}, "validation: got -0.1"),
        ({"validation": float("nan")}, "validation: got nan"),
        ({"imbalance": 0.01}, "imbalance: got 0.01; takes a finite number from 1"),
        ({"imbalance": float("inf")}, "imbalance: got inf"),
        ({"size": 64}, "size: got 64; takes None: the images of 'mnist' have one size"),
        ({"name": "folder"}, "root: got None; takes the folder"),
        ({"per_class": 7}, "per_class: asks for 7 images of class 'few'; takes at least 1, at most the 6 there are"),
        (
            {"meta": 6},
            "meta: asks for 6 images of class 'few'; takes at least 1, at most the 6 there are, and one has to",
        ),
        ({"train_size": 97}, "train_size: asks for 61 images of class 'many'; takes at least 1, at most the 60"),
        ({"train_size": 3}, "train_size: asks for 0 images of class 'few'"),
        ({"test_size": 4}, "test_size: asks for 2 images of class 'many'"),
        ({"imbalance": 7.0}, "imbalance: asks for 0 images of class 'few'"),
        (
            {"meta": 5, "validation": 0.5},
            "validation: asks for 1 images of class 'few'; takes at least 1, at most the 1",
        ),
    ],
)
def test_load_refuses(uneven, unchecked, subset, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        load(**{"name": "mnist", **subset})


@pytest.mark.usefixtures("balanced")
def test_step_imbalance_has_the_counts_of_the_released_code():
    """kaidic/LDAM-DRW, imbalance_cifar.py, imb_type "step": int(5000) for five classes, int(5000 * factor) for five."""
    for factor in (0.01, 0.02, 0.1):
        parts = load("cifar10", imbalance=1 / factor, imbalance_kind="step")
        assert parts.counts.tolist() == [5000] * 5 + [int(5000 * factor)] * 5
        assert parts.settings["imbalance_kind"] == "step"
    assert "imbalance_kind" not in load("cifar10", imbalance=10).settings, "as the records of before have it"


def test_only_one_class_stays_in_every_split():
    """Against a selection by hand, with the options that draw from what is left."""
    whole, dresses = load("fashion-mini"), load("fashion-mini", only="Dress", validation=0.25, train_size=100)
    label = whole.classes.index("Dress")
    assert dresses.classes == ("Dress",)
    assert dresses.settings["only"] == "Dress"
    assert [len(part) for part in (dresses.train, dresses.validation)] == [100, 200]
    assert torch.equal(dresses.test.images, whole.test.images[whole.test.target == label])
    own = whole.train.images[whole.train.target == label].flatten(1)
    for part in (dresses.train, dresses.validation):
        assert not part.target.any()
        assert all((own == image.flatten()).all(1).any() for image in part.images)
    assert "only" not in load("fashion-mini", train_size=10).settings, "as the records of before have it"


@pytest.mark.parametrize("argument", ["validation", "imbalance"])
@pytest.mark.parametrize("value", ["0.1", None, True, [0.1], 1j])
def test_load_takes_numbers(uneven, unchecked, argument, value):
    if (argument, value) == ("imbalance", None):
        return
    with pytest.raises(ValueError, match=re.escape(f"{argument}: got {value!r}; takes a finite number")):
        load("mnist", **{argument: value})


def test_numbers_of_numpy_are_plain_in_the_settings(uneven, unchecked):
    plain = load("mnist", validation=0.1, imbalance=2.0)
    for kind in (np.float32, np.float64, np.float16):
        parts = load("mnist", validation=kind(0.1), imbalance=kind(2))
        assert json.dumps(parts.settings) == json.dumps(plain.settings)
        assert [type(parts.settings[name]) for name in ("validation", "imbalance")] == [float, int]
        assert torch.equal(parts.validation.target, plain.validation.target)


@pytest.fixture
def portraits(monkeypatch):
    """2000 images of 400 persons in four uneven classes; a few persons have many images, most few, as in LFW."""
    generator = torch.Generator().manual_seed(0)
    shares = 1 / torch.arange(1.0, 401)
    person = torch.cat([torch.arange(400), torch.multinomial(shares, 1600, True, generator=generator)])
    gender = torch.rand(400, generator=generator) < 0.6  # of the person; smiling is of the image
    target = 2 * gender[person].long() + (torch.rand(2000, generator=generator) < 0.3).long()
    factors = {"person": person, "number": torch.arange(2000)}
    train = Split(torch.zeros(2000, 1, 4, 4, dtype=torch.uint8), target, factors)
    labels = ("a", "b", "c", "d")
    monkeypatch.setitem(sources.READERS, "mnist", lambda root, size, download: (train, split(0, 1, 2, 3), labels))
    return train


@pytest.mark.parametrize("seed", range(4))
def test_nobody_stands_in_two_splits(portraits, seed):
    parts = load("mnist", validation=0.1, meta=10, subset_seed=seed)
    splits = [parts.train, parts.validation, parts.meta]
    numbers, persons = ([set(part.factors[name].tolist()) for part in splits] for name in ("number", "person"))
    for groups in (numbers, persons):
        assert len(set.union(*groups)) == sum(map(len, groups))
    assert len(set.union(*numbers)) == 2000
    whole = torch.bincount(portraits.target)
    counts = torch.bincount(parts.validation.target, minlength=4)
    # The last person of a class may bring several images more, or be passed by: a quarter of a class's amount.
    torch.testing.assert_close(counts.double(), 0.1 * (whole - 10).double(), rtol=0.25, atol=2)
    torch.testing.assert_close(
        torch.bincount(parts.meta.target, minlength=4).double(), torch.full((4,), 10.0).double(), rtol=0.25, atol=2
    )
    again = load("mnist", validation=0.1, meta=10, subset_seed=seed)
    assert torch.equal(again.validation.factors["number"], parts.validation.factors["number"])
    for part in splits:
        assert part.factors["number"].tolist() == sorted(part.factors["number"].tolist())


def test_too_few_persons_to_part_them(monkeypatch):
    one = Split(torch.zeros(20, 1, 4, 4, dtype=torch.uint8), torch.arange(20) // 10, {"person": torch.arange(20) // 10})
    monkeypatch.setitem(sources.READERS, "mnist", lambda root, size, download: (one, split(0, 1), ("a", "b")))
    with pytest.raises(ValueError, match="validation: class 'a' has too few persons"):
        load("mnist", validation=0.2)


def test_settings_decide_the_content_and_fit_into_a_record():
    parts = load("fashion-mini", **SUBSETS, subset_seed=3)
    assert parts.settings == {**SUBSETS, "subset_seed": 3, "size": 28}
    assert json.loads(json.dumps(parts.settings)) == parts.settings
    again = load(parts.name, **{key: value for key, value in parts.settings.items() if key != "size"})
    assert torch.equal(parts.train.images, again.train.images)


# -- sets --------------------------------------------------------------------------------------------------------------


def test_shapes_bring_all_that_is_known():
    parts = load("shapes", train_size=200, test_size=100, size=16, validation=0.01)
    assert parts.image_shape == (3, 16, 16)
    assert len(parts.validation) == 80
    assert parts.num_classes == 10
    assert parts.train.masks.shape == (200, 16, 16)
    assert parts.train.boxes.shape == (200, 4)
    assert set(parts.train.factors) >= {"hue", "size", "angle"}
    assert parts.settings["size"] == 16


def test_folder_of_classes_is_split_by_the_seed(tmp_path):
    for label, n in (("cat", 10), ("dog", 5)):
        (tmp_path / "pets" / label).mkdir(parents=True)
        for i in range(n):
            Image.new("RGB", (8, 8), (i, i, i)).save(tmp_path / "pets" / label / f"{i}.png")
    pets = load("folder", tmp_path / "pets")
    assert pets.name == "folder pets"
    assert pets.classes == ("cat", "dog")
    assert torch.bincount(pets.test.target).tolist() == [2, 1]
    assert pets.counts.tolist() == [8, 4]
    level = torch.cat([pets.train.images, pets.test.images])[:, 0, 0, 0] + 100 * torch.cat(
        [pets.train.target, pets.test.target]
    )
    assert sorted(level.tolist()) == [*range(10), *range(100, 105)]
    others = [load("folder", tmp_path / "pets", subset_seed=seed).test.images for seed in range(1, 6)]
    assert any(not torch.equal(pets.test.images, other) for other in others)


def test_missing_set_says_where_it_is_looked_for(tmp_path, monkeypatch):
    monkeypatch.setenv("SEMAUG_DATA", str(tmp_path / "images"))
    with pytest.raises(FileNotFoundError, match=re.escape(str(tmp_path / "images" / "cifar-100-python"))):
        load("cifar100", download=False)
    with pytest.raises(FileNotFoundError, match=re.escape(str(tmp_path / "lfw64"))):
        load("lfw64", root=tmp_path)
