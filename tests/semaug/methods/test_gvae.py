"""Oracles: torch.distributions, quadrature and Monte Carlo for the bound, brute force for traversals."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.distributions import Laplace, Normal, kl_divergence
from torch.nn import functional as F

import throwaway
from semaug import networks
from semaug.methods.gvae import GVAE, VAE, AutoEncoder, ConditionalVAE
from semaug.training.loop import Recipe, fit
from semaug.training.objective import Objective, Step

MODELS = {"GVAE": GVAE, "VAE": VAE, "ConditionalVAE": ConditionalVAE}
EVERY = pytest.mark.parametrize("name", MODELS)


def model(name="GVAE", size=(12, 12), channels=1, latent=4, norm="batch", **settings):
    torch.manual_seed(0)
    network = AutoEncoder(4, channels, size, latent, 4, norm=norm)
    nn.init.normal_(network.expand.weight)  # or all codes look alike
    nn.init.constant_(network.decoder[-1].bias, 0.5)
    return MODELS[name](network, **settings)


def step(seed=0, progress=0.5):
    return Step(torch.tensor(progress), 0.1, torch.Generator().manual_seed(seed))


def batch(n=6, size=(12, 12), channels=1):
    return torch.rand(n, channels, *size), torch.arange(n) % 4


@pytest.mark.parametrize(
    ("channels", "size", "last"),
    [(1, (28, 28), (32, 7, 7)), (3, (32, 32), (64, 4, 4)), (3, (64, 64), (128, 4, 4)), (3, (96, 64), (128, 6, 4))],
)
def test_sizes(channels, size, last):
    network = AutoEncoder(10, channels, size, latent=5)
    objective = GVAE(network).eval()
    images = torch.rand(2, channels, *size)
    mean, log_variance = objective.encode(images)
    assert mean.shape == log_variance.shape == (2, 5)
    assert network.encoder[-1].in_features == network.expand.out_features == math.prod(last)
    assert objective.decode(mean).shape == images.shape
    assert objective.predict(images).shape == (2, 10)
    down = sum(p.numel() for p in network.encoder[:-1].parameters())
    up = sum(p.numel() for p in network.decoder.parameters())
    # The mirror image: but for the norms (2 numbers a channel) that end a stage, and the bias of the last convolution.
    stages = int(math.log2(last[0] // 8))
    wide = sum(2 * 8 * 2**i for i in range(1, stages + 1))
    narrow = sum(2 * 8 * 2**i for i in range(stages))
    assert down - wide - 16 == up - narrow - channels


def test_blocks_are_as_many_as_asked():
    none, one, two = (AutoEncoder(4, 1, (12, 12), blocks=blocks) for blocks in ((0,), (1,), (3,)))
    count = [sum(isinstance(m, networks.BasicBlock) for m in net.modules()) for net in (none, one, two)]
    assert count == [0, 2, 6]
    assert one.name != two.name


@pytest.mark.parametrize("reconstruction", ["l2", "l1"])
def test_surprise_is_that_of_torch_distributions(reconstruction):
    objective = model(deviation=0.3, reconstruction=reconstruction)
    x, m = torch.rand(5, 1, 12, 12), torch.randn(5, 1, 12, 12)
    decoder = Normal(m, 0.3) if reconstruction == "l2" else Laplace(m, 0.3 / math.sqrt(2))
    assert decoder.stddev.max().item() == pytest.approx(0.3)
    torch.testing.assert_close(objective.surprise(x, m), -decoder.log_prob(x).flatten(1).sum(1), rtol=1e-5, atol=1e-4)


@EVERY
def test_the_loss_is_the_bound(name):
    """Against torch.distributions at the same draw of epsilon."""
    objective, (images, target) = model(name, deviation=0.4).eval(), batch()
    loss, terms = objective(images, target, step(3))
    mean, log_variance = objective.encode(images)
    q = Normal(mean, (0.5 * log_variance).exp())
    epsilon = torch.randn(6, 4, generator=torch.Generator().manual_seed(3))
    p = Normal(objective.decoded(mean + q.stddev * epsilon, target), 0.4)
    reconstruction = -p.log_prob(images).flatten(1).sum(1).mean()
    kl = kl_divergence(q, Normal(0.0, 1.0)).sum(1).mean()
    weight, bias = objective.network.head.weight, objective.network.head.bias
    d = weight[None] - weight[target][:, None]
    exponents = (d * mean[:, None]).sum(2) + bias - bias[target][:, None] + 0.5 * (d**2 * q.variance[:, None]).sum(2)
    class_loss = exponents.logsumexp(1).mean()
    c = 10.0 if name == "GVAE" else 1.0
    torch.testing.assert_close(loss, reconstruction + kl + c * class_loss, rtol=1e-5, atol=1e-3)
    expected = {"reconstruction": reconstruction, "kl": kl, "class_loss": class_loss}
    assert terms.keys() == expected.keys()
    for term, value in expected.items():
        torch.testing.assert_close(terms[term], value.detach(), rtol=1e-5, atol=1e-4)


def test_the_bound_lies_below_the_log_likelihood():
    """log p(x) of a decoder of one coordinate by quadrature over z, against the ELBO over many draws."""
    objective = model(latent=1, deviation=1.0).eval()
    images, target = batch(3)
    z = torch.linspace(-8, 8, 4001)[:, None]
    with torch.no_grad():
        decoded = objective.decoded(z, None)
        joint = torch.stack([-objective.surprise(x.expand_as(decoded), decoded) for x in images]) + Normal(
            0.0, 1.0
        ).log_prob(z[:, 0])
        log_likelihood = (joint.logsumexp(1) + math.log(16 / 4000)).mean()
        elbo = torch.stack(
            [
                -(terms["reconstruction"] + terms["kl"])
                for _, terms in (objective(images, target, step(s)) for s in range(200))
            ]
        )
        mean, log_variance = objective.encode(images)
        q = Normal(mean, (0.5 * log_variance).exp())
        log_q = q.log_prob(z[:, 0].expand(3, -1))
        weights = log_q.exp() * (16 / 4000)  # KL(q || p(z|x)), which (1) drops, by the same quadrature
        dropped = (weights * (log_q - (joint - joint.logsumexp(1, keepdim=True) - math.log(16 / 4000)))).sum(1).mean()
    error = elbo.std() / math.sqrt(len(elbo))
    assert elbo.mean() < log_likelihood
    assert abs(log_likelihood - dropped - elbo.mean()) < 5 * error + 1e-3


def test_weights_of_two_terms_are_one_deviation():
    """Gradients of c_img |x - m|^2 + c_KL KL are c_KL times those of the bound with s^2 = c_KL / (2 c_img)."""
    images, target = batch()
    objective = model("VAE", deviation=math.sqrt(0.15 / 2)).eval()
    parameters = [p for name, p in objective.network.named_parameters() if not name.startswith("head")]
    bound = torch.autograd.grad(objective(images, target, step())[0], parameters)
    mean, log_variance = objective.encode(images)
    codes = mean + (0.5 * log_variance).exp() * objective.noise(mean, step())
    squares = (images - objective.decoded(codes, target)).square().flatten(1).sum(1).mean()
    kl = 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).sum(1).mean()
    weighted = torch.autograd.grad(squares + 0.15 * kl, parameters)
    for one, other in zip(bound, weighted, strict=True):
        torch.testing.assert_close(0.15 * one, other, rtol=1e-3, atol=1e-5)


@EVERY
def test_what_the_class_of_an_image_reaches(name):
    """Gradients of the encoder depend on it in G-VAE by the class term, in the conditional one by the decoder."""
    (images, target), objective = batch(), model(name)
    if name == "ConditionalVAE":
        nn.init.normal_(objective.condition.weight)
    slopes = []
    for labels in (target, (target + 1) % 4):
        loss, terms = objective(images, labels, step())
        slopes.append(torch.autograd.grad(loss, objective.network.encoder[-1].weight)[0])
        assert all(not value.requires_grad for value in terms.values())
    assert torch.equal(*slopes) == (name == "VAE")


def test_learned_balance_goes_to_the_maximum_likelihood_deviation():
    """At the optimum s^2 is the mean squared error and c L_class is 1/2, whatever they start from."""
    objective = model(balance="learned", deviation=0.5, class_weight=3.0).eval()
    images, target = batch(8)
    with torch.no_grad():
        mean, log_variance = objective.encode(images)
        codes = mean + (0.5 * log_variance).exp() * objective.noise(mean, step())
        error = (images - objective.decoded(codes, target)).square().mean()
    own = [objective.log_deviation, objective.log_temperature]
    optimiser = torch.optim.LBFGS(own, max_iter=100, line_search_fn="strong_wolfe")

    def closure():
        optimiser.zero_grad()
        loss, _ = objective(images, target, step())
        loss.backward(inputs=own)
        return loss

    optimiser.step(closure)
    _, terms = objective(images, target, step())
    assert terms["deviation"].item() == pytest.approx(error.sqrt().item(), rel=1e-3)
    assert (terms["class_weight"] * terms["class_loss"]).item() == pytest.approx(0.5, rel=1e-3)
    assert not isinstance(model().log_deviation, nn.Parameter)


def test_any_log_variance_is_stable():
    objective, (images, target) = model(), batch()
    for raw in (-1e30, -1e4, 0.0, 1e4, 1e30):
        last = objective.network.encoder[-1]
        with torch.no_grad():
            last.weight[4:], last.bias[4:] = 0.0, raw
        loss, _ = objective(images, target, step())
        loss.backward()
        assert loss.isfinite()
        assert all(p.grad.isfinite().all() for p in objective.parameters())
        if abs(raw) < 1e5:
            assert (last.bias.grad[4:] != 0).all(), "it can come back"


def test_traversals_are_brute_force():
    objective, (images, _) = model(latent=10).eval(), batch(3)
    mean, log_variance = objective.encode(images)
    deviation = (0.5 * log_variance).exp()
    for clip, count in ((1.0, 10), (0.3, 3), (0.01, 1)):
        joint = objective.traverse(images, 2, clip)
        assert joint.shape == (3, 5, 1, 12, 12)
        for n in range(3):
            order = sorted(range(10), key=lambda k: -deviation[n, k].item())[:count]
            for column in range(5):
                code = mean[n].clone()
                for k in order:
                    code[k] += 0.5 * (column - 2) * deviation[n, k]
                torch.testing.assert_close(joint[n, column], objective.decode(code[None])[0])


def test_interpolation_ends_in_both_reconstructions():
    objective, (images, _) = model().eval(), batch(4)
    row = objective.interpolate(images[:2], images[2:], 5)
    torch.testing.assert_close(row[:, 0], objective.decode(objective.encode(images[:2])[0]))
    torch.testing.assert_close(row[:, -1], objective.decode(objective.encode(images[2:])[0]))
    middle = 0.5 * (objective.encode(images[:2])[0] + objective.encode(images[2:])[0])
    torch.testing.assert_close(row[:, 2], objective.decode(middle))
    assert (row[:, 0] - row[:, -1]).abs().amax((1, 2, 3)).min() > 1e-3


def test_a_conditional_decoder_is_one_of_code_and_class_joined():
    objective, codes, target = model("ConditionalVAE").eval(), torch.randn(5, 4), torch.arange(5) % 4
    nn.init.normal_(objective.condition.weight)
    expand = objective.network.expand
    joined = F.linear(
        torch.cat([codes, F.one_hot(target, 4).float()], 1),
        torch.cat([expand.weight, objective.condition.weight.T], 1),
        expand.bias,
    )
    expected = objective.network.decoder(joined)
    torch.testing.assert_close(objective.decoded(codes, target), expected, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="target: got None"):
        objective.decode(codes)


@EVERY
def test_it_learns(name):
    """Quadrants: in a few steps the bound falls and, with the class term, the classifier finds the classes."""
    objective = model(name, latent=6)
    recipe = Recipe(epochs=20, batch_size=32, optimizer="adam", lr=5e-3, schedule="linear", weight_decay=0.0)
    record = fit(objective, throwaway.data(256), recipe, progress=False)
    assert record.curves["reconstruction"][-1] + record.curves["kl"][-1] < (
        record.curves["reconstruction"][0] + record.curves["kl"][0]
    )
    assert record.metrics["test_accuracy"] > (0.9 if name == "GVAE" else 0.3)


def test_a_record_of_fit_has_the_measures_of_fit_alone(monkeypatch):
    """No other network is trained on the way."""
    trained, recipe = [], Recipe(epochs=1, batch_size=32, optimizer="adam", lr=1e-3)
    monkeypatch.setattr(Objective, "__init__", recorded(trained, Objective.__init__))
    record = fit(model(), throwaway.data(64), recipe, progress=False)
    assert record.metrics.keys() == {"train_loss", "test_accuracy"}
    assert [type(one) for one in trained] == [GVAE]


def recorded(calls, function):
    def wrapper(self, *arguments, **named):
        calls.append(self)
        return function(self, *arguments, **named)

    return wrapper


@EVERY
@pytest.mark.usefixtures("unchecked")
def test_settings_are_plain_numbers(name):
    own = {"class_weight": np.float32(3)} if name == "GVAE" else {}
    settings = model(name, deviation=np.float64(1), **own).settings
    expected = {"deviation": 1.0, "reconstruction": "l2", "balance": "fixed"}
    assert settings == expected | ({"class_weight": 3.0} if own else {})
    assert type(settings["deviation"]) is float


# -- bad input ---------------------------------------------------------------------------------------------------------

BAD = {
    "size": (
        lambda: AutoEncoder(4, 1, (30, 30), blocks=(1, 1)),
        r"size: got \(30, 30\) for 2 stages; .*multiples of 4",
    ),
    "odd": (lambda: AutoEncoder(4, 1, (29, 29)), r"size: got \(29, 29\); takes \(H, W\), both even and from 8"),
    "latent": (lambda: AutoEncoder(4, 1, latent=0), "latent: got 0; takes a whole number from 1"),
    "blocks": (lambda: AutoEncoder(4, 1, blocks=(1, -1)), "blocks: got -1"),
    "norm": (lambda: AutoEncoder(4, 1, norm="layer"), "norm: got 'layer'"),
    "deviation": (lambda: model(deviation=0.0), "deviation: got 0.0; takes a finite number above 0"),
    "class_weight": (lambda: model(class_weight=math.nan), "class_weight: got nan"),
    "reconstruction": (lambda: model(reconstruction="l3"), "reconstruction: got 'l3'; takes one of l2, l1"),
    "deviation_text": (lambda: model(deviation="0.5"), "deviation: got '0.5'; takes a finite number above 0"),
    "class_weight_bool": (lambda: model(class_weight=True), "class_weight: got True; takes a finite number above 0"),
    "balance": (lambda: model(balance="free"), "balance: got 'free'"),
    "images_high": (
        lambda: model().encode(2 * torch.ones(2, 1, 12, 12)),
        r"images: got 2.0 to 2.0 and 0 NaN; takes values in \[0, 1\]",
    ),
    "images_nan": (lambda: model().encode(torch.full((2, 1, 12, 12), math.nan)), "images: got no number and 288 NaN"),
    "images_shape": (lambda: model().encode(torch.rand(2, 1, 12, 16)), r"images: got shape \(2, 1, 12, 16\)"),
    "codes_nan": (lambda: model().decode(torch.full((2, 4), math.nan)), "codes: got values that are not finite"),
    "codes_shape": (lambda: model().decode(torch.zeros(2, 5)), r"codes: got shape \(2, 5\); takes \(N, 4\)"),
    "clip": (lambda: model().traverse(batch()[0], clip=0.0), r"clip: got 0.0; takes a finite number in \(0, 1\]"),
    "clip_high": (lambda: model().traverse(batch()[0], clip=1.5), "clip: got 1.5"),
    "columns": (
        lambda: model().interpolate(*[batch()[0]] * 2, columns=0),
        "columns: got 0; takes a whole number from 1",
    ),
    "steps": (lambda: model().traverse(batch()[0], steps=-1), "steps: got -1"),
    "steps_bool": (lambda: model().traverse(batch()[0], steps=True), "steps: got True"),
    "direction": (
        lambda: model().along(torch.zeros(2, 4), torch.ones(1, 4), 1),
        r"direction: got \(1, 4\); takes one for each code, \(2, 4\)",
    ),
    "second": (
        lambda: model().interpolate(batch()[0][:1], batch()[0][:2]),
        "second: got .*; takes the shape of first",
    ),
}


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("name", BAD)
def test_bad_input(name):
    call, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.usefixtures("unchecked")
def test_bad_types():
    with pytest.raises(TypeError, match="network: got a Network; takes an AutoEncoder"):
        GVAE(networks.small(4))
    images, _ = batch(4)
    for name in MODELS:
        with pytest.raises(TypeError, match=r"target: got .*; takes int64 class numbers"):
            model(name)(images, torch.rand(4, 4), step())
        with pytest.raises(ValueError, match="target: got classes 4 to 4; takes 0 to 3"):
            model(name)(images, torch.full((4,), 4), step())
    with pytest.raises(ValueError, match=r"target: got shape .*; takes \(4,\)"):
        model("ConditionalVAE").decode(torch.zeros(4, 4), torch.zeros(1).long())
