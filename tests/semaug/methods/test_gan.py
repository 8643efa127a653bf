"""The two players: golden losses, who moves when, R1 by hand, where the transformation acts, resumed bitwise."""

import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import throwaway
from semaug.data.sets import Data, Split
from semaug.methods import gan as module
from semaug.methods.gan import GAN, Discriminator, Generator, discriminator_loss, fit_gan, generator_loss, r1_penalty
from semaug.training.recipe import Recipe
from semaug.training.streams import generator_for

ADAM = {"optimizer": "adam", "lr": 1e-3, "momentum": 0.5, "schedule": "constant", "weight_decay": 0.0}
RECIPE = Recipe(epochs=4, batch_size=8, evaluate_every=2, **ADAM)
REAL, FAKE = torch.tensor([1.5, 0.2, -0.4]), torch.tensor([-2.0, 0.3, 0.9])


def images(n=24, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, 1, 14, 14), generator=generator, dtype=torch.uint8)


DATA = Data("noise", Split(images(), torch.arange(24) % 2), Split(images(16, 1), torch.arange(16) % 2))


def build(seed=0, **settings):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return GAN(Generator(14, latent=4, width=2), Discriminator(14, width=4), **settings)


def equal(one, two):
    return all(torch.equal(value, two.state_dict()[name]) for name, value in one.state_dict().items())


def test_losses_golden():
    assert discriminator_loss(REAL, FAKE, "hinge").item() == pytest.approx(1.8, rel=1e-6)
    assert generator_loss(FAKE, "hinge").item() == pytest.approx(0.26666666666666666, rel=1e-6)
    assert discriminator_loss(REAL, FAKE, "nonsaturating").item() == pytest.approx(1.3116681766692948, rel=1e-6)
    assert generator_loss(FAKE, "nonsaturating").item() == pytest.approx(1.007479043414529, rel=1e-6)


@pytest.mark.parametrize(("size", "channels"), [(28, 1), (32, 3), (64, 3), (14, 1)])
@pytest.mark.parametrize("spectral", [False, True])
def test_the_players_fit_each_other(size, channels, spectral):
    generator, discriminator = Generator(size, channels, 5, 2), Discriminator(size, channels, 3, spectral)
    made = generator(torch.randn(3, 5))
    assert made.shape == (3, channels, size, size)
    assert made.abs().max() <= 1
    assert discriminator(made).shape == (3,)


def test_spectral_normalisation_is_of_the_largest_singular_value():
    discriminator = Discriminator(14, width=4, spectral=True)
    for _ in range(100):  # each pass in training mode is one more step of the power iteration
        discriminator(torch.rand(2, 1, 14, 14))
    for layer in discriminator.layers:
        if hasattr(layer, "weight"):
            largest = torch.linalg.matrix_norm(layer.weight.detach().flatten(1), 2)
            assert largest.item() == pytest.approx(1, abs=1e-3)


def test_r1_is_the_slope_of_each_image():
    torch.manual_seed(0)
    layer = nn.Sequential(nn.Flatten(), nn.Linear(12, 3), nn.Softplus(), nn.Linear(3, 1)).double()
    x = torch.randn(5, 1, 3, 4, dtype=torch.float64, requires_grad=True)
    penalty = r1_penalty(layer(x).squeeze(1), x)
    hidden, last = layer[1], layer[3]
    gate = torch.sigmoid(x.flatten(1) @ hidden.weight.T + hidden.bias)
    slopes = (gate * last.weight) @ hidden.weight
    expected = slopes.square().sum(1).mean()
    torch.testing.assert_close(penalty, expected)
    gradients = [torch.autograd.grad(each, hidden.weight, retain_graph=True)[0] for each in (penalty, expected)]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("where", module.PLACES)
def test_each_step_moves_one_player_and_the_transformation_is_where_it_is_said(where, monkeypatch):
    gan, shown = build(where=where, policy="cutout", r1=1.0), []
    if gan.augment is not None:
        forward = gan.augment.forward
        monkeypatch.setattr(gan.augment, "forward", lambda x, draws: shown.append(x) or forward(x, draws))
    latent, draws = torch.Generator().manual_seed(0), torch.Generator().manual_seed(1)
    reals = 2 * DATA.train.floats(slice(0, 8)) - 1
    gan.discriminator_step(reals, latent, draws)[0].backward()
    assert all(p.grad is None for p in gan.generator.parameters())
    assert all(p.grad is not None for p in gan.discriminator.parameters())
    assert [torch.equal(x.detach(), reals) for x in shown] == {"nowhere": [], "reals": [True]}.get(where, [True, False])
    gan.zero_grad()
    shown.clear()
    gan.generator_step(8, latent, draws)[0].backward()
    assert all(p.grad is None for p in gan.discriminator.parameters())
    assert all(p.requires_grad for p in gan.discriminator.parameters())
    assert all(p.grad is not None for p in gan.generator.parameters())
    assert len(shown) == (where == "everywhere")
    assert not any(p.requires_grad for p in gan.average.parameters())


def test_frozen_layers_of_the_discriminator_stay_frozen():
    """FreezeD: lower layers of another run's discriminator are kept as they are."""
    gan, latent, draws = build(kind="nonsaturating"), torch.Generator().manual_seed(0), torch.Generator().manual_seed(1)
    frozen = gan.discriminator.layers[0].requires_grad_(False)
    before = {name: value.clone() for name, value in gan.discriminator.named_parameters()}
    gan.generator_step(8, latent, draws)
    assert not any(p.requires_grad for p in frozen.parameters())
    fit_gan(gan, DATA, RECIPE, progress=False)
    for name, value in gan.discriminator.named_parameters():
        assert value.requires_grad != name.startswith("layers.0.")
        assert torch.equal(value, before[name]) == name.startswith("layers.0.")


def test_the_discriminator_learns_again_where_a_step_of_the_generator_fails():
    gan = build()
    gan.generator.layers[0].weight.data.fill_(torch.nan)
    with pytest.raises(FloatingPointError, match="images: got values up to nan"):
        gan.generator_step(8, torch.Generator().manual_seed(0), torch.Generator().manual_seed(1))
    assert all(p.requires_grad for p in gan.discriminator.parameters())


def test_fit_is_a_plain_loop():
    """Two Adams, one a player, over the same orders and codes: DiffAugment nowhere, two steps for one."""
    mine, theirs = build(where="nowhere", ratio=2, generator_lr=5e-4), build(where="nowhere")
    record = fit_gan(mine, DATA, RECIPE, seed=3, progress=False)
    order, latent = generator_for(3, "order/train"), generator_for(3, "latent")
    first = torch.optim.Adam(theirs.discriminator.parameters(), 1e-3, (0.5, 0.999))
    second = torch.optim.Adam(theirs.generator.parameters(), 5e-4, (0.5, 0.999))
    theirs.train()
    losses, moved = [], 0
    for _ in range(4):
        for rows in torch.randperm(24, generator=order).view(3, 8):
            x = 2 * (DATA.train.images[rows].float() / 255) - 1
            with torch.no_grad():
                fakes = theirs.generator(torch.randn(8, 4, generator=latent))
            real, fake = theirs.discriminator(torch.cat([x, fakes])).chunk(2)
            loss = (1 - real).clamp_min(0).mean() + (1 + fake).clamp_min(0).mean()
            first.zero_grad()
            loss.backward()
            first.step()
            losses.append(loss.item())
            moved += 1
            if moved % 2 == 0:
                second.zero_grad()
                (-theirs.discriminator(theirs.generator(torch.randn(8, 4, generator=latent))).mean()).backward()
                second.step()
                for average, now in zip(theirs.average.parameters(), theirs.generator.parameters(), strict=True):
                    average.data = 0.99 * average.data + 0.01 * now.data
    for name in ("discriminator", "generator", "average"):
        for a, b in zip(getattr(mine, name).parameters(), getattr(theirs, name).parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)  # float32, roundings in another order
    means = [sum(losses[:6]) / 6, sum(losses[6:]) / 6]
    assert record.curves["discriminator_loss"] == pytest.approx(means, rel=1e-5)
    assert record.curves["epoch"] == [2, 4]
    assert record.config["settings"]["ratio"] == 2
    assert record.metrics["auc"] == record.curves["auc"][-1]


class Stopped(Exception):
    pass


@pytest.mark.parametrize("settings", [{"ada_span": 200.0, "r1": 0.1, "kind": "nonsaturating"}, {"ratio": 2}])
def test_resumed_equals_unbroken_bitwise(settings, tmp_path, monkeypatch):
    def measure(gan):
        return {"mean": float(gan.sample(gan.codes(4, torch.Generator().manual_seed(0))).mean())}

    whole, resumed = build(**settings), build(**settings)
    expected = fit_gan(whole, DATA, RECIPE, seed=5, progress=False, measure=measure)
    stopped, count, follow = build(**settings), [], GAN.follow

    def stop(gan):
        follow(gan)
        count.append(0)
        if len(count) == (5 if "ratio" in settings else 8):
            raise Stopped  # in the middle of the second half

    monkeypatch.setattr(GAN, "follow", stop)
    with pytest.raises(Stopped):
        fit_gan(stopped, DATA, RECIPE, seed=5, resume=tmp_path / "run.pt", progress=False, measure=measure)
    monkeypatch.setattr(GAN, "follow", follow)
    torch.manual_seed(99)
    record = fit_gan(resumed, DATA, RECIPE, seed=5, resume=tmp_path / "run.pt", progress=False, measure=measure)
    assert equal(whole, resumed)
    assert record.curves == expected.curves
    assert record.metrics == expected.metrics
    other = build(1, **settings)
    fit_gan(other, DATA, RECIPE, seed=6, progress=False)
    assert not equal(whole, other)
    with pytest.raises(ValueError, match="is of another run"):
        fit_gan(build(**settings), DATA, replace(RECIPE, lr=0.1), seed=5, resume=tmp_path / "run.pt", progress=False)


@pytest.mark.parametrize("epochs", [1, 4])
@pytest.mark.parametrize(
    "settings", [{"where": "nowhere"}, {}, {"ada_span": 60.0}, {"kind": "nonsaturating", "where": "reals", "r1": 1.0}]
)
def test_steps_that_are_too_large_are_called_so(settings, epochs):
    recipe = replace(RECIPE, epochs=epochs, lr=1e30, batch_size=24)
    with pytest.raises(FloatingPointError, match=r"got (numbers that are not finite|values up to|nan)"):
        fit_gan(build(**settings), DATA, recipe, progress=False, measure=lambda gan: {"never": 1 / 0})


def test_the_loop_holds_sums_and_not_every_step():
    """Memory does not grow with the steps between two evaluations, and the means are those of float64."""
    gan, alive = build(ratio=3), []
    step = gan.discriminator_step

    def counted(*arguments):
        loss, terms = step(*arguments)
        alive.append(weakref.ref(terms["discriminator_loss"]))
        values.append(terms["discriminator_loss"].item())
        held.append(sum(each() is not None for each in alive))
        return loss, terms

    values, held = [], []
    gan.discriminator_step = counted
    record = fit_gan(gan, DATA, replace(RECIPE, epochs=12, evaluate_every=0), progress=False)
    assert len(values) == 36
    assert max(held) <= 3
    assert record.curves["discriminator_loss"] == pytest.approx([sum(values) / 36], rel=1e-14)


@pytest.mark.usefixtures("unchecked")
def test_settings_are_plain_numbers():
    gan = build(r1=np.float64(1), ratio=np.int64(2), ema=np.float32(0.5), generator_lr=1, policy="cutout,color")
    expected = {"r1": 1.0, "ratio": 2, "ema": 0.5, "generator_lr": 1.0, "policy": "cutout,color"}
    assert gan.settings == {"kind": "hinge", "where": "everywhere"} | expected
    assert {type(gan.settings[name]) for name in ("r1", "ema", "generator_lr")} == {float}
    assert type(gan.settings["ratio"]) is int


def test_ada_rises_while_the_discriminator_is_sure():
    gan = build(ada_span=60.0)
    for layer in gan.discriminator.layers[-1:]:
        nn.init.zeros_(layer.weight)
        nn.init.ones_(layer.bias)  # accepts everything
    latent, draws = torch.Generator().manual_seed(0), torch.Generator().manual_seed(1)
    terms = gan.discriminator_step(2 * DATA.train.floats(slice(0, 6)) - 1, latent, draws)[1]
    assert terms["probability"].item() == pytest.approx(0.1)
    assert gan.augment.probability.item() == pytest.approx(0.1)


def test_a_generator_learns_where_the_light_is():
    """Quadrants of one class: the brightest quadrant of the samples becomes the one of the images."""
    of = throwaway.data()
    rows = (of.train.target == 0).nonzero().squeeze(1)
    bright = torch.nn.functional.pad(of.train.images[rows].float(), (1, 1, 1, 1)).byte()
    one = Data("one quadrant", Split(bright, torch.zeros(len(rows), dtype=torch.int64)), Split(bright, rows * 0))
    gan = build(where="everywhere", policy="translation", ema=0.9)
    codes = gan.codes(32, torch.Generator().manual_seed(0))

    def contrast():
        made = gan.sample(codes)
        return float(made[..., 1:7, 1:7].mean() - made[..., 7:13, 7:13].mean())

    before = contrast()
    fit_gan(gan, one, replace(RECIPE, epochs=100, lr=2e-3), progress=False)
    assert contrast() > before + 0.15  # of the real images .39
    assert not gan.training


BAD = [
    (lambda: GAN(Generator(28), Discriminator(32)), r"discriminator: got images \(1, 32, 32\); takes the generator's"),
    (lambda: Generator(30), "size: got 30; takes 7 or 4, doubled once or more"),
    (lambda: Discriminator(7), "size: got 7; takes 7 or 4, doubled once or more"),
    (lambda: Generator(latent=0), "latent: got 0; takes a whole number from 1"),
    (lambda: build(where="fakes"), "where: got 'fakes'; takes one of nowhere, reals, discriminator, everywhere"),
    (lambda: build(kind="wasserstein"), "kind: got 'wasserstein'; takes one of hinge, nonsaturating"),
    (lambda: build(r1=-1.0), "r1: got -1.0; takes a finite number from 0"),
    (lambda: build(r1="1"), "r1: got '1'; takes a finite number from 0"),
    (lambda: build(ema=1.0), r"ema: got 1.0; takes a finite number in \[0, 1\)"),
    (lambda: build(ratio=True), "ratio: got True; takes a whole number from 1"),
    (lambda: build(generator_lr=0.0), "generator_lr: got 0.0; takes a finite number above 0"),
    (lambda: build(ada_span=0.5), "ada_span: got 0.5; takes a finite number from 1"),
    (lambda: Discriminator(spectral="no"), "spectral: got 'no'; takes True or False"),
    (lambda: build(where="nowhere", ada_span=5.0), "ada_span: got 5.0; takes None where there is no transformation"),
    (lambda: build(policy="color,,"), "policy: got 'color,,'"),
    (lambda: discriminator_loss(REAL, FAKE, "x"), "kind: got 'x'; takes one of hinge, nonsaturating"),
    (lambda: build().generator(torch.rand(2, 5)), r"codes: got shape \(2, 5\); takes \(N, 4\)"),
    (lambda: build().discriminator(torch.rand(2, 3, 14, 14)), r"images: got shape \(2, 3, 14, 14\); takes \(N, 1, 14"),
    (lambda: fit_gan(build(), throwaway.data(), RECIPE), r"data: got images \(1, 12, 12\); takes the players'"),
    (lambda: fit_gan(build(), DATA, replace(RECIPE, batch_size=25)), "Recipe.batch_size: got 25; takes at most the 24"),
    (lambda: fit_gan(build(), DATA, replace(RECIPE, precision="bfloat16")), "Recipe.precision: got 'bfloat16'"),
    (lambda: fit_gan(build(ratio=13), DATA, RECIPE), "ratio: got 13; takes at most the 12 steps"),
]


@pytest.mark.parametrize(("call", "message"), BAD)
@pytest.mark.usefixtures("unchecked")
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
