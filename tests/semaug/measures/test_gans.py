"""FID against SciPy's square root, KID against the sum over pairs, AUC against scikit-learn, neighbours by a loop."""

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from sklearn.metrics import roc_auc_score

import throwaway
from semaug import data
from semaug.core import pixels
from semaug.measures.gans import Quality, distance, features_of, flattest_window, nearest
from semaug.methods.diffaugment import DiffAugment
from semaug.methods.gan import memory


def test_fid_and_kid_by_their_formulas():
    torch.manual_seed(0)
    real, fake = torch.randn(60, 5, dtype=torch.float64), 1.5 * torch.randn(60, 5, dtype=torch.float64) + 0.3
    before = torch.get_rng_state()
    found = distance(real, fake, subsets=2, subset_size=60)
    assert torch.equal(before, torch.get_rng_state())
    covariances = [np.cov(x.numpy(), rowvar=False) for x in (real, fake)]
    root = sqrtm(covariances[0] @ covariances[1]).real
    fid = float((real.mean(0) - fake.mean(0)).square().sum()) + np.trace(sum(covariances) - 2 * root)
    assert found.fid == pytest.approx(fid, rel=1e-6)

    def kernel(a, b):
        return (a @ b.T / 5 + 1) ** 3

    def off_diagonal(k):
        return (k.sum() - k.diagonal().sum()) / (60 * 59)

    kid = off_diagonal(kernel(real, real)) + off_diagonal(kernel(fake, fake)) - 2 * kernel(real, fake).mean()
    assert found.kid == pytest.approx(kid.item(), rel=1e-6)  # a subset of all images is all of them
    assert found.kid_std == pytest.approx(0, abs=1e-9)
    assert distance(real, fake, 3, 20) == distance(real, fake, 3, 20), "subsets come from a seed"


def test_memory_against_scikit_learn():
    train, other = torch.randn(50).mul(4).round() / 4 + 0.5, torch.randn(30).mul(4).round() / 4  # with ties
    found = memory(train, other)
    labels = [1] * 50 + [0] * 30
    assert found.auc == pytest.approx(roc_auc_score(labels, torch.cat([train, other]).numpy()), abs=1e-12)
    assert found.accepted_train == sum(value > 0 for value in train.tolist()) / 50
    assert found.accepted_held_out == sum(value > 0 for value in other.tolist()) / 30


def test_memory_of_infinite_logits_is_that_of_their_order():
    found = memory(torch.tensor([torch.inf, 1.0]), torch.tensor([-torch.inf, 2.0]))
    assert tuple(found) == (1.0, 0.5, 0.75)


def test_nearest_by_a_loop():
    images, train = torch.rand(300, 1, 3, 3, dtype=torch.float64), torch.rand(20, 1, 3, 3, dtype=torch.float64)
    found = nearest(images, train, 2)
    for n in range(0, 300, 50):
        ranked = sorted((float((images[n] - each).square().sum().sqrt()), m) for m, each in enumerate(train))
        assert found.rows[n].tolist() == [m for _, m in ranked[:2]]
        assert found.distance[n].tolist() == pytest.approx([d for d, _ in ranked[:2]])
    assert nearest(train, train).rows.squeeze(1).tolist() == list(range(20))


def test_a_window_of_cutout_is_the_flattest():
    images = torch.rand(6, 3, 12, 12, dtype=torch.float64)
    centre = torch.tensor([3, 6, 8, 5, 9, 4])
    cut = (pixels.cutout(2 * images - 1, centre, centre, 6) + 1) / 2
    assert flattest_window(cut, (6, 6)).max() < 1e-12
    windows = [(images[..., i : i + 6, j : j + 6] - 0.5).square().mean((1, 2, 3)) for i in range(7) for j in range(7)]
    torch.testing.assert_close(flattest_window(images, (6, 6)), torch.stack(windows).amin(0).sqrt())


def test_features_in_batches_and_in_evaluation_mode():
    layer = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.BatchNorm1d(4))
    images = torch.rand(7, 1, 2, 2)
    found = features_of(layer, images, 3)
    torch.testing.assert_close(found, images.flatten(1) / (1 + 1e-5) ** 0.5)
    assert layer.training


class Copier(torch.nn.Module):
    """A "GAN" whose samples are the images it was given."""

    def __init__(self, images):
        super().__init__()
        self.images, self.discriminator = images, lambda images: images.mean((1, 2, 3))

    def codes(self, n, draws):
        return torch.randn(n, 2, generator=draws, device=draws.device)

    def sample(self, codes):
        return self.images[: len(codes)]

    def logits(self, split):
        return self.discriminator(2 * split.floats() - 1)


def test_quality_of_copies_of_test_images_and_of_cut_ones():
    torch.manual_seed(1)
    images = torch.randint(0, 256, (300, 1, 12, 12), dtype=torch.uint8)
    target = torch.zeros(300, dtype=torch.int64)
    train, test = data.Split(images[:100], target[:100]), data.Split(images[100:], target[100:])
    quality = Quality(data.Data("noise", train, test), torch.nn.Flatten(), 100)
    found = quality(Copier(test.floats()))
    assert found["fid"] == pytest.approx(0, abs=0.05)  # of 144 features, to the rounding of a square root
    assert found["leak"] == pytest.approx(0.01, abs=0.009)
    assert found["copy_ratio"] > 1e9, "each is a test image"
    assert found["logit_fake"] == pytest.approx(float(2 * test.take(slice(0, 100)).floats().mean() - 1), abs=1e-5)
    assert found["logit_train"] == pytest.approx(float(2 * train.floats().mean() - 1), abs=1e-5)
    copied = quality(Copier(pixels.cutout(2 * train.floats() - 1, *[torch.full((100,), 6)] * 2, 8) / 2 + 0.5))
    assert copied["leak"] == 1
    assert copied["copy_ratio"] < 0.9, "copies but for their window"
    assert copied["fid"] > found["fid"]
    assert quality(Copier(train.floats()))["copy_ratio"] == 0
    blobs = quality(Copier(torch.rand(100, 1, 1, 1).expand(-1, 1, 12, 12)))
    assert blobs["copy_ratio"] == pytest.approx(1, abs=0.02), "what is like nothing is no copy"


def test_augmented_test_images_as_the_aim():
    torch.manual_seed(2)
    images = torch.randint(0, 256, (300, 1, 12, 12), dtype=torch.uint8)
    target = torch.zeros(300, dtype=torch.int64)
    parts = data.Split(images[:100], target[:100]), data.Split(images[100:], target[100:])
    quality = Quality(data.Data("noise", *parts), torch.nn.Flatten(), 100)
    made = Copier(parts[1].floats())
    made.augment = DiffAugment("cutout")
    seen = made.augment(2 * quality.test - 1, torch.Generator().manual_seed(0)) / 2 + 0.5
    off, flattest = (
        np.array([min(float((window - 0.5).square().mean()) for window in windows(image, 6)) for image in each])
        for each in (seen, quality.test)
    )
    found = quality.augmented(made)
    assert 0.1 < found["leak_augmented"] == np.mean(off < np.quantile(flattest, 0.01)) < 1
    expected = distance(*(features_of(torch.nn.Flatten(), each) for each in (seen, quality.test))).fid
    assert found["fid_augmented"] == pytest.approx(expected, rel=1e-6)
    made.augment = None
    assert quality.augmented(made)["fid_augmented"] != found["fid_augmented"], "by T as released"


def test_what_other_real_images_have():
    """Held-out ones, as many as test images; else KID of the training images; of fewer than a hundred nothing."""
    torch.manual_seed(3)
    images = torch.randint(0, 256, (420, 1, 3, 3), dtype=torch.uint8)
    parts = [data.Split(part, torch.zeros(len(part), dtype=torch.int64)) for part in images.split([120, 150, 150])]
    train, validation, test = parts
    flat = [part.floats().flatten(1) for part in parts]

    def real(**named):
        return Quality(data.Data("noise", **named), torch.nn.Flatten(), 130).real_images()

    whole = distance(flat[2][:130], flat[1][:130])
    assert real(train=train, validation=validation, test=test) == {"real_fid": whole.fid, "real_kid": whole.kid}
    of_training = {"real_kid": distance(flat[2][:130], flat[0]).kid}
    assert real(train=train, test=test) == of_training
    assert real(train=train, validation=validation.take(slice(0, 129)), test=test) == of_training
    assert real(train=train.take(slice(0, 99)), test=test) == {}


def windows(image, size):
    """All square windows of an image."""
    return (image[:, i : i + size, j : j + size] for i in range(13 - size) for j in range(13 - size))


X = torch.rand(4, 3)
BAD = [
    (lambda: Quality(throwaway.data(), torch.nn.Flatten(), 0), "count: got 0; takes a whole number from 1"),
    (lambda: distance(X, X[:, :2]), r"real and generated: got shapes \(4, 3\) and \(4, 2\)"),
    (lambda: distance(X, X), "real: got 4 images; takes at least subset_size, 100"),
    (lambda: distance(X, X / 0, subset_size=4), "generated: got features that are not finite"),
    (lambda: distance(X, X, subset_size=1), "subset_size: got 1; takes a whole number from 2"),
    (lambda: memory(X[:0, 0], X[:, 0]), r"train_logits: got shape \(0,\); takes \(N,\), at least one"),
    (lambda: memory(X[:, 0] / 0 * 0, X[:, 0]), "train_logits: got nan; takes numbers"),
    (lambda: memory(X[:, 0], X[:, 0] / 0 * 0), "held_out_logits: got nan; takes numbers"),
    (lambda: nearest(X, X[:, :2]), r"images: got shape \(4, 3\); takes \(N, ...\) with train's \(4, 2\)"),
    (lambda: nearest(X, X, 5), "count: got 5; takes 1 to 4"),
    (lambda: flattest_window(torch.rand(1, 1, 4, 4), (5, 4)), r"size: got \(5, 4\); takes 1 to \(4, 4\)"),
]


@pytest.mark.parametrize(("call", "message"), BAD)
@pytest.mark.usefixtures("unchecked")
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
