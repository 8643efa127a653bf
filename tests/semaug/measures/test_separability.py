"""Separability against scikit-learn's ridge, cross-validated by image."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge

from semaug.measures.separability import separability


def seeded_generator(seed=3):
    return torch.Generator().manual_seed(seed)


def ridge(features, target, classes, strength):
    """scikit-learn's, with the penalty that linear_classifier says."""
    features = features.double().numpy()
    distance = ((features - features.mean(0)) ** 2).sum(1).mean()
    return Ridge(alpha=strength * distance, solver="cholesky").fit(features, np.eye(classes)[target])


@pytest.mark.parametrize(("n", "folds", "width"), [(20, 5, 7), (21, 4, 7), (6, 6, 30)])
def test_separability_is_sklearn_cross_validated_by_image(n, folds, width):
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(n, 3, width, generator=generator) + torch.linspace(0, 1, 3)[:, None]
    right = 0
    for held_out in torch.randperm(n, generator=seeded_generator()).chunk(folds):
        others = [i for i in range(n) if i not in held_out.tolist()]
        model = ridge(features[others].flatten(0, 1), torch.arange(3).repeat(len(others)), 3, 0.1)
        predicted = model.predict(features[held_out].flatten(0, 1).double().numpy()).argmax(1)
        right += (predicted == np.tile(np.arange(3), len(held_out))).sum()
    result = separability(features, seeded_generator(), folds)
    assert 1 / 3 < result < 1
    assert result == pytest.approx(right / (3 * n))


def test_separability_of_noise_is_chance_and_of_a_mark_perfect():
    noise = torch.randn(500, 4, 20)
    result = separability(noise, seeded_generator())
    assert abs(result - 0.25) < 4 * (0.25 * 0.75 / 2000) ** 0.5
    marked = noise.clone()
    marked[..., :4] = 10 * torch.eye(4)
    assert separability(marked, seeded_generator()) == 1
    # views of an image are alike, but were one of them in another fold nothing could be known of its place
    image = torch.randn(500, 1, 20).expand(500, 4, 20)
    assert separability(image, seeded_generator()) == 0.25


def test_separability_given_the_class_is_the_mean_over_classes_and_sees_a_six_that_turned_is_a_nine():
    points = torch.randn(60, 1, 2, generator=seeded_generator()) * 0.1
    target = torch.arange(3).repeat_interleave(torch.tensor([10, 20, 30]))
    centre = torch.tensor([[1.0, 0], [-1.0, 0], [0, 1.0]])[target][:, None]
    features = torch.cat([points + centre, -points - centre], 1)  # turned by 180 degrees, class 0 looks like class 1
    assert separability(features[:30], seeded_generator()) < 0.75, "of both together the views look alike"
    assert separability(features[:30], seeded_generator(), target=target[:30]) == 1
    noisy, generator = features + torch.randn(60, 2, 2, generator=seeded_generator()), seeded_generator()
    parts = [separability(noisy[target == c], generator) for c in range(3)]
    expected = (10 * parts[0] + 20 * parts[1] + 30 * parts[2]) / 60
    assert separability(noisy, seeded_generator(), target=target) == pytest.approx(expected)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("folds", [1, 11])
def test_bad_input(folds):
    with pytest.raises(ValueError, match=f"folds: got {folds}; takes 2 to the number of images, 10"):
        separability(torch.randn(10, 2, 3), seeded_generator(), folds)
    with pytest.raises(ValueError, match=r"target: got .*\(3,\); takes int64 \(10,\)"):
        separability(torch.randn(10, 2, 3), seeded_generator(), target=torch.zeros(3, dtype=torch.int64))
