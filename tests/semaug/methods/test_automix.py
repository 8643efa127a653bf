"""Oracles: golden values of the released Mix Block, loops over places, the loss written out, AveragedModel."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel

from semaug import data, networks
from semaug.methods import automix, mixing
from semaug.methods.automix import AutoMix, MixBlock, ema_momentum, mask_loss
from semaug.methods.mixup import draw_beta, draw_partners
from semaug.training import loop as training
from semaug.training.objective import Step
from semaug.training.recipe import Recipe

IMAGES, TARGET = torch.rand(5, 1, 16, 16, generator=torch.Generator().manual_seed(5)), torch.tensor([0, 2, 1, 1, 0])


def step(seed=0, progress=0.25):
    return Step(torch.tensor(progress), 0.1, torch.Generator().manual_seed(seed))


def build(norm="group", **settings):
    torch.manual_seed(1)
    return AutoMix(networks.small(3, width=8, norm=norm), **{"stage": 2, **settings})


# --- the block -----------------------------------------------------------------------------------------------------


def golden_block(lambda_channel):
    """3 x 4 x 2 x 2 maps and the weights of the golden values; the lambda channel is the last input."""
    n, c, i, j = torch.meshgrid(*(torch.arange(k, dtype=torch.float64) for k in (3, 4, 2, 2)), indexing="ij")
    features = torch.sin(0.1 * n + 0.2 * c + 0.05 * i - 0.07 * j)
    block = MixBlock(4, 2, lambda_channel).double()
    A = 4 + lambda_channel
    o, a = torch.meshgrid(torch.arange(2).double(), torch.arange(A).double(), indexing="ij")
    with torch.no_grad():
        block.key.weight.copy_(torch.cos(0.7 * o + 0.4 * a))
        block.key.bias.copy_(0.05 * torch.arange(2))
        block.value.weight.copy_(torch.sin(0.3 + 0.6 * torch.arange(A).double())[None])
        block.value.bias.fill_(0.1)
    return block, features


@pytest.mark.parametrize(
    ("lambda_channel", "partner", "total", "squares", "mean", "loss"),
    [
        (
            False,
            [
                [0.7980933235524948, 0.7977518449196586, 0.7983338860862905, 0.7979962568569884],
                [0.8359849776892732, 0.8357257649913998, 0.8361663588978211, 0.8359115013155201],
                [0.7533137307232116, 0.752916645967452, 0.7535896206980826, 0.7532015021071512],
            ],
            9.804058344778625,
            2.0573227121618096,
            0.20425121551622116,
            0.0,
        ),
        (
            True,
            [
                [0.8419517548191597, 0.8416696154440951, 0.8421505072658966, 0.8418715567641694],
                [0.8729287324874402, 0.872718879917511, 0.8730755736995698, 0.87286924785925],
                [0.8045119744578713, 0.80417560659154, 0.8047456630533272, 0.8044169090899185],
            ],
            7.6916559142010055,
            1.2701128672552393,
            0.1602428315458545,
            0.03975716845414548,
        ),
    ],
)
def test_block_golden(lambda_channel, partner, total, squares, mean, loss):
    """The released block casts to float32 inside: its numbers are good to some 1e-8."""
    block, features = golden_block(lambda_channel)
    permutation = torch.tensor([1, 2, 0])
    small = block(features, 0.3, permutation, (2, 2))
    torch.testing.assert_close(1 - small.flatten(1), torch.tensor(partner).double(), rtol=0, atol=1e-7)
    mask = block(features, 0.3, permutation, (4, 4))
    for corner in (mask[:, :, ::2, ::2], mask[:, :, 1::2, 1::2]):
        torch.testing.assert_close(corner, small, rtol=1e-12, atol=0)
    assert mask.sum().item() == pytest.approx(total, abs=1e-5)
    assert mask.square().sum().item() == pytest.approx(squares, abs=1e-5)
    assert mask.mean().item() == pytest.approx(mean, abs=1e-7)
    assert mask_loss(mask, 0.3).item() == pytest.approx(loss, abs=1e-7)


@pytest.mark.parametrize("lambda_channel", [True, False])
@pytest.mark.parametrize("attention", [True, False])
def test_block_place_by_place(lambda_channel, attention):
    """Maps and images that are not square, a ratio an image; every place by loops."""
    torch.manual_seed(2)
    block = MixBlock(3, 2, lambda_channel, attention).double()
    for parameter in block.parameters():
        nn.init.normal_(parameter)
    features, lam = torch.randn(3, 3, 2, 4, dtype=torch.float64), torch.tensor([0.1, 0.6, 0.9], dtype=torch.float64)
    permutation = torch.tensor([2, 0, 1])
    mask = block(features, lam, permutation, (4, 12))
    assert mask.shape == (3, 1, 4, 12)
    places = [(y, x) for y in range(2) for x in range(4)]
    for n, j in enumerate(permutation.tolist()):

        def at(image, ratio, y, x):
            vector = features[image, :, y, x]
            return torch.cat([vector, ratio[None]]) if lambda_channel else vector

        values = [(block.value.weight[0] @ at(j, 1 - lam[n], *place) + block.value.bias[0]) for place in places]
        for number, (y, x) in enumerate(places):
            if attention:
                query = block.key.weight @ at(n, lam[n], y, x) + block.key.bias
                keys = [block.key.weight @ at(j, 1 - lam[n], *place) + block.key.bias for place in places]
                scores = [((query @ key) / math.sqrt(2)).exp() for key in keys]
                value = sum(s * v for s, v in zip(scores, values, strict=True)) / sum(scores)
            else:
                value = values[number]
            expected = 1 - 1 / (1 + (-value).exp())
            tile = mask[n, 0, 2 * y : 2 * y + 2, 3 * x : 3 * x + 3]
            torch.testing.assert_close(tile, expected.expand(2, 3))


def test_a_new_block_mixes_by_halves():
    """Weights of a hundredth: s is near a half everywhere, and the mask loss is what moves it."""
    torch.manual_seed(0)
    block = MixBlock(16)
    mask = block(torch.randn(4, 16, 4, 4), 0.9, torch.tensor([1, 2, 3, 0]), (8, 8))
    assert (mask - 0.5).abs().max() < 0.05
    assert mask_loss(mask, 0.9).item() == pytest.approx(0.3, abs=0.02)
    assert mask_loss(mask, torch.tensor(0.55)) == 0
    assert [tuple(parameter.shape) for parameter in block.parameters()] == [(8, 17), (8,), (1, 17), (1,)]


def test_block_is_exact_under_autocast():
    torch.manual_seed(0)
    block, features, permutation = MixBlock(16), torch.randn(4, 16, 4, 4), torch.tensor([1, 2, 3, 0])
    plain = block(features, 0.3, permutation, (8, 8))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(block(features, 0.3, permutation, (8, 8)), plain)


# --- schedules -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("k", "momentum"),
    [(1, 0.999), (99, 0.999), (100, 0.9990244472701105), (500, 0.9994995), (900, 0.9999745527298894), (1000, 0.999999)],
)
def test_momentum_golden(k, momentum):
    for fraction in (k / 1000, torch.tensor(k / 1000, dtype=torch.float64)):
        assert ema_momentum(fraction).item() == pytest.approx(momentum, rel=1e-12)


def test_average_is_torchs_averaged_model():
    """A network without BatchNorm, whose buffers AveragedModel would treat otherwise."""
    objective = build(momentum=0.5)
    momentum = {}
    theirs = AveragedModel(
        objective.network, avg_fn=lambda old, new, _: momentum["m"] * old + (1 - momentum["m"]) * new
    )
    theirs.n_averaged.fill_(1)  # its first call would copy
    for progress in (0.05, 0.2, 0.6, 1.0):
        with torch.no_grad():
            for parameter in objective.network.parameters():
                parameter.add_(torch.randn_like(parameter))
            momentum["m"] = ema_momentum(progress, 0.5).float()
            objective.after_step(step(progress=progress))
        theirs.update_parameters(objective.network)
        for one, two in zip(objective.momentum_network.parameters(), theirs.module.parameters(), strict=True):
            torch.testing.assert_close(one, two)


def test_average_golden():
    """m = .9 from 1, classifiers 0, 0, 2: .9, .81, .929; constant in the warm-up."""
    objective = build(momentum=0.9)
    weight, average = objective.network.head.bias, objective.momentum_network.head.bias
    with torch.no_grad():
        average.fill_(1)
        found = []
        for value in (0, 0, 2):
            weight.fill_(value)
            objective.after_step(step(progress=0.01))
            found.append(average[0].item())
    assert found == pytest.approx([0.9, 0.81, 0.929], rel=1e-6)


def test_momentum_zero_is_the_last_classifier():
    objective = build(norm="batch", momentum=0.0)
    with torch.no_grad():
        objective.network.head.bias.fill_(7)
        objective.after_step(step(progress=0.9))
    for one, two in zip(objective.momentum_network.parameters(), objective.network.parameters(), strict=True):
        torch.testing.assert_close(one, two)


# --- the loss ------------------------------------------------------------------------------------------------------


def by_hand(objective, images, target, at, one_hot=True, mask_weight=0.1):
    """The terms of (37) in float64, from the draws in the order of the step: two mixtures, each its ratio and pairs."""

    def drawn():
        return draw_beta(2.0, (), at.generator).double(), draw_partners(images, at)

    def mixture(mask, partners):
        return mask * images + (1 - mask) * images[partners]

    def mixed_loss(logits, lam, partners):
        return lam * F.cross_entropy(logits, target) + (1 - lam) * F.cross_entropy(logits, target[partners])

    k, q, block, size = objective.momentum_network, objective.network, objective.block, images.shape[2:]
    maps = nn.Sequential(*k.stages[:3])(images)
    lam, partners = drawn()
    mask = block(maps, lam, partners, tuple(size))
    excess = max(abs(lam - mask.mean()) - 0.1, torch.tensor(0.0).double())
    generation = mixed_loss(k(mixture(mask, partners)), lam, partners)
    block_loss = generation + mask_weight * (1 - at.progress.double()) * excess
    lam, partners = drawn()
    mask = block(maps, lam, partners, tuple(size)).detach()
    if not 0.08 < lam < 0.92:
        mask = lam
    classifier = mixed_loss(q(mixture(mask, partners)), lam, partners)
    if one_hot:
        classifier = classifier + F.cross_entropy(objective.one_hot_head(q.features(images)), target)
    return block_loss, classifier, {"generation_loss": generation, "mask_loss": excess}


def gradients(loss, objective):
    named = {name: p for name, p in objective.named_parameters() if p.requires_grad}
    return dict(zip(named, torch.autograd.grad(loss, list(named.values()), allow_unused=True), strict=True))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("settings", [{}, {"one_hot": False}, {"mask_weight": 3.0}])
def test_loss_and_every_gradient_by_hand(settings, seed):
    objective, images = build(**settings).double(), IMAGES.double()
    nn.init.normal_(objective.block.value.weight)  # so that the mask loss is at work
    nn.init.normal_(objective.momentum_network.head.weight)
    loss, terms = objective(images, TARGET, step(seed))
    block_loss, classifier, logged = by_hand(objective, images, TARGET, step(seed), **settings)
    # soft labels are float32
    torch.testing.assert_close(loss, block_loss + classifier, rtol=1e-6, atol=1e-7)
    for name, value in logged.items():
        torch.testing.assert_close(terms[name], value.detach(), rtol=1e-6, atol=1e-7, check_dtype=False)
    found = gradients(loss, objective)
    of_block, of_classifier = gradients(block_loss, objective), gradients(classifier, objective)
    for name, gradient in found.items():
        if name.startswith("block."):
            assert of_classifier[name] is None, "the classifier's mixture is a constant"
            torch.testing.assert_close(gradient, of_block[name], rtol=1e-5, atol=1e-8)
            assert gradient.abs().max() > 0
        else:
            assert of_block[name] is None, "the block's mixture is judged by the copy"
            torch.testing.assert_close(gradient, of_classifier[name], rtol=1e-5, atol=1e-8)
    assert not any(p.requires_grad for p in objective.momentum_network.parameters())


@pytest.mark.parametrize(("lam", "own"), [(0.05, True), (0.08, True), (0.5, False), (0.95, True)])
def test_ratios_at_the_edge_are_mixed_by_themselves(lam, own, monkeypatch):
    objective = build()
    monkeypatch.setattr(automix, "draw_beta", lambda *_: torch.tensor(lam))
    seen = []
    objective.network.stages[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    at = step()
    objective(IMAGES, TARGET, at)
    again = step()
    draw_partners(IMAGES, again)
    mixed = mixing.mixup(IMAGES, TARGET, lam, draw_partners(IMAGES, again), 3).images
    assert torch.allclose(seen[1], mixed, atol=1e-6) == own


def test_without_the_pipeline_one_mixture_trains_both():
    objective, images = build(pipeline=False).double(), IMAGES.double()
    assert objective.momentum_network is None
    loss, terms = objective(images, TARGET, step(1))
    at = step(1)
    lam, partners = draw_beta(2.0, (), at.generator).double(), draw_partners(images, at)
    mask = objective.block(nn.Sequential(*objective.network.stages[:3])(images), lam, partners, (16, 16))
    logits = objective.network(mask * images + (1 - mask) * images[partners])
    expected = lam * F.cross_entropy(logits, TARGET) + (1 - lam) * F.cross_entropy(logits, TARGET[partners])
    expected = expected + 0.075 * mask_loss(mask, lam)
    expected = expected + F.cross_entropy(objective.one_hot_head(objective.network.features(images)), TARGET)
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-7)
    one, two = gradients(loss, objective), gradients(expected, objective)
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=1e-5, atol=1e-8)
    assert terms["generation_loss"] > 0
    before = copy.deepcopy(objective.state_dict())
    objective.after_step(step())  # there is no copy to average
    assert before.pop("steps") == 0
    after = objective.state_dict()
    assert after.pop("steps") == 1
    torch.testing.assert_close(after, before, rtol=0, atol=0)


@pytest.mark.parametrize("policy", ["mixup", "cutmix"])
def test_fixed_policies(policy):
    objective = build(norm="batch", policy=policy)
    assert objective.block is None
    seen = []
    objective.network.stages[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    loss, terms = objective(IMAGES, TARGET, step(3))
    at = step(3)
    lam, partners = draw_beta(2.0, (), at.generator), draw_partners(IMAGES, at)
    if policy == "mixup":
        mixed = mixing.mixup(IMAGES, TARGET, lam, partners, 3)
    else:
        cy, cx = (torch.randint(16, (), generator=at.generator) for _ in range(2))
        mixed = mixing.cutmix(IMAGES, TARGET, lam, partners, cy, cx, 3)
    assert torch.equal(seen[0], IMAGES)
    assert torch.equal(seen[1], mixed.images)
    expected = F.cross_entropy(objective.network(mixed.images), mixed.target)
    expected = expected + F.cross_entropy(objective.one_hot(IMAGES), TARGET)
    torch.testing.assert_close(loss, expected)
    assert {name: value.item() for name, value in terms.items()} == dict.fromkeys(terms, 0.0)
    with torch.no_grad():
        objective.after_step(step())
    for mine, theirs in zip(objective.momentum_network.buffers(), objective.network.buffers(), strict=True):
        assert torch.equal(mine, theirs), "a copy that sees nothing has the classifier's statistics"


def test_batchnorm_of_the_copy_counts_what_the_copy_sees():
    objective = build(norm="batch", one_hot=False)
    for _ in range(3):
        objective(IMAGES, TARGET, step())
        with torch.no_grad():
            objective.after_step(step())
    tracked = {name: int(b) for name, b in objective.momentum_network.named_buffers() if name.endswith("tracked")}
    early = {count for name, count in tracked.items() if name.startswith(("stages.0", "stages.1", "stages.2"))}
    late = {count for name, count in tracked.items() if name.startswith("stages.3")}
    assert (early, late) == ({6}, {3}), "the images up to the block's stage, its mixtures up to the head"
    assert {int(b) for name, b in objective.network.named_buffers() if name.endswith("tracked")} == {3}


def test_every_third_step_trains_the_block():
    objective = build(every=3)
    assert objective.phase(0.5) is None
    assert build().phase(0.5) == "all"
    trained = []
    for _ in range(7):
        objective.zero_grad(set_to_none=True)
        loss, terms = objective(IMAGES, TARGET, step())
        loss.backward()
        trained.append(objective.block.value.weight.grad is not None)
        assert bool(terms["generation_loss"] > 0) == trained[-1]
        assert objective.network.head.weight.grad is not None
        with torch.no_grad():
            objective.after_step(step())
    assert trained == [True, False, False, True, False, False, True]


def test_soft_labels_and_batch_of_one():
    objective = build()
    loss, _ = objective(IMAGES, TARGET, step())
    soft, _ = objective(IMAGES, F.one_hot(TARGET, 3).float(), step())
    assert torch.equal(soft, loss)
    alone, _ = objective(IMAGES[:1], TARGET[:1], step())
    image, label = IMAGES[:1], TARGET[:1]  # an image mixed with itself is the image
    logits = objective.network(image), objective.one_hot(image), objective.momentum_network(image)
    _, terms = objective(image, label, step())
    expected = sum(F.cross_entropy(each, label) for each in logits) + 0.075 * terms["mask_loss"]
    torch.testing.assert_close(alone, expected)
    wide = torch.rand(3, 1, 16, 24)
    assert objective(wide, TARGET[:3], step())[0].isfinite()


# --- training ------------------------------------------------------------------------------------------------------


def test_trains_by_seed_resumes_and_records(tmp_path):
    of = data.load("fashion-mini", train_size=100, test_size=50, validation=0.1)

    def run(epochs=2, resume=None, **settings):
        torch.manual_seed(0)
        objective = AutoMix(networks.small(10, width=4), stage=2, **settings)
        recipe = Recipe(epochs=epochs, batch_size=30)
        return training.fit(objective, of, recipe, resume=resume, progress=False), objective

    record, objective = run(every=2, momentum=0.9, block_rate=0.1)
    again, _ = run(every=2, momentum=0.9, block_rate=0.1)
    assert record.curves == again.curves
    assert record.metrics["mixed_test_accuracy"] == record.metrics["test_accuracy"]
    names = {f"{which}_{of}_accuracy" for which in ("mixed", "one_hot", "momentum") for of in ("test", "validation")}
    assert record.metrics.keys() >= names
    expected = {"alpha": 2.0, "momentum": 0.9, "policy": "block", "one_hot": True, "pipeline": True}
    expected |= {"stage": 2, "lambda_channel": True, "attention": True, "std": 0.01, "mask_weight": 0.1, "margin": 0.1}
    assert record.config["settings"] == expected | {"inference": "mixed", "every": 2, "block_rate": 0.1}
    assert int(objective.steps) == 6
    groups = objective.parameter_groups(Recipe(lr=0.5))
    assert [group.get("lr") for group in groups] == [None, 0.05]

    half, two = tmp_path / "half.pt", {"every": 2, "momentum": 0.9, "block_rate": 0.1}
    stop = training.Checkpoint.save

    def save_once(self, done):
        stop(self, done)
        raise KeyboardInterrupt

    training.Checkpoint.save = save_once
    try:
        with pytest.raises(KeyboardInterrupt):
            run(resume=half, **two)
    finally:
        training.Checkpoint.save = stop
    assert run(resume=half, **two)[0].curves == record.curves


def test_inferences():
    for inference in automix.INFERENCES:
        objective = build(inference=inference)
        with torch.no_grad():
            objective.one_hot_head.bias.add_(1)
            objective.momentum_network.head.bias.add_(2)
        base = objective.network(IMAGES)
        shift = {"mixed": 0, "one_hot": 1, "momentum": 2}[inference]
        torch.testing.assert_close(objective.predict(IMAGES), base + shift)


def test_masks_to_look_at():
    objective, permutation = build().eval(), torch.tensor([1, 2, 3, 4, 0])
    mask = objective.masks(IMAGES, 0.3, permutation)
    maps = nn.Sequential(*objective.momentum_network.stages[:3])(IMAGES)
    assert torch.equal(mask, objective.block(maps, 0.3, permutation, (16, 16)))
    assert not mask.requires_grad


def test_the_step_can_be_captured_where_the_block_learns_at_every_step():
    assert training.capturable(build(), Recipe())
    assert AutoMix.static


def test_construction_leaves_the_network_as_it_was():
    network = networks.small(3, width=4).train()
    before = copy.deepcopy(network.state_dict())
    AutoMix(network, stage=2)
    assert network.training
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_a_transformer_of_patches_that_32_pixels_are_no_multiple_of():
    torch.manual_seed(0)
    objective = AutoMix(networks.vit(3, 1, patch=7, width=8, depth=3, heads=2), stage=2)
    assert objective.block.channels == 8
    assert objective(torch.rand(4, 1, 28, 14), TARGET[:4], step())[0].isfinite()


@pytest.mark.usefixtures("unchecked")
class TestBadInput:
    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"alpha": 0.0}, "alpha: got 0.0; takes a finite number above 0"),
            ({"stage": 4}, "stage: got 4; takes 0 to 3, a stage of the network"),
            ({"mask_weight": -1.0}, "mask_weight: got -1.0"),
            ({"margin": 2.0}, r"margin: got 2.0; takes a finite number in \[0, 1\]"),
            ({"momentum": 1.0}, r"momentum: got 1.0; takes a finite number in \[0, 1\)"),
            ({"policy": "fmix"}, "policy: got 'fmix'; takes one of block, mixup, cutmix"),
            ({"every": 0}, "every: got 0; takes a whole number from 1"),
            ({"inference": "both"}, "inference: got 'both'; takes one of mixed, one_hot, momentum"),
            ({"inference": "one_hot", "one_hot": False}, "inference: got 'one_hot'; takes one of mixed, momentum"),
            ({"inference": "momentum", "pipeline": False}, "inference: got 'momentum'; takes one of mixed, one_hot"),
            ({"policy": "mixup", "pipeline": False}, "policy: got 'mixup'; takes one of block"),
            ({"one_hot": "no"}, "one_hot: got 'no'; takes True or False"),
            ({"pipeline": 1}, "pipeline: got 1; takes True or False"),
            ({"lambda_channel": "no"}, "lambda_channel: got 'no'; takes True or False"),
            ({"attention": None}, "attention: got None; takes True or False"),
            ({"stage": True}, "stage: got True; takes a whole number from 0"),
            ({"alpha": "2"}, "alpha: got '2'"),
            ({"mask_weight": math.nan}, "mask_weight: got nan"),
            ({"block_rate": -0.1}, "block_rate: got -0.1; takes a finite number above 0"),
            ({"inner": 0}, "inner: got 0; takes a whole number from 1"),
            ({"std": 0.0}, "std: got 0.0; takes a finite number above 0"),
        ],
    )
    def test_settings(self, changes, message):
        with pytest.raises(ValueError, match=message):
            build(**changes)

    def test_settings_are_plain(self):
        objective = build(alpha=np.float64(2), momentum=0, stage=np.int64(2), std=np.float32(0.5), every=np.int64(1))
        expected = {"alpha": 2.0, "momentum": 0.0, "policy": "block", "one_hot": True, "pipeline": True, "stage": 2}
        expected |= {"inference": "mixed", "lambda_channel": True, "attention": True, "std": 0.5, "every": 1}
        assert objective.settings == expected | {"mask_weight": 0.1, "margin": 0.1, "block_rate": 1.0}
        assert {type(value) for value in objective.settings.values()} == {float, int, str, bool}
        assert build(inner=np.int64(3)).settings["inner"] == 3

    def test_a_network_without_a_convolution(self):
        """Nothing says which images it takes; a fixed policy does not ask."""
        stages = [nn.Sequential(nn.Flatten(), nn.Linear(256, 8), nn.Unflatten(1, (8, 1, 1))), nn.Identity()]
        network = networks.Network(stages, 8, 3, "perceptron")
        with pytest.raises(TypeError, match=r"network: got Network without an nn.Conv2d in its stages; takes one with"):
            AutoMix(network, stage=0)
        assert AutoMix(network, stage=0, policy="mixup")(IMAGES, TARGET, step())[0].isfinite()

    def test_a_network_without_stages(self):
        with pytest.raises(TypeError, match="takes one with stages, pool and head"):
            AutoMix(_Plain())

    def test_block(self):
        block, features, permutation = MixBlock(4), torch.rand(3, 4, 2, 2), torch.tensor([1, 2, 0])
        for changes, message in (
            ({"features": torch.rand(3, 4, 2)}, r"features: got shape \(3, 4, 2\)"),
            ({"features": torch.rand(3, 5, 2, 2)}, "features: got 5 channels; takes 4"),
            ({"lam": 1.5}, "lam: got 1.5; takes numbers in"),
            ({"permutation": torch.tensor([1, 0])}, r"permutation: got torch.int64 \(2,\)"),
        ):
            good = {"features": features, "lam": 0.5, "permutation": permutation, "size": (4, 4)}
            with pytest.raises(ValueError, match=message):
                block(**(good | changes))

    def test_labels_of_other_classes(self):
        with pytest.raises(ValueError, match="target: got classes 0 to 3; takes 0 to 2"):
            build()(IMAGES, torch.tensor([0, 1, 3, 0, 0]), step())

    def test_cheaper_schedule_among_processes(self):
        with pytest.raises(ValueError, match="every: got 2; takes 1 in a data-parallel run"):
            build(every=2)(IMAGES, TARGET, step()._replace(world=2))

    def test_masks_of_a_fixed_policy(self):
        with pytest.raises(ValueError, match="policy: got 'cutmix'; masks are of the policy 'block'"):
            build(policy="cutmix").masks(IMAGES, 0.5, torch.arange(5))


class _Plain(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(4, 3)

    def features(self, images):
        return images.flatten(1)
