"""Evaluation against scikit-learn's metrics and counting by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist
from sklearn import metrics
from sklearn.linear_model import Ridge
from torch import nn

from companion import stats
from semaug import networks
from semaug.data.sets import Split
from semaug.measures import few_shot as evaluation


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


# --- few-shot and separability --------------------------------------------------------------------------------------


def blobs(classes=6, each=12, width=4, apart=1.5, seed=0):
    """Features (N, A) of normal classes around random centres, shuffled, float32."""
    generator = torch.Generator().manual_seed(seed)
    target = torch.arange(classes * each)[torch.randperm(classes * each, generator=generator)] % classes
    centres = apart * torch.randn(classes, width, generator=generator)
    return centres[target] + torch.randn(len(target), width, generator=generator), target


def seeded_generator(seed=3):
    return torch.Generator().manual_seed(seed)


def ridge(features, target, classes, strength):
    """scikit-learn's, with the penalty that linear_classifier says."""
    features = features.double().numpy()
    distance = ((features - features.mean(0)) ** 2).sum(1).mean()
    return Ridge(alpha=strength * distance, solver="cholesky").fit(features, np.eye(classes)[target])


@pytest.mark.parametrize("width", [3, 40])  # fewer features than images, and more: two forms of one solution
@pytest.mark.parametrize("strength", [0.01, 1.0])
def test_linear_classifier_is_sklearns_ridge(width, strength):
    features, target = blobs(3, 5, width)
    weight, bias = evaluation.linear_classifier(features.double(), target, 3, strength)
    expected = ridge(features, target, 3, strength)
    torch.testing.assert_close(weight, torch.from_numpy(expected.coef_))
    torch.testing.assert_close(bias, torch.from_numpy(expected.intercept_))


# ten predictions of which two stand on an edge of five bins (golden values)
CONFIDENCE = torch.tensor([0.95, 0.9, 0.85, 0.55, 0.6, 0.3, 0.35, 1.0, 0.5, 0.2], dtype=torch.float64)
CORRECT = torch.tensor([1, 1, 0, 1, 0, 0, 1, 1, 1, 0]).bool()


def test_calibration_golden():
    found = evaluation.calibration(CONFIDENCE, CORRECT, 5)
    assert (found.ece, found.mce) == (pytest.approx(0.16, abs=1e-12), pytest.approx(0.2, abs=1e-12))
    expected = [[0, 0.2, 1, 0, 0.2], [0.2, 0.4, 2, 0.5, 0.325], [0.4, 0.6, 3, 2 / 3, 0.55], [0.8, 1, 4, 0.75, 0.925]]
    torch.testing.assert_close(found.table, torch.tensor(expected, dtype=torch.float64))
    fine = evaluation.calibration(CONFIDENCE, CORRECT)
    assert (fine.ece, fine.mce) == (pytest.approx(0.28, abs=1e-12), pytest.approx(0.85, abs=1e-12))


@pytest.mark.parametrize("bins", [1, 4, 15])
def test_calibration_bin_by_bin(bins):
    confidence, correct = torch.rand(500, dtype=torch.float64), torch.rand(500) < 0.7
    confidence[:3] = torch.tensor([0.0, 1.0, 0.25])
    ece, mce = 0.0, 0.0
    for k in range(bins):
        rows = [n for n, c in enumerate(confidence.tolist()) if k / bins < c <= (k + 1) / bins or (k == c == 0)]
        if rows:
            gap = abs(sum(correct[rows].tolist()) / len(rows) - sum(confidence[rows].tolist()) / len(rows))
            ece, mce = ece + gap * len(rows) / 500, max(mce, gap)
    found = evaluation.calibration(confidence, correct, bins)
    assert (found.ece, found.mce) == (pytest.approx(ece), pytest.approx(mce))
    assert found.table[:, 2].sum() == 500


def test_calibration_of_the_sure():
    sure = torch.ones(2)
    assert evaluation.calibration(sure, torch.tensor([True, True]))[:2] == (0, 0)
    assert evaluation.calibration(sure, torch.tensor([False, False]))[:2] == (1, 1)
    # one tenth in float32 is above one tenth: the upper bin
    assert evaluation.calibration(torch.tensor([0.1]), torch.tensor([True]), 10).table[0, 0] == 0.1


def test_prototype_classifier_is_the_nearest_mean():
    features, target = blobs()
    weight, bias = evaluation.prototype_classifier(features, target, 6)
    other = 2 * torch.randn(50, 4)
    means = torch.stack([features[target == c].mean(0) for c in range(6)])
    distances = (other[:, None] - means).square().sum(2)
    scores = other @ weight.T + bias
    expected = -0.5 * (distances - distances[:, :1])
    torch.testing.assert_close(scores - scores[:, :1], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("classifier", ["prototype", "linear"])
@pytest.mark.parametrize(("ways", "shots"), [(5, 1), (3, 4), (1, 2)])
def test_few_shot_is_scipy_and_sklearn_on_the_same_episodes(classifier, ways, shots):
    features, target = blobs()
    found = evaluation.few_shot(
        features, target, seeded_generator(), ways=ways, shots=shots, queries=6, episodes=8, classifier=classifier
    )
    generator, accuracies = seeded_generator(), []
    for _ in range(8):
        classes = torch.randperm(6, generator=generator)[:ways]
        rows = [(target == c).nonzero()[:, 0][torch.randperm(12, generator=generator)[: shots + 6]] for c in classes]
        support, query = torch.cat([row[:shots] for row in rows]), torch.cat([row[shots:] for row in rows])
        of_support, of_query = torch.arange(ways).repeat_interleave(shots), torch.arange(ways).repeat_interleave(6)
        if ways == 1:
            called = np.zeros(len(query))
        elif classifier == "prototype":
            means = torch.stack([features[support][of_support == way].mean(0) for way in range(ways)])
            called = cdist(features[query].numpy(), means.numpy()).argmin(1)
        else:
            called = ridge(features[support], of_support, ways, 0.1).predict(features[query].double().numpy()).argmax(1)
        accuracies.append(metrics.accuracy_score(of_query, called))
    assert found.tolist() == pytest.approx(accuracies)
    assert found.dtype == torch.float64


@pytest.mark.parametrize("classifier", ["prototype", "linear"])
def test_few_shot_of_noise_is_chance_and_of_what_tells_the_class_perfect(classifier):
    """An image among both, those to learn from and those to be tried on, would be called right: .2 would be .25."""
    target = torch.arange(400) % 8
    noise = torch.randn(400, 500)
    arguments = {"generator": seeded_generator(), "episodes": 300, "classifier": classifier}
    found = stats.summary(evaluation.few_shot(noise, target, **arguments).tolist())
    assert abs(found.mean - 0.2) < 2 * found.half_width < 0.02
    told = torch.nn.functional.one_hot(target, 8) + 0.01 * noise[:, :8]
    assert evaluation.few_shot(told, target, **arguments).min() == 1
    # a network that makes the same of every image: the first class is called, right for one in five
    assert evaluation.few_shot(torch.ones(400, 3), target, **arguments).tolist() == pytest.approx([0.2] * 300)


@pytest.mark.parametrize("classifier", ["prototype", "linear"])
def test_few_shot_does_not_depend_on_scale_or_origin_and_repeats_by_seed(classifier):
    features, target = blobs()

    def found(features, seed=3):
        arguments = {"ways": 3, "queries": 5, "episodes": 10, "classifier": classifier}
        return evaluation.few_shot(features, target, seeded_generator(seed), **arguments).tolist()

    assert found(features) == found(1000 * features) == found(0.001 * features)
    assert found(features) == found(1000 + features), "in float64: the squares of 1000 leave float32 no digit"
    assert found(features) != found(features, 4)


def test_prototypes_of_views_side_by_side_add_up_their_distances():
    views = torch.stack([blobs(seed=seed)[0] for seed in (1, 2)], 1)
    target = blobs()[1]
    weight, bias = evaluation.prototype_classifier(views.flatten(1), target, 6)
    parts = [evaluation.prototype_classifier(view, target, 6) for view in views.unbind(1)]
    scores = sum(view @ w.T + b for view, (w, b) in zip(views.unbind(1), parts, strict=True))
    torch.testing.assert_close(views.flatten(1) @ weight.T + bias, scores, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("n", "folds", "width"), [(20, 5, 7), (21, 4, 7), (6, 6, 30)])
def test_separability_is_sklearn_cross_validated_by_image(n, folds, width):
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(n, 3, width, generator=generator) + torch.linspace(0, 1, 3)[:, None]
    right = 0
    for held_out in torch.randperm(n, generator=seeded_generator()).chunk(folds):
        kept = [i for i in range(n) if i not in held_out.tolist()]
        model = ridge(features[kept].flatten(0, 1), torch.arange(3).repeat(len(kept)), 3, 0.1)
        called = model.predict(features[held_out].flatten(0, 1).double().numpy()).argmax(1)
        right += (called == np.tile(np.arange(3), len(held_out))).sum()
    found = evaluation.separability(features, seeded_generator(), folds)
    assert 1 / 3 < found < 1
    assert found == pytest.approx(right / (3 * n))


def test_separability_of_noise_is_chance_and_of_a_mark_perfect():
    noise = torch.randn(500, 4, 20)
    found = evaluation.separability(noise, seeded_generator())
    assert abs(found - 0.25) < 4 * (0.25 * 0.75 / 2000) ** 0.5
    marked = noise.clone()
    marked[..., :4] = 10 * torch.eye(4)
    assert evaluation.separability(marked, seeded_generator()) == 1
    # views of an image are alike, but were one of them in another fold nothing could be known of its place
    image = torch.randn(500, 1, 20).expand(500, 4, 20)
    assert evaluation.separability(image, seeded_generator()) == 0.25


def test_separability_given_the_class_is_the_mean_over_classes_and_sees_a_six_that_turned_is_a_nine():
    points = torch.randn(60, 1, 2, generator=seeded_generator()) * 0.1
    target = torch.arange(3).repeat_interleave(torch.tensor([10, 20, 30]))
    centre = torch.tensor([[1.0, 0], [-1.0, 0], [0, 1.0]])[target][:, None]
    features = torch.cat([points + centre, -points - centre], 1)  # turned by 180 degrees, class 0 looks like class 1
    assert evaluation.separability(features[:30], seeded_generator()) < 0.75, "of both together the views look alike"
    assert evaluation.separability(features[:30], seeded_generator(), target=target[:30]) == 1
    noisy, generator = features + torch.randn(60, 2, 2, generator=seeded_generator()), seeded_generator()
    parts = [evaluation.separability(noisy[target == c], generator) for c in range(3)]
    expected = (10 * parts[0] + 20 * parts[1] + 30 * parts[2]) / 60
    assert evaluation.separability(noisy, seeded_generator(), target=target) == pytest.approx(expected)


@pytest.mark.usefixtures("unchecked")
class TestBadInput:
    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"ways": 0}, "ways: got 0; takes a whole number from 1"),
            ({"episodes": 0}, "episodes: got 0; takes a whole number from 1"),
            ({"ways": 7}, "target: got 6 classes; takes at least 7 for 7 ways"),
            ({"shots": 8}, r"target: got a class of 12 images; takes 8 \+ 5 of each"),
            ({"classifier": "tree"}, "classifier: got 'tree'; takes one of prototype, linear"),
        ],
    )
    def test_few_shot(self, changes, message):
        with pytest.raises(ValueError, match=message):
            evaluation.few_shot(*blobs(), seeded_generator(), **{"queries": 5, **changes})

    def test_calibration(self):
        right = torch.ones(3).bool()
        for confidence, correct, message in (
            (torch.rand(2), right, r"got shapes \(2,\) and \(3,\); takes \(N,\) and \(N,\)"),
            (torch.rand(0), right[:0], "at least one"),
            (torch.tensor([0.5, 1.01, 0.3]), right, r"confidence: got 0.3 to 1.01; takes numbers in \[0, 1\]"),
            (torch.tensor([0.5, math.nan, 0.3]), right, "confidence: got nan"),
        ):
            with pytest.raises(ValueError, match=message):
                evaluation.calibration(confidence, correct)
        with pytest.raises(ValueError, match="bins: got 0"):
            evaluation.calibration(torch.rand(3), right, 0)

    @pytest.mark.parametrize("folds", [1, 11])
    def test_folds(self, folds):
        with pytest.raises(ValueError, match=f"folds: got {folds}; takes 2 to the number of images, 10"):
            evaluation.separability(torch.randn(10, 2, 3), seeded_generator(), folds)
        with pytest.raises(ValueError, match=r"target: got .*\(3,\); takes int64 \(10,\)"):
            evaluation.separability(torch.randn(10, 2, 3), seeded_generator(), target=torch.zeros(3, dtype=torch.int64))

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
