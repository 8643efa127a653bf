"""The generated set against shapes drawn by brute force, Python's own colour conversion, and counting."""

import colorsys
import math

import numpy as np
import pytest
import torch
from matplotlib.path import Path

from semaug.data import shapes

MIDDLE = {"hue": 0.1, "size": 0.35, "angle": 0.0, "y": 0.5, "x": 0.5, "background_hue": 0.6, "brightness": 0.3}


def one(name, side=32, **factors):
    target = torch.tensor([shapes.CLASSES.index(name)])
    return shapes.render(target, {key: torch.tensor([value]) for key, value in {**MIDDLE, **factors}.items()}, side)


def corners(*points):
    return lambda u, v: Path(np.array(points)).contains_points(np.stack([u.ravel(), v.ravel()], 1)).reshape(u.shape)


def polar(*radii, first=90):
    angles = np.radians(first + 360 / len(radii) * np.arange(len(radii)))
    return corners(*zip(radii * np.cos(angles), radii * np.sin(angles), strict=True))


# Membership of a point (u to the right, v upwards) in each upright shape, written down a second time.
INSIDE = {
    "disc": lambda u, v: u**2 + v**2 < 1,
    "ring": lambda u, v: (u**2 + v**2 < 1) & (u**2 + v**2 > 0.25),
    "crescent": lambda u, v: (u**2 + v**2 < 1) & ((u - 0.5) ** 2 + v**2 > 0.64),
    "half disc": lambda u, v: (u**2 + v**2 < 1) & (v > 0),
    "heart": lambda u, v: (
        (np.abs(u) + np.abs(v + 0.2) < 0.79) | ((np.abs(u) - 0.395) ** 2 + (v - 0.195) ** 2 < 0.79**2 / 2)
    ),
    "triangle": polar(1, 1, 1),
    "square": polar(1, 1, 1, 1, first=45),
    "star": polar(1, 0.42, 1, 0.42, 1, 0.42, 1, 0.42, 1, 0.42),
    "cross": lambda u, v: (
        (np.maximum(np.abs(u), np.abs(v)) < math.sqrt(0.91)) & (np.minimum(np.abs(u), np.abs(v)) < 0.3)
    ),
    "arrow": lambda u, v: (
        ((np.abs(u) < 0.25) & (v > -0.96) & (v < 0.2)) | ((v >= 0.2) & (np.abs(u) < 0.72 * (1 - v) / 0.8))
    ),
}


@pytest.mark.parametrize("name", shapes.CLASSES)
def test_drawn_as_by_brute_force(name):
    side, fine, size, angle, y, x = 32, 16, 0.3, 0.7, 0.46, 0.53
    split = one(name, size=size, angle=angle, y=y, x=x)

    def inside(points):
        right, up = np.meshgrid(points - x, y - points)
        u, v = math.cos(angle) * right + math.sin(angle) * up, math.cos(angle) * up - math.sin(angle) * right
        return INSIDE[name](u / size, v / size)

    mask = inside((np.arange(side) + 0.5) / side)
    assert np.array_equal(split.masks[0].numpy(), mask)
    rows, columns = np.nonzero(mask)
    assert split.boxes[0].tolist() == [rows.min(), columns.min(), rows.max() + 1, columns.max() + 1]

    covered = inside((np.arange(side * fine) + 0.5) / (side * fine)).reshape(side, fine, side, fine).mean((1, 3))
    image = split.images[0].double().numpy()
    background = image[:, :1, :1]
    colour = image[:, side // 2, side // 2 - 9 if name in ("ring", "crescent") else side // 2][:, None, None]
    if name in ("ring", "crescent", "half disc"):
        colour = np.array(colorsys.hsv_to_rgb(MIDDLE["hue"], shapes.SATURATION, shapes.VALUE))[:, None, None] * 255
    drawn = ((image - background) / (colour - background)).mean(0)
    # At an edge the error is that of a straight edge at 45 degrees, at most 0.1; at a sharp corner more, on few pixels.
    assert np.abs(drawn - covered).mean() < 0.006
    assert np.quantile(np.abs(drawn - covered), 0.98) < 0.12
    assert drawn.sum() == pytest.approx(covered.sum(), rel=0.03)


def test_colours_are_those_of_hsv():
    split = shapes.draw(200, seed=3)
    discs = split.take(split.target == 0)
    for index in range(len(discs)):
        factors = {name: float(values[index]) for name, values in discs.factors.items()}
        row, column = int(factors["y"] * 32), int(factors["x"] * 32)
        colour = colorsys.hsv_to_rgb(factors["hue"], shapes.SATURATION, shapes.VALUE)
        behind = colorsys.hsv_to_rgb(factors["background_hue"], shapes.BACKGROUND_SATURATION, factors["brightness"])
        for place, expected in (((row, column), colour), ((0, 0), behind)):  # one level: rounding
            assert np.allclose(discs.images[index, :, place[0], place[1]].numpy(), np.array(expected) * 255, atol=1)


def test_a_quarter_turn_turns_the_image_and_a_pixel_moves_it():
    for name in shapes.CLASSES:
        still, turned = one(name).images.int(), one(name, angle=math.pi / 2).images.int()
        assert (torch.rot90(still, 1, (2, 3)) - turned).abs().max() <= 1  # counter-clockwise, to a level of rounding
        moved = one(name, y=0.5 + 1 / 32, x=0.5 - 3 / 32).images.int()
        assert (torch.roll(still, (1, -3), (2, 3)) - moved).abs().max() <= 1


def test_mask_is_where_the_image_differs_and_nothing_is_cut_off():
    split = shapes.draw(2000, seed=1)
    for edge in (split.masks[:, 0], split.masks[:, -1], split.masks[:, :, 0], split.masks[:, :, -1]):
        assert not bool(edge.any())
    changed = (split.images != split.images[:, :, :1, :1]).any(1)
    assert bool((changed | ~split.masks).all())  # every pixel of a mask has the shape's colour in it
    area = math.pi * split.factors["size"] ** 2 * 32**2
    assert bool((split.masks.sum((1, 2)) <= area + 10).all())  # its circle, and edge pixels


def test_deterministic_and_balanced():
    split = shapes.draw(1000, seed=5)
    assert torch.equal(split.images, shapes.draw(1000, seed=5).images)
    assert not torch.equal(split.images, shapes.draw(1000, seed=6).images)
    assert torch.equal(split.take(slice(0, 100)).images, shapes.draw(100, seed=5).images)
    assert torch.bincount(split.target).tolist() == [100] * 10
    assert split.images.shape == (1000, 3, 32, 32)
    assert shapes.draw(10, side=64).images.shape == (10, 3, 64, 64)
    # The same everywhere: the first uniform numbers of torch's Mersenne Twister for seed 5.
    assert torch.allclose(split.factors["hue"][:2], torch.rand(2, 7, generator=torch.Generator().manual_seed(5))[:, 0])


def test_factors_are_uniform_and_independent():
    split = shapes.draw(8000, seed=0)
    table = np.stack([split.target.double().numpy(), *(values.double().numpy() for values in split.factors.values())])
    correlation = np.corrcoef(table) - np.eye(len(table))
    assert np.abs(correlation).max() < 0.05  # 4.5 standard errors, 1 / sqrt(8000) each
    for name, values in split.factors.items():
        low, high = shapes.RANGES[name]
        assert bool(((values >= low) & (values <= high)).all())
        assert float(values.mean()) == pytest.approx((low + high) / 2, abs=4.5 * (high - low) / math.sqrt(12 * 8000))


def test_ranges_restrict_one_factor_and_leave_the_others():
    whole, half = shapes.draw(500, seed=2), shapes.draw(500, seed=2, hue=(0.5, 1.0), angle=(0.3, 0.3))
    assert float(half.factors["hue"].min()) >= 0.5
    assert bool((half.factors["angle"] == 0.3).all())
    assert all(torch.equal(whole.factors[name], half.factors[name]) for name in ("size", "x", "y", "brightness"))
    wrapped = shapes.draw(500, seed=2, hue=(0.9, 1.1)).factors["hue"]
    assert bool(((wrapped >= 0.9) | (wrapped < 0.1001)).all())
    assert bool((wrapped < 1).all())


def test_whole_part_of_a_chunk_boundary():
    """1500 images are drawn in two parts; the second must be what it is alone."""
    whole = shapes.draw(1500, seed=4)
    factors = {name: values[1200:] for name, values in whole.factors.items()}
    assert torch.equal(whole.images[1200:], shapes.render(whole.target[1200:], factors).images)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n": 0}, "n: got 0"),
        ({"n": 5, "colour": (0, 1)}, "ranges: got 'colour'; takes one of hue, size"),
        ({"n": 5, "hue": (1, 0)}, r"hue: got the range \(1, 0\)"),
        ({"n": 5, "angle": (0, math.inf)}, "angle: got the range"),
        ({"n": 50, "x": (0.0, 1.0)}, "got a shape outside the image"),
        ({"n": 5, "size": (0.0, 0.0)}, "got a shape outside the image"),
        ({"n": 10, "size": (0.01, 0.01), "x": (0.5, 0.5)}, "size: got 0.01, which covers no pixel"),
        ({"n": 5, "brightness": (0.5, 1.5)}, r"brightness: got .*takes values in \[0, 1\]"),
        ({"n": 5, "side": 4}, "side: got 4; takes a whole number from 8"),
        ({"n": 5, "seed": 2**64}, f"seed: got {2**64}; takes a whole number below"),
    ],
)
def test_draw_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        shapes.draw(**arguments)


def test_render_refuses(unchecked):
    factors = shapes.draw(3).factors
    target = torch.tensor([0, 1, 2])
    with pytest.raises(ValueError, match=r"target: got \[0, 10\]; takes one or more of 0 to 9"):
        shapes.render(torch.tensor([0, 10, 0]), factors)
    with pytest.raises(ValueError, match="target: got "):
        shapes.render(target[:0], factors)
    with pytest.raises(ValueError, match=r"factors: got none for hue; takes hue, size"):
        shapes.render(target, {name: values for name, values in factors.items() if name != "hue"})
    with pytest.raises(ValueError, match=r"factors\['hue'\]: got shape \(2,\); takes 3 finite"):
        shapes.render(target, {**factors, "hue": torch.zeros(2)})
    with pytest.raises(ValueError, match=r"factors\['angle'\]: .* takes 3 finite"):
        shapes.render(target, {**factors, "angle": torch.full((3,), math.nan)})
