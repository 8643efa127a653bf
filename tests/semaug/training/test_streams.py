"""Streams: every image once an epoch, and crop and flip held to torchvision's."""

import pytest
import torch
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as tv

import throwaway
from semaug.data.sets import Split
from semaug.training.recipe import Recipe
from semaug.training.streams import Stream, generator_for


@pytest.mark.parametrize("mode", ["reflect", "zeros"])
@pytest.mark.parametrize("augment", ["none", "flip", "crop", "crop+flip"])
def test_crop_and_flip_equal_torchvision(augment, mode):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (6, 3, 9, 11), dtype=torch.uint8, generator=generator)
    recipe = Recipe(batch_size=6, augment=augment, padding=3, padding_mode=mode)
    stream = Stream(Split(images, torch.zeros(6, dtype=torch.int64)), "train", 6, recipe, 0, torch.device("cpu"))
    state = stream.draws.get_state()
    got = stream.batch(torch.arange(6), slice(None)).images

    stream.draws.set_state(state)  # the same draws again, in the same order
    flips = stream._draw(2) if "flip" in augment else torch.zeros(6)
    dy, dx = (stream._draw(7), stream._draw(7)) if "crop" in augment else (torch.zeros(6), torch.zeros(6))
    for i in range(6):
        image = images[i]
        if "crop" in augment:
            image = tv.pad(image, [3, 3], padding_mode="reflect" if mode == "reflect" else "constant")
        # the crop is chosen where the flipped column comes from: flip the columns, then cut dx further
        if "crop" in augment:
            image = image[:, int(dy[i]) : int(dy[i]) + 9, int(dx[i]) : int(dx[i]) + 11]
        if flips[i]:
            image = tv.horizontal_flip(image)
        assert torch.equal(got[i], image.float() / 255)


def test_every_image_once_an_epoch_and_all_offsets_drawn():
    data = throwaway.data(64)
    stream = Stream(data.train, "train", 16, throwaway.RECIPE, 0, torch.device("cpu"))
    first, second = stream.epoch(4), stream.epoch(4)
    assert sorted(first.flatten().tolist()) == sorted(second.flatten().tolist()) == list(range(64))
    assert not torch.equal(first, second)
    assert set(torch.cat([stream._draw(9) for _ in range(30)]).tolist()) == set(range(9))


def test_streams_do_not_share_draws():
    one, two = (generator_for(0, name) for name in ("order/train", "order/meta"))
    assert not torch.equal(torch.randperm(50, generator=one), torch.randperm(50, generator=two))


def test_padding_wider_than_the_image():
    split = Split(torch.zeros(4, 1, 12, 9, dtype=torch.uint8), torch.zeros(4, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"Recipe.padding: got 9; takes less than the image's side of 9"):
        Stream(split, "train", 4, Recipe(augment="crop", padding=9), 0, torch.device("cpu"))


@pytest.mark.parametrize("policy", ["randaugment", "autoaugment", "cutout5", "crop+flip+randaugment+cutout5"])
def test_policies_are_drawn_for_the_whole_batch(policy):
    """Two halves, as two processes take them, are one batch; the global generator is left alone."""
    images = torch.randint(0, 256, (8, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    split = Split(images, torch.arange(8))
    torch.manual_seed(7)
    before = torch.get_rng_state()
    parts = []
    for share in (slice(None), slice(0, 4), slice(4, 8)):
        stream = Stream(split, "train", 8, Recipe(batch_size=8, augment=policy), 0, torch.device("cpu"))
        parts.append(stream.batch(torch.arange(8), share).images)
    assert torch.equal(parts[0], torch.cat(parts[1:]))
    assert not torch.equal(parts[0], images.float() / 255)
    assert parts[0].shape == images.shape
    assert 0 <= parts[0].min() <= parts[0].max() <= 1
    assert torch.equal(before, torch.get_rng_state())


def test_randaugment_is_torchvisions():
    images = torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    recipe = Recipe(batch_size=4, augment="randaugment")
    stream = Stream(Split(images, torch.arange(4)), "train", 4, recipe, 0, torch.device("cpu"))
    state = stream.draws.get_state()
    got = stream.batch(torch.arange(4), slice(None)).images
    stream.draws.set_state(state)
    for image, seed, ours in zip(images, stream._draw(2**63 - 1).tolist(), got, strict=True):
        torch.manual_seed(seed)
        assert torch.equal(v2.RandAugment()(image).float() / 255, ours)


def test_cutout_window_is_drawn_anywhere():
    images = torch.full((512, 1, 8, 8), 255, dtype=torch.uint8)
    stream = Stream(Split(images, torch.zeros(512, dtype=torch.int64)), "train", 512,
                    Recipe(batch_size=512, augment="cutout4"), 0, torch.device("cpu"))  # fmt: skip
    black = (stream.batch(torch.arange(512), slice(None)).images == 0).float().mean((1, 2, 3))
    # By axis the window covers 4 of 8 pixels unless its centre (uniform on 0..7) cuts it: 2, 3, 4, 4, 4, 4, 4, 3.
    assert black.mean().item() == pytest.approx((28 / 64) ** 2, abs=0.01)
    assert black.max() == 0.25
