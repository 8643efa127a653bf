"""semaug.methods on generated input: ISDA, mixing, SLA, DiffAugment, the long tail, G-VAE, MetaSAug, learned."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from torch import Tensor, nn
from torch.nn import functional as F

from generated import DATA, Draw, examples, holds, same, wide
from semaug.core.tensors import Factored
from semaug.methods import diffaugment, gvae, isda, learned, long_tail, metasaug, mixing, mixup, sla
from semaug.methods.transforms import BatchTransform
from semaug.training.objective import Batch, Step


def cross_entropy(logits: Tensor, target: int) -> Tensor:
    largest = logits.max()
    return largest + (logits - largest).exp().sum().log() - logits[target]


# -- isda --------------------------------------------------------------------------------------------------------------


def augmented(features, target, weight, bias, covariance, strength):
    matrices = covariance
    if isinstance(covariance, tuple):
        matrices = covariance[0] @ covariance[0].mT + covariance[1].diag_embed()
    elif covariance.ndim == 2:
        matrices = covariance.diag_embed()
    rows = []
    for a, y in zip(features, target.tolist(), strict=True):
        z = []
        for j in range(len(weight)):
            difference = weight[j] - weight[y]
            z.append(
                weight[j] @ a + (0 if bias is None else bias[j]) + strength / 2 * difference @ matrices[y] @ difference
            )
        rows.append(torch.stack(z))
    return torch.stack(rows) if rows else features.new_zeros(0, len(weight))


def for_isda(draw: Draw) -> dict:
    N, C, A = draw.size(low=0), draw.size(), draw.size()
    form = draw.one_of(("full", "diagonal", "factored"))
    covariance = {
        "full": lambda: draw.covariances(C, A),
        "diagonal": lambda: draw.uniform(C, A),
        "factored": lambda: Factored(draw.normal(C, A, draw.size(3)), draw.uniform(C, A)),
    }[form]()
    return {
        "features": draw.normal(N, A),
        "target": draw.whole(C, N),
        "weight": draw.normal(C, A),
        "bias": draw.one_of((None, draw.normal(C))),
        "covariance": covariance,
        "strength": draw.number(0, 2),
    }


@examples
@given(DATA)
def test_isda_logits(data):
    arguments = for_isda(draw := Draw(data))
    holds(draw, isda.isda_logits, augmented, arguments, empty=not len(arguments["features"]))


@examples
@given(DATA)
def test_isda_loss(data):
    arguments = for_isda(draw := Draw(data))
    C = len(arguments["weight"])
    arguments["reduction"] = draw.one_of(("mean", "sum", "none"))
    arguments["class_weight"] = draw.one_of((None, draw.uniform(C, low=0.1, high=3)))

    def definition(features, target, weight, bias, covariance, strength, reduction, class_weight):
        z = augmented(features, target, weight, bias, covariance, strength)
        share = torch.ones(C).double() if class_weight is None else class_weight
        losses = torch.stack([share[y] * cross_entropy(row, y) for row, y in zip(z, target.tolist(), strict=True)])
        total = share[target].sum()
        return {"none": losses, "sum": losses.sum(), "mean": losses.sum() / total}[reduction]

    holds(draw, isda.isda_loss, definition, arguments, empty=not len(arguments["features"]))


@examples
@given(DATA)
def test_the_gradients_of_isda_loss_are_those_of_the_definition(data):
    arguments = for_isda(Draw(data, (torch.float64,)))
    if not len(arguments["features"]):
        return
    names = [name for name in ("features", "weight", "bias") if arguments[name] is not None]
    slopes = []
    for function in (isda.isda_loss, lambda **a: F.cross_entropy(augmented(**a), a["target"])):
        leaves = {name: arguments[name].detach().clone().requires_grad_() for name in names}
        slopes.append(torch.autograd.grad(function(**{**arguments, **leaves}), list(leaves.values())))
    for got, want in zip(*slopes, strict=True):
        same(got, want, tolerance=1e-9)


@examples
@given(DATA)
def test_isda_loss_module_updates_its_moments_first(data):
    draw = Draw(data, (torch.float32,))
    N, C, A = draw.size(low=2), draw.size(4), draw.size(5)
    criterion, head = isda.ISDALoss(C, A, draw.number(0, 2)), nn.Linear(A, C)
    x, target = draw.normal(N, A), draw.whole(C, N)
    loss = criterion(x, target, head)
    matrices = torch.zeros(C, A, A).double()
    for c in range(C):
        own = x[target == c].double()
        if len(own):
            matrices[c] = (own - own.mean(0)).T @ (own - own.mean(0)) / len(own)
    z = augmented(x.double(), target, head.weight.double(), head.bias.double(), matrices, criterion.strength)
    same(loss, F.cross_entropy(z, target))


@examples
@given(DATA)
def test_control_covariance(data):
    draw = Draw(data, (torch.float32, torch.float64))
    C, A = draw.size(4), draw.size(5)
    kind = draw.one_of(isda.CONTROLS)
    arguments = {"covariance": draw.covariances(C, A), "kind": kind}
    if kind == "shared":
        arguments["count"] = draw.whole(9, C, low=1).to(draw.dtype)
    if kind == "random":
        arguments["rotation"] = torch.linalg.qr(torch.randn(A, A, generator=draw.generator).to(draw.dtype)).Q

    def definition(covariance, kind, count=None, rotation=None):
        traces = [sum(covariance[c, a, a] for a in range(A)) for c in range(C)]
        if kind == "identity":
            return torch.stack([trace / A * torch.ones(A).double() for trace in traces])
        if kind == "diagonal":
            return torch.stack([torch.stack([covariance[c, a, a] for a in range(A)]) for c in range(C)])
        if kind == "random":
            return torch.stack([rotation @ each @ rotation.T for each in covariance])
        mean = sum(n * each for n, each in zip(count, covariance, strict=True)) / count.sum()
        own = sum(mean[a, a] for a in range(A))
        return torch.stack([trace / own * mean for trace in traces])

    holds(draw, isda.control_covariance, definition, arguments)


# -- mixing ------------------------------------------------------------------------------------------------------------


def for_mixing(draw: Draw, floats: bool, low: int = 0, side: int = 1) -> dict:
    N, channels, H, W = draw.size(4, low=low), draw.size(3), draw.size(8, low=side), draw.size(8, low=side)
    C, soft = draw.size(5), draw.one_of((True, False))
    target = draw.whole(C, N)
    lam = draw.number(0, 1) if draw.one_of((True, False)) else draw.uniform(N, dtype=torch.float64)
    return {
        "images": draw.normal(N, channels, H, W)
        if floats or draw.one_of((True, False))
        else draw.bytes(N, channels, H, W),
        "target": F.one_hot(target, C).to(draw.dtype) if soft else target,
        "lam": draw.one_of((lam, 0.0, 1.0)),
        "permutation": draw.permutation(N),
        "num_classes": draw.one_of((C, None)) if soft else C,
    }


def ratios(lam, N: int) -> list[float]:
    return [float(lam)] * N if not isinstance(lam, Tensor) or lam.ndim == 0 else lam.tolist()


def labels(target, lam: list[float], permutation, C: int | None) -> Tensor:
    soft = target if target.is_floating_point() else torch.eye(C).double()[target]
    rows = [r * soft[i] + (1 - r) * soft[j] for i, (r, j) in enumerate(zip(lam, permutation.tolist(), strict=True))]
    return torch.stack(rows) if rows else soft[:0]


def shown(value: Tensor | float, lam) -> Tensor:
    """A ratio has one number an image where lam has."""
    return torch.tensor(value).double() if isinstance(value, list) else torch.tensor(float(value)).double()


@examples
@given(DATA)
def test_mixup(data):
    arguments = for_mixing(draw := Draw(data), floats=True)

    def definition(images, target, lam, permutation, num_classes):
        each = ratios(lam, len(images))
        mixed = images.clone()
        for i, j in enumerate(permutation.tolist()):
            mixed[i] = each[i] * images[i] + (1 - each[i]) * images[j]
        given_as = lam.double() if isinstance(lam, Tensor) else torch.tensor(lam).double()
        return mixed, labels(target, each, permutation, num_classes), given_as

    holds(draw, mixing.mixup, definition, arguments, damage=("images", "lam"), through=True)


def box(lam: float, cy: int, cx: int, H: int, W: int) -> tuple[int, int, int, int]:
    half = [int(side * math.sqrt(1 - lam)) // 2 for side in (H, W)]
    ends = []
    for c, h, side in zip((cy, cx), half, (H, W), strict=True):
        ends += [min(max(c - h, 0), side), min(max(c + h, 0), side)]
    return tuple(ends)


@examples
@given(DATA)
@pytest.mark.parametrize("name", ["cutmix", "resizemix", "saliencymix"])
def test_boxes_of_partners(name, data):
    arguments = for_mixing(draw := Draw(data), floats=False)
    N, _, H, W = arguments["images"].shape
    if name == "saliencymix":
        arguments["saliency"] = draw.normal(N, H, W)
    else:
        shape = draw.one_of(((), (N,)))
        arguments |= {"cy": draw.whole(H + 2, *shape, low=-2), "cx": draw.whole(W + 2, *shape, low=-2)}

    def definition(images, target, lam, permutation, num_classes, cy=None, cx=None, saliency=None):
        mixed, left = images.clone(), []
        for i, j in enumerate(permutation.tolist()):
            if saliency is not None:
                flat = saliency[j].flatten().tolist()
                y, x = divmod(flat.index(max(flat)), W)
            else:
                y, x = (int(c) if c.ndim == 0 else int(c[i]) for c in (cy, cx))
            top, bottom, start, end = box(ratios(lam, N)[i], y, x, H, W)
            for r in range(top, bottom):
                for c in range(start, end):
                    source = (
                        (r, c)
                        if name != "resizemix"
                        else ((r - top) * H // (bottom - top), (c - start) * W // (end - start))
                    )
                    mixed[i, :, r, c] = images[j, :, source[0], source[1]]
            left.append(1 - (bottom - top) * (end - start) / (H * W))
        one = (not isinstance(lam, Tensor) or lam.ndim == 0) and saliency is None and cy.ndim == 0
        ratio = left[0] if one and left else left
        if one and not left:  # one box, though there are no images
            top, bottom, start, end = box(float(lam), int(cy), int(cx), H, W)
            ratio = 1 - (bottom - top) * (end - start) / (H * W)
        return mixed, labels(target, left, permutation, num_classes), torch.tensor(ratio).double()

    damage = ("images", "lam", "saliency")
    holds(draw, getattr(mixing, name), definition, arguments, damage=damage, through=True)


@examples
@given(DATA)
def test_mixstyle(data):
    drawn = for_mixing(draw := Draw(data), floats=True, side=2)
    arguments = {"features": drawn["images"], "lam": drawn["lam"], "permutation": drawn["permutation"]}

    def definition(features, lam, permutation):
        N, A, H, W = features.shape
        wanted, each = features.clone(), ratios(lam, N)

        def style(n, a):
            mean = sum(features[n, a].flatten()) / (H * W)
            return mean, ((features[n, a] - mean).square().sum() / (H * W - 1) + 1e-6).sqrt()

        for n, j in enumerate(permutation.tolist()):
            for a in range(A):
                (m, s), (m2, s2), r = style(n, a), style(j, a), each[n]
                wanted[n, a] = (features[n, a] - m) / s * (r * s + (1 - r) * s2) + r * m + (1 - r) * m2
        return wanted

    holds(draw, mixing.mixstyle, definition, arguments, kinds=("nan",), through=True, tolerance=2e-3)


@examples
@given(DATA)
def test_by_mask_and_labels(data):
    arguments = for_mixing(draw := Draw(data), floats=True)
    N, _, H, W = arguments["images"].shape
    arguments["mask"] = draw.uniform(N, 1, H, W)

    def definition(images, target, lam, permutation, num_classes, mask):
        each = ratios(lam, N)
        mixed = mask * images + (1 - mask) * images[permutation]
        given_as = lam.double() if isinstance(lam, Tensor) else torch.tensor(lam).double()
        return mixed, labels(target, each, permutation, num_classes), given_as

    holds(draw, mixing.by_mask, definition, arguments, damage=("images", "lam", "mask"), through=True)


@examples
@given(DATA)
def test_fine_grained_saliency(data):
    draw = Draw(data)
    N, channels, H, W = draw.size(3, low=0), draw.size(3), draw.size(8), draw.size(8)

    def definition(images):
        gray, side = images.mean(1), min(H, W)
        wanted = torch.zeros(N, H, W).double()
        for window in {max(1, side // part) // 2 * 2 + 1 for part in (4, 2, 1)}:
            for y in range(H):
                for x in range(W):
                    half = window // 2
                    around = gray[:, max(0, y - half) : y + half + 1, max(0, x - half) : x + half + 1]
                    wanted[:, y, x] += (gray[:, y, x] - around.mean((1, 2))).abs()
        return wanted

    holds(draw, mixing.fine_grained_saliency, definition, {"images": draw.normal(N, channels, H, W)}, through=True)


@examples
@given(DATA)
def test_draws_are_in_their_ranges_and_batches_keep_their_labels(data):
    draw = Draw(data, (torch.float32,))
    seed = draw.size(10**6)
    step = Step(torch.zeros(()), 0.0, torch.Generator().manual_seed(seed))
    beta = mixup.draw_beta(draw.number(0.015625, 50), (5,), step.generator)
    assert bool(((beta >= 0) & (beta <= 1)).all())
    images = draw.uniform(draw.size(5), draw.size(3), draw.size(8, low=2), draw.size(8, low=2))
    assert sorted(mixup.draw_partners(images, step).tolist()) == list(range(len(images)))
    assert all(0 <= int(c) < side for c, side in zip(mixup.draw_centre(images, step), images.shape[2:], strict=True))
    method = draw.one_of((mixup.Mixup, mixup.CutMix, mixup.ResizeMix, mixup.SaliencyMix, mixup.Cutout))
    transform = BatchTransform(method, 4, draw.number(0, 0.5), torch.Generator().manual_seed(seed))
    mixed, soft = transform(images, draw.whole(4, len(images)))
    assert mixed.shape == images.shape
    assert bool(mixed.isfinite().all())
    same(soft.sum(1), torch.ones(len(images)))


# -- sla ---------------------------------------------------------------------------------------------------------------


@examples
@given(DATA)
def test_sla_loss(data):
    draw = Draw(data)
    N, M, C = draw.size(low=0), draw.size(4), draw.size(4)
    arguments = {"joint_logits": draw.normal(N, M, C * M), "target": draw.whole(C, N)}

    def definition(joint_logits, target):
        return (
            sum(cross_entropy(joint_logits[n, j], int(target[n]) * M + j) for n in range(N) for j in range(M))
            / torch.tensor(float(N * M)).double()
        )

    holds(draw, sla.sla_loss, definition, arguments, empty=N == 0)


@examples
@given(DATA)
def test_aggregate(data):
    draw = Draw(data)
    N, M, C = draw.size(low=0), draw.size(4), draw.size(4)

    def definition(joint_logits):
        wanted = torch.zeros(N, C).double()
        for n in range(N):
            for i in range(C):
                wanted[n, i] = sum(joint_logits[n, j, i * M + j] for j in range(M)) / M
        return wanted

    holds(draw, sla.aggregate, definition, {"joint_logits": draw.normal(N, M, C * M)}, through=True)


@examples
@given(DATA)
def test_distillation_loss(data):
    draw = Draw(data)
    N, C = draw.size(low=0), draw.size()
    arguments = {
        "logits": draw.normal(N, C),
        "aggregated": draw.normal(N, C),
        "temperature": draw.one_of((1.0, draw.number(0.25, 8))),
    }

    def definition(logits, aggregated, temperature):
        total = torch.zeros(()).double()
        for u, s in zip(logits / temperature, aggregated / temperature, strict=True):
            for i in range(C):
                total += (-cross_entropy(s, i)).exp() * (cross_entropy(u, i) - cross_entropy(s, i))
        return temperature**2 * total / N

    holds(draw, sla.distillation_loss, definition, arguments, empty=N == 0)


@examples
@given(DATA)
def test_views(data):
    draw = Draw(data)
    name = draw.one_of(sla.TRANSFORMS)
    N, side = draw.size(3, low=0), draw.size(6)
    images = draw.bytes(N, 3, side, side) if draw.one_of((True, False)) else draw.normal(N, 3, side, side)

    def turned(image: Tensor, turns: int) -> Tensor:
        for _ in range(turns):  # a quarter turn, counter-clockwise: the last column becomes the first row
            image = torch.stack([image[:, :, side - 1 - row] for row in range(side)], 1)
        return image

    def definition(images):
        rows = [
            torch.stack([turned(image, turns)[list(order or (0, 1, 2))] for turns, order in sla.TRANSFORMS[name]])
            for image in images
        ]
        return torch.stack(rows) if rows else images.new_zeros(0, len(sla.TRANSFORMS[name]), 3, side, side)

    holds(draw, lambda images: sla.views(images, name), definition, {"images": images}, through=True)


# -- diffaugment -------------------------------------------------------------------------------------------------------


def coloured(images, brightness, saturation, contrast):
    wanted = images.clone()
    for n, x in enumerate(images):
        x = x + brightness[n]
        x = (x - x.mean(0)) * saturation[n] + x.mean(0)
        wanted[n] = (x - x.mean()) * contrast[n] + x.mean()
    return wanted


def moved(images, dy, dx):
    wanted, (H, W) = torch.zeros_like(images), images.shape[2:]
    for n in range(len(images)):
        for y in range(H):
            for x in range(W):
                if 0 <= y + int(dy[n]) < H and 0 <= x + int(dx[n]) < W:
                    wanted[n, :, y, x] = images[n, :, y + int(dy[n]), x + int(dx[n])]
    return wanted


@examples
@given(DATA)
def test_color(data):
    draw = Draw(data)
    N = draw.size(4, low=0)
    arguments = {
        "images": draw.uniform(N, draw.size(4), draw.size(), draw.size(), low=-1),
        "brightness": draw.uniform(N, low=-0.5, high=0.5),
        "saturation": draw.uniform(N, high=2),
        "contrast": draw.uniform(N, low=0.5, high=1.5),
    }
    holds(draw, diffaugment.color, coloured, arguments, damage=("images",), kinds=("nan",), through=True)


@examples
@given(DATA)
def test_translation(data):
    draw = Draw(data)
    N, H, W = draw.size(4, low=0), draw.size(), draw.size()
    arguments = {
        "images": draw.normal(N, draw.size(4), H, W),
        "dy": draw.whole(H, N, low=1 - H),
        "dx": draw.whole(W, N, low=1 - W),
    }
    holds(draw, diffaugment.translation, moved, arguments)


@examples
@given(DATA)
def test_diffaugment_applies_its_policy_in_order(data):
    draw = Draw(data, (torch.float32, torch.float64))
    N, H, W = draw.size(4, low=0), draw.size(9, low=4), draw.size(9, low=4)
    policy = draw.one_of(
        (
            "color",
            "translation",
            "cutout",
            "color,translation,cutout",
            "translation,cutout,color",
            "cutout,color,translation",
            "cutout,translation",
        )
    )
    augment = diffaugment.DiffAugment(policy, probability=draw.one_of((None, 0.0, 0.5)))
    images = draw.uniform(N, draw.size(3), H, W, low=-1)
    draws = augment.draw(images, draw.generator)

    def definition(images):
        for name in policy.split(","):
            if name == "color":
                images = coloured(images, draws.brightness, draws.saturation, draws.contrast)
            elif name == "translation":
                images = moved(images, draws.dy, draws.dx)
            else:
                tall, broad = int(H / 2 + 0.5), int(W / 2 + 0.5)
                images = images.clone()
                for n in range(N):
                    for y in range(H):
                        for x in range(W):
                            top, left = int(draws.cy[n]) - tall // 2, int(draws.cx[n]) - broad // 2
                            if top <= y < top + tall and left <= x < left + broad:
                                images[n, :, y, x] = 0
        return images

    holds(draw, lambda images: augment.apply_draws(images, draws), definition, {"images": images})


@examples
@given(DATA)
def test_ada_step(data):
    draw = Draw(data)
    N = draw.size(9, low=0)
    arguments = {
        "probability": draw.number(0, 1),
        "real_logits": draw.normal(N),
        "images": draw.size(1000),
        "target": draw.number(-1, 1),
        "span": draw.number(1, 1e6),
    }

    def definition(probability, real_logits, images, target, span):
        sign = sum((x > 0) - (x < 0) for x in real_logits.tolist()) / N - target
        return torch.tensor(min(max(probability + ((sign > 0) - (sign < 0)) * images / span, 0.0), 1.0)).double()

    holds(draw, diffaugment.ada_step, definition, arguments, empty=N == 0)


# -- the long tail -----------------------------------------------------------------------------------------------------


@examples
@given(DATA)
def test_class_balanced_weights_and_margins(data):
    draw = Draw(data)
    counts = draw.whole(draw.one_of((3, 500, 10**7)), draw.size(), low=1)
    beta, largest = draw.one_of((0.0, 0.9, 0.9999, 1 - 1e-12, draw.number(0, 0.9921875))), draw.number(0.125, 4)
    weights, n = long_tail.class_balanced_weights(counts, beta), counts.tolist()
    effective = [-math.expm1(each * math.log(beta)) / (1 - beta) if beta else 1.0 for each in n]
    inverse = [1 / each for each in effective]
    same(weights, torch.tensor([len(n) * each / sum(inverse) for each in inverse], dtype=torch.float64), tolerance=1e-9)
    margins = [largest * (min(n) / each) ** 0.25 for each in n]
    same(long_tail.ldam_margins(counts, largest), torch.tensor(margins, dtype=torch.float64), tolerance=1e-9)


@examples
@given(DATA)
def test_ldam_logits(data):
    draw = Draw(data)
    N, C = draw.size(low=0), draw.size(low=2)
    arguments = {
        "logits": draw.normal(N, C),
        "target": draw.whole(C, N),
        "margins": draw.uniform(C),
        "scale": draw.number(0.5, 32),
    }

    def definition(logits, target, margins, scale):
        wanted = logits.clone()
        for n, y in enumerate(target.tolist()):
            wanted[n, y] -= margins[y]
        return scale * wanted

    holds(draw, long_tail.ldam_logits, definition, arguments, empty=N == 0)


@examples
@given(DATA)
def test_focal_loss(data):
    draw = Draw(data)
    N, C = draw.size(low=0), draw.size(low=2)
    arguments = {
        "logits": draw.normal(N, C, scale=draw.one_of((1.0, 10.0))),
        "target": draw.whole(C, N),
        "gamma": draw.one_of((0.0, 0.5, 2.0)),
        "class_weight": draw.one_of((None, draw.uniform(C, low=0.1))),
        "reduction": draw.one_of(("mean", "sum", "none")),
    }

    def definition(logits, target, gamma, class_weight, reduction):
        share = torch.ones(C).double() if class_weight is None else class_weight
        losses = torch.zeros(N).double()
        for n, y in enumerate(target.tolist()):
            others = sum((-cross_entropy(logits[n], j)).exp() for j in range(C) if j != y)
            losses[n] = share[y] * others**gamma * cross_entropy(logits[n], y)
        return {"none": losses, "sum": losses.sum(), "mean": losses.sum() / share[target].sum()}[reduction]

    holds(draw, long_tail.focal_loss, definition, arguments, empty=N == 0)


@examples
@given(DATA)
def test_groups_of_classes(data):
    draw = Draw(data, (torch.float32, torch.float64))
    C = draw.size(9, low=0)
    few = draw.size(50)
    arguments = {
        "accuracy": draw.uniform(C),
        "train_counts": draw.whole(200, C, low=1),
        "few": few,
        "many": few + draw.size(60, low=0),
    }

    def definition(accuracy, train_counts, few, many):
        groups = {"many": [], "medium": [], "few": []}
        for share, count in zip(accuracy.tolist(), train_counts.tolist(), strict=True):
            groups["many" if count > many else "few" if count < few else "medium"].append(share)
        return {name: sum(each) / len(each) if each else math.nan for name, each in groups.items()}

    holds(draw, long_tail.many_medium_few, definition, arguments, damage=(), through=True)


@examples
@given(DATA)
def test_cosine_linear(data):
    draw = Draw(data)
    N, C, A = draw.size(low=0), draw.size(), draw.size()
    head = long_tail.CosineLinear(nn.Linear(A, C).to(draw.dtype))

    def definition(features):
        rows, weight = features.tolist(), head.weight.detach().double()
        wanted = torch.zeros(N, C).double()
        for n in range(N):
            for c in range(C):
                lengths = features[n].norm() * weight[c].norm()
                wanted[n, c] = sum(a * w for a, w in zip(rows[n], weight[c].tolist(), strict=True)) / lengths
        return wanted

    holds(draw, head, definition, {"features": draw.normal(N, A)}, damage=())


# -- g-vae -------------------------------------------------------------------------------------------------------------


@examples
@given(DATA)
def test_kept_coordinates(data):
    draw = Draw(data, (torch.float32, torch.float64))
    N, K = draw.size(low=0), draw.size()
    arguments = {"deviation": draw.uniform(N, K), "clip": draw.one_of((1.0, draw.number(0.015625, 1)))}

    def definition(deviation, clip):
        wanted = torch.zeros(N, K).double()
        for n, row in enumerate(deviation.tolist()):
            for k in sorted(range(K), key=lambda k: -row[k])[: max(1, round(clip * K))]:
                wanted[n, k] = 1
        return wanted

    holds(draw, gvae.kept, definition, arguments)


@examples
@given(DATA)
def test_g_vae_says_what_its_terms_are(data):
    draw = Draw(data, (torch.float32,))
    torch.manual_seed(draw.size(999))
    C, N = draw.size(4), draw.size(4, low=2)
    kind, likelihood = draw.one_of((gvae.GVAE, gvae.VAE, gvae.ConditionalVAE)), draw.one_of(("l2", "l1"))
    model = kind(gvae.AutoEncoder(C, 1, (8, 8), 3, 2), draw.number(0.125, 2), reconstruction=likelihood).eval()
    images, target = draw.uniform(N, 1, 8, 8), draw.whole(C, N)
    step = Step(torch.zeros(()), 0.0, torch.Generator().manual_seed(1))
    loss, terms = model(images, target, step)
    with torch.no_grad():
        mean, log_variance = (each.double() for each in model.encode(images))
        assert bool((log_variance.abs() < gvae.BOUND).all())
        noise = torch.randn(N, 3, generator=torch.Generator().manual_seed(1)).double()
        codes = (mean + (log_variance / 2).exp() * noise).float()
        s = float(model.log_deviation.exp())
        off = (model.decoded(codes, target).double() - images.double()).flatten(1)
        own = off**2 / (2 * s**2) + math.log(2 * math.pi * s**2) / 2
        own = own if likelihood == "l2" else off.abs() * math.sqrt(2) / s + math.log(2 * s / math.sqrt(2))
        kl = 0.5 * (log_variance.exp() - 1 - log_variance + mean**2).sum(1).mean()
        w, b = wide((model.network.head.weight.detach(), model.network.head.bias.detach()))
        z = torch.stack(
            [
                w @ m + b + 0.5 * ((w - w[y]) ** 2 * v).sum(1)
                for m, v, y in zip(mean, log_variance.exp(), target.tolist(), strict=True)
            ]
        )
        of_class = F.cross_entropy(z, target)
        weight = float((-2 * model.log_temperature).exp())
    same(terms["reconstruction"], own.sum(1).mean(), tolerance=1e-4)
    same(terms["kl"], kl)
    same(terms["class_loss"], of_class)
    same(loss.detach(), own.sum(1).mean() + kl + weight * of_class, tolerance=1e-4)


# -- metasaug ----------------------------------------------------------------------------------------------------------


@examples
@given(DATA)
def test_nearest_psd(data):
    draw = Draw(data, (torch.float32, torch.float64))
    C, A = draw.size(4), draw.size(5)
    if draw.one_of((True, False)):
        covariance = draw.normal(C, A)
    else:
        half = draw.normal(C, A, A)
        covariance = half + half.mT

    def definition(covariance):
        if covariance.ndim == 2:
            return torch.tensor([[max(v, 0.0) for v in row] for row in covariance.tolist()]).double()
        values, vectors = torch.linalg.eigh(covariance)
        pairs = [zip(v, q.T, strict=True) for v, q in zip(values, vectors, strict=True)]
        return torch.stack([sum(max(float(v), 0.0) * torch.outer(q, q) for v, q in each) for each in pairs])

    holds(draw, metasaug.nearest_psd, definition, {"covariance": covariance})


class Linear(nn.Module):
    """One linear layer on the pixels, and a head."""

    def __init__(self, pixels: int, A: int, C: int) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(pixels, A), nn.Linear(A, C)

    def features(self, images: Tensor) -> Tensor:
        return self.body(images.flatten(1)).tanh()


@examples
@given(DATA)
def test_meta_gradient_is_that_of_the_loss_after_a_step(data):
    draw = Draw(data, (torch.float64,))
    N, n, C, A = draw.size(5), draw.size(5), draw.size(4, low=2), draw.size(3)
    torch.manual_seed(draw.size(999))
    network = Linear(4, A, C).double()
    images, target = draw.normal(N, 1, 2, 2), draw.whole(C, N)
    meta = Batch(draw.normal(n, 1, 2, 2), draw.whole(C, n))
    covariance = draw.covariances(C, A) if draw.one_of((True, False)) else draw.uniform(C, A)
    step = Step(torch.tensor(0.5), draw.number(0.0625, 1), torch.Generator(), meta)

    def loss(features, weight, bias, covariance):
        return F.cross_entropy(augmented(features, target, weight, bias, covariance, 0.5), target)

    features = network.features(images)
    got = metasaug.meta_gradient(network, images, features, covariance, loss, meta, step)
    sigma, theta = covariance.clone().requires_grad_(), list(network.parameters())
    slopes = torch.autograd.grad(
        loss(features, network.head.weight, network.head.bias, sigma), theta, create_graph=True
    )
    body, offset, weight, bias = (p - step.lr * slope for p, slope in zip(theta, slopes, strict=True))
    logits = (meta.images.flatten(1) @ body.T + offset).tanh() @ weight.T + bias
    (want,) = torch.autograd.grad(F.cross_entropy(logits, meta.target), sigma)
    same(got, want, tolerance=1e-9)


# -- learned -----------------------------------------------------------------------------------------------------------


@examples
@given(DATA)
def test_triangle_wave_and_nonsaturating(data):
    draw = Draw(data, (torch.float32, torch.float64))
    N, C = draw.size(), draw.size(low=2)

    def wave(values):
        return torch.tensor([math.acos(math.cos(math.pi * v)) / math.pi for v in values.tolist()]).double()

    holds(draw, learned.triangle_wave, wave, {"values": draw.normal(N, scale=4)}, damage=(), tolerance=1e-5)
    arguments = {"logits": draw.normal(N, C, scale=5), "target": draw.whole(C, N)}

    def definition(logits, target):
        rows = zip(logits, target.tolist(), strict=True)
        others = [sum((-cross_entropy(z, j)).exp() for j in range(C) if j != y) for z, y in rows]
        return -torch.stack([(each + 1e-12).log() for each in others]).mean()

    holds(draw, learned.nonsaturating, definition, arguments)
    x = draw.normal(N).requires_grad_()
    y = learned.reverse_gradient(x, 0.5)
    assert torch.equal(y, x)
    (slope,) = torch.autograd.grad(y.sum(), x)
    assert torch.equal(slope, torch.full_like(x, -0.5))
