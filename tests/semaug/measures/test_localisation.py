"""Oracles: the identity of map and logit, boxes by a flood fill, overlaps by counting pixels."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from semaug import data, networks
from semaug.measures.localisation import activation_maps, boxes, localisation


@pytest.mark.parametrize("family", [networks.small, networks.resnet18])
def test_the_mean_of_a_map_is_the_logit(family):
    torch.manual_seed(0)
    network = family(4, channels=3).train()
    images, target = torch.rand(5, 3, 32, 32), torch.tensor([0, 3, 1, 2, 2])
    maps, logits = activation_maps(network, images, target)
    assert network.training
    torch.testing.assert_close(logits, network.eval()(images))
    expected = logits.gather(1, target[:, None])[:, 0] - network.head.bias[target]
    torch.testing.assert_close(maps.mean((1, 2)), expected.detach())
    assert not maps.requires_grad


def flood(inside):
    """Box of the largest piece whose pixels hang together by their sides; of equals the first."""
    H, W = len(inside), len(inside[0])
    seen, best = set(), []
    for start in [(y, x) for y in range(H) for x in range(W) if inside[y][x]]:
        piece, queue = [], [start]
        while queue:
            y, x = queue.pop()
            if (y, x) in seen or not (0 <= y < H and 0 <= x < W) or not inside[y][x]:
                continue
            seen.add((y, x))
            piece.append((y, x))
            queue += [(y + 1, x), (y - 1, x), (y, x + 1), (y, x - 1)]
        best = max(best, piece, key=len)
    ys, xs = zip(*best, strict=True)
    return [min(ys), min(xs), max(ys) + 1, max(xs) + 1]


@pytest.mark.parametrize("threshold", [0.2, 0.5, 0.9, 1.0])
def test_boxes_by_flood_fill(threshold):
    maps = 5 * torch.rand(20, 7, 9) - 2
    found = boxes(maps, threshold)
    for each, box in zip(maps, found, strict=True):
        scaled = (each - each.min()) / (each.max() - each.min())
        assert box.tolist() == flood((scaled >= threshold).tolist())
    assert boxes(torch.zeros(1, 3, 4)).tolist() == [[0, 0, 3, 4]]


class Looks(nn.Module):
    """A network whose one map is the red channel, or the mask that it is told."""

    def __init__(self, stage):
        super().__init__()
        self.stages = nn.ModuleList([stage])
        self.head = nn.Linear(1, 10, bias=False)
        nn.init.ones_(self.head.weight)
        self.pool = networks.GlobalMean()


def test_a_network_that_sees_the_object_finds_it_and_one_that_sees_nothing_does_not():
    split = data.load("shapes", train_size=100, test_size=60).test

    class Mask(nn.Module):
        def forward(self, images):
            return split.masks[:, None].float()

    class Corner(nn.Module):
        def forward(self, images):
            maps = torch.zeros(len(images), 1, 32, 32)
            maps[:, :, 0, 0] = 1
            return maps

    found = localisation(Looks(Mask()), split, threshold=0.5)
    masks, true = split.masks, split.boxes
    # linear interpolation to the same size changes nothing; objects in one piece have exactly their box
    overlaps = []
    for mask, box in zip(masks, true, strict=True):
        y0, x0, y1, x1 = flood(mask.tolist())
        one, two = torch.zeros(32, 32).bool(), torch.zeros(32, 32).bool()
        one[y0:y1, x0:x1] = True
        two[box[0] : box[2], box[1] : box[3]] = True
        overlaps.append(((one & two).sum() / (one | two).sum()).item())
    assert found.overlap == pytest.approx(sum(overlaps) / 60)
    assert found.box == pytest.approx(sum(o >= 0.5 for o in overlaps) / 60)
    assert found.pointing == 1
    assert found.classified == pytest.approx(
        sum(o >= 0.5 and int(y) == 0 for o, y in zip(overlaps, split.target, strict=True)) / 60
    ), "ten equal logits call the first class"
    nothing = localisation(Looks(Corner()), split)
    assert (nothing.box, nothing.pointing) == (0, 0)


def test_batches_change_nothing():
    split = data.load("shapes", train_size=100, test_size=50).test
    torch.manual_seed(0)
    network = networks.small(10, channels=3)
    one, two = (localisation(network, split, batch_size=size) for size in (50, 13))
    assert tuple(one) == pytest.approx(tuple(two), abs=0.021)  # a rounding may move a threshold's pixel of one image


@pytest.mark.usefixtures("unchecked")
def test_bad_input():
    with pytest.raises(ValueError, match=r"threshold: got 0; takes a finite number in \(0, 1\]"):
        boxes(torch.rand(1, 3, 3), 0)
    with pytest.raises(TypeError, match="network: got Flatten; takes one with stages, pool and head"):
        activation_maps(nn.Flatten(), torch.rand(1, 1, 4, 4), torch.zeros(1).long())
    with pytest.raises(ValueError, match="maps: got values that are not finite"):
        boxes(torch.full((1, 3, 3), float("nan")))
    none = data.load("shapes", train_size=100, test_size=50).test.take(slice(0, 0))
    with pytest.raises(ValueError, match="split: got 0 images; takes at least one"):
        localisation(networks.small(10, channels=3), none)
    with pytest.raises(ValueError, match="split: got one without boxes or masks"):
        localisation(networks.small(10), data.load("fashion-mini", train_size=100, test_size=50).test)
