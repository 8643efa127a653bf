"""Oracles: pixels that differ from the ground, the loss written out, precision and recall at every threshold anew."""

from __future__ import annotations

import math

import pytest
import torch
from sklearn.metrics import average_precision_score
from torch import nn

from semaug import data, networks
from semaug.data.sets import Data
from semaug.measures import transfer
from semaug.measures.transfer import Detector, Found, Scenes, average_precision, detection, fit_detector, scenes
from semaug.training.recipe import Recipe

# --- fine-tuning ---------------------------------------------------------------------------------------------------


def test_fine_tuning_starts_from_the_network_with_a_new_head_and_leaves_it_alone():
    torch.manual_seed(3)
    network = networks.small(4, width=4)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    of = data.load("fashion-mini", train_size=60, test_size=40)

    def run(lr, seed=0):
        torch.manual_seed(torch.seed())  # the global generator has no say
        return transfer.fine_tune(network, "shapes", of, Recipe(epochs=1, batch_size=20, lr=lr), seed)

    record, objective = run(1e-12)
    assert record.config["network"] == "small(width=4) from shapes"
    assert record.config["objective"] == "CrossEntropy"
    for name, parameter in objective.network.named_parameters():
        if not name.startswith("head"):
            torch.testing.assert_close(parameter, dict(network.named_parameters())[name], rtol=0, atol=1e-6)
    assert objective.network.head.weight.shape == (10, 16)
    assert (objective.network.num_classes, network.num_classes) == (10, 4)
    (one, trained), (two, _) = run(0.05), run(0.05)
    assert one.curves == two.curves
    assert one.curves != run(0.05, seed=1)[0].curves
    assert not torch.equal(trained.network.stages[1].conv1.weight, before["stages.1.conv1.weight"])
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_fine_tuning_helps_where_images_are_few():
    """Ten classes of Fashion-MNIST from 60 images, after one training on other images of it: three seeds of each."""
    source = data.load("fashion-mini", train_size=1500, test_size=100)
    torch.manual_seed(0)
    network = networks.small(10, width=8)
    transfer.fine_tune(network, "nothing", source, Recipe(epochs=1))
    _, teacher = transfer.fine_tune(network, "nothing", source, Recipe(epochs=6, lr=0.1))
    whole = data.load("fashion-mini", test_size=500)
    few = Data("few", whole.train.take(slice(7000, 7060)), whole.test, classes=whole.classes)
    recipe = Recipe(epochs=10, batch_size=20, lr=0.05)

    def accuracies(start):
        found = (transfer.fine_tune(start, "a", few, recipe, seed)[0].metrics["test_accuracy"] for seed in range(3))
        return torch.tensor(list(found))

    assert (accuracies(teacher.network) > accuracies(network) + 0.05).all()


# --- scenes --------------------------------------------------------------------------------------------------------


def test_scenes_are_objects_on_one_ground():
    found = scenes(60, seed=4)
    assert found.images.shape == (60, 3, 64, 64)
    there = found.target >= 0
    assert there.any(1).all()
    assert 0.45 < there.double().mean() < 0.7  # (1 + 1 / 4) / 2 is 0.625
    for image, target, boxes in zip(found.images, found.target, found.boxes, strict=True):
        ground = image[:, 0, 0]
        seen = (image != ground[:, None, None]).any(0)
        covered = torch.zeros(64, 64, dtype=torch.bool)
        for quarter, (label, box) in enumerate(zip(target.tolist(), boxes.tolist(), strict=True)):
            top, left = 32 * (quarter // 2), 32 * (quarter % 2)
            inside = seen[top : top + 32, left : left + 32]
            if label < 0:
                assert box == [0, 0, 0, 0]
                assert not inside.any()
                continue
            y0, x0, y1, x1 = box
            rows, columns = inside.any(1).nonzero()[:, 0] + top, inside.any(0).nonzero()[:, 0] + left
            # the box is the mask's; a thin tip may pass between the centres of two more pixels
            for end, pixel in ((y0, rows[0]), (x0, columns[0]), (y1, rows[-1] + 1), (x1, columns[-1] + 1)):
                assert abs(end - int(pixel)) <= 2
            covered[max(y0 - 2, 0) : y1 + 2, max(x0 - 2, 0) : x1 + 2] = True
        assert not (seen & ~covered).any()
    again, other = scenes(60, seed=4), scenes(60, seed=5)
    assert all(torch.equal(a, b) for a, b in zip(found, again, strict=True))
    assert not torch.equal(found.target, other.target)
    assert len(found.target[there].unique()) == 10


def overlap(a, b):
    """Intersection over union of two boxes, by their ends."""
    sides = [min(a[k + 2], b[k + 2]) - max(a[k], b[k]) for k in (0, 1)]
    both = max(sides[0], 0) * max(sides[1], 0)
    return both / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both)


# --- the detector --------------------------------------------------------------------------------------------------


def test_loss_and_boxes_by_hand():
    torch.manual_seed(0)
    detector = Detector(networks.small(10, 3, width=4, norm="group"), 10, width=8).double()
    of = scenes(3, seed=1)
    images = of.images.double() / 255
    logits, boxes = detector(images)
    assert logits.shape == (3, 10, 8, 8)
    raw = detector.distances(detector.neck(nn.Sequential(*detector.stages)(images)))
    t, l, b, r = (raw[1, k, 2, 5].exp() * 8 for k in range(4))
    expected = torch.stack([20 - t, 44 - l, 20 + b, 44 + r])  # the middle of row 2 and column 5 of 8 pixels each
    torch.testing.assert_close(boxes[1, 2, 5], expected)

    positive, giou = set(), []
    for n in range(3):
        for label, (y0, x0, y1, x1) in zip(of.target[n].tolist(), of.boxes[n].tolist(), strict=True):
            if label < 0:
                continue
            y, x = int((y0 + y1) / 2 / 8), int((x0 + x1) / 2 / 8)
            positive.add((n, label, y, x))
            p0, q0, p1, q1 = boxes[n, y, x]
            both = max(min(p1, y1) - max(p0, y0), 0) * max(min(q1, x1) - max(q0, x0), 0)
            union = (p1 - p0) * (q1 - q0) + (y1 - y0) * (x1 - x0) - both
            hull = (max(p1, y1) - min(p0, y0)) * (max(q1, x1) - min(q0, x0))
            giou.append(both / union - (hull - union) / hull)
    focal = 0.0
    for place in ((n, c, y, x) for n in range(3) for c in range(10) for y in range(8) for x in range(8)):
        p = logits[place].sigmoid()
        focal += -0.25 * (1 - p) ** 2 * p.log() if place in positive else -0.75 * p**2 * (1 - p).log()
    expected = focal / len(positive) + sum(1 - g for g in giou) / len(giou)
    torch.testing.assert_close(detector.loss(images, of), expected, rtol=1e-6, atol=1e-8)  # eps of torchvision's


def test_detector_starts_alike_and_learns_a_few_scenes():
    """By heart: to be told where 24 objects or so are, a head has to be able to say it."""
    of = scenes(12, seed=2)

    def run():
        torch.manual_seed(0)
        network = networks.small(10, 3, width=12, norm="group")
        detector = Detector(network, 10, seed=7)
        before = detection(detector, of)
        return before, fit_detector(detector, of, 150, batch_size=12, lr=5e-3, seed=1), detection(detector, of)

    before, curve, after = run()
    assert before["ap50"] < 0.1
    assert curve[-1] < curve[0] / 5
    assert after["ap50"] > 0.9
    assert after["ap"] < after["ap50"]
    one, two = (Detector(networks.small(10, 3, width=4), 10, seed=7) for _ in range(2))
    assert torch.equal(one.neck[0].weight, two.neck[0].weight)
    assert torch.equal(one.classes.bias.sigmoid(), torch.full((10,), 0.01).logit().sigmoid())


def test_training_is_bitwise_by_seed():
    def run(seed):
        torch.manual_seed(0)
        detector = Detector(networks.small(10, 3, width=4), 10)
        return fit_detector(detector, scenes(20), 2, batch_size=8, seed=seed)

    assert run(0) == run(0)
    assert run(0) != run(1)


class Told(nn.Module):
    """Gives the logits and boxes that it is told."""

    def __init__(self, logits, boxes):
        super().__init__()
        self.logits, self.boxes = logits, boxes

    def forward(self, images):
        return self.logits, self.boxes


def test_detections_are_above_the_score_and_without_doubles():
    logits = torch.full((1, 2, 1, 4), -9.0)
    logits[0, 0, 0] = torch.tensor([2.0, 3.0, 1.0, -9.0])
    logits[0, 1, 0, 0] = 0.5
    boxes = torch.tensor([[0.0, 0, 8, 8], [0, 1, 8, 9], [20, 20, 30, 30], [0, 0, 8, 8]]).view(1, 1, 4, 4)
    (found,) = Detector.detect(Told(logits, boxes), torch.rand(1, 3, 8, 8))
    assert found.target.tolist() == [0, 0, 1], "of the first two, which overlap, the surer; another class may lie there"
    torch.testing.assert_close(found.scores, torch.tensor([3.0, 1.0, 0.5]).sigmoid())
    torch.testing.assert_close(found.boxes, boxes[0, 0, [1, 2, 0]])


@pytest.mark.parametrize("seed", range(4))
def test_surest_by_a_loop(seed):
    generator = torch.Generator().manual_seed(seed)
    corner, size = 20 * torch.rand(40, 2, generator=generator), 5 + 10 * torch.rand(40, 2, generator=generator)
    boxes, scores = torch.cat([corner, corner + size], 1), torch.rand(40, generator=generator)
    target, left, expected = torch.randint(2, (40,), generator=generator), set(range(40)), []
    while left:
        best = max(left, key=lambda k: scores[k].item())
        expected.append(best)
        left = {
            k
            for k in left - {best}
            if target[k] != target[best] or overlap(boxes[k].tolist(), boxes[best].tolist()) <= 0.3
        }
    assert transfer.surest(boxes, target, scores, 0.3).tolist() == expected
    assert 5 < len(expected) < 35


# --- average precision ---------------------------------------------------------------------------------------------


def some_scenes(n=4, seed=0):
    return scenes(n, seed)


def truth(of, n):
    there = of.target[n] >= 0
    return Found(of.boxes[n][there].float(), of.target[n][there], torch.rand(int(there.sum())))


def test_average_precision_of_all_and_of_nothing():
    of = some_scenes(10)
    exact = [truth(of, n) for n in range(10)]
    assert average_precision(exact, of, 1.0) == 1
    assert average_precision([Found(f.boxes, (f.target + 1) % 10, f.scores) for f in exact], of) < 0.2
    assert average_precision([Found(f.boxes[:0], f.target[:0], f.scores[:0]) for f in exact], of) == 0
    far = [Found(f.boxes + 40, f.target, f.scores) for f in exact]
    assert average_precision(far, of) < 0.2


def test_average_precision_by_hand():
    """One class, two objects; right, wrong, double, right: precision 1, 1/2, 1/3, 1/2, so (1 + 1/2) / 2."""
    boxes = torch.tensor([[[0, 0, 10, 10], [20, 20, 30, 30], [0] * 4, [0] * 4]])
    of = Scenes(torch.zeros(1, 3, 64, 64, dtype=torch.uint8), torch.tensor([[3, 3, -1, -1]]), boxes)
    places = torch.tensor([[0, 0, 10, 10], [40, 40, 50, 50], [0, 1, 10, 10], [20, 20, 30, 29]]).float()
    found = Found(places, torch.tensor([3, 3, 3, 3]), torch.tensor([0.9, 0.8, 0.7, 0.6]))
    assert average_precision([found], of) == pytest.approx(0.75)
    assert average_precision([found], of, 0.95) == pytest.approx(0.5), "the last overlaps by nine tenths"


@pytest.mark.parametrize("seed", range(6))
def test_average_precision_at_every_threshold_anew(seed):
    """Objects moved a little, some missed, some invented, some doubled; matched anew for every threshold."""
    generator = torch.Generator().manual_seed(seed)
    of, found = some_scenes(12, seed), []
    for n in range(12):
        true = truth(of, n)
        moved = true.boxes + torch.randint(-3, 4, true.boxes.shape, generator=generator)
        kept = torch.rand(len(moved), generator=generator) < 0.8
        invented = torch.tensor([[5.0, 5, 20, 20], [33, 33, 50, 60]])
        boxes = torch.cat([moved[kept], true.boxes, invented])
        labels = torch.cat([true.target[kept], true.target, torch.randint(10, (2,), generator=generator)])
        found.append(Found(boxes, labels, torch.rand(len(boxes), generator=generator)))

    def precision_and_recall(label, least):
        right = wrong = 0
        objects = int((of.target == label).sum())
        for n, each in enumerate(found):
            free = [box.tolist() for box in of.boxes[n][of.target[n] == label]]
            rows = zip(each.scores.tolist(), each.target.tolist(), each.boxes.tolist(), strict=True)
            for _, _, box in sorted((row for row in rows if row[1] == label and row[0] >= least), reverse=True):
                best = max(free, key=lambda other: overlap(box, other), default=None)
                if best is not None and overlap(box, best) >= 0.6:
                    free.remove(best)
                    right += 1
                else:
                    wrong += 1
        return right / max(right + wrong, 1), right / objects

    values = []
    for label in of.target[of.target >= 0].unique().tolist():
        scores = torch.cat([each.scores[each.target == label] for each in found]).tolist()
        points = [precision_and_recall(label, least) for least in scores]
        objects = int((of.target == label).sum())
        best = [max((p for p, r in points if r >= k / objects - 1e-9), default=0.0) for k in range(1, objects + 1)]
        values.append(sum(best) / objects)
    assert average_precision(found, of, 0.6) == pytest.approx(sum(values) / len(values), abs=1e-12)


def test_average_precision_is_scikit_learns_where_precision_falls():
    """The same area where the envelope changes nothing: all right ones are surer than the wrong ones, all are found."""
    boxes = torch.tensor([[[0, 0, 10, 10], [20, 20, 30, 30], [40, 40, 50, 50], [0] * 4]])
    of = Scenes(torch.zeros(1, 3, 64, 64, dtype=torch.uint8), torch.tensor([[1, 1, 1, -1]]), boxes)
    places = torch.tensor([[0, 0, 10, 10], [20, 20, 30, 30], [1, 40, 11, 50], [40, 40, 50, 50]]).float()
    scores, right = torch.tensor([0.9, 0.8, 0.7, 0.6]), [1, 1, 0, 1]
    found = average_precision([Found(places, torch.ones(4, dtype=torch.int64), scores)], of)
    assert found == pytest.approx(average_precision_score(right, scores.numpy()))


@pytest.mark.usefixtures("unchecked")
class TestBadInput:
    def test_arguments(self):
        of, network = some_scenes(), networks.small(10, 3, width=4)
        detector = Detector(network, 10, width=4)
        none = of._replace(target=torch.full_like(of.target, -1))
        found = [truth(of, n) for n in range(4)]
        for call, message in (
            (lambda: fit_detector(detector, of, 0), "epochs: got 0; takes a whole number from 1"),
            (lambda: fit_detector(detector, of, 1, 5), "batch_size: got 5; takes at most the 4 scenes"),
            (lambda: fit_detector(detector, of, 1, 2, math.nan), "lr: got nan; takes a finite number above 0"),
            (lambda: average_precision(found[:3], of), "found: got 3; takes 4, one a scene"),
            (lambda: average_precision(found, of, 0.0), r"overlap: got 0.0; takes a finite number in \(0, 1\]"),
            (lambda: average_precision(found, none), r"truth: got \[\]; takes scenes with at least one object"),
            (lambda: scenes(0), "n: got 0"),
            (lambda: Detector(network, 10, width=0), "width: got 0; takes a whole number from 1"),
            (lambda: transfer.fine_tune(network, "", None, Recipe()), "origin: got ''; takes what the network"),
        ):
            with pytest.raises(ValueError, match=message):
                call()

    def test_networks_without_parts(self):
        with pytest.raises(TypeError, match="network: got Flatten; takes one with stages and num_features"):
            Detector(nn.Flatten(), 10)
        with pytest.raises(TypeError, match="head"):
            transfer.fine_tune(nn.Flatten(), "a", None, Recipe())
