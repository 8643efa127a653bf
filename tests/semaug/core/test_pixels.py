"""Against golden values of the released DiffAugment, loops over images, NumPy's padding and torchvision's erasing."""

import numpy as np
import pytest
import torch
from torchvision.transforms import v2

from semaug.core.pixels import _reflected, crop_flip, cutout


def field(n, c, h, w):
    """x[n,c,i,j] = sin(0.1 n + 0.2 c + 0.05 i - 0.07 j), the images of the golden values."""
    n, c, i, j = torch.meshgrid(*(torch.arange(k, dtype=torch.float64) for k in (n, c, h, w)), indexing="ij")
    return torch.sin(0.1 * n + 0.2 * c + 0.05 * i - 0.07 * j)


def test_cutout_golden():
    """Values of the released DiffAugment code (mit-han-lab/data-efficient-gans) on the same draws."""
    out = cutout(field(4, 3, 8, 8), torch.tensor([0, 8, 4, 2]), torch.tensor([0, 8, 3, 7]), 4)
    assert (out == 0).all(1).sum((1, 2)).tolist() == [4, 4, 16, 12]
    assert out.sum().item() == pytest.approx(176.04127573285427, rel=1e-10)
    assert out.square().sum().item() == pytest.approx(94.27536073763045, rel=1e-10)
    first = [0.0, 0.0, -0.1395431146442365, -0.20845989984609958]
    assert out.flatten()[:4].tolist() == pytest.approx(first, abs=1e-10)


@pytest.mark.parametrize("size", [0, 1, 3, 4, 20, (2, 5)])
def test_cutout_against_a_loop(size):
    images = torch.rand(7, 2, 6, 9, dtype=torch.float64) + 1
    cy, cx = torch.randint(0, 6, (7,)), torch.randint(0, 9, (7,))
    height, width = (size, size) if isinstance(size, int) else size
    expected = images.clone()
    for n in range(7):
        top, left = int(cy[n]) - height // 2, int(cx[n]) - width // 2
        expected[n, :, max(top, 0) : max(top + height, 0), max(left, 0) : max(left + width, 0)] = 0
    assert torch.equal(cutout(images, cy, cx, size), expected)


def test_cutout_on_bytes_and_its_gradient():
    images = torch.full((1, 1, 5, 5), 9, dtype=torch.uint8)
    centre = torch.tensor([2])
    assert cutout(images, centre, centre, 3).sum() == 9 * 16
    real = torch.rand(1, 1, 5, 5, requires_grad=True)
    cutout(real, centre, centre, 3).sum().backward()
    assert real.grad.sum() == 16, "gradient passes where the image does"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": -1}, "size: got -1; takes a whole number from 0"),
        ({"images": torch.zeros(3, 8, 8)}, r"images: got shape \(3, 8, 8\)"),
        ({"cy": torch.zeros(3, dtype=torch.int64)}, r"cy: got torch.int64 \(3,\); takes int64 \(2,\)"),
        ({"cx": torch.zeros(2)}, r"cx: got torch.float32 \(2,\)"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_cutout_bad_input(change, message):
    centre = torch.zeros(2, dtype=torch.int64)
    good = {"images": torch.zeros(2, 1, 8, 8), "cy": centre, "cx": centre, "size": 2}
    with pytest.raises(ValueError, match=message):
        cutout(**(good | change))


def test_cutout_is_not_torchvisions_erasing():
    """RandomErasing keeps its window inside the image; a Cutout centred on the corner erases a quarter of it."""
    images, corner = torch.ones(1, 1, 8, 8), torch.tensor([0])
    assert (cutout(images, corner, corner, 4) == 0).sum() == 4
    assert (v2.functional.erase(images, 0, 0, 4, 4, torch.zeros(1)) == 0).sum() == 16


def test_the_window_of_an_odd_size():
    """All s x s pixels; the code released with Cutout takes from c - s // 2 to c + s // 2, one row and column fewer."""
    images, centre = torch.ones(1, 1, 9, 9), torch.tensor([4])
    for size in (4, 5):
        released = images.clone()
        released[..., 4 - size // 2 : 4 + size // 2, 4 - size // 2 : 4 + size // 2] = 0
        assert (cutout(images, centre, centre, size) == 0).sum() == size**2
        assert (released == 0).sum() == 16


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float64])
def test_crop_flip_against_a_loop(dtype):
    images = (256 * torch.rand(9, 3, 8, 11)).to(dtype)
    top, left, flip = torch.randint(0, 4, (9,)), torch.randint(0, 6, (9,)), torch.rand(9) < 0.5
    windows = [
        image[:, y : y + 5, x : x + 6].flip(-1) if mirrored else image[:, y : y + 5, x : x + 6]
        for image, y, x, mirrored in zip(images, top.tolist(), left.tolist(), flip.tolist(), strict=True)
    ]
    assert torch.equal(crop_flip(images, top, left, flip, (5, 6)), torch.stack(windows))


@pytest.mark.usefixtures("unchecked")
def test_crop_flip_of_bad_draws():
    images, zero, flip = torch.zeros(2, 1, 8, 8), torch.zeros(2, dtype=torch.int64), torch.zeros(2).bool()
    with pytest.raises(ValueError, match=r"top: got torch\.float32 \(2,\); takes int64 \(2,\), one an image"):
        crop_flip(images, torch.zeros(2), zero, flip, (4, 4))
    with pytest.raises(ValueError, match=r"left: got torch\.int64 \(1,\); takes int64 \(2,\)"):
        crop_flip(images, zero, zero[:1], flip, (4, 4))
    with pytest.raises(ValueError, match=r"images: got shape \(1, 8, 8\); takes \(N, channels, H, W\)"):
        crop_flip(images[0], zero, zero, flip, (4, 4))


@pytest.mark.parametrize(("side", "padding"), [(5, 0), (5, 2), (5, 4), (9, 8)])
def test_reflected_padding_is_numpys(side, padding):
    expected = np.pad(np.arange(side), padding, mode="reflect")
    assert _reflected(side, padding, torch.device("cpu")).tolist() == expected.tolist()
