"""A split holds what it was given, and refuses anything else by name."""

import re

import pytest
import torch
from torchvision.transforms import v2

from semaug.data.split import Split


def make(n=6):
    images = torch.arange(n * 3 * 4 * 5, dtype=torch.int64).remainder(256).to(torch.uint8).view(n, 3, 4, 5)
    boxes = torch.tensor([[0, 1, 3, 4]]).expand(n, 4) + torch.arange(n)[:, None] * 0
    masks = torch.zeros(n, 4, 5, dtype=torch.bool)
    masks[torch.arange(n), 0, torch.arange(n) % 5] = True
    return Split(images, torch.arange(n), {"hue": torch.linspace(0, 1, n)}, masks, boxes)


@pytest.mark.parametrize(
    "index",
    [slice(1, 5, 2), [1, 3], torch.tensor([1, 3]), torch.tensor([False, True, False, True, False, False])],
    ids=["slice", "list", "int64", "bool"],
)
def test_take_slices_every_part_alike(index):
    split = make()
    taken = split.take(index)
    assert len(taken) == 2
    assert taken.target.tolist() == [1, 3]
    for part in ("images", "masks", "boxes"):
        assert torch.equal(getattr(taken, part), getattr(split, part)[[1, 3]])
    assert torch.equal(taken.factors["hue"], split.factors["hue"][[1, 3]])


def test_take_nothing():
    assert len(make().take([])) == len(make().take(slice(0))) == 0


def test_to_carries_every_part():
    split = make().to("meta")
    assert {split.images.device, split.target.device, split.masks.device, split.boxes.device} == {torch.device("meta")}
    assert split.factors["hue"].device == torch.device("meta")


def test_floats_and_back():
    images = torch.arange(256).to(torch.uint8).view(1, 1, 16, 16).expand(3, 1, 16, 16)
    split = Split(images, torch.zeros(3, dtype=torch.int64))
    floats = split.floats()
    assert floats.dtype == torch.float32
    assert floats.min() == 0
    assert floats.max() == 1
    assert torch.equal(Split.from_float(floats, split.target).images, images)  # every level comes back
    assert torch.equal(Split.from_float(floats.half(), split.target).images, images)
    assert torch.equal(split.floats(torch.tensor([2, 0])), floats[[2, 0]])
    assert torch.equal(split.images, images)  # and the division was not in place


def test_from_float_passes_the_other_fields_on():
    split = Split.from_float(torch.rand(2, 1, 4, 4), torch.tensor([0, 1]), factors={"hue": torch.rand(2)})
    assert set(split.factors) == {"hue"}
    assert split.masks is None


ONE = torch.zeros(2, dtype=torch.int64)
IMAGES = torch.zeros(2, 3, 4, 4, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("error", "fields", "message"),
    [
        (
            TypeError,
            {"images": IMAGES.float()},
            "images: got float32 (2, 3, 4, 4); takes uint8 (N, channels, H, W);",
        ),
        (TypeError, {"images": IMAGES.numpy()}, "images: got a ndarray; takes uint8"),
        (ValueError, {"images": IMAGES[0]}, "images: got uint8 (3, 4, 4); takes uint8 (N, channels, H, W)"),
        (ValueError, {"target": ONE[:1]}, "target: got int64 (1,); takes int64 (2,)"),
        (ValueError, {"target": ONE[:, None]}, "target: got int64 (2, 1); takes int64 (2,)"),
        (TypeError, {"target": ONE.float()}, "target: got float32 (2,); takes int64 (2,)"),
        (TypeError, {"target": [0, 1]}, "target: got a list; takes int64 (2,)"),
        (ValueError, {"factors": {"hue": torch.zeros(3)}}, "factors['hue']: got float32 (3,); takes a tensor (2,)"),
        (TypeError, {"masks": torch.zeros(2, 4, 4)}, "masks: got float32 (2, 4, 4); takes bool (2, 4, 4)"),
        (ValueError, {"masks": torch.zeros(2, 4, 5, dtype=torch.bool)}, "masks: got bool (2, 4, 5); takes bool"),
        (ValueError, {"boxes": torch.zeros(2, 5, dtype=torch.int64)}, "boxes: got int64 (2, 5); takes int64 (2, 4)"),
        (ValueError, {"target": ONE.to("meta")}, "target: lies on meta, images on cpu"),
    ],
)
def test_refuses(unchecked, error, fields, message):
    with pytest.raises(error, match=re.escape(message)):
        Split(**{"images": IMAGES, "target": ONE, **fields})


@pytest.mark.parametrize(
    ("error", "images", "message"),
    [
        (TypeError, IMAGES, "images: got uint8 (2, 3, 4, 4); takes a floating-point tensor"),
        (TypeError, [[0.5]], "images: got a list"),
        (ValueError, torch.full((2, 3, 4, 4), 1.5), "images: got 1.5 to 1.5 and 0 NaN; takes values in [0, 1]"),
        (ValueError, torch.full((2, 3, 4, 4), -0.01), "images: got -0.01 to -0.01"),
        (ValueError, torch.full((2, 3, 4, 4), 1 + 1e-5), "images: got 1.00001 to 1.00001 and 0 NaN"),
        (
            ValueError,
            torch.full((2, 3, 4, 4), 1 + 1e-12, dtype=torch.float64),
            "got 1.000000000001 to 1.000000000001 a",
        ),
        (ValueError, torch.full((2, 3, 4, 4), torch.inf), "images: got inf to inf"),
        (ValueError, torch.full((2, 3, 4, 4), torch.nan), "images: got no number and 96 NaN"),
    ],
)
def test_from_float_refuses(unchecked, error, images, message):
    with pytest.raises(error, match=re.escape(message)):
        Split.from_float(images, ONE)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_from_float_takes_what_interpolation_leaves_beside_0_and_1(dtype):
    eps = torch.finfo(dtype).eps
    images = torch.tensor([0.0, -2 * eps, 1.0, 1 + 2 * eps], dtype=dtype).view(2, 1, 1, 2)
    assert Split.from_float(images, ONE).images.flatten().tolist() == [0, 0, 255, 255]
    resized = v2.Resize(17, antialias=True)(torch.ones(2, 3, 40, 40))
    assert resized.max() > 1, "the case this was found by"
    assert (Split.from_float(resized, ONE).images == 255).all()


@pytest.mark.parametrize("index", [3, torch.tensor([0.5]), torch.tensor([[1]]), torch.tensor([1], dtype=torch.uint8)])
def test_take_refuses(unchecked, index):
    with pytest.raises(TypeError, match="index: got"):
        make().take(index)
