"""Frozen features: directions, neighbours and linear heads against brute force, NumPy and scikit-learn."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch.nn import functional as F

from companion import pretrained
from companion.pretrained import Photographs
from semaug.core.moments import ClassMoments
from semaug.data.sets import Data
from semaug.data.split import Split
from semaug.methods.isda import isda_loss

A, CLASSES = 4, ("cat", "dog", "ship")


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def photographs():
    """Three classes of 40 training images, each wide along an axis of its own."""
    generator, splits, features = seeded(), [], []
    for count in (40, 20):
        target = torch.arange(3).repeat_interleave(count)
        z = torch.randn(len(target), A, generator=generator) * 0.3
        z[range(len(z)), target] *= 6
        z[:, 3] += 2.0 * target
        images = torch.randint(0, 256, (len(target), 3, 8, 8), generator=generator, dtype=torch.uint8)
        splits.append(Split(images, target))
        features.append(z)
    return Photographs(Data("photographs", *splits, classes=CLASSES), *features, 0.9)


def test_a_leading_direction_is_numpys_eigenvector_with_a_fixed_sign():
    root = torch.randn(5, 5, generator=seeded(), dtype=torch.float64)
    covariance = root @ root.T
    values, vectors = np.linalg.eigh(covariance.numpy())
    for rank in (1, 2):
        found = pretrained.leading(covariance, rank)
        assert abs(float(found @ torch.from_numpy(vectors[:, -rank]))) == pytest.approx(1)
        assert found[found.abs().argmax()] > 0
    assert float(found @ covariance @ found) == pytest.approx(values[-2])


def test_each_class_varies_along_its_own_axis_and_the_classes_along_another(photographs):
    for label in range(3):
        found = pretrained.directions_of(photographs, label, seeded())
        assert found["class"].abs().argmax() == label
        assert found["between"].abs().argmax() == 3
        assert all(float(direction.norm()) == pytest.approx(1, abs=1e-6) for direction in found.values())
    two = Data("two", *(Split(s.images[:2], s.target[:2] + torch.arange(2)) for s in (photographs.dataset.train,) * 2))
    few = Photographs(two, photographs.train[:2], photographs.test[:2], 1.0)
    assert few.dataset.num_classes == 2


def test_ends_are_the_extremes_and_leave_out_near_copies():
    features = torch.randn(12, A, generator=seeded()) * 10
    features[3] = features[7] + 1e-3
    coordinate = features[:, 0]
    order = [row for row in coordinate.argsort().tolist() if row != max(3, 7, key=lambda r: coordinate[r].item())]
    found = pretrained.ends(coordinate, features, 2).tolist()
    assert found[:2] == order[:2]
    assert coordinate[found].tolist() == sorted(coordinate[found].tolist())
    assert not {3, 7} <= set(pretrained.ends(coordinate, features, 6).tolist())


def test_a_walk_finds_the_nearest_other_image(photographs):
    direction, lengths = F.one_hot(torch.tensor(0), A).float(), (-2.0, 0.0, 2.0)
    found = pretrained.walk(photographs, 5, direction, lengths).tolist()
    for row, length in zip(found, lengths, strict=True):
        distances = [float((z - photographs.train[5] - length * direction).norm()) for z in photographs.train]
        distances[5] = np.inf
        assert row == int(np.argmin(distances))


def test_moves_along_the_own_axis_keep_the_class_and_moves_between_the_classes_lose_it(photographs):
    found = pretrained.directions_of(photographs, 1, seeded())
    assert pretrained.kept(photographs, 1, found["class"], 0.0) > 0.9
    assert pretrained.kept(photographs, 1, found["class"], 2.0) > 0.8
    assert pretrained.kept(photographs, 1, found["between"], 2.0) < 0.5


def fitted(photographs, loss, strength, decay):
    z, y = photographs.train, photographs.dataset.train.target
    moments = ClassMoments(3, A)
    moments.update(z, y)
    return z, y, moments.covariance, pretrained.head(z, y, moments, loss, strength, decay)


def test_cross_entropys_head_is_scikit_learns(photographs):
    z, y, _, (weight, bias) = fitted(photographs, "cross-entropy", 0.0, 1e-2)
    model = LogisticRegression(C=1 / (2 * 1e-2 * len(y)), tol=1e-8, max_iter=10_000).fit(z.numpy(), y.numpy())
    ours, theirs = F.linear(z, weight, bias).softmax(1).numpy(), model.predict_proba(z.numpy())
    np.testing.assert_allclose(ours, theirs, atol=2e-3)  # L-BFGS stops at gradients of 1e-4


@pytest.mark.parametrize("loss", ["full", "diagonal", "shared", "quadratic"])
def test_a_head_is_at_the_optimum_of_what_its_name_says(photographs, loss):
    strength, decay = 0.7, 1e-2
    z, y, covariance, (weight, bias) = fitted(photographs, loss, strength, decay)
    shared = covariance.mean(0)  # the classes are of one size
    own = {
        "full": (40 * covariance + A * shared) / (40 + A),
        "diagonal": torch.diag_embed(covariance.diagonal(dim1=1, dim2=2)),
        "shared": shared.expand(3, A, A),
        "quadratic": shared.expand(3, A, A),
    }[loss]
    weight, bias = weight.double().requires_grad_(), bias.double().requires_grad_()
    z, total = z.double(), torch.zeros((), dtype=torch.float64)
    for features, label in zip(z, y.tolist(), strict=True):
        difference = weight - weight[label]
        q = torch.stack([d @ own[label].double() @ d for d in difference])
        logits = weight @ features + bias
        if loss == "quadratic":
            total = total - logits.log_softmax(0)[label] + 0.5 * strength * q.mean()
        else:
            total = total - (logits + 0.5 * strength * q).log_softmax(0)[label]
    value = total / len(y) + decay * weight.square().sum()
    slopes = torch.autograd.grad(value, (weight, bias))
    assert max(float(slope.detach().abs().max()) for slope in slopes) < 2e-3
    assert float(weight.detach().abs().max()) > 0.1


def test_to_second_order_in_the_weights_the_bound_is_a_quadratic_penalty(photographs):
    """|bound - cross-entropy - penalty| falls with the third power of the weights, or faster."""
    z, y = photographs.train.double(), photographs.dataset.train.target
    moments = ClassMoments(3, A)
    moments.update(photographs.train, y)
    covariance, weight = moments.covariance.double(), torch.randn(3, A, generator=seeded(), dtype=torch.float64)

    def rest(scale):
        w = scale * weight
        d = w - w[:, None]
        penalty = 0.25 * torch.einsum("cja,cab,cjb->cj", d, covariance, d).mean(1)[y].mean()
        plain = F.cross_entropy(F.linear(z, w), y)
        return abs(float(isda_loss(z, y, w, None, covariance, 0.5) - plain - penalty))

    assert rest(0.02) < rest(0.04) / 7
    assert rest(0.02) > 0


@pytest.mark.parametrize("tuned", ["nothing", "strength", "both"])
def test_heads_leave_a_record_of_their_sizes(monkeypatch, photographs, tuned):
    monkeypatch.setattr(pretrained, "_photographs", lambda root, **data: photographs)
    monkeypatch.setattr(pretrained, "AXES", A)
    monkeypatch.setattr(pretrained, "SIZES", (12, 30))
    monkeypatch.setattr(pretrained, "VALIDATION", 60)
    arm = SimpleNamespace(settings={"loss": "shared" if tuned != "nothing" else "cross-entropy", "tuned": tuned})
    run = SimpleNamespace(study=SimpleNamespace(data={}), arm=arm, seed=0, plan={"objective": "LinearHead"})
    record, arrays = pretrained.train_heads(run)
    again, _ = pretrained.train_heads(run)
    assert arrays == {}
    assert record.curves == again.curves
    assert record.curves["images"] == [12, 30]
    assert all(score > 0.5 for score in record.curves["test_accuracy"])
    assert record.metrics["test_accuracy"] == record.curves["test_accuracy"][-1]
    assert record.config["data"]["digest"] == photographs.dataset.digest
    assert (record.curves["strength"] == [0, 0]) == (tuned == "nothing")
    assert (record.curves["decay"] == [pretrained.DECAY] * 2) == (tuned != "both")


def test_what_is_looked_at_comes_with_pictures(monkeypatch, photographs):
    monkeypatch.setattr(pretrained, "_photographs", lambda root, **data: photographs)
    run = SimpleNamespace(study=SimpleNamespace(data={}), seed=0, plan={"objective": "Directions"})
    record, arrays = pretrained.look(run)
    assert record.config["classes"] == list(CLASSES)
    kinds = record.config["directions"]
    assert arrays["ends"].shape == (3, len(kinds), 8, 3, 64, 64)
    assert arrays["walks"].shape == (3, len(kinds), 7, 3, 64, 64)
    assert arrays["ends"].dtype == np.uint8
    for name in CLASSES:
        assert record.metrics[f"kept, {name}, class"] > record.metrics[f"kept, {name}, between"]
        assert record.metrics[f"deviation, {name}, class"] >= record.metrics[f"deviation, {name}, random"]


def test_features_are_kept_and_standardised(tmp_path, monkeypatch, photographs):
    calls, weight = [], torch.randn(192, 1280, generator=seeded()) / 1000

    def extractor():
        def features(images):
            calls.append(len(images))
            return images.flatten(1).float() @ weight

        return features

    monkeypatch.setattr(pretrained, "FEATURES", tmp_path)
    monkeypatch.setattr(pretrained, "CHUNK", 50)
    monkeypatch.setattr(pretrained, "extractor", extractor)
    first = Photographs.of(photographs.dataset, axes=3)
    assert sum(calls) == 180
    second = Photographs.of(photographs.dataset, axes=3)
    assert sum(calls) == 180, "read from the files"
    assert torch.equal(first.train, second.train)
    assert first.train.shape == (120, 3)
    assert 0 < first.explained < 0.5
    raw = (photographs.dataset.train.images.flatten(1).float() @ weight).half().double()  # as it is kept
    raw = (raw - raw.mean(0)) / raw.std(0)
    values = np.linalg.svd(raw.numpy(), compute_uv=False) ** 2
    assert first.explained == pytest.approx(values[:3].sum() / values.sum(), rel=1e-4)
    torch.testing.assert_close(first.train.mean(0), torch.zeros(3), atol=1e-4, rtol=0)
    assert float(first.train.square().mean()) == pytest.approx(1, rel=1e-4)


def test_the_pretrained_network_sees_what_an_image_shows():
    pytest.importorskip("efficientnet_lite_pytorch", reason="the extra pretrained is not installed")
    network = pretrained.extractor()
    images = torch.randint(0, 256, (2, 3, 32, 32), generator=seeded(), dtype=torch.uint8)
    found = network(torch.cat([images, images[:1]]))
    assert found.shape == (3, 1280)
    torch.testing.assert_close(found[0], found[2])
    assert float((found[0] - found[1]).abs().max()) > 0.1
