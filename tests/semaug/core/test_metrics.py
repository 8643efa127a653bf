"""Predictions, accuracy and the confusion matrix against scikit-learn's metrics and counting by hand."""

from __future__ import annotations

import math

import pytest
import torch
from sklearn import metrics
from torch import nn

from semaug import networks
from semaug.core.metrics import accuracy, class_accuracy, confusion, evaluating, predictions
from semaug.data.split import Split


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
    torch.testing.assert_close(predictions(brightness, split, batch_size), expected)


def test_accuracy_is_sklearns():
    split = make_split()
    predicted = brightness(split.images.float() / 255).argmax(1)
    assert accuracy(brightness, split, 7) == metrics.accuracy_score(split.target, predicted)


def test_confusion_and_its_accuracies_are_sklearns():
    split = make_split(200)
    logits = predictions(brightness, split)
    counts = confusion(logits, split.target)
    predicted = logits.argmax(1)
    assert torch.equal(counts, torch.from_numpy(metrics.confusion_matrix(split.target, predicted)))
    recall = metrics.recall_score(split.target, predicted, average=None)
    assert class_accuracy(counts).tolist() == pytest.approx(recall.tolist())


def test_a_class_that_is_not_there():
    logits = torch.eye(3)[torch.tensor([0, 0, 2, 1])]
    counts = confusion(logits, torch.tensor([0, 0, 1, 1]))
    assert counts.tolist() == [[2, 0, 0], [0, 1, 1], [0, 0, 0]]
    one, half, absent = class_accuracy(counts).tolist()
    assert (one, half) == (1.0, 0.5)
    assert math.isnan(absent)


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
    one, two = (predictions(objective.predict, split, size) for size in (4, 23))
    torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)
    assert [part.training for part in objective.modules()] == modes
    assert all(torch.equal(value, state[name]) for name, value in objective.state_dict().items())
    torch.testing.assert_close(predictions(objective.network, split), two, rtol=1e-4, atol=1e-5)
    assert not one.requires_grad


def test_modes_come_back_after_an_error():
    network = networks.small(4, channels=3, width=8)
    with pytest.raises(ValueError, match="images"):
        predictions(network, make_split())
    assert all(part.training for part in network.modules())


@pytest.mark.usefixtures("unchecked")
def test_empty_split():
    with pytest.raises(ValueError, match="split: got 0 images; takes at least one"):
        accuracy(brightness, make_split().take(slice(0, 0)))


@pytest.mark.usefixtures("unchecked")
def test_batch_size():
    with pytest.raises(ValueError, match="batch_size: got 0; takes a whole number from 1"):
        accuracy(brightness, make_split(), 0)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("predict", [lambda images: images.mean((1, 2, 3)), lambda images: brightness(images)[:-1]])
def test_logits_of_another_shape(predict):
    with pytest.raises(ValueError, match=r"predict: got a result of shape .*; takes logits \(N, C\) for 23 images"):
        predictions(predict, make_split())


@pytest.mark.usefixtures("unchecked")
def test_logits_that_are_nan():
    with pytest.raises(ValueError, match="predict: got logits that are NaN for 23 of 23 images"):
        accuracy(lambda images: brightness(images) * math.nan, make_split())


@pytest.mark.usefixtures("unchecked")
def test_confusion_of_other_lengths():
    with pytest.raises(
        ValueError, match=r"logits and target: got shapes \(3, 4\) and \(2,\); takes \(N, C\) and \(N,\)"
    ):
        confusion(torch.zeros(3, 4), torch.zeros(2, dtype=torch.int64))


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("wrong", [-1, 4])
def test_target_outside(wrong):
    with pytest.raises(ValueError, match=r"target: got classes .*; takes 0 to 3"):
        confusion(torch.zeros(3, 4), torch.tensor([0, wrong, 3]))


@pytest.mark.usefixtures("unchecked")
def test_confusion_of_logits_that_are_nan():
    """argmax takes NaN for the largest number: of class 0 all would be right."""
    logits = torch.eye(3)
    logits[1] = math.nan
    with pytest.raises(ValueError, match="logits: got logits that are NaN for 1 of 3 images; takes numbers"):
        confusion(logits, torch.zeros(3, dtype=torch.int64))
    assert confusion(torch.full((2, 3), -math.inf), torch.tensor([0, 1])).sum() == 2, "an infinite logit is a number"


@pytest.mark.usefixtures("unchecked")
def test_confusion_of_targets_that_are_no_class_numbers():
    with pytest.raises(TypeError, match=r"target: got torch\.float32; takes int64 class numbers"):
        confusion(torch.eye(3), torch.zeros(3))


def test_evaluating_a_method_switches_its_module():
    objective = Wrapped()
    with evaluating(objective.predict):
        assert not any(part.training for part in objective.modules())
    with evaluating(lambda images: images):
        assert all(part.training for part in objective.modules())
