"""Few-shot classification against scikit-learn's ridge and scipy's distances on the same episodes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist
from sklearn import metrics
from sklearn.linear_model import Ridge

from companion import stats
from semaug.measures.few_shot import few_shot, linear_classifier, prototype_classifier


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
    weight, bias = linear_classifier(features.double(), target, 3, strength)
    expected = ridge(features, target, 3, strength)
    torch.testing.assert_close(weight, torch.from_numpy(expected.coef_))
    torch.testing.assert_close(bias, torch.from_numpy(expected.intercept_))


def test_prototype_classifier_is_the_nearest_mean():
    features, target = blobs()
    weight, bias = prototype_classifier(features, target, 6)
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
    result = few_shot(
        features, target, seeded_generator(), ways=ways, shots=shots, queries=6, episodes=8, classifier=classifier
    )
    generator, accuracies = seeded_generator(), []
    for _ in range(8):
        classes = torch.randperm(6, generator=generator)[:ways]
        rows = [(target == c).nonzero()[:, 0][torch.randperm(12, generator=generator)[: shots + 6]] for c in classes]
        support, query = torch.cat([row[:shots] for row in rows]), torch.cat([row[shots:] for row in rows])
        support_ways, query_ways = torch.arange(ways).repeat_interleave(shots), torch.arange(ways).repeat_interleave(6)
        if ways == 1:
            predicted = np.zeros(len(query))
        elif classifier == "prototype":
            means = torch.stack([features[support][support_ways == way].mean(0) for way in range(ways)])
            predicted = cdist(features[query].numpy(), means.numpy()).argmin(1)
        else:
            predicted = (
                ridge(features[support], support_ways, ways, 0.1).predict(features[query].double().numpy()).argmax(1)
            )
        accuracies.append(metrics.accuracy_score(query_ways, predicted))
    assert result.tolist() == pytest.approx(accuracies)
    assert result.dtype == torch.float64


@pytest.mark.parametrize("classifier", ["prototype", "linear"])
def test_few_shot_of_noise_is_chance_and_of_a_mark_of_the_class_perfect(classifier):
    """An image among both, those to learn from and those to be tried on, would be right: .2 would be .25."""
    target = torch.arange(400) % 8
    noise = torch.randn(400, 500)
    arguments = {"generator": seeded_generator(), "episodes": 300, "classifier": classifier}
    result = stats.summary(few_shot(noise, target, **arguments).tolist())
    assert abs(result.mean - 0.2) < 2 * result.half_width < 0.02
    marked = torch.nn.functional.one_hot(target, 8) + 0.01 * noise[:, :8]
    assert few_shot(marked, target, **arguments).min() == 1
    # a network that makes the same of every image: the first class is predicted, which is right for one in five
    assert few_shot(torch.ones(400, 3), target, **arguments).tolist() == pytest.approx([0.2] * 300)


@pytest.mark.parametrize("classifier", ["prototype", "linear"])
def test_few_shot_does_not_depend_on_scale_or_origin_and_repeats_by_seed(classifier):
    features, target = blobs()

    def result(features, seed=3):
        arguments = {"ways": 3, "queries": 5, "episodes": 10, "classifier": classifier}
        return few_shot(features, target, seeded_generator(seed), **arguments).tolist()

    assert result(features) == result(1000 * features) == result(0.001 * features)
    assert result(features) == result(1000 + features), "in float64: the squares of 1000 leave float32 no digit"
    assert result(features) != result(features, 4)


def test_prototypes_of_views_side_by_side_add_up_their_distances():
    views = torch.stack([blobs(seed=seed)[0] for seed in (1, 2)], 1)
    target = blobs()[1]
    weight, bias = prototype_classifier(views.flatten(1), target, 6)
    parts = [prototype_classifier(view, target, 6) for view in views.unbind(1)]
    scores = sum(view @ w.T + b for view, (w, b) in zip(views.unbind(1), parts, strict=True))
    torch.testing.assert_close(views.flatten(1) @ weight.T + bias, scores, rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("unchecked")
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
def test_bad_input(changes, message):
    with pytest.raises(ValueError, match=message):
        few_shot(*blobs(), seeded_generator(), **{"queries": 5, **changes})


@pytest.mark.usefixtures("unchecked")
def test_what_no_classifier_can_be_made_of():
    features, target = blobs()
    with pytest.raises(ValueError, match=r"target: got \[.*0\]; takes some features of each of 7 classes"):
        prototype_classifier(features, target, 7)
    with pytest.raises(ValueError, match="ridge: got -1; takes a finite number from 0"):
        linear_classifier(features, target, 6, ridge=-1)
    with pytest.raises(ValueError, match="features: got values that are not finite"):
        few_shot(features / 0, target, seeded_generator())
    with pytest.raises(ValueError, match=r"target: got torch.int32 \(72,\); takes int64 \(72,\), a class an image"):
        few_shot(features, target.int(), seeded_generator())
