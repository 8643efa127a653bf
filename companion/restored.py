r"""Images for moved features, the counterpart of ISDA's figure "Initial, Restored, Augmented".

The paper looks through a pretrained BigGAN for an image with the features of a given one ("restored"), then for images
of features moved by a draw of $\mathcal N(0, \lambda\Sigma_y)$ ("augmented"). No GAN is needed where a decoder is
known: :func:`shapes_moved` searches the classes and factors of the generated set, whose renderer is exact;
:func:`faces_moved` has the best linear encoder and decoder of faces, their principal axes.

Draws of the class's covariance are compared with others of equal mean squared length, $\lambda\,\mathrm{tr}\,\Sigma_y$:
"random", of the same variance in all directions, and "between", of the covariance of the class means.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from companion import runs
from companion.records import begun
from semaug.core.metrics import predictions
from semaug.core.moments import ClassMoments
from semaug.data import shapes
from semaug.data.sets import load
from semaug.data.split import Split
from semaug.measures.codes import consistency, judge
from semaug.training.loop import fit
from semaug.training.record import Record

if TYPE_CHECKING:
    from companion.runs import Run

KINDS = ("class", "random", "between")
DRAWS = 3  # of each kind for an image; all of them are measured, and shown as many as COLUMNS says
COLUMNS = {"class": 3, "random": 2, "between": 2}

# Of shapes
LAMBDAS = (0.5, 2.0)  # the last is shown
IMAGES = 100
FACTORS = tuple(shapes.RANGES)
LOW, HIGH = torch.tensor([*shapes.RANGES.values()], dtype=torch.float32).T
CIRCULAR = torch.tensor([name in ("hue", "angle", "background_hue") for name in FACTORS])
MEASURED = tuple(name for name in FACTORS if name != "angle")  # a disc has none, and a square looks alike at four
SPREAD = 12**-0.5  # standard deviation of a factor, as a part of its range
PIXELS = 8000.0  # weight of the mean squared error of pixels beside the squared distance of features
STAY = 1.0  # weight of the factors' squared moves: of two images that fit alike the nearer one is taken
BANK, ROUNDS, PARENTS, CHILDREN, EFFORT = 20_000, 22, 8, 24, 4  # the last for restored images, which are few

# Of faces
FACES, AXES = 0.5, 512  # lambda; principal axes
JUDGED, FACES_EACH = 1100, 250  # training images of each class for the judge, test images of each class
PLACES = (11, 3, 3, 40)  # of the one of each class that is shown, seen from the front


def draws(
    moments: ClassMoments, target: Int64[Tensor, " N"], kind: str, generator: torch.Generator
) -> Float[Tensor, "N A"]:
    r"""A draw for each target, of mean squared length $\mathrm{tr}\,\Sigma_y$ whatever the kind (one of ``KINDS``)."""
    covariance = moments.covariance
    assert isinstance(covariance, Tensor)
    trace = covariance.diagonal(dim1=1, dim2=2).sum(1)[:, None, None]
    if kind == "random":
        covariance = torch.eye(covariance.shape[1]).expand_as(covariance)
    elif kind == "between":
        covariance = torch.cov(moments.mean.T).expand_as(covariance)
    values, vectors = torch.linalg.eigh(covariance)
    roots = vectors * values.clamp_min(0).sqrt()[:, None]
    roots = roots * (trace / roots.square().sum((1, 2), keepdim=True)).sqrt()
    moved = torch.randn(len(target), covariance.shape[1], generator=generator)
    for label in target.unique():  # by class: no (N, A, A)
        moved[target == label] = moved[target == label] @ roots[label].T
    return moved


def _moments(features: Float[Tensor, "N A"], target: Int64[Tensor, " N"], classes: int) -> ClassMoments:
    moments = ClassMoments(classes, features.shape[1])
    moments.update(features, target)
    return moments


# ---------------------------------------------------------------------------------------------------------------------
# Shapes: the renderer is searched


@dataclass(frozen=True)
class Drawn:
    """Images by what the renderer makes them from.

    Attributes:
        target: (N,), their classes.
        units: (N, 7), their factors as parts of the ranges.
    """

    target: Int64[Tensor, " N"]
    units: Float[Tensor, "N 7"]

    @classmethod
    def of(cls, split: Split) -> Drawn:
        """What images of the generated set were made from."""
        factors = torch.stack([split.factors[name] for name in FACTORS], 1)
        return cls(split.target, (factors - LOW) / (HIGH - LOW))

    def render(self, side: int = 32) -> Split:
        """The images."""
        factors = torch.lerp(LOW, HIGH, self.units)
        return shapes.render(self.target, dict(zip(FACTORS, factors.T, strict=True)), side)


def apart(a: Float[Tensor, "*n 7"], b: Float[Tensor, "*m 7"]) -> Float[Tensor, "*k 7"]:
    """Distance of factors as parts of their ranges; hues and angles go round."""
    distance = (a - b).abs()
    return torch.where(CIRCULAR, torch.minimum(distance, 1 - distance), distance)


class Search:
    """Finds images whose features are nearest to given ones, among all that the renderer draws.

    It starts from the nearest of ``BANK`` images of all classes, which the set does not hold, and goes on by evolution:
    each round keeps the best ``PARENTS`` of what it has and of ``CHILDREN`` changed copies. Their steps shrink from
    round to round; now and then a class or a factor is drawn anew.

    Args:
        sees: from images to features.
    """

    def __init__(self, sees: Callable[[Tensor], Tensor]) -> None:
        split = shapes.draw(BANK, 77)
        self.sees, self.bank = sees, Drawn.of(split)
        self.pixels, self.features = split.images.flatten(1).float() / 255, predictions(sees, split)

    def __call__(
        self,
        goal: Float[Tensor, "N A"],
        generator: torch.Generator,
        near: Drawn | None = None,
        like: UInt8[Tensor, "N 3 32 32"] | None = None,
        effort: int = 1,
    ) -> Drawn:
        """One image for each goal.

        Args:
            goal: the features that are sought.
            generator: of the changes.
            near: images to stay near to in their factors (``STAY``), and to start from as well.
            like: images whose pixels are sought as well (``PIXELS``).
            effort: times ``ROUNDS``.
        """
        pixels = None if like is None else like.flatten(1).float() / 255

        def cost(found: Drawn) -> Float[Tensor, "N k"]:
            split = found.render()
            features = predictions(self.sees, split, 1000).view(len(goal), -1, goal.shape[1])
            value = (features - goal[:, None]).square().sum(2)
            if pixels is not None:
                shown = split.floats().view(*value.shape, -1)
                value = value + PIXELS * (shown - pixels[:, None]).square().mean(2)
            if near is not None:
                value = value + STAY * apart(found.units.view(*value.shape, -1), near.units[:, None]).square().sum(2)
            return value

        distance = torch.cdist(goal, self.features).square()
        if pixels is not None:
            distance += PIXELS / pixels.shape[1] * torch.cdist(pixels, self.pixels).square()
        rows = distance.topk(PARENTS, 1, largest=False).indices
        target, units = self.bank.target[rows], self.bank.units[rows]
        if near is not None:
            target[:, -1], units[:, -1] = near.target, near.units
        costs = cost(Drawn(target.flatten(), units.flatten(0, 1)))
        for number in range(effort * ROUNDS):
            parent = torch.randint(PARENTS, (len(goal), CHILDREN), generator=generator)
            born, child = target.gather(1, parent), _rows(units, parent)
            anew = torch.randint(10, born.shape, generator=generator)
            born = torch.where(torch.rand(born.shape, generator=generator) < 0.1, anew, born)
            changed, jump = torch.rand(2, *child.shape, generator=generator)
            step = 0.2 * 0.83 ** (number / effort) * torch.randn(child.shape, generator=generator)
            child = torch.where(changed < 0.5, child + step, child)
            child = torch.where(jump < 0.04, torch.rand(child.shape, generator=generator), child)
            if near is not None:  # some factors go back to where they were
                back = torch.rand(child.shape, generator=generator) < 0.15
                child = torch.where(back, near.units[:, None], child)
            child = torch.where(CIRCULAR, child % 1, child.clamp(0, 1))
            costs = torch.cat([costs, cost(Drawn(born.flatten(), child.flatten(0, 1)))], 1)
            costs, best = costs.topk(PARENTS, 1, largest=False)
            target = torch.cat([target, born], 1).gather(1, best)
            units = _rows(torch.cat([units, child], 1), best)
        return Drawn(target[:, 0], units[:, 0])


def _rows(units: Float[Tensor, "N k 7"], index: Int64[Tensor, "N m"]) -> Float[Tensor, "N m 7"]:
    return units.gather(1, index[..., None].expand(-1, -1, units.shape[2]))


def shapes_moved(run: Run, root: str | None = None) -> tuple[Record, dict[str, np.ndarray]]:
    """The record of moved features of shapes, by a network trained with ISDA, and the tiles of its figure.

    Restored images match pixels and features; "features alone" says what the latter hold. Metrics, for ``IMAGES`` test
    images and each lambda and kind of draw: the share found in its own class ("kept, 0.5, class"), each factor's mean
    move in its standard deviations ("moved, 0.5, class, hue"), of restored ones from the initial ones, of moved ones
    from the restored ones, and their mean ("moved, 0.5, class"); "matched, 0.5, class": how far the feature of what was
    found goes along the draw, as a share of its length. ``tiles`` is (10, 2 + 7, 3, 64, 64), a row a class, and
    ``classes``, (10, 2 + 7), the class in which each was found.
    """
    begin = time.process_time()
    dataset = load(root=root, **run.study.data)
    network = f"{run.study.network}, trained with ISDA"
    record = begun(run, dataset, network=network, classes=list(dataset.classes))
    model: Any = runs.build("ISDA", run.study.network, dataset, run.seed)
    record.metrics["test_accuracy"] = fit(model, dataset, run.recipe, run.seed).metrics["test_accuracy"]
    sees, generator = model.eval().network.features, torch.Generator().manual_seed(run.seed)
    moments = _moments(predictions(sees, dataset.train), dataset.train.target, dataset.num_classes)
    few, search = dataset.test.take(slice(0, IMAGES)), Search(sees)
    features, initial = predictions(sees, few), Drawn.of(few)
    restored = search(features, generator, like=few.images, effort=EFFORT)

    def measure(name: str, found: Drawn, origin: Drawn) -> None:
        times = len(found.target) // IMAGES
        moves = apart(found.units, origin.units.repeat(times, 1)).mean(0) / SPREAD
        by_factor = {factor: moves[FACTORS.index(factor)].item() for factor in MEASURED}
        record.metrics[f"kept, {name}"] = (found.target == few.target.repeat(times)).float().mean().item()
        record.metrics[f"moved, {name}"] = float(np.mean([*by_factor.values()]))
        record.metrics |= {f"moved, {name}, {factor}": move for factor, move in by_factor.items()}

    measure("restored", restored, initial)
    measure("features alone", search(features, generator, effort=EFFORT), initial)
    shown = [initial, restored]
    for strength in LAMBDAS:
        for kind in KINDS:
            found, along = list[Drawn](), list[Tensor]()
            for number in range(DRAWS):
                step = strength**0.5 * draws(moments, few.target, kind, generator)
                found.append(search(features + step, generator, near=restored))
                reached = predictions(sees, found[-1].render()) - features
                along.append((reached * step).sum(1) / step.square().sum(1))
                if strength == LAMBDAS[-1] and number < COLUMNS[kind]:
                    shown.append(found[-1])
            whole = Drawn(
                *(torch.cat(parts) for parts in zip(*((one.target, one.units) for one in found), strict=True))
            )
            measure(f"{strength:g}, {kind}", whole, restored)
            record.metrics[f"matched, {strength:g}, {kind}"] = torch.cat(along).mean().item()
    record.seconds = time.process_time() - begin
    columns = {"tiles": [one.render(64).images for one in shown], "classes": [one.target for one in shown]}
    first = [int((few.target == label).nonzero()[0]) for label in range(dataset.num_classes)]
    return record, {name: torch.stack(parts, 1)[first].numpy() for name, parts in columns.items()}


# ---------------------------------------------------------------------------------------------------------------------
# Faces: codes are coordinates along principal axes


def faces_moved(run: Run, root: str | None = None) -> tuple[Record, dict[str, np.ndarray]]:
    """The record of moved codes of faces, and the tiles of its figure.

    A code is an image's coordinates along the ``AXES`` principal axes of the training images and their mirror images.
    Metrics, of as many unseen images of each class: "error", the mean squared one of restored pixels; the share that a
    judge, trained apart, sees in its class ("kept, initial", "kept, restored", "kept, class" and so on); and the root
    mean square change of pixels from the restored ones ("moved, class"). ``tiles`` is (4, 2 + 7, 3, 64, 64), and
    ``classes`` (4, 2 + 7) what the judge sees in each.
    """
    begin = time.process_time()
    dataset = load(root=root, **run.study.data)
    record = begun(run, dataset, network=f"{AXES} principal axes", classes=list(dataset.classes))
    train, generator = dataset.train, torch.Generator().manual_seed(run.seed)
    flat = torch.cat([train.images, train.images.flip(3)]).flatten(1).float() / 255
    mean = flat.mean(0)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(run.seed)
        axes = torch.svd_lowrank(flat - mean, AXES + 48)[2][:, :AXES]
    moments = _moments((flat[: len(train)] - mean) @ axes, train.target, dataset.num_classes)
    rows = [(dataset.test.target == label).nonzero().ravel()[:FACES_EACH] for label in range(dataset.num_classes)]
    few = dataset.test.take(torch.cat(rows))
    codes = (few.floats().flatten(1) - mean) @ axes
    predict = judge(load(root=root, **run.study.data, per_class=JUDGED)).eval()

    def decode(codes: Tensor) -> Float[Tensor, "n 3 64 64"]:
        return (mean + codes @ axes.T).clamp(0, 1).unflatten(1, dataset.image_shape)

    def seen(images: Tensor) -> float:
        return consistency(predict, images[:, None], few.target).item()

    restored = decode(codes)
    record.metrics["error"] = (restored - few.floats()).square().mean().item()
    record.metrics |= {"kept, initial": seen(few.floats()), "kept, restored": seen(restored)}
    columns = [few.floats(), restored]
    for kind in KINDS:
        moved = [decode(codes + FACES**0.5 * draws(moments, few.target, kind, generator)) for _ in range(DRAWS)]
        record.metrics[f"kept, {kind}"] = float(np.mean([seen(images) for images in moved]))
        record.metrics[f"moved, {kind}"] = (torch.stack(moved) - restored).square().mean().sqrt().item()
        columns += moved[: COLUMNS[kind]]
    first = np.cumsum([0, *map(len, rows[:-1])])
    shown = torch.stack(columns, 1)[first + np.array(PLACES)]
    with torch.no_grad():
        classes = predict(shown.flatten(0, 1)).argmax(1).view(shown.shape[:2])
    record.seconds = time.process_time() - begin
    return record, {"tiles": (255 * shown).round().byte().numpy(), "classes": classes.numpy()}
