r"""What a GAN is worth: how far its images are from real ones, and what its discriminator has learned by heart.

Distances are between features $a = f(x)$ of real and of generated images. With their means and covariances

$$\mathrm{FID} = |\mu_r - \mu_g|^2 + \mathrm{tr}\bigl(\Sigma_r + \Sigma_g - 2 (\Sigma_r \Sigma_g)^{1/2}\bigr), \tag{1}$$

and the squared maximum mean discrepancy of the kernel $k(a, b) = (a^\top b / A + 1)^3$, unbiased, over subsets:

$$\mathrm{KID} = \mathbb E\,k(r, r') + \mathbb E\,k(g, g') - 2\,\mathbb E\,k(r, g). \tag{2}$$

The usual $f$ is an Inception network trained on ImageNet, whose weights are to be downloaded. Here it is a classifier
trained on the images at hand (``codes.judge``): "FID on the features of a classifier trained here", comparable between
runs of one set and with no number of a paper. FID is biased: compare it at equal numbers of images alone.

What a discriminator has learned by heart shows in its mean logits of training, held-out and generated images, and a
generator in how near its samples are to training images and to others of the same kind.

* FID: Heusel, Ramsauer, Unterthiner, Nessler, Hochreiter, NeurIPS 2017, https://arxiv.org/abs/1706.08500
* KID: Bińkowski, Sutherland, Arbel, Gretton, ICLR 2018, https://arxiv.org/abs/1801.01401
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from semaug._checks import check_count, check_finite, require
from semaug.core.metrics import evaluating
from semaug.data.sets import Data
from semaug.data.split import Split
from semaug.methods.diffaugment import DiffAugment

Images = Float[Tensor, "N channels H W"]

Features = Float[Tensor, "N A"]


@runtime_checkable
class Players(Protocol):
    """What is measured: a :class:`semaug.GAN`, or anything with these."""

    @property
    def discriminator(self) -> Callable[[Tensor], Tensor]:
        """Images in [-1, 1] to logits (N,)."""

    def codes(self, n: int, draws: torch.Generator) -> Tensor:
        """Codes (n, K) of images to be generated."""

    def sample(self, codes: Tensor) -> Tensor:
        """The images of codes, in [0, 1]."""

    def logits(self, split: Split) -> Tensor:
        """The discriminator's, (N,), of the images of a split."""


class Distance(NamedTuple):
    """(1), and (2) as mean and standard deviation over subsets."""

    fid: float
    kid: float
    kid_std: float


def distance(
    real: Features, generated: Float[Tensor, "M A"], subsets: int = 50, subset_size: int = 100, seed: int = 0
) -> Distance:
    """FID (1) and KID (2) of torchmetrics.

    Args:
        real: features of real images, (N, A).
        generated: features of generated images, (M, A).
        subsets: of KID; the global generator is left alone.
        subset_size: images of each subset, at least 2 and at most N and M.
        seed: decides the subsets.

    Raises:
        ValueError: for features that are not (N, A) and (M, A), of fewer images than ``subset_size``, or not finite.
    """
    subsets, subset_size = check_count("subsets", subsets), check_count("subset_size", subset_size, 2)
    if real.ndim != 2 or generated.ndim != 2 or real.shape[1] != generated.shape[1]:
        got = f"{tuple(real.shape)} and {tuple(generated.shape)}"
        raise ValueError(f"real and generated: got shapes {got}; takes (N, A) and (M, A)")
    for name, features in (("real", real), ("generated", generated)):
        if len(features) < subset_size:
            raise ValueError(f"{name}: got {len(features)} images; takes at least subset_size, {subset_size}")
        if not bool(features.isfinite().all()):
            raise ValueError(f"{name}: got features that are not finite; takes numbers")
    from torchmetrics.image.fid import FrechetInceptionDistance
    from torchmetrics.image.kid import KernelInceptionDistance

    given = nn.Identity()  # as extractor: the features are there
    given.num_features = real.shape[1]  # type: ignore[assignment]  # what torchmetrics asks of an extractor
    fid = FrechetInceptionDistance(feature=given).to(real.device)
    with warnings.catch_warnings():  # that it keeps the features, which are here already
        warnings.simplefilter("ignore", UserWarning)
        kid = KernelInceptionDistance(feature=given, subsets=subsets, subset_size=subset_size).to(real.device)
    for metric in (fid, kid):
        metric.update(real, real=True)
        metric.update(generated, real=False)
    with torch.random.fork_rng(devices=[]):  # it draws from the global generator, on the CPU
        torch.default_generator.manual_seed(seed)
        mean, std = kid.compute()
    return Distance(float(fid.compute()), float(mean), float(std))


@torch.no_grad()
def features_of(extract: Callable[[Tensor], Tensor], images: Images, batch_size: int = 500) -> Features:
    """Features of images, a batch at a time.

    Args:
        extract: images in [0, 1] to features (n, A): ``judge(data).features``, or any function. Inception, where
            torch-fidelity and its weights are there, is ``FrechetInceptionDistance(normalize=True).inception`` of
            torchmetrics, for colour images as bytes.
        images: (N, channels, H, W) in [0, 1].
        batch_size: images at a time.
    """
    with evaluating(extract):
        return torch.cat([extract(part) for part in images.split(check_count("batch_size", batch_size))])


class Nearest(NamedTuple):
    """Of each image the nearest training images: their row numbers, and how far they are, the nearest first."""

    rows: Int64[Tensor, "N k"]
    distance: Float[Tensor, "N k"]


def nearest(images: Float[Tensor, "N ..."], train: Float[Tensor, "M ..."], count: int = 1) -> Nearest:
    """The nearest of ``train`` by Euclidean distance of pixels or of features: whether a sample is a copy.

    Args:
        images: (N, ...).
        train: (M, ...), of the same further axes.
        count: how many of each, 1 to M.

    Raises:
        ValueError: for shapes that differ beyond their first axis, another count, and values that are not finite.
    """
    if images.shape[1:] != train.shape[1:]:
        raise ValueError(f"images: got shape {tuple(images.shape)}; takes (N, ...) with train's {tuple(train.shape)}")
    require(1 <= count <= len(train), "count", count, f"1 to {len(train)}, the training images")
    check_finite("images", images)
    check_finite("train", train)
    flat = train.flatten(1)
    parts = [torch.cdist(part.flatten(1), flat).topk(count, largest=False) for part in images.split(256)]
    return Nearest(torch.cat([part.indices for part in parts]), torch.cat([part.values for part in parts]))


def flattest_window(images: Images, size: tuple[int, int], level: float = 0.5) -> Float[Tensor, " N"]:
    """Of each image the window that is nearest to one flat level: the root mean square distance from it.

    Cutout's windows have the distance 0 from 0.5, the middle of [0, 1] (0 in [-1, 1]); where a generator has learned to
    draw them, its images have windows that real images have not. Windows that hang over the edge are not looked at.

    Args:
        images: (N, channels, H, W).
        size: (height, width) of the window in pixels.
        level: in the unit of the images.

    Raises:
        ValueError: for a window that does not fit into the image, and images that are not finite.
    """
    check_finite("images", images)
    sides = tuple(images.shape[2:])
    fits = all(1 <= length <= side for length, side in zip(size, sides, strict=True))
    require(fits, "size", size, f"1 to {sides}, the sides of the images")
    off = (images - level).square().mean(1, keepdim=True)
    return F.avg_pool2d(off, size, 1).flatten(1).amin(1).sqrt()


class Quality:
    """What the record of a GAN says: ``fit_gan(..., measure=Quality(data, judge(data).features))``.

    A call gives ``fid`` and ``kid``: (1) and (2). ``leak``: the share of samples with a window of half the sides that
    is flatter than in 99 of 100 test images (0.01 for real ones). ``copy_ratio``: the distance from a sample to the
    nearest training image over that to the nearest of as many test images, at most 1000, the median of 200 samples:
    near 1 where none is remembered, also for samples that are like nothing, 0 for copies. ``logit_train``,
    ``logit_held_out`` and ``logit_fake``: the discriminator's means, of at most 2000 real images each and of the
    samples, as they are.

    Args:
        data: what the GAN is trained on.
        extract: features (n, A) of images in [0, 1] on ``device``.
        count: test images, the first ones, that as many samples are held against, always of the same codes.
        device: the GAN's.
    """

    def __init__(
        self,
        data: Data,
        extract: Callable[[Tensor], Tensor],
        count: int = 800,
        device: torch.device | str = "cpu",
    ) -> None:
        count = check_count("count", count)
        self.extract = extract
        self.train, self.others = data.train.to(device), data.test.to(device)
        self.held_out = data.validation.to(device) if data.validation is not None else self.others
        self.test = self.others.take(slice(0, count)).floats()
        self.real = features_of(extract, self.test)
        self.window = (round(self.test.shape[2] / 2), round(self.test.shape[3] / 2))
        self.flat = flattest_window(self.test, self.window).quantile(0.01)

    def samples(self, gan: Players) -> Images:
        """As many as there are test images; of codes from seed 0."""
        device = self.test.device
        return gan.sample(gan.codes(len(self.test), torch.Generator(device).manual_seed(0)))

    def leak(self, images: Images) -> float:
        """The share of images with a window of half the sides that is flatter than in 99 of 100 test images."""
        return float((flattest_window(images, self.window) < self.flat).double().mean())

    @torch.no_grad()
    def augmented(self, gan: Players) -> dict[str, float]:
        """What the samples would be held against if augmented images were what G should draw: T of the test images.

        leak_augmented: their leak; fid_augmented: the FID of the samples from them; T is the GAN's at full
        probability, DiffAugment's default where it has none.
        """
        augment = getattr(gan, "augment", None)
        transform = DiffAugment(augment.policy) if augment is not None else DiffAugment()
        draws = torch.Generator(self.test.device).manual_seed(0)
        augmented = (transform(2 * self.test - 1, draws) / 2 + 0.5).clamp(0, 1)
        aim, generated = (features_of(self.extract, images) for images in (augmented, self.samples(gan)))
        return {"leak_augmented": self.leak(augmented), "fid_augmented": distance(aim, generated).fid}

    def real_images(self) -> dict[str, float]:
        """What other real images have: real_fid and real_kid of as many held-out ones as there are test images.

        Where they are fewer, real_kid alone, of the training images: its mean does not depend on how many there are.
        Nothing of fewer than a hundred.
        """
        whole = len(self.held_out) >= len(self.test) and self.held_out is not self.others
        part = self.held_out if whole else self.train
        if len(part) < 100:
            return {}
        apart = distance(self.real, features_of(self.extract, part.take(slice(0, len(self.test))).floats()))
        return {"real_fid": apart.fid, "real_kid": apart.kid} if whole else {"real_kid": apart.kid}

    @torch.no_grad()
    def __call__(self, gan: Players) -> dict[str, float]:
        """The measures of a GAN as it is."""
        samples = self.samples(gan)
        apart = distance(self.real, features_of(self.extract, samples))
        rows, few = slice(0, min(len(self.train), len(self.others), 1000)), slice(0, 2000)
        to_train, to_test = (nearest(samples[:200], part.floats(rows)).distance for part in (self.train, self.others))
        parts = {"train": self.train, "held_out": self.held_out}
        logits = {name: gan.logits(part.take(few)) for name, part in parts.items()}
        with evaluating(gan.discriminator):
            logits["fake"] = gan.discriminator(2 * samples - 1)
        return {
            "fid": apart.fid,
            "kid": apart.kid,
            "leak": self.leak(samples),
            "copy_ratio": float((to_train / to_test.clamp_min(1e-12)).median()),
            **{f"logit_{name}": float(values.double().mean()) for name, values in logits.items()},
        }
