"""Mixing against golden values of the released codes, torchvision's transforms, loops and closed forms."""

import math
from functools import partial

import pytest
import torch
from hypothesis import given, strategies as st
from torch.nn import functional as F
from torchvision.transforms import v2

from semaug.methods import mixing


def field(n, c, h, w):
    """x[n,c,i,j] = sin(0.1 n + 0.2 c + 0.05 i - 0.07 j), the images of the golden values."""
    n, c, i, j = torch.meshgrid(*(torch.arange(k, dtype=torch.float64) for k in (n, c, h, w)), indexing="ij")
    return torch.sin(0.1 * n + 0.2 * c + 0.05 * i - 0.07 * j)


# --- labels ---------------------------------------------------------------------------------------------------------


def test_mixed_labels_are_the_two_cross_entropies_golden():
    """Loss, its two parts and gradient as torch's own losses had them (golden values)."""
    n, k = torch.meshgrid(torch.arange(4.0).double(), torch.arange(5.0).double(), indexing="ij")
    logits = torch.cos(0.3 * n - 0.4 * k).requires_grad_()
    images, target, permutation = torch.zeros(4, 1, 2, 2), torch.tensor([0, 3, 1, 4]), torch.tensor([2, 0, 3, 1])
    mixed = mixing.mixup(images, target, 0.37, permutation, num_classes=5)
    assert mixed.target.dtype == torch.float32
    soft = mixing.mixup(images, F.one_hot(target, 5).double(), 0.37, permutation).target
    loss = F.cross_entropy(logits, soft)
    assert loss.item() == pytest.approx(1.549117054817967, rel=1e-10)
    loss.backward()
    first = [-0.022043899084467855, -0.09239177874338866, 0.0520235522106726, 0.0372386644444877, 0.025173461172696216]
    assert logits.grad[0].tolist() == pytest.approx(first, abs=1e-10)
    torch.testing.assert_close(mixed.target.double(), soft)


def test_soft_labels_stay_soft():
    soft = torch.rand(3, 4, dtype=torch.float64).softmax(1)
    permutation = torch.tensor([1, 2, 0])
    mixed = mixing.cutmix(torch.rand(3, 1, 8, 8), soft, 0.5, permutation, 4, 4)
    torch.testing.assert_close(mixed.target, 0.75 * soft + 0.25 * soft[permutation])  # int(8 sqrt .5) // 2 * 2 = 4
    assert mixed.lam.item() == 0.75


# --- against torchvision -------------------------------------------------------------------------------------------


def torchvision_pair(transform, images, target, lam, monkeypatch, centre=None):
    """The transform with its draws replaced: lam, and for CutMix the centre (it draws the column first)."""
    transform._dist = type("Fixed", (), {"sample": lambda self, _=(): torch.tensor([lam])})()
    if centre is not None:
        draws = iter([torch.tensor([centre[1]]), torch.tensor([centre[0]])])
        monkeypatch.setattr(torch, "randint", lambda *_, **__: next(draws))
    result = transform(images, target)
    monkeypatch.undo()
    return result


@pytest.mark.parametrize("lam", [0.0, 0.1, 0.37, 1.0])
def test_mixup_is_torchvisions(lam, monkeypatch):
    """Their partners are the batch rolled by one, here a permutation like any other."""
    images, target, permutation = torch.rand(5, 3, 6, 8), torch.tensor([0, 3, 1, 2, 3]), torch.arange(5).roll(1)
    theirs = torchvision_pair(v2.MixUp(num_classes=4), images, target, lam, monkeypatch)
    ours = mixing.mixup(images, target, lam, permutation, num_classes=4)
    torch.testing.assert_close((ours.images, ours.target), tuple(theirs))


@pytest.mark.parametrize("shape", [(32, 32), (24, 32), (7, 9), (28, 28)])
def test_cutmix_is_torchvisions_for_the_same_draws(shape, monkeypatch):
    """Where they differ: their lam is drawn for the batch alone, and the label's ratio is float32."""
    H, W = shape
    images, target, permutation = torch.rand(4, 2, H, W), torch.tensor([0, 1, 2, 1]), torch.arange(4).roll(1)
    for cy, cx, lam in [(0, 0, 0.36), (H - 1, 3, 0.6), (H // 2, W // 2, 0.5), (3, W - 1, 0.05), (2, 2, 0.999)]:
        theirs = torchvision_pair(v2.CutMix(num_classes=3), images, target, lam, monkeypatch, (cy, cx))
        ours = mixing.cutmix(images, target, lam, permutation, cy, cx, num_classes=3)
        assert torch.equal(ours.images, theirs[0])
        torch.testing.assert_close(ours.target, theirs[1])


# --- boxes ---------------------------------------------------------------------------------------------------------

BOXES = [  # H, W, cy, cx, lam; rows and columns of the box, lam after clipping: clovaai's rand_bbox (golden values)
    (32, 32, 28, 5, 0.6, (18, 32, 0, 15), 0.794921875),
    (32, 32, 16, 16, 0.6, (6, 26, 6, 26), 0.609375),
    (32, 32, 0, 0, 0.36, (0, 12, 0, 12), 0.859375),
    (32, 32, 31, 31, 0.36, (19, 32, 19, 32), 0.8349609375),
    (24, 32, 3, 30, 0.75, (0, 9, 22, 32), 0.8828125),
    (7, 9, 3, 4, 0.5, (1, 5, 1, 7), 0.6190476190476191),
    (32, 32, 16, 16, 0.0, (0, 32, 0, 32), 0.0),
    (32, 32, 10, 10, 1.0, (10, 10, 10, 10), 1.0),
    (32, 32, 10, 10, 0.999, (10, 10, 10, 10), 1.0),
]


@pytest.mark.parametrize(("H", "W", "cy", "cx", "lam", "box", "adjusted"), BOXES)
def test_boxes_golden(H, W, cy, cx, lam, box, adjusted):
    found = mixing.cut_box(torch.tensor(lam, dtype=torch.float64), cy, cx, H, W)
    assert tuple(map(int, found)) == box
    images = torch.stack([torch.zeros(1, H, W), torch.ones(1, H, W)])
    mixed = mixing.cutmix(images, torch.tensor([0, 1]), lam, torch.tensor([1, 0]), cy, cx, num_classes=2)
    assert mixed.lam.item() == pytest.approx(adjusted, abs=1e-15)
    expected = torch.zeros(H, W)
    expected[box[0] : box[1], box[2] : box[3]] = 1
    assert torch.equal(mixed.images[0, 0], expected)
    assert torch.equal(mixed.images[1, 0], 1 - expected)
    torch.testing.assert_close(mixed.target[0], torch.tensor([adjusted, 1 - adjusted]).float())


@pytest.mark.parametrize(
    ("lam", "mean"),
    [
        (0.1, 0.4848012924194336),
        (0.25, 0.5807943344116211),
        (0.5, 0.6758565902709961),
        (0.75, 0.80859375),
        (0.9, 0.9170064926147461),
    ],
)
def test_mean_ratio_after_clipping_golden(lam, mean):
    """All 1024 centres of an image of 32 x 32."""
    centre = torch.arange(1024)
    ratio = torch.tensor(lam, dtype=torch.float64)
    top, bottom, left, right = mixing.cut_box(ratio, centre // 32, centre % 32, 32, 32)
    assert (1 - (bottom - top) * (right - left) / 1024).double().mean().item() == pytest.approx(mean, rel=1e-6)


@given(st.integers(1, 5), st.integers(1, 9), st.integers(1, 9), st.integers(0, 99), st.booleans())
def test_cutmix_and_resizemix_by_pixel(n, H, W, seed, every):
    """Of any shape, with a box for all images or one for each; resized by F.interpolate."""
    generator = torch.Generator().manual_seed(seed)
    shape = (n,) if every else ()
    lam = torch.rand(shape, generator=generator, dtype=torch.float64)
    cy, cx = (torch.randint(side, shape, generator=generator) for side in (H, W))
    images = torch.randint(256, (n, 2, H, W), generator=generator, dtype=torch.uint8)
    target, permutation = torch.arange(n) % 3, torch.randperm(n, generator=generator)
    for function in (mixing.cutmix, mixing.resizemix):
        mixed = function(images, target, lam, permutation, cy, cx, num_classes=3)
        for i in range(n):
            each = [int(t[i]) if every else int(t) for t in (cy, cx)]
            root = math.sqrt(1 - float(lam[i] if every else lam))
            (y0, y1), (x0, x1) = (
                (max(c - int(side * root) // 2, 0), min(c + int(side * root) // 2, side))
                for c, side in zip(each, (H, W), strict=True)
            )
            expected, partner = images[i].clone(), images[permutation[i]]
            area = max(y1 - y0, 0) * max(x1 - x0, 0)
            if area and function is mixing.resizemix:
                expected[:, y0:y1, x0:x1] = F.interpolate(partner[None].float(), (y1 - y0, x1 - x0))[0].byte()
            elif area:
                expected[:, y0:y1, x0:x1] = partner[:, y0:y1, x0:x1]
            assert torch.equal(mixed.images[i], expected)
            ratio = 1 - area / (H * W)
            assert float(mixed.lam[i] if every else mixed.lam) == pytest.approx(ratio, abs=1e-15)
            rows = F.one_hot(torch.stack([target[i], target[permutation[i]]]), 3).float()
            torch.testing.assert_close(mixed.target[i], ratio * rows[0] + (1 - ratio) * rows[1])


def test_resizemix_shows_the_whole_partner():
    """Each quarter of the partner is of one value, and so is each of the box."""
    quarters = torch.tensor([[1.0, 2.0], [3.0, 4.0]]).repeat_interleave(8, 0).repeat_interleave(8, 1)
    images = torch.stack([torch.zeros(1, 16, 16), quarters[None]])
    mixed = mixing.resizemix(images, torch.tensor([0, 1]), 0.75, torch.tensor([1, 0]), 8, 8, num_classes=2)
    expected = torch.tensor([[1.0, 2.0], [3.0, 4.0]]).repeat_interleave(4, 0).repeat_interleave(4, 1)
    assert torch.equal(mixed.images[0, 0, 4:12, 4:12], expected)


def test_saliencymix_takes_the_box_around_the_partners_peak():
    images, permutation = torch.rand(4, 3, 9, 12), torch.tensor([2, 0, 3, 1])
    saliency = torch.rand(4, 9, 12)
    target = torch.arange(4)
    mixed = mixing.saliencymix(images, target, 0.8, permutation, saliency, num_classes=4)
    for i, j in enumerate(permutation.tolist()):
        cy, cx = (saliency[j] == saliency[j].max()).nonzero()[0].tolist()
        one = mixing.cutmix(images, target, 0.8, permutation, cy, cx, num_classes=4)
        assert torch.equal(mixed.images[i], one.images[i])
        assert mixed.lam[i] == one.lam


def test_saliency_by_hand_and_where_the_object_is():
    image = torch.rand(1, 2, 7, 10, dtype=torch.float64)
    gray, expected = image[0].mean(0), torch.zeros(7, 10, dtype=torch.float64)
    for reach in (0, 1, 3):  # sides 1, 3 and 7
        for y in range(7):
            for x in range(10):
                window = gray[max(y - reach, 0) : y + reach + 1, max(x - reach, 0) : x + reach + 1]
                expected[y, x] += (gray[y, x] - window.mean()).abs()
    torch.testing.assert_close(mixing.fine_grained_saliency(image)[0], expected)
    assert not mixing.fine_grained_saliency(torch.full((1, 3, 8, 8), 9, dtype=torch.uint8)).any()
    blob = torch.zeros(1, 1, 24, 24)
    blob[0, 0, 15:18, 4:7] = 1
    assert mixing.fine_grained_saliency(blob).argmax() in [24 * y + x for y in (15, 16, 17) for x in (4, 5, 6)]


# --- maps ----------------------------------------------------------------------------------------------------------


def test_mixstyle_golden():
    """KaiyangZhou's MixStyle in float64; the biased variance would differ in the eighth digit."""
    lam, permutation = torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64), torch.tensor([2, 0, 1])
    out = mixing.mixstyle(field(3, 2, 4, 4), lam, permutation)
    assert out.sum().item() == pytest.approx(19.139886901406836, rel=1e-10)
    assert out.square().sum().item() == pytest.approx(5.879863694138033, rel=1e-10)
    first = [0.15827388553051264, 0.08911044725119104, 0.020285771457526164, -0.04786303862330829]
    assert out.flatten()[:4].tolist() == pytest.approx(first, rel=1e-9)


def test_mixstyle_has_the_mixed_moments_and_a_gradient_through_the_map_alone():
    maps = torch.randn(3, 2, 8, 8, dtype=torch.float64, requires_grad=True)
    permutation = torch.tensor([1, 2, 0])
    out = mixing.mixstyle(maps, 0.3, permutation)
    for moment in (lambda x: x.mean((2, 3)), lambda x: x.std((2, 3))):
        torch.testing.assert_close(moment(out), 0.3 * moment(maps) + 0.7 * moment(maps)[permutation], rtol=1e-5, atol=0)
    out.sum().backward()
    std = maps.std((2, 3), keepdim=True).detach()
    torch.testing.assert_close(
        maps.grad, ((0.3 * std + 0.7 * std[permutation]) / std).expand_as(maps), rtol=1e-5, atol=0
    )
    torch.testing.assert_close(mixing.mixstyle(maps, 1.0, permutation), maps)


def test_blend_is_in_float32_for_halves_and_differentiable():
    values, permutation = torch.rand(3, 2, 2, dtype=torch.bfloat16), torch.tensor([1, 2, 0])
    wide = 0.7 * values.float() + 0.3 * values[permutation].float()
    assert torch.equal(mixing.blend(values, torch.tensor(0.7), permutation), wide.bfloat16())
    lam = torch.rand(3, dtype=torch.float64, requires_grad=True)
    exact = torch.rand(3, 1, 2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, lam: mixing.blend(x, lam, permutation), (exact, lam))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_keeps_images_and_rounds_no_label(dtype):
    """Images stay what they are, computed in float32; the ratio of a box is exact for a ratio in half precision too."""
    images, permutation = torch.rand(3, 2, 7, 9).to(dtype), torch.tensor([1, 2, 0])
    mask, wide = torch.rand(3, 1, 7, 9), images.float()
    mixed = mixing.by_mask(images, torch.arange(3), mask, 0.3, permutation, 3)
    assert torch.equal(mixed.images, (mask * wide + (1 - mask) * wide[permutation]).to(dtype))
    assert mixing.mixup(images, torch.arange(3), 0.3, permutation, 3).images.dtype == dtype
    lam = torch.tensor(0.5, dtype=dtype)
    boxed = mixing.cutmix(images, torch.arange(3), lam, permutation, 3, 4, 3)
    assert boxed.lam.item() == pytest.approx(39 / 63, abs=1e-7)  # four rows of six


@pytest.mark.parametrize("name", ["mixup", "cutmix", "resizemix", "saliencymix", "by_mask"])
def test_empty_batch(name):
    none = torch.zeros(0, dtype=torch.int64)
    functions = FUNCTIONS | {"by_mask": partial(mixing.by_mask, mask=torch.rand(0, 1, 8, 6))}
    mixed = functions[name](torch.rand(0, 3, 8, 6), target=none, lam=0.4, permutation=none, num_classes=3)
    assert (mixed.images.shape, mixed.target.shape) == ((0, 3, 8, 6), (0, 3))


# --- bad input -----------------------------------------------------------------------------------------------------

FUNCTIONS = {
    "mixup": mixing.mixup,
    "cutmix": partial(mixing.cutmix, cy=3, cx=3),
    "resizemix": partial(mixing.resizemix, cy=3, cx=3),
    "saliencymix": lambda images, **more: mixing.saliencymix(images, saliency=images.mean(1), **more),
}


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("shape", [(1, 1, 8, 8), (3, 2, 8, 8), (4, 3, 5, 11)])
@pytest.mark.parametrize("lam", [0.0, 0.5, 1.0])
def test_batch_of_one_odd_batch_and_images_that_are_not_square(name, shape, lam):
    images, n = torch.rand(shape), shape[0]
    draws = {"lam": lam, "permutation": torch.arange(n).roll(1)}
    mixed = FUNCTIONS[name](images, target=torch.arange(n), num_classes=4, **draws)
    assert mixed.images.shape == shape
    torch.testing.assert_close(mixed.target.sum(1), torch.ones(n))
    if lam == 1 or (n == 1 and name != "resizemix"):
        assert torch.equal(mixed.images, images)
        assert torch.equal(mixed.target, F.one_hot(torch.arange(n), 4).float())


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lam": 1.1}, r"lam: got 1.1; takes numbers in \[0, 1\]"),
        ({"lam": -0.1}, r"lam: got -0.1; takes numbers in \[0, 1\]"),
        ({"lam": math.nan}, r"lam: got nan; takes numbers in \[0, 1\]"),
        ({"lam": torch.tensor([0.1, 0.2, 1.5])}, r"lam: got \[.*\]; takes numbers in"),
        ({"lam": torch.rand(2)}, r"lam: got torch.float32 \(2,\); takes a number or floats \(3,\)"),
        ({"lam": torch.tensor(1)}, r"lam: got torch.int64 \(\)"),
        ({"permutation": torch.tensor([1, 0])}, r"permutation: got torch.int64 \(2,\); takes int64 \(3,\)"),
        ({"permutation": torch.tensor([1, 0, 3])}, r"permutation: got \[1, 0, 3\]; takes numbers in \[0, 3\)"),
        ({"permutation": torch.tensor([1, 0, -1])}, r"permutation: got \[1, 0, -1\]"),
        ({"permutation": torch.rand(3)}, r"permutation: got torch.float32"),
        ({"images": torch.rand(3, 8, 8)}, r"images: got shape \(3, 8, 8\)"),
        ({"num_classes": None}, "num_classes: got None"),
        ({"num_classes": 2}, "target: got classes 0 to 2; takes 0 to 1"),
        ({"target": torch.tensor([0, -1, 1])}, "target: got classes -1 to 1"),
        ({"target": torch.rand(3)}, r"target: got soft labels of shape \(3,\); takes \(N, C\)"),
        ({"target": torch.rand(3, 4)}, r"target: got soft labels of shape \(3, 4\); takes \(N, C\) with C = 3"),
        ({"target": torch.eye(3).long()}, r"target: got torch.int64 \(3, 3\); takes class numbers"),
        ({"target": torch.arange(3).int()}, r"target: got torch.int32 \(3,\); takes class numbers"),
        ({"target": torch.tensor([1])}, "target: got 1 labels; takes 3, one an image"),
        ({"target": torch.rand(4, 3)}, "target: got 4 labels; takes 3, one an image"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_bad_input(name, changes, message):
    good = {"images": torch.rand(3, 1, 8, 8), "target": torch.arange(3), "lam": 0.5}
    good |= {"permutation": torch.tensor([1, 2, 0]), "num_classes": 3}
    with pytest.raises(ValueError, match=message):
        FUNCTIONS[name](**(good | changes))


@pytest.mark.usefixtures("unchecked")
def test_other_bad_input():
    images, target, permutation = torch.rand(2, 1, 8, 8), torch.arange(2), torch.tensor([1, 0])
    with pytest.raises(TypeError, match=r"images: got torch.uint8; takes floats"):
        mixing.mixup(images.byte(), target, 0.5, permutation, 2)
    with pytest.raises(ValueError, match=r"cx: got torch.float32 \(2,\); takes a whole number or int64"):
        mixing.cutmix(images, target, 0.5, permutation, 3, torch.rand(2), 2)
    for function in (mixing.cutmix, mixing.resizemix):
        with pytest.raises(ValueError, match=r"cy: got torch.int64 \(3,\); takes .* int64, 0-d or \(2,\)"):
            function(images, target, 0.5, permutation, torch.arange(3), 3, 2)
        with pytest.raises(ValueError, match=r"cx: got 3.5; takes a whole number"):
            function(images, target, 0.5, permutation, 3, 3.5, 2)
    with pytest.raises(TypeError, match=r"images: got torch.uint8; takes floats"):
        mixing.by_mask(images.byte(), target, torch.rand(2, 1, 8, 8), 0.5, permutation, 2)
    with pytest.raises(ValueError, match=r"mask: got shape \(2, 8, 8\); takes \(2, 1, 8, 8\) = \(N, 1, H, W\)"):
        mixing.by_mask(images, target, torch.rand(2, 8, 8), 0.5, permutation, 2)
    with pytest.raises(TypeError, match=r"features: got torch.uint8; takes floats"):
        mixing.mixstyle(images.byte(), 0.5, permutation)
    with pytest.raises(ValueError, match=r"features: got shape \(2, 8, 8\)"):
        mixing.mixstyle(images[:, 0], 0.5, permutation)
    with pytest.raises(ValueError, match=r"saliency: got shape \(2, 8, 7\)"):
        mixing.saliencymix(images, target, 0.5, permutation, torch.rand(2, 8, 7), 2)
    with pytest.raises(ValueError, match="features: got maps of 1 x 1; takes two pixels at least"):
        mixing.mixstyle(torch.rand(2, 3, 1, 1), 0.5, permutation)
    assert mixing.mixstyle(torch.rand(2, 3, 2, 1), 0.5, permutation).isfinite().all()
    empty = mixing.mixstyle(torch.rand(0, 3, 4, 4), 0.5, torch.zeros(0, dtype=torch.int64))
    assert empty.shape == (0, 3, 4, 4)
    with pytest.raises(ValueError, match=r"lam: got 2.0"):
        mixing.mixstyle(images, 2.0, permutation)
