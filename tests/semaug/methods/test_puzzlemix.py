"""Oracles: the released code's distances, all labellings of small grids, all permutations of few blocks, autograd."""

from __future__ import annotations

import copy
import itertools
import math

import numpy as np
import pytest
import torch
from scipy import optimize
from torch.nn import functional as F

from semaug import data, networks
from semaug.methods import puzzlemix
from semaug.methods.comixup import CoMixup
from semaug.methods.puzzlemix import PuzzleMix, grid_pairs
from semaug.training import loop as training
from semaug.training.objective import Step
from semaug.training.recipe import Recipe


def step(seed=0):
    return Step(torch.tensor(0.5), 0.1, torch.Generator().manual_seed(seed))


def energy(z, s, partner, differences, lam, labels, beta, gamma, eta):
    """(40) as the paper has it: every pair of neighbours pays for the difference of what they show."""
    b = len(s)
    pairs, scale = grid_pairs(b, b), beta / (16 * b)
    total = ((1 - z) * s + z * partner).sum()
    for value in z.ravel():
        k = round(value * (labels - 1))
        p = math.comb(labels - 1, k) * (lam + 1e-8) ** k * (1 - lam + 1e-8) ** (labels - 1 - k)
        total -= eta / b**2 * math.log(p)
    for e, (i, j) in enumerate(pairs):
        one, two = z.ravel()[i], z.ravel()[j]
        neither, second, first, both = (each[e] for each in differences)
        total += scale * (one - two) ** 2
        phi = one * (first + both) + (1 - one) * (second + neither) + two * (second + both)
        phi = (phi + (1 - two) * (first + neither) - first - second) / 2
        phi += (first + second - both - neither) / 2 * (one - two) ** 2
        if labels == 2:
            assert phi == pytest.approx({(0, 0): neither, (0, 1): second, (1, 0): first, (1, 1): both}[one, two])
        total += scale * gamma * phi
    return total


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("b", "labels"), [(3, 2), (2, 3), (2, 4)])
def test_the_mask_is_the_best_of_all(b, labels, seed):
    random = np.random.default_rng(seed)
    s, partner = (each / each.sum() for each in random.random((2, b, b)))
    differences = tuple(random.random((4, len(grid_pairs(b, b)))))
    options = {"labels": labels, "beta": 3.0, "gamma": 0.9, "eta": 0.2}
    mask = puzzlemix.puzzle_mask(s, partner, differences, 0.3, **options)

    def cost(z):
        return energy(np.array(z).reshape(b, b), s, partner, differences, 0.3, labels, 3.0, 0.9, 0.2)

    best = min(map(cost, itertools.product(np.linspace(0, 1, labels), repeat=b * b)))
    assert cost(mask) == pytest.approx(best, abs=1e-6)


def test_the_mask_shows_what_is_salient_and_about_its_ratio():
    s = np.zeros((4, 4))
    s[:2] = 1 / 8
    nothing = tuple(np.zeros((4, 24)))
    mask = puzzlemix.puzzle_mask(s, np.flipud(s), nothing, 0.5)
    assert (mask[:2] == 1).all()
    assert (mask[2:] == 0).all()
    flat = np.full((4, 4), 1 / 16)
    means = [puzzlemix.puzzle_mask(flat, flat, nothing, lam).mean() for lam in (0.0, 0.3, 0.5, 0.7, 1.0)]
    assert means == sorted(means)
    assert (means[0], means[2], means[-1]) == (0, 0.5, 1)


@pytest.mark.parametrize("seed", range(3))
def test_transport_is_the_best_of_all(seed):
    """Of four blocks: 24 permutations; and where nothing is to be won nothing moves."""
    random = np.random.default_rng(seed)
    s, mask = random.random((2, 2)), np.array([[1.0, 0.0], [0.5, 0.0]])

    def cost(to):
        squared = [(i // 2 - j // 2) ** 2 + (i % 2 - j % 2) ** 2 for i, j in enumerate(to)]
        return 0.2 * sum(squared) - sum(s.ravel()[i] * (mask.ravel()[j] > 0) for i, j in enumerate(to))

    found = puzzlemix.transport(s, mask, 0.2)
    assert cost(found) == pytest.approx(min(map(cost, itertools.permutations(range(4)))))
    assert puzzlemix.transport(s, np.ones((2, 2))).tolist() == [0, 1, 2, 3]


def test_blocks_move_as_told():
    image = torch.arange(2 * 4 * 6.0).reshape(2, 4, 6)
    moved = puzzlemix.move_blocks(image, np.array([3, 0, 1, 2]), 2)
    blocks = [
        (slice(0, 2), slice(0, 3)),
        (slice(0, 2), slice(3, 6)),
        (slice(2, 4), slice(0, 3)),
        (slice(2, 4), slice(3, 6)),
    ]
    for i, j in enumerate([3, 0, 1, 2]):
        assert torch.equal(moved[(slice(None), *blocks[j])], image[(slice(None), *blocks[i])])


def test_saliency_is_the_gradient():
    torch.manual_seed(0)
    network = networks.small(3, channels=2, width=4, norm="group")
    images, target = torch.rand(3, 2, 12, 12), F.one_hot(torch.tensor([0, 2, 1]), 3).float()
    found = puzzlemix.saliency(network, images, target)
    for i in range(3):
        one = images[i : i + 1].clone().requires_grad_()
        F.cross_entropy(network(one), target[i : i + 1]).backward()
        torch.testing.assert_close(found[i], (one.grad[0] ** 2).mean(0).sqrt(), rtol=1e-3, atol=1e-6)
    network.zero_grad()
    puzzlemix.saliency(network, images, target)
    assert all(parameter.grad is None or not parameter.grad.any() for parameter in network.parameters())
    assert not found.requires_grad


def test_puzzlemix_mixes_by_its_masks():
    """Without transport every block is the image's, the partner's, or half of both, and labels are their shares."""
    images, target = torch.rand(5, 1, 8, 12), torch.arange(5) % 3
    permutation, s = torch.tensor([2, 0, 4, 1, 3]), torch.rand(5, 8, 12)
    mixed = puzzlemix.puzzlemix(images, target, 0.4, permutation, s, 4, 3, transport_cost=None)
    for i, j in enumerate(permutation.tolist()):
        shown = 0.0
        for y in range(4):
            for x in range(4):
                block = (0, slice(2 * y, 2 * y + 2), slice(3 * x, 3 * x + 3))
                own, other, seen = images[i][block], images[j][block], mixed.images[i][block]
                match = [z for z in (0, 0.5, 1) if torch.allclose(seen, z * own + (1 - z) * other)]
                assert len(match) == 1
                shown += match[0] / 16
        assert mixed.lam[i].item() == pytest.approx(shown)
        expected = shown * F.one_hot(target[i], 3) + (1 - shown) * F.one_hot(target[j], 3)
        torch.testing.assert_close(mixed.target[i], expected.float())


@pytest.mark.parametrize(
    ("side", "b", "t_size", "split"),
    [((16, 16), 2, 4, 2), ((16, 16), 2, 1, 8), ((16, 16), 8, 4, 1), ((12, 16), 2, 3, 2), ((28, 28), 2, 4, 2)],
)
def test_blocks_of_t_size_are_moved(side, b, t_size, split):
    """By loops: parts of each block of the mask change places by an assignment of their own, the mask stays."""
    H, W = side
    images, s, swap = torch.rand(2, 1, H, W).double(), torch.rand(2, H, W).double(), torch.tensor([1, 0])
    options = {"labels": 2, "beta": 0.0}
    still = puzzlemix.puzzlemix(images, torch.eye(2), 0.5, swap, s, b, transport_cost=None, **options)
    found = puzzlemix.puzzlemix(images, torch.eye(2), 0.5, swap, s, b, transport_cost=0.01, t_size=t_size, **options)
    assert torch.equal(found.lam, still.lam)
    n, parts = b * split, [(y, x) for y in range(b * split) for x in range(b * split)]
    h, w = H // n, W // n

    def moved(image, salient, shown):
        cost = np.zeros((len(parts), len(parts)))
        for (i, (y, x)), (j, (v, u)) in itertools.product(enumerate(parts), repeat=2):
            cost[i, j] = 0.01 * ((y - v) ** 2 + (x - u) ** 2) / (n - 1) ** 2
            if shown[v * h, u * w]:
                cost[i, j] -= salient[y * h : y * h + h, x * w : x * w + w].sum() / salient.sum()
        result = torch.empty_like(image)
        for i, j in zip(*optimize.linear_sum_assignment(cost), strict=True):
            (y, x), (v, u) = parts[i], parts[j]
            result[:, v * h : v * h + h, u * w : u * w + w] = image[:, y * h : y * h + h, x * w : x * w + w]
        return result

    for i, j in ((0, 1), (1, 0)):
        mask = (still.images[i, 0] == images[i, 0]).double()  # two labels: every pixel is of one of the two
        expected = mask * moved(images[i], s[i], mask) + (1 - mask) * moved(images[j], s[j], 1 - mask)
        torch.testing.assert_close(found.images[i], expected)
    assert not torch.equal(found.images, still.images)


# --- distances at the borders --------------------------------------------------------------------------------------


def waves():
    """2 x 3 x 16 x 16, the images of the golden values: rough enough that single pixels differ from means of four."""
    n, c, i, j = torch.meshgrid(*(torch.arange(k, dtype=torch.float64) for k in (2, 3, 16, 16)), indexing="ij")
    return 0.5 + 0.5 * torch.sin(0.9 * n + 1.3 * c + 0.8 * i + 1.1 * j + 0.05 * i * j)


@pytest.mark.parametrize(
    ("b", "down", "across", "first"),
    [
        (
            2,
            [0.09741742764995479, 0.09307364151045465, 0.09307364151045465, 0.09741742764995477],
            [0.09812327389308097, 0.09868181225597121, 0.09868181225597122, 0.09812327389308097],
            [0.029342570734381995, 0.027840515004167964, 0.03461405064035646, 0.036538954767034476],
        ),
        (
            4,
            [0.7391256023609918, 0.6623780854410823, 0.6623780854410823, 0.7391256023609918],
            [0.5576258280522848, 0.5595723225038058, 0.5595723225038058, 0.5576258280522848],
            [0.07310747457370002, 0.06847263072000664, 0.063256142601387, 0.08932335542654601],
        ),
    ],
)
def test_distances_golden(b, down, across, first):
    """neigh_penalty of github.com/snu-mllab/PuzzleMix on images pooled to cells of four pixels, as mixup_graph does."""
    distances = torch.from_numpy(puzzlemix.border_differences(waves(), torch.tensor([1, 0]), b))
    torch.testing.assert_close(distances[..., : b * (b - 1)].sum((0, 2)), torch.tensor(down).double())
    torch.testing.assert_close(distances[..., b * (b - 1) :].sum((0, 2)), torch.tensor(across).double())
    torch.testing.assert_close(distances[0, :, 0], torch.tensor(first).double())


def distances_by_hand(first, second, b, neigh_size):
    """Of two images (channels, H, W): cells written out, then the mean distance of those that meet at each border."""

    def cells(side):
        count = -(-(side // b) // neigh_size)
        ends = [
            (i * (side // b) + j * (side // b) // count, i * (side // b) - (-(j + 1) * (side // b) // count))
            for i in range(b)
            for j in range(count)
        ]
        return count, ends

    (h, rows), (w, columns) = cells(first.shape[1]), cells(first.shape[2])
    means = [
        torch.stack([torch.stack([x[:, t:e, l:r].mean((1, 2)) for l, r in columns], 1) for t, e in rows], 1)
        for x in (first, second)
    ]
    down = [
        [(means[0][:, i * h - 1, j] - means[1][:, i * h, j]).abs().mean() for j in range(k * w, k * w + w)]
        for i in range(1, b)
        for k in range(b)
    ]
    across = [
        [(means[0][:, i, k * w - 1] - means[1][:, i, k * w]).abs().mean() for i in range(j * h, j * h + h)]
        for j in range(b)
        for k in range(1, b)
    ]
    return [float(torch.stack(each).mean()) for each in down + across]


@pytest.mark.parametrize(("side", "b"), [((16, 16), 2), ((28, 28), 4), ((8, 12), 4), ((14, 28), 2)])
@pytest.mark.parametrize("neigh_size", [1, 2, 3, 4, 50])
def test_distances_by_hand(side, b, neigh_size):
    images, permutation = torch.rand(3, 2, *side, dtype=torch.float64), torch.tensor([2, 0, 1])
    distances = puzzlemix.border_differences(images, permutation, b, neigh_size)
    for i, j in enumerate(permutation.tolist()):
        pair = (images[j], images[i])  # the partner, the image
        expected = [distances_by_hand(pair[k], pair[l], b, neigh_size) for k, l in ((0, 0), (0, 1), (1, 0), (1, 1))]
        np.testing.assert_allclose(distances[i], expected, rtol=1e-10)


def test_pooled_borders_decide_the_masks():
    """Every mask is the best of all 81 for the distances of its own neigh_size, and some differ between the two."""
    masks = {}
    for neigh_size in (1, 4):
        for seed in range(8):
            generator = torch.Generator().manual_seed(seed)
            images = torch.rand(2, 1, 16, 16, generator=generator, dtype=torch.float64)
            s, swap = torch.rand(2, 16, 16, generator=generator, dtype=torch.float64), torch.tensor([1, 0])
            options = {"beta": 8.0, "gamma": 1.0, "eta": 0.0, "transport_cost": None, "neigh_size": neigh_size}
            mixed = puzzlemix.puzzlemix(images, torch.eye(2), 0.5, swap, s, 2, **options).images
            # how much of the image a pixel of each block shows
            share = ((mixed - images[swap]) / (images - images[swap]))[0, 0, 4::8, 4::8].numpy().round(6)
            own, partner = puzzlemix.in_blocks(s, 2).numpy()
            distances = [
                np.array(distances_by_hand(images[k], images[l], 2, neigh_size))
                for k, l in ((1, 1), (1, 0), (0, 1), (0, 0))
            ]

            def cost(z, own=own, partner=partner, distances=distances):
                return energy(np.array(z).reshape(2, 2), own, partner, distances, 0.5, 3, 8.0, 1.0, 0.0)

            assert cost(share) == pytest.approx(min(map(cost, itertools.product((0, 0.5, 1), repeat=4))), abs=1e-6)
            masks[neigh_size, seed] = share
    assert any((masks[1, seed] != masks[4, seed]).any() for seed in range(8))


# --- training ------------------------------------------------------------------------------------------------------


def test_batchnorm_counts_the_mixtures_alone():
    """As released: the network is in evaluation mode while it is asked for saliency, and afterwards as it was."""
    torch.manual_seed(0)
    objective = PuzzleMix(networks.small(3, width=4))
    norm = next(part for part in objective.network.modules() if isinstance(part, torch.nn.BatchNorm2d)).eval()
    images, target = torch.rand(4, 1, 16, 16), torch.tensor([0, 1, 2, 0])
    objective(images, target, step())
    tracked = [int(b) for name, b in objective.network.named_buffers() if name.endswith("num_batches_tracked")]
    assert sorted(tracked) == [0] + [1] * (len(tracked) - 1), "the frozen one counts nothing"
    assert objective.network.training
    assert not norm.training
    network = objective.network.train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    salient = puzzlemix.saliency(network, images, F.one_hot(target, 3).float())
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert torch.equal(salient, puzzlemix.saliency(network.eval(), images, F.one_hot(target, 3).float()))


@pytest.mark.parametrize("kind", [PuzzleMix, CoMixup])
@pytest.mark.parametrize("soft", [False, True])
def test_clean_lam_trains_on_the_images_too(kind, soft):
    """The release's loop: a pass in training mode, whose backward gives saliency and gradients, then the mixtures'."""
    torch.manual_seed(0)
    images, target = torch.rand(6, 1, 16, 16), torch.tensor([0, 1, 2, 0, 1, 2])
    target = torch.rand(6, 3).softmax(1) if soft else target
    objective = kind(networks.small(3, width=4), clean_lam=0.7)
    network = copy.deepcopy(objective.network)
    loss, terms = objective(images, target, step(5))
    loss.backward()

    labels = target if soft else F.one_hot(target, 3).float()
    inputs = images.clone().requires_grad_()
    clean = -(labels * network(inputs).log_softmax(1)).sum(1).mean()
    (0.7 * clean).backward()
    salient = inputs.grad.square().mean(1).sqrt()
    mixed = kind(networks.small(3, width=4)).mix(images, labels, step(5), salient)
    mixture = -(mixed.target * network(mixed.images).log_softmax(1)).sum(1).mean()
    mixture.backward()
    torch.testing.assert_close(loss, mixture + 0.7 * clean)
    torch.testing.assert_close(terms, {"lam": mixed.lam.mean(), "clean": clean.detach()})
    for (name, one), two in zip(objective.network.named_parameters(), network.parameters(), strict=True):
        torch.testing.assert_close(one.grad, two.grad, rtol=1e-4, atol=1e-6, msg=name)
    for (name, one), two in zip(objective.network.named_buffers(), network.buffers(), strict=True):
        torch.testing.assert_close(one, two, msg=name)
        assert not name.endswith("num_batches_tracked") or int(one) == 2


@pytest.mark.parametrize("kind", [PuzzleMix, CoMixup])
def test_clean_lam_counts_batches_that_are_left_alone_and_is_off_by_default(kind):
    torch.manual_seed(0)
    images, target = torch.rand(4, 1, 16, 16), torch.tensor([0, 1, 2, 0])
    network = networks.small(3, width=4, norm="group")
    plain = F.cross_entropy(network(images), target)
    loss, terms = kind(network, probability=0.0, clean_lam=0.5)(images, target, step())
    torch.testing.assert_close(loss, 1.5 * plain)
    assert terms["lam"] == 1
    loss, terms = kind(network, probability=0.0)(images, target, step())
    torch.testing.assert_close(loss, plain)
    assert set(terms) == {"lam"}
    assert "clean_lam" not in kind(network).settings
    assert kind(network, clean_lam=1).settings["clean_lam"] == 1.0


def test_trains_by_seed_with_labels_that_are_shares():
    dataset = data.load("fashion-mini", train_size=60, test_size=40)

    def run():
        torch.manual_seed(0)
        objective = PuzzleMix(networks.small(10, width=4))
        return training.fit(objective, dataset, Recipe(epochs=1, batch_size=20), progress=False)

    one, two = run(), run()
    assert one.curves == two.curves
    assert math.isfinite(one.curves["train_loss"][0])
    assert not PuzzleMix.static
    released = {"alpha": 1.0, "probability": 1.0, "labels": 3, "beta": 1.2, "gamma": 0.5, "eta": 0.2}
    assert one.config["settings"] == released | {"transport_cost": 0.8, "neigh_size": 4}
    images, soft = torch.rand(11, 1, 28, 28), F.one_hot(torch.arange(11) % 10, 10).float()
    mixed = PuzzleMix(networks.small(10, width=4)).mix(images, soft, step())
    torch.testing.assert_close(mixed.target.sum(1), torch.ones(11))
    assert mixed.images.shape == images.shape
    assert 0 <= mixed.images.min() <= mixed.images.max() <= 1


@pytest.mark.usefixtures("unchecked")
def test_settings_are_plain():
    options = {"labels": np.int64(3), "beta": np.float64(1), "eta": 0, "transport_cost": 1, "neigh_size": np.int64(2)}
    objective = PuzzleMix(networks.small(3, width=4), alpha=1, **options)
    expected = {"alpha": 1.0, "probability": 1.0, "labels": 3, "beta": 1.0, "gamma": 0.5, "eta": 0.0}
    assert objective.settings == expected | {"transport_cost": 1.0, "neigh_size": 2}
    assert {type(value) for value in objective.settings.values()} == {int, float}
    assert [name for name, value in objective.settings.items() if type(value) is int] == ["labels", "neigh_size"]
    assert "transport_cost" not in PuzzleMix(networks.small(3, width=4), transport_cost=None).settings
    assert PuzzleMix(networks.small(3, width=4), t_size=np.int64(4)).settings["t_size"] == 4


def test_probability_batch_of_one_and_sides():
    torch.manual_seed(0)
    network = networks.small(3, width=4, norm="group")
    images, target = torch.rand(1, 1, 16, 24), F.one_hot(torch.tensor([1]), 3).float()
    left = PuzzleMix(network, probability=0.0).mix(images, target, step())
    assert torch.equal(left.images, images)
    assert torch.equal(left.target, target)
    torch.testing.assert_close(PuzzleMix(network).mix(images, target, step()).target, target)


def test_empty_batch_and_the_type_of_the_ratio():
    none = torch.zeros(0, dtype=torch.int64)
    mixed = puzzlemix.puzzlemix(torch.rand(0, 1, 8, 8), none, 0.5, none, torch.rand(0, 8, 8), 2, num_classes=3)
    assert (mixed.images.shape, mixed.target.shape, mixed.lam.shape) == ((0, 1, 8, 8), (0, 3), (0,))
    images, pair = torch.rand(2, 1, 8, 8), torch.tensor([1, 0])
    half = puzzlemix.puzzlemix(images.bfloat16(), torch.eye(2), 0.3, pair, torch.rand(2, 8, 8), 8)
    assert half.images.dtype == torch.bfloat16
    assert half.lam.dtype == torch.float32
    images.requires_grad_()
    mixed = puzzlemix.puzzlemix(images, torch.eye(2), 0.3, pair, torch.rand(2, 8, 8), 4)
    mixed.images.sum().backward()
    torch.testing.assert_close(images.grad.sum(), torch.tensor(128.0))  # each pixel shows shares that sum to 1


@pytest.mark.usefixtures("unchecked")
class TestBadInput:
    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"labels": 1}, "labels: got 1; takes a whole number from 2"),
            ({"labels": True}, "labels: got True"),
            ({"gamma": 1.5}, r"gamma: got 1.5; takes a finite number in \[0, 1\]"),
            ({"beta": -1.0}, "beta: got -1.0; takes a finite number from 0"),
            ({"eta": "0.2"}, "eta: got '0.2'"),
            ({"transport_cost": -1.0}, "transport_cost: got -1.0"),
            ({"neigh_size": 0}, "neigh_size: got 0; takes a whole number from 1"),
            ({"neigh_size": 2.5}, "neigh_size: got 2.5"),
            ({"t_size": 0}, "t_size: got 0; takes a whole number from 1"),
            ({"clean_lam": -1.0}, "clean_lam: got -1.0; takes a finite number from 0"),
            ({"clean_lam": True}, "clean_lam: got True"),
            ({"alpha": math.nan}, "alpha: got nan"),
            ({"probability": True}, "probability: got True"),
        ],
    )
    def test_settings(self, changes, message):
        with pytest.raises(ValueError, match=message):
            PuzzleMix(networks.small(3, width=4), **changes)

    def test_blocks_that_do_not_divide(self):
        images, target, permutation = torch.rand(2, 1, 8, 8), torch.arange(2), torch.tensor([1, 0])
        for changes, message in (
            ({"b": 3}, "b: got 3; takes a divisor of the sides of the images, 8 and 8"),
            ({"saliency": torch.rand(2, 4, 4)}, r"saliency: got shape \(2, 4, 4\)"),
            ({"gamma": 2.0}, "gamma: got 2.0"),
            ({"lam": 1.2}, "lam: got 1.2"),
            ({"permutation": torch.tensor([0])}, "permutation: got"),
            ({"labels": 1}, "labels: got 1; takes a whole number from 2"),
            ({"neigh_size": 0}, "neigh_size: got 0; takes a whole number from 1"),
        ):
            good = {"lam": 0.5, "permutation": permutation, "saliency": torch.rand(2, 8, 8), "b": 2, "num_classes": 2}
            with pytest.raises(ValueError, match=message):
                puzzlemix.puzzlemix(images, target, **(good | changes))
        with pytest.raises(TypeError, match=r"images: got torch.uint8; takes floats"):
            puzzlemix.puzzlemix(images.byte(), target, 0.5, permutation, torch.rand(2, 8, 8), 2, 2)
        network = networks.small(2, width=4)
        with pytest.raises(ValueError, match="images: got 17 x 13 pixels; takes sides with a common divisor"):
            PuzzleMix(network).mix(torch.rand(2, 1, 17, 13), torch.eye(2), step())
