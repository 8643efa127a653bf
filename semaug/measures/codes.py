r"""What codes and the images decoded from them are worth: measures of G-VAE that its author left to the eye.

Of codes, $q(z|x) = \mathcal N(\mu, \mathrm{diag}\,\sigma^2)$:

$$\mathrm{KL}_k = \tfrac12\,\mathbb E_x [\sigma_k^2 - 1 - \log\sigma_k^2 + \mu_k^2], \tag{1}$$

coordinates in use, those with $\mathrm{Var}_x\,\mu_k > 0.01$ (Y. Burda, R. Grosse, R. Salakhutdinov, "Importance
weighted autoencoders", ICLR 2016, arXiv:1509.00519), and how well a linear classifier of $\mu$ does on unseen images.

Of decoded traversals $m(\mu + \tfrac i2\sigma)$: class consistency, the share in which a judge, a classifier trained
apart on real images, still sees the class of the image they started from, as a mean over the classes: without that
mean, traversals that all end in the largest class would look consistent; and movement, the difference from $m(\mu)$,
without which consistency says nothing: traversals that do not move are consistent.

Of a coordinate on the generated set, which factor it moves: the cosine between what a step along it changes in the
decoded image and what a small change of a known factor f changes in the true one,

$$a_{kf} = \mathbb E_x \bigl|\cos\bigl(m(\mu + \tfrac12\sigma_k e_k) - m(\mu - \tfrac12\sigma_k e_k),\
  x_{f + \delta} - x_{f - \delta}\bigr)\bigr|. \tag{2}$$
"""

from __future__ import annotations

from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from semaug import networks
from semaug._checks import check_finite, require
from semaug.core.metrics import Predict, check_logits, predictions
from semaug.data import shapes
from semaug.data.sets import Data
from semaug.data.split import Split
from semaug.measures.few_shot import linear_classifier
from semaug.methods.gvae import kept
from semaug.training.loop import fit
from semaug.training.objective import CrossEntropy
from semaug.training.recipe import Recipe

Images = Float[Tensor, "N channels H W"]

Codes = Float[Tensor, "N K"]

Traversals = Float[Tensor, "N columns channels H W"]


@runtime_checkable
class Coder(Protocol):
    """What is measured: codes of images, and images of codes (``target`` for a decoder that is given the class)."""

    def posterior(self, images: Images) -> tuple[Codes, Codes]:
        """Mean and standard deviation of q(z|x)."""

    def decode(self, codes: Codes, target: Int64[Tensor, " N"] | None = None) -> Images:
        """Images in [0, 1]."""

    def along(self, mean: Codes, direction: Codes, steps: int, target: Int64[Tensor, " N"] | None = None) -> Traversals:
        """Decoded mean + i/2 direction, i = -steps, ..., steps."""


class Posterior(NamedTuple):
    """Codes of the images of a split, in its order."""

    mean: Codes
    deviation: Codes
    target: Int64[Tensor, " N"]


def posterior(model: Coder, split: Split) -> Posterior:
    """Codes of every image of a split, which is on the model's device; the model is for the caller to switch.

    Raises ValueError for codes that are not finite.
    """
    joined = predictions(lambda images: torch.cat(model.posterior(images), 1), split)
    check_finite("codes", joined)
    mean, deviation = joined.chunk(2, 1)
    return Posterior(mean, deviation, split.target)


# -- of codes ----------------------------------------------------------------------------------------------------------


def kl_by_coordinate(codes: Posterior) -> Float[Tensor, " K"]:
    """(1), in nats."""
    variance = codes.deviation.square()
    return 0.5 * (variance - 1 - variance.log() + codes.mean.square()).mean(0)


def active_units(codes: Posterior, threshold: float = 0.01) -> int:
    """Coordinates whose mean varies between images by more than the threshold."""
    return int((codes.mean.var(0) > threshold).sum())


def probe_accuracy(train: Posterior, test: Posterior, classes: int) -> float:
    """Accuracy on the test codes of a ridge regression on the training codes' means."""
    weight, bias = linear_classifier(train.mean.double(), train.target, classes, ridge=1e-3)
    return int((F.linear(test.mean.double(), weight, bias).argmax(1) == test.target).sum()) / len(test.target)


class ClassCodes(NamedTuple):
    """Of each class: mean code, mean posterior deviation (a direction to move along), covariance of its codes."""

    mean: Float[Tensor, "C K"]
    deviation: Float[Tensor, "C K"]
    covariance: Float[Tensor, "C K K"]  # float64: a narrow posterior is lost in the rounding of wide means


def class_codes(codes: Posterior, classes: int) -> ClassCodes:
    r"""The moments of every class: codes z of q(z|x) over its images have covariance $Cov(\mu) + E\,diag\,\sigma^2$.

    Raises:
        ValueError: for a class without images.
    """
    parts = []
    for label in range(classes):
        mean, deviation = (part[codes.target == label] for part in (codes.mean, codes.deviation))
        if len(mean) == 0:
            raise ValueError(f"codes: got no image of class {label}; takes some of each of {classes}")
        centred = mean.double() - mean.double().mean(0)
        covariance = centred.T @ centred / len(mean) + deviation.double().square().mean(0).diag()
        parts.append((mean.mean(0), deviation.mean(0), covariance))
    return ClassCodes(*(torch.stack(part) for part in zip(*parts, strict=True)))


def samples(model: Coder, moments: ClassCodes, target: Int64[Tensor, " N"], generator: torch.Generator) -> Images:
    """Images of given classes from nothing: codes drawn from the Gaussian of each class's codes, decoded."""
    normal = torch.randn(len(target), moments.mean.shape[1], generator=generator, device=generator.device)
    normal, codes = normal.to(moments.covariance), moments.mean[target]
    roots, failed = torch.linalg.cholesky_ex(moments.covariance)
    if bool(failed.any()):  # posteriors so narrow that the covariance is singular even in float64
        values, vectors = torch.linalg.eigh(moments.covariance)
        roots = torch.where(failed[:, None, None] > 0, vectors * values.clamp_min(0).sqrt()[:, None], roots)
    for label, root in enumerate(roots):  # by class: no (N, K, K)
        rows = target == label
        codes[rows] += (normal[rows] @ root.T).to(codes.dtype)
    return model.decode(codes, target)


def plane(codes: Posterior) -> tuple[Float[Tensor, "N 2"], Float[Tensor, " K"]]:
    """Mean codes in their first two principal components, and the share of their variance of each of K; float64."""
    mean = codes.mean.double()
    centred = mean - mean.mean(0)
    _, singular, axes = torch.linalg.svd(centred, full_matrices=False)
    return centred @ axes[:2].T, singular.square() / singular.square().sum()


def separation(points: Float[Tensor, "N d"], labels: Int64[Tensor, " N"]) -> float:
    """Share of points whose nearest class mean, their own left out of it, is their class's; mean over the classes.

    1 for classes that lie apart, 1 / (number of classes) for ones that cannot be distinguished. Classes of one point,
    which have no mean without it, are left out.

    Raises:
        ValueError: for points that are not finite, and where no class has two.
    """
    check_finite("points", points)
    counts = labels.bincount()
    several = counts[labels] > 1
    require(bool(several.any()), "labels", counts.tolist(), "two points of one class at least")
    points, labels = points[several].double(), labels[several]
    counts = counts.clamp_min(1)
    sums = points.new_zeros(len(counts), points.shape[1]).index_add_(0, labels, points)
    distances = torch.cdist(points, sums / counts[:, None]).where(counts > 1, torch.inf)
    without = (sums[labels] - points) / (counts[labels] - 1)[:, None]
    distances.scatter_(1, labels[:, None], (points - without).norm(dim=1, keepdim=True))
    right = (distances.argmin(1) == labels).double()
    return float(torch.stack([right[labels == label].mean() for label in labels.unique()]).mean())


# -- of decoded images -------------------------------------------------------------------------------------------------

_judges: dict[tuple[str, int, str], nn.Module] = {}
"""The judges trained last, at most four: by content of the data, steps and device."""


def judge(data: Data, device: torch.device | str = "cpu", steps: int = 400) -> nn.Module:
    """A classifier of real images, trained apart on ``data.train`` with crops, from seed 0. No flips: not for digits.

    It is trained on the CPU, where it comes out the same in every process, and kept: so all models of a set have one
    judge, and what another one would say is no part of their spread. Crops make it worth more: of 3000 photographs .54
    for .45, of 2000 shapes .93 for .78, of 1500 faces .72 for .58 by class; but of 2000 images of clothing .83 for .85
    (a seed each).

    Args:
        data: the real images.
        device: where it is wanted.
        steps: of its training; ten passes at least.
    """
    key = data.digest, steps, str(torch.device(device))
    if key not in _judges:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            network = networks.small(data.num_classes, data.image_shape[0])
        batch = min(128, len(data.train))
        epochs = max(10, round(steps * batch / len(data.train)))
        recipe = Recipe(epochs=epochs, batch_size=batch, weight_decay=5e-4, augment="crop")
        with torch.enable_grad():  # measures are taken without
            fit(CrossEntropy(network), data, recipe, progress=False)
        if len(_judges) == 4:
            del _judges[next(iter(_judges))]
        _judges[key] = network.to(device)
    return _judges[key]


def consistency(predict: Predict, traversals: Traversals, target: Int64[Tensor, " N"]) -> Float[Tensor, " columns"]:
    """Share of each column's images whose predicted class is that of the image they started from.

    The mean over the classes that are there, whatever their numbers of images. Raises ValueError for NaN logits.
    """
    with torch.no_grad():
        columns = (check_logits(predict(column), "predict") for column in traversals.unbind(1))
        predicted = torch.stack([logits.argmax(1) for logits in columns], 1)
    right = (predicted == target[:, None]).double()
    return torch.stack([right[target == label].mean(0) for label in target.unique()]).mean(0)


def movement(traversals: Traversals) -> Float[Tensor, " columns"]:
    """Root mean square difference of each column's pixels from the middle one's; ValueError for NaN."""
    check_finite("traversals", traversals)
    middle = traversals[:, traversals.shape[1] // 2]
    return torch.stack([(column - middle).double().square().mean().sqrt() for column in traversals.unbind(1)])


def reconstruction_error(model: Coder, split: Split, codes: Posterior) -> float:
    """Mean squared error of a pixel of m(mu), in units of the range [0, 1]."""
    batches = zip(split.batches(), codes.mean.split(500), codes.target.split(500), strict=True)
    errors = ((model.decode(mean, target) - batch.floats()).double().square() for batch, mean, target in batches)
    return sum(float(error.sum()) for error in errors) / split.images.numel()


def alignment(model: Coder, split: Split, share: float = 0.02) -> dict[str, Float[Tensor, " K"]]:
    """(2) for every factor of the set ``shapes``.

    Args:
        model: decodes images of the set.
        split: images with their factors; those that a factor does not change are left out of its mean.
        share: delta, as a part of the factor's range.

    Returns:
        For each factor (K,), its cosine with every coordinate.

    Raises:
        ValueError: for a split without these factors.
    """
    if missing := shapes.RANGES.keys() - split.factors.keys():
        raise ValueError(f"split: got no factors {', '.join(sorted(missing))}; takes images of the set shapes")
    side = split.images.shape[-1]
    mean, deviation, target = posterior(model, split)
    each = (model.along(mean, deviation * unit, 1, target) for unit in torch.eye(mean.shape[1]).to(deviation))
    moved = [(images[:, 2] - images[:, 0]).flatten(1) for images in each]
    table = {}
    for factor, (low, high) in shapes.RANGES.items():
        ends = [split.factors[factor] + sign * share * (high - low) for sign in (-1, 1)]
        if factor in ("size", "x", "y", "brightness"):  # not over the edge of the picture
            ends = [end.clamp(low, high) for end in ends]
        before, after = (shapes.render(split.target, {**split.factors, factor: end}, side).floats() for end in ends)
        truth = (after - before).flatten(1)
        changes = truth.square().sum(1) > 0  # a disc has no angle
        cosines = [F.cosine_similarity(step[changes], truth[changes]).abs().mean() for step in moved]
        table[factor] = torch.stack(cosines)
    return table


PLANE = 500

"""Test images whose codes are looked at in a plane, the first ones."""

STEPS = 6

"""Columns on each side of a traversal: 3 standard deviations, as the author draws them."""


@torch.no_grad()
def measures(model: Coder, data: Data, device: torch.device | str = "cpu", images: int = 500) -> dict[str, float]:
    """All of it as numbers of a record; needs a :func:`judge`, which is trained if it is not there.

    consistency_i, movement_i, i = 0, ..., 6: all coordinates moved by +-i/2 deviations; tenth_...: only those of the
    largest tenth; each_...: one coordinate at a time, mean over the 16 of the largest mean deviation; noise_...: codes
    mu + N(0, I), the author's baseline. judge_accuracy: consistency of the images themselves. sample_consistency: of
    :func:`samples`; prior_consistency: of codes N(0, I) decoded, for a model that is given the class the way to sample
    it. plane_separation: of the codes of the first images as ``pictures`` keeps them, by class, and, where gender and
    smile are known, by each (plane_male_separation, plane_smiling_separation).

    Args:
        model: in evaluation mode, on ``device``.
        data: what it was trained on.
        device: where all is computed.
        images: test images that are traversed, drawn at random.
    """
    train, test = posterior(model, data.train.to(device)), posterior(model, data.test.to(device))
    kl, first = kl_by_coordinate(test), Posterior(*(part[:PLANE] for part in test))
    metrics = {
        "reconstruction_error": reconstruction_error(model, data.test.to(device), test),
        "kl": float(kl.sum()),
        "kl_largest": float(kl.max()),
        "active_units": float(active_units(test)),
        "posterior_deviation": float(test.deviation.mean()),
        "probe_accuracy": probe_accuracy(train, test, data.num_classes),
        "plane_separation": separation(plane(first)[0], first.target),
    }
    for name in [name for name in ("male", "smiling") if name in data.test.factors]:
        labels = data.test.factors[name][:PLANE].to(device)
        metrics[f"plane_{name}_separation"] = separation(plane(first)[0], labels)
    predict = judge(data, device)
    generator = torch.Generator().manual_seed(0)
    rows = torch.randperm(len(data.test), generator=generator)[:images]  # a set may be in the order of its persons
    few = data.test.take(rows).to(device)
    mean, deviation, target = (part[rows.to(part.device)] for part in test)
    metrics["judge_accuracy"] = float(consistency(predict, few.floats()[:, None], target)[0])

    def traverse(direction: Codes, steps: int = STEPS) -> tuple[Tensor, Tensor]:
        """Consistency and movement at distances 0, ..., steps, means of both directions."""
        decoded = model.along(mean, direction, steps, target)
        shares, moves = consistency(predict, decoded, target), movement(decoded)
        return 0.5 * (shares + shares.flip(0))[steps:], 0.5 * (moves + moves.flip(0))[steps:]

    for name, direction in (("", deviation), ("tenth_", deviation * kept(deviation, 0.1))):
        shares, moves = traverse(direction)
        metrics |= {f"{name}consistency_{i}": float(share) for i, share in enumerate(shares)}
        metrics |= {f"{name}movement_{i}": float(move) for i, move in enumerate(moves)}
    units = torch.eye(deviation.shape[1]).to(deviation)[deviation.mean(0).argsort(descending=True)[:16]]
    single = (traverse(STEPS * deviation * unit, 1) for unit in units)  # the ends of each traversal alone
    shares, moves = torch.tensor([[share[1], move[1]] for share, move in single]).T
    metrics |= {f"each_consistency_{STEPS}": float(shares.mean()), f"each_movement_{STEPS}": float(moves.mean())}

    away = torch.randn(mean.shape, generator=generator).to(mean)
    noise = torch.stack([model.decode(mean + away, target), model.decode(mean, target)], 1)
    metrics["noise_consistency"] = float(consistency(predict, noise, target)[0])
    metrics["noise_movement"] = float(movement(noise)[0])
    labels = torch.arange(images, device=target.device) % data.num_classes
    drawn = samples(model, class_codes(train, data.num_classes), labels, generator)
    metrics["sample_consistency"] = float(consistency(predict, drawn[:, None], labels)[0])
    normal = torch.randn(len(labels), mean.shape[1], generator=generator).to(mean)
    metrics["prior_consistency"] = float(consistency(predict, model.decode(normal, labels)[:, None], labels)[0])
    if shapes.RANGES.keys() <= few.factors.keys():
        cosines = alignment(model, few.take(slice(0, 300)))
        metrics |= {f"alignment_{factor}": float(values.max()) for factor, values in cosines.items()}
    return metrics
