"""semaug.measures on generated input."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from torch import Tensor

from generated import DATA, Draw, examples, holds, same
from semaug.measures import calibration, codes, few_shot, gans, localisation, robustness, separability, transfer

PRECISE = (torch.float32, torch.float64)


@examples
@given(DATA)
def test_calibration(data):
    draw = Draw(data)
    N, bins = draw.size(9, low=0), draw.size(20)
    arguments = {"confidence": draw.uniform(N), "correct": draw.whole(2, N).bool(), "bins": bins}

    def definition(confidence, correct, bins):
        rows = []
        for b in range(bins):
            low, high = b / bins, (b + 1) / bins
            own = [(c, r) for c, r in zip(confidence.tolist(), correct.tolist(), strict=True) if low < c <= high]
            own += [(c, r) for c, r in zip(confidence.tolist(), correct.tolist(), strict=True) if c == 0 == b]
            if own:
                rows.append([low, high, len(own), sum(r for _, r in own) / len(own), sum(c for c, _ in own) / len(own)])
        gaps = [(count / N, abs(right - sure)) for _, _, count, right, sure in rows]
        ece, mce = sum(share * gap for share, gap in gaps), max(gap for _, gap in gaps)
        return ece, mce, torch.tensor(rows).double()

    holds(draw, calibration.calibration, definition, arguments, empty=N == 0, tolerance=1e-6)


# -- gans --------------------------------------------------------------------------------------------------------------


@examples
@given(DATA)
def test_nearest(data):
    draw = Draw(data, PRECISE)
    N, M, shape = draw.size(low=0), draw.size(), (draw.size(3), draw.size(3))
    arguments = {"images": draw.normal(N, *shape), "train": draw.normal(M, *shape), "count": draw.size(M)}

    def definition(images, train, count):
        rows = [sorted((float((x - t).square().sum()) ** 0.5, m) for m, t in enumerate(train))[:count] for x in images]
        numbers = torch.tensor([[m for _, m in row] for row in rows]).long().reshape(N, count)
        return numbers, torch.tensor([[d for d, _ in row] for row in rows]).double().reshape(N, count)

    holds(draw, lambda **each: tuple(gans.nearest(**each)), definition, arguments)


@examples
@given(DATA)
def test_flattest_window(data):
    draw = Draw(data, PRECISE)
    N, channels, H, W = draw.size(4, low=0), draw.size(3), draw.size(), draw.size()
    size = draw.size(H), draw.size(W)
    arguments = {"images": draw.uniform(N, channels, H, W), "size": size, "level": draw.number(0, 1)}

    def definition(images, size, level):
        wanted = torch.full((N,), math.inf).double()
        for n in range(N):
            for y in range(H - size[0] + 1):
                for x in range(W - size[1] + 1):
                    window = images[n, :, y : y + size[0], x : x + size[1]]
                    wanted[n] = min(wanted[n], (window - level).square().mean().sqrt())
        return wanted

    holds(draw, gans.flattest_window, definition, arguments, tolerance=2e-3)


@examples
@given(DATA)
def test_distance(data):
    from scipy.linalg import sqrtm

    draw = Draw(data, (torch.float32,))
    A, N, M = draw.size(3), draw.size(30, low=12), draw.size(30, low=12)
    real, generated = draw.normal(N, A), draw.normal(M, A) + draw.number(0, 2)
    damaged, kind = draw.damaged({"real": real, "generated": generated}, kinds=("nan", "inf"))
    if kind:
        with pytest.raises(ValueError, match=r"^(real|generated): got features that are not finite"):
            gans.distance(**damaged, subsets=2, subset_size=10)
        return
    fid = gans.distance(real, generated, subsets=2, subset_size=10).fid
    r, g = real.double(), generated.double()
    first, second = torch.cov(r.T).reshape(A, A), torch.cov(g.T).reshape(A, A)
    root = torch.from_numpy(sqrtm((first @ second).numpy()).real)
    want = (r.mean(0) - g.mean(0)).square().sum() + (first + second - 2 * root).trace()
    same(torch.tensor(fid), want, tolerance=1e-3)


# -- robustness --------------------------------------------------------------------------------------------------------


@examples
@given(DATA)
def test_attacks_on_a_linear_network(data):
    draw = Draw(data, PRECISE)
    N, side, C = draw.size(4, low=0), draw.size(4), draw.size(4, low=2)
    weight = draw.normal(C, side * side)
    arguments = {
        "images": draw.uniform(N, 1, side, side),
        "target": draw.whole(C, N),
        "epsilon": draw.number(0, 1),
        "steps": draw.size(3),
        "step_size": draw.number(0, 0.5),
    }

    def predict(images: Tensor) -> Tensor:
        return images.flatten(1) @ weight.T.to(images.dtype)

    def definition(images, target, epsilon, steps, step_size):
        now = images.clone()
        for _ in range(steps):
            for n, y in enumerate(target.tolist()):
                z = weight.double() @ now[n].flatten()
                q = z.masked_fill(torch.arange(C) == y, -math.inf).softmax(0)
                q[y] -= 1
                moved = now[n] + step_size * (q @ weight.double()).sign().view_as(now[n])
                now[n] = moved.clamp(images[n] - epsilon, images[n] + epsilon).clamp(0, 1)
        return now

    holds(draw, lambda **each: robustness.pgd(predict, **each), definition, arguments)
    once = {name: arguments[name] for name in ("images", "target", "epsilon")}
    want = definition(once["images"].double(), once["target"], once["epsilon"], 1, once["epsilon"])
    same(robustness.fgsm(predict, **once), want)


@examples
@given(DATA)
@pytest.mark.parametrize("name", [*robustness.CORRUPTIONS])
def test_corruptions_are_bytes_and_come_again(name, data):
    draw = Draw(data)
    images, severity = (
        draw.bytes(draw.size(3), draw.one_of((1, 3)), draw.size(9, low=2), draw.size(9, low=2)),
        draw.size(5),
    )
    before, seeds = images.clone(), (torch.Generator().manual_seed(1) for _ in range(2))
    one, two = (robustness.corrupt(images, name, severity, seed) for seed in seeds)
    assert (one.dtype, one.shape) == (torch.uint8, images.shape)
    assert torch.equal(one, two)
    assert torch.equal(images, before)


@examples
@given(DATA)
def test_brightness_and_contrast_by_definition(data):
    draw = Draw(data)
    images, severity = draw.bytes(2, 3, draw.size(5), draw.size(5)), draw.size(5)
    x, none = images.double() / 255, torch.Generator()
    level = robustness.CORRUPTIONS["contrast"][1][severity - 1]
    want = ((x - x.mean((2, 3), keepdim=True)) * level + x.mean((2, 3), keepdim=True)).clamp(0, 1) * 255
    got = robustness.corrupt(images, "contrast", severity, none).double()
    assert bool(((got - want).abs() <= 1.001).all())
    level = robustness.CORRUPTIONS["brightness"][1][severity - 1]
    value = robustness.corrupt(images, "brightness", severity, none).double().amax(1)
    assert bool(((value - (x.amax(1) + level).clamp_max(1) * 255).abs() <= 1.001).all())


# -- classifiers of features -------------------------------------------------------------------------------------------


def labelled(draw: Draw, C: int, shots: int, A: int) -> dict:
    target = torch.arange(C).repeat(shots)
    return {"features": draw.normal(C * shots, A), "target": target, "classes": C}


@examples
@given(DATA)
def test_prototype_classifier(data):
    draw = Draw(data)

    def definition(features, target, classes):
        means = [sum(features[i] for i in range(len(target)) if target[i] == c) for c in range(classes)]
        means = torch.stack([m / int((target == c).sum()) for c, m in enumerate(means)])
        return means, -0.5 * torch.stack([m @ m for m in means])

    arguments = labelled(draw, draw.size(4), draw.size(4), draw.size(5))
    holds(draw, few_shot.prototype_classifier, definition, arguments)


@examples
@given(DATA)
def test_linear_classifier(data):
    draw = Draw(data)

    def definition(features, target, classes, ridge):
        mean, truth = features.mean(0), torch.eye(classes).double()[target]
        x, y = features - mean, truth - truth.mean(0)
        penalty = ridge * float((x**2).sum(1).mean()) or 1.0
        # normal equations of the ridge regression, whichever way is the shorter one
        weight = torch.linalg.inv(x.T @ x + penalty * torch.eye(x.shape[1]).double()) @ x.T @ y
        return weight.T, truth.mean(0) - mean @ weight

    arguments = labelled(draw, draw.size(4), draw.size(4), draw.size(5)) | {"ridge": draw.one_of((0.1, 1.0))}
    holds(draw, few_shot.linear_classifier, definition, arguments, tolerance=5e-3)


@examples
@given(DATA)
def test_few_shot_and_separability_of_what_lies_apart(data):
    draw = Draw(data)
    C, A, generator = draw.size(4, low=2), draw.size(5, low=4), torch.Generator().manual_seed(0)
    target = torch.arange(C).repeat_interleave(4)
    features = 0.01 * draw.normal(4 * C, A) + 8 * torch.eye(A, dtype=draw.dtype)[target]
    options = {"ways": C, "shots": 2, "queries": 2, "episodes": 3, "classifier": draw.one_of(few_shot.CLASSIFIERS)}
    damaged, kind = draw.damaged({"features": features})
    try:
        accuracy = few_shot.few_shot(damaged["features"], target, generator, **options)
    except ValueError as error:
        message = str(error)
        assert kind
        assert "features: got" in message
        return
    assert kind in ("", "huge")
    assert kind == "huge" or torch.equal(accuracy, torch.ones(3).double())
    every = features.view(C, 4, A).transpose(0, 1)[:, : min(C, 3)]
    assert separability.separability(every, generator, 2) == 1


# -- localisation and detection ----------------------------------------------------------------------------------------


@examples
@given(DATA)
def test_boxes(data):
    draw = Draw(data, PRECISE)
    N, H, W = draw.size(4, low=0), draw.size(), draw.size()
    arguments = {"maps": draw.one_of((draw.normal(N, H, W), draw.whole(2, N, H, W).to(draw.dtype))), "threshold": 0.5}

    def definition(maps, threshold):
        ends = []
        for each in maps:
            low, high = each.min(), each.max()
            left = {(y, x) for y in range(H) for x in range(W) if each[y, x] - low >= threshold * (high - low)}
            pieces = []
            while left:
                piece, edge = set(), [min(left)]
                while edge:
                    y, x = edge.pop()
                    if (y, x) in left:
                        left.remove((y, x))
                        piece.add((y, x))
                        edge += [(y + 1, x), (y - 1, x), (y, x + 1), (y, x - 1)]
                pieces.append(piece)
            largest = max(pieces, key=len)
            rows, columns = [y for y, _ in largest], [x for _, x in largest]
            ends.append([min(rows), min(columns), max(rows) + 1, max(columns) + 1])
        return torch.tensor(ends).long().reshape(-1, 4)

    holds(draw, localisation.boxes, definition, arguments)


def overlap(one: Tensor, other: Tensor) -> float:
    sides = [max(0.0, float(min(one[k + 2], other[k + 2]) - max(one[k], other[k]))) for k in (0, 1)]
    areas = [float((box[2] - box[0]) * (box[3] - box[1])) for box in (one, other)]
    return sides[0] * sides[1] / (sum(areas) - sides[0] * sides[1])


def some_boxes(draw: Draw, n: int) -> Tensor:
    corner = draw.whole(6, n, 2)
    return torch.cat([corner, corner + draw.whole(5, n, 2, low=1)], 1).to(torch.float64)


@examples
@given(DATA)
def test_surest_boxes(data):
    draw = Draw(data, (torch.float64,))
    n = draw.size(8, low=0)
    boxes, target, scores, most = some_boxes(draw, n), draw.whole(2, n), draw.uniform(n), draw.number(0.125, 0.875)
    kept: list[int] = []
    for row in sorted(range(n), key=lambda row: -float(scores[row])):
        doubles = (k for k in kept if target[k] == target[row] and overlap(boxes[k], boxes[row]) > most)
        kept += [] if any(True for _ in doubles) else [row]
    assert transfer.surest(boxes, target, scores, most).tolist() == kept


@examples
@given(DATA)
def test_average_precision(data):
    draw = Draw(data, (torch.float64,))
    n, least = draw.size(3), draw.one_of((0.5, 0.75))
    truth = transfer.Scenes(
        torch.zeros(n, 3, 8, 8, dtype=torch.uint8),
        torch.stack([torch.cat([draw.whole(2, 1), draw.whole(2, 3, low=-1)]) for _ in range(n)]),
        torch.stack([some_boxes(draw, 4).long() for _ in range(n)]),
    )
    found = []
    for scene in range(n):
        count = draw.size(5, low=0)
        boxes = some_boxes(draw, count)
        copies = draw.whole(2, count).bool()
        boxes[copies] = truth.boxes[scene].double()[: len(boxes)].repeat(2, 1)[: len(boxes)][copies]
        scores = draw.uniform(count).sort(descending=True).values
        found.append(transfer.Found(boxes, draw.whole(2, count), scores))
    values = []
    for label in sorted({int(c) for c in truth.target.flatten() if c >= 0}):
        hits = []
        for scene, detected in enumerate(found):
            left = [box for box, c in zip(truth.boxes[scene], truth.target[scene], strict=True) if c == label]
            for box, c, score in zip(*detected, strict=True):
                if c == label:
                    overlaps = [overlap(box, other.double()) for other in left]
                    right = bool(overlaps) and max(overlaps) >= least
                    hits.append((float(score), right))
                    if right:
                        left.pop(overlaps.index(max(overlaps)))
        ranked = [right for _, right in sorted(hits, key=lambda hit: -hit[0])]
        objects, area = int((truth.target == label).sum()), 0.0
        for k, right in enumerate(ranked):
            if right:  # the recall grows here, at the best precision from here on
                area += max(sum(ranked[: j + 1]) / (j + 1) for j in range(k, len(ranked))) / objects
        values.append(area)
    assert transfer.average_precision(found, truth, least) == pytest.approx(sum(values) / len(values), abs=1e-9)


# -- codes -------------------------------------------------------------------------------------------------------------


def posterior(draw: Draw, C: int) -> codes.Posterior:
    N, K = C * draw.size(4), draw.size(4)
    return codes.Posterior(draw.normal(N, K), draw.uniform(N, K, low=0.1, high=2), torch.arange(N) % C)


@examples
@given(DATA)
def test_measures_of_codes(data):
    draw = Draw(data, PRECISE)
    C = draw.size(3)
    each = posterior(draw, C)
    mean, deviation, target = each.mean.double(), each.deviation.double(), each.target
    N, K = mean.shape
    kl = [
        sum(0.5 * (s**2 - 1 - 2 * s.log() + m**2) for m, s in zip(mean[:, k], deviation[:, k], strict=True)) / N
        for k in range(K)
    ]
    same(codes.kl_by_coordinate(each), torch.stack(kl))
    if N > 1:
        spread = [float(((mean[:, k] - mean[:, k].mean()) ** 2).sum()) / (N - 1) for k in range(K)]
        assert codes.active_units(each, 0.5) == sum(value > 0.5 for value in spread)
    moments = codes.class_codes(each, C)
    for c in range(C):
        own, s = mean[target == c], deviation[target == c]
        same(moments.mean[c], own.mean(0))
        same(moments.deviation[c], s.mean(0))
        inner = sum(torch.outer(m - own.mean(0), m - own.mean(0)) for m in own) / len(own)
        same(moments.covariance[c], inner + (s**2).mean(0).diag())
    points, share = codes.plane(each)
    values = torch.linalg.eigvalsh(torch.cov(mean.T, correction=0).reshape(K, K)).flip(0)
    if float(values.sum()) > 1e-9:
        same(share[: min(N, K)], (values / values.sum())[: min(N, K)], tolerance=1e-5)
        same(points.square().mean(0), values[: points.shape[1]], tolerance=1e-5)


@examples
@given(DATA)
def test_separation(data):
    draw = Draw(data, PRECISE)
    N, C = draw.size(9, low=2), draw.size(3)
    arguments = {"points": draw.normal(N, 2), "labels": draw.whole(C, N)}
    several = [c for c in range(C) if int((arguments["labels"] == c).sum()) > 1]
    if not several:
        return

    def definition(points, labels):
        shares = []
        for c in several:
            right = []
            for i in (labels == c).nonzero()[:, 0].tolist():
                distance = {}
                for other in several:
                    rows = [j for j in range(N) if labels[j] == other and j != i]
                    distance[other] = float((points[i] - sum(points[j] for j in rows) / len(rows)).norm())
                right.append(min(distance, key=distance.get) == c)
            shares.append(sum(right) / len(right))
        return sum(shares) / len(shares)

    holds(draw, codes.separation, definition, arguments)


@examples
@given(DATA)
def test_consistency_and_movement(data):
    draw = Draw(data, PRECISE)
    N, columns, C = draw.size(5), 2 * draw.size(2) + 1, draw.size(3)
    traversals, target = draw.uniform(N, columns, 1, 2, 2), draw.whole(C, N)
    want = torch.zeros(columns).double()
    for k in range(columns):
        off = [(t[k] - t[columns // 2]).double().square().mean() for t in traversals]
        want[k] = (sum(off) / N) ** 0.5
    same(codes.movement(traversals), want)

    def predict(images: Tensor) -> Tensor:
        return images.flatten(1)[:, :3].mul(7.3).cos()[:, :C]

    shares = []
    for c in sorted(set(target.tolist())):
        rows = [n for n in range(N) if target[n] == c]
        shares.append(
            [sum(int(predict(traversals[n, k][None]).argmax()) == c for n in rows) / len(rows) for k in range(columns)]
        )
    same(codes.consistency(predict, traversals, target), torch.tensor(shares).double().mean(0))


def test_attacked_images_of_nan_logits_are_refused():
    with pytest.raises(ValueError, match="predict: got logits that are"):
        robustness.fgsm(lambda images: images.flatten(1) * math.nan, torch.zeros(2, 1, 1, 3), torch.tensor([0, 1]), 0.1)
