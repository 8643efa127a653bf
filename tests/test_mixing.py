"""Mixing against golden values, loops and closed forms."""

import pytest
import torch

from semaug import mixing


def field(n, c, h, w):
    """x[n,c,i,j] = sin(0.1 n + 0.2 c + 0.05 i - 0.07 j), the images of the golden values."""
    n, c, i, j = torch.meshgrid(*(torch.arange(k, dtype=torch.float64) for k in (n, c, h, w)), indexing="ij")
    return torch.sin(0.1 * n + 0.2 * c + 0.05 * i - 0.07 * j)


def test_cutout_golden():
    """Values of the released DiffAugment code (mit-han-lab/data-efficient-gans) on the same draws."""
    out = mixing.cutout(field(4, 3, 8, 8), torch.tensor([0, 8, 4, 2]), torch.tensor([0, 8, 3, 7]), 4)
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
    assert torch.equal(mixing.cutout(images, cy, cx, size), expected)


def test_cutout_on_bytes_and_its_gradient():
    images = torch.full((1, 1, 5, 5), 9, dtype=torch.uint8)
    centre = torch.tensor([2])
    assert mixing.cutout(images, centre, centre, 3).sum() == 9 * 16
    real = torch.rand(1, 1, 5, 5, requires_grad=True)
    mixing.cutout(real, centre, centre, 3).sum().backward()
    assert real.grad.sum() == 16, "gradient passes where the image does"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": -1}, "size: got -1; takes whole numbers from 0"),
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
        mixing.cutout(**(good | change))
