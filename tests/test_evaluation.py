"""Evaluation against scikit-learn's metrics and counting by hand."""

from __future__ import annotations

import math

import pytest
import torch
from sklearn import metrics
from torch import nn

from semaug import evaluation, networks
from semaug.data import Split


def make_split(n=23, classes=4, channels=1, side=6):
    generator = torch.Generator().manual_seed(5)
    images = torch.randint(256, (n, channels, side, side), generator=generator, dtype=torch.uint8)
    return Split(images, torch.randint(classes, (n,), generator=generator))


def brightness(images):
    """Logits of four classes that depend on each image alone."""
    mean = images.mean((1, 2, 3))
    return torch.stack([mean, 1 - mean, images[:, 0, 0, 0], images[:, 0, 1, 1]], 1)


@pytest.mark.parametrize("batch_size", [1, 5, 23, 500])
def test_predictions_in_order_for_every_batch_size(batch_size):
    split = make_split()
    expected = brightness(split.images.float() / 255)
    torch.testing.assert_close(evaluation.predictions(brightness, split, batch_size), expected)


def test_accuracy_is_sklearns():
    split = make_split()
    called = brightness(split.images.float() / 255).argmax(1)
    assert evaluation.accuracy(brightness, split, 7) == metrics.accuracy_score(split.target, called)


def test_confusion_and_its_accuracies_are_sklearns():
    split = make_split(200)
    logits = evaluation.predictions(brightness, split)
    counts = evaluation.confusion(logits, split.target)
    called = logits.argmax(1)
    assert torch.equal(counts, torch.from_numpy(metrics.confusion_matrix(split.target, called)))
    recall = metrics.recall_score(split.target, called, average=None)
    assert evaluation.class_accuracy(counts).tolist() == pytest.approx(recall.tolist())
    assert evaluation.balanced_accuracy(counts) == pytest.approx(metrics.balanced_accuracy_score(split.target, called))


def test_a_class_that_is_not_there():
    logits = torch.eye(3)[torch.tensor([0, 0, 2, 1])]
    counts = evaluation.confusion(logits, torch.tensor([0, 0, 1, 1]))
    assert counts.tolist() == [[2, 0, 0], [0, 1, 1], [0, 0, 0]]
    one, half, absent = evaluation.class_accuracy(counts).tolist()
    assert (one, half) == (1.0, 0.5)
    assert math.isnan(absent)
    assert evaluation.balanced_accuracy(counts) == 0.75


def test_many_medium_few_by_hand():
    accuracy = torch.tensor([0.9, 0.8, 0.7, 0.4, 0.2, 0.1], dtype=torch.float64)
    counts = torch.tensor([500, 101, 100, 20, 19, 1])
    groups = evaluation.many_medium_few(accuracy, counts)
    assert groups == pytest.approx({"many": 0.85, "medium": 0.55, "few": 0.15})
    groups = evaluation.many_medium_few(accuracy, counts, few=1, many=500)
    assert groups["medium"] == pytest.approx(float(accuracy.mean()))
    assert math.isnan(groups["many"])
    assert math.isnan(groups["few"])


class Wrapped(nn.Module):
    def __init__(self):
        super().__init__()
        self.network = networks.small(4, width=8)

    def predict(self, images):
        assert not torch.is_grad_enabled()
        return self.network(images)


def test_evaluation_mode_for_the_call_and_the_old_modes_after_it():
    split, objective = make_split(), Wrapped()
    objective.network.stages[1].eval()  # a frozen part has to stay so
    modes = [part.training for part in objective.modules()]
    state = {name: value.clone() for name, value in objective.state_dict().items()}
    # in training mode BatchNorm would see other statistics in batches of another size
    one, two = (evaluation.predictions(objective.predict, split, size) for size in (4, 23))
    torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)
    assert [part.training for part in objective.modules()] == modes
    assert all(torch.equal(value, state[name]) for name, value in objective.state_dict().items())
    torch.testing.assert_close(evaluation.predictions(objective.network, split), two, rtol=1e-4, atol=1e-5)
    assert not one.requires_grad


def test_modes_come_back_after_an_error():
    network = networks.small(4, channels=3, width=8)
    with pytest.raises(ValueError, match="images"):
        evaluation.predictions(network, make_split())
    assert all(part.training for part in network.modules())


@pytest.mark.usefixtures("unchecked")
class TestBadInput:
    def test_empty_split(self):
        with pytest.raises(ValueError, match="split: got 0 images; takes at least one"):
            evaluation.accuracy(brightness, make_split().take(slice(0, 0)))

    def test_batch_size(self):
        with pytest.raises(ValueError, match="batch_size: got 0; takes a whole number from 1"):
            evaluation.accuracy(brightness, make_split(), 0)

    @pytest.mark.parametrize("predict", [lambda images: images.mean((1, 2, 3)), lambda images: brightness(images)[:-1]])
    def test_logits_of_another_shape(self, predict):
        with pytest.raises(ValueError, match=r"predict: got a result of shape .*; takes logits \(N, C\) for 23 images"):
            evaluation.predictions(predict, make_split())

    def test_logits_that_are_nan(self):
        with pytest.raises(ValueError, match="predict: got logits that are NaN for 23 of 23 images"):
            evaluation.accuracy(lambda images: brightness(images) * math.nan, make_split())

    def test_confusion_of_other_lengths(self):
        with pytest.raises(
            ValueError, match=r"logits and target: got shapes \(3, 4\) and \(2,\); takes \(N, C\) and \(N,\)"
        ):
            evaluation.confusion(torch.zeros(3, 4), torch.zeros(2, dtype=torch.int64))

    @pytest.mark.parametrize("wrong", [-1, 4])
    def test_target_outside(self, wrong):
        with pytest.raises(ValueError, match=r"target: got classes .*; takes 0 to 3"):
            evaluation.confusion(torch.zeros(3, 4), torch.tensor([0, wrong, 3]))

    def test_many_medium_few(self):
        with pytest.raises(ValueError, match=r"got shapes \(3,\) and \(2,\); takes \(C,\) and \(C,\)"):
            evaluation.many_medium_few(torch.ones(3), torch.ones(2, dtype=torch.int64))
        for few, many in ((0, 5), (6, 5)):
            with pytest.raises(ValueError, match="takes 0 < few <= many"):
                evaluation.many_medium_few(torch.ones(3), torch.ones(3, dtype=torch.int64), few, many)

    def test_balanced_accuracy_of_nothing(self):
        with pytest.raises(ValueError, match="counts: got no image"):
            evaluation.balanced_accuracy(torch.zeros(3, 3, dtype=torch.int64))
