"""Oracles: torch.distributions, scipy, brute force, the released G-VAE loss, and Monte Carlo itself."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import scipy.stats
import torch
from hypothesis import given, strategies as st
from torch.distributions import Normal, kl_divergence
from torch.nn import functional as F

from semaug.core.gaussian import diagonal_logits, gaussian_cross_entropy, kl_standard_normal, sampled_cross_entropy
from semaug.core.tensors import Factored

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "gaussian.json").read_text())


def waves(rows, columns, row, column):
    return row * torch.arange(rows, dtype=torch.float64)[:, None] + column * torch.arange(columns, dtype=torch.float64)


def case():
    """The golden inputs: B = 6, K = 5, C = 4."""
    mean, log_variance = waves(6, 5, 0.1, 0.3).sin(), -1 + 0.5 * waves(6, 5, 0.2, 0.4).cos()
    weight, bias = waves(4, 5, 0.2, -0.05).cos(), 0.1 * torch.arange(4, dtype=torch.float64)
    return mean, log_variance, torch.arange(6) % 4, weight, bias


def by_class(seed=0, classes=3, width=4, rank=4, dtype=torch.float64):
    """Full covariances of a given rank, one a class."""
    generator = torch.Generator().manual_seed(seed)
    root = torch.randn(classes, width, rank, generator=generator, dtype=dtype)
    return root @ root.mT


def test_golden_gvae():
    mean, log_variance, target, weight, bias = case()
    assert gaussian_cross_entropy(mean, log_variance, target, weight, bias).item() == pytest.approx(
        GOLDEN["loss"], rel=1e-12
    )
    plain = gaussian_cross_entropy(mean, log_variance, target, weight, bias, strength=0.0)
    assert plain.item() == pytest.approx(GOLDEN["ce_at_mean"], rel=1e-12)
    assert kl_standard_normal(mean, log_variance).mean().item() == pytest.approx(
        GOLDEN["kl_mean_over_batch"], rel=1e-12
    )


def test_kl_is_that_of_torch_distributions_and_exact_near_the_prior():
    mean, log_variance = torch.randn(7, 3, dtype=torch.float64), torch.randn(7, 3, dtype=torch.float64)
    standard = Normal(torch.zeros(3, dtype=torch.float64), 1)
    expected = kl_divergence(Normal(mean, (0.5 * log_variance).exp()), standard).sum(1)
    torch.testing.assert_close(kl_standard_normal(mean, log_variance), expected)
    near = torch.full((1, 1), 1e-3)  # KL = lv^2 / 4 + O(lv^3); exp(lv) - 1 - lv loses 5 digits in float32
    assert kl_standard_normal(torch.zeros(1, 1), near).item() == pytest.approx(2.5e-7, rel=1e-3)


def test_kl_and_the_bound_are_what_draws_say():
    """400 000 draws: E log q - log p, and log E of the sum of exponentials, which Jensen put inside the logarithm."""
    mean, log_variance, target, weight, bias = case()
    q = Normal(mean[0], (0.5 * log_variance[0]).exp())
    z = q.rsample((400_000,))
    log_ratio = (q.log_prob(z) - Normal(0.0, 1.0).log_prob(z)).sum(1)
    error = log_ratio.std().item() / math.sqrt(len(z))
    assert abs(kl_standard_normal(mean, log_variance)[0].item() - log_ratio.mean().item()) < 5 * error
    logits = z @ weight.T + bias
    sums = (logits - logits[:, target[:1]]).exp().sum(1)
    bound = gaussian_cross_entropy(mean[:1], log_variance[:1], target[:1], weight, bias).item()
    assert abs(math.exp(bound) - sums.mean().item()) < 5 * sums.std().item() / math.sqrt(len(z))
    assert bound > sums.log().mean().item()


def test_kl_gradients():
    """Autograd against the derivatives by hand: mu, and half of (sigma^2 - 1)."""
    mean, log_variance = (t.requires_grad_() for t in case()[:2])
    slopes = torch.autograd.grad(kl_standard_normal(mean, log_variance).sum(), (mean, log_variance))
    torch.testing.assert_close(slopes, (mean.detach(), 0.5 * (log_variance.detach().exp() - 1)))
    assert torch.autograd.gradcheck(kl_standard_normal, (mean, log_variance))


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_bound_is_brute_force(reduction):
    mean, log_variance, target, weight, bias = case()
    losses = []
    for i, y in enumerate(target.tolist()):
        sigma = torch.diag(log_variance[i].exp())
        terms = []
        for j in range(4):
            d = weight[j] - weight[y]
            terms.append(d @ mean[i] + bias[j] - bias[y] + 0.35 * d @ sigma @ d)
        losses.append(torch.stack(terms).logsumexp(0))
    expected = torch.stack(losses)
    expected = {"mean": expected.mean(), "sum": expected.sum(), "none": expected}[reduction]
    actual = gaussian_cross_entropy(mean, log_variance, target, weight, bias, 0.7, reduction)
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-14)


def test_bound_gradients():
    mean, log_variance, target, weight, bias = (t.requires_grad_(t.is_floating_point()) for t in case())

    def loss(mean, log_variance, weight, bias):
        return gaussian_cross_entropy(mean, log_variance, target, weight, bias, 0.7, "none")

    assert torch.autograd.gradcheck(loss, (mean, log_variance, weight, bias))
    assert torch.autograd.gradgradcheck(loss, (mean, log_variance, weight, bias))


def test_diagonal_logits_keep_precision_under_a_common_offset():
    variance, weight, target = torch.rand(20, 64), 10 + torch.randn(20, 64) * 0.1, torch.arange(20)
    zero = torch.zeros(20, 64)
    forms = torch.einsum("ua,uja->uj", variance.double(), (weight.double() - weight.double()[:, None]).square())
    actual = diagonal_logits(zero, variance, target, weight, None, 2.0)
    # Without the centre the terms are 1e4 times the result: an error of 1e-3. With it, a few float32 roundings.
    torch.testing.assert_close(actual.double(), forms, rtol=1e-5, atol=1e-6 * float(forms.max()))


def test_under_autocast_the_bound_is_float32():
    arguments = [t.float() if t.is_floating_point() else t for t in case()]
    expected = gaussian_cross_entropy(*arguments)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = gaussian_cross_entropy(arguments[0].bfloat16(), *arguments[1:], reduction="mean")
        same = gaussian_cross_entropy(*arguments)
    assert actual.dtype == torch.float32
    assert torch.equal(same, expected)
    assert actual.item() == pytest.approx(expected.item(), abs=0.02)  # bfloat16 input: 8 bits


@pytest.mark.parametrize("form", ["full", "low rank", "diagonal", "factored"])
def test_sampled_loss_is_the_expectation_and_below_the_bound(form):
    """400 000 draws: against scipy's multivariate normal within 5 standard errors, and E CE <= the bound."""
    torch.manual_seed(1)
    a, weight, bias = (
        torch.randn(1, 4, dtype=torch.float64),
        torch.randn(3, 4, dtype=torch.float64),
        torch.zeros(3).double(),
    )
    y, strength, samples = torch.tensor([2]), 0.6, 400_000
    sigma = by_class(rank=2 if form == "low rank" else 4)
    covariance = sigma
    if form == "diagonal":
        covariance = sigma.diagonal(dim1=1, dim2=2)
        sigma = torch.diag_embed(covariance)
    if form == "factored":
        covariance = Factored(torch.randn(3, 4, 2).double(), torch.rand(3, 4).double())
        sigma = covariance.factor @ covariance.factor.mT + torch.diag_embed(covariance.diagonal)
    actual = sampled_cross_entropy(
        a, covariance, y, weight, bias, strength, samples, torch.Generator().manual_seed(0), "none"
    )
    draws = scipy.stats.multivariate_normal(a[0].numpy(), (strength * sigma[2]).numpy(), allow_singular=True).rvs(
        samples, random_state=0
    )
    losses = F.cross_entropy(torch.from_numpy(draws) @ weight.T + bias, y.repeat(samples), reduction="none")
    assert abs(actual.item() - losses.mean().item()) < 5 * math.sqrt(2) * losses.std().item() / math.sqrt(samples)
    d = weight - weight[2]
    bound = (d @ a[0] + 0.5 * strength * (d @ sigma[2] * d).sum(1)).logsumexp(0)
    plain = F.cross_entropy(a @ weight.T + bias, y)
    assert plain < actual < bound


def test_samples_of_a_low_rank_class_stay_in_its_range():
    """A class whose features differ along one line only: nothing moves across it, and an unseen class not at all."""
    line = torch.tensor([1.0, 2.0, -1.0])
    covariance = torch.stack([line[:, None] * line, torch.zeros(3, 3)])
    a, y = torch.randn(2, 3), torch.tensor([0, 1])
    across = torch.tensor([[0.0, 0.0, 0.0], [3.0, -1.0, 1.0]])  # w_1 - w_0 is at right angles to the line
    expected = F.cross_entropy(a @ across.T, y, reduction="none")
    actual = sampled_cross_entropy(a, covariance, y, across, None, 50.0, 8, reduction="none")
    # The zero eigenvalues of a float64 eigh are of size 1e-16 |Sigma|: roots of 1e-8 times sqrt(50) |w|.
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


def test_sampled_loss_repeats_by_generator_chunks_and_has_the_gradient_of_its_own_draws(monkeypatch):
    a, weight, bias = (torch.randn(*s, dtype=torch.float64, requires_grad=True) for s in ((5, 4), (3, 4), (3,)))
    y, covariance = torch.tensor([0, 1, 2, 2, 0]), by_class()
    monkeypatch.setattr("semaug.core.gaussian._CHUNK", 40)  # 2 samples a chunk

    def loss(a, weight, bias):
        generator = torch.Generator().manual_seed(3)
        return sampled_cross_entropy(a, covariance, y, weight, bias, 0.5, 7, generator, "none")

    assert torch.equal(loss(a, weight, bias), loss(a, weight, bias))
    assert torch.autograd.gradcheck(loss, (a, weight, bias))
    torch.manual_seed(4)
    first = sampled_cross_entropy(a, covariance, y, weight, samples=3)
    torch.manual_seed(4)
    assert torch.equal(first, sampled_cross_entropy(a, covariance, y, weight, samples=3))


@given(
    st.integers(1, 6), st.integers(2, 5), st.integers(1, 6), st.sampled_from([0.0, 1e-3, 1.0, 1e3]), st.integers(0, 99)
)
def test_bound_never_below_cross_entropy(n, classes, width, scale, seed):
    torch.manual_seed(seed)
    mean, log_variance = scale * torch.randn(n, width), torch.randn(n, width)
    weight, y = torch.randn(classes, width), torch.randint(0, classes, (n,))
    bound = gaussian_cross_entropy(mean, log_variance, y, weight, reduction="none")
    plain = F.cross_entropy(mean @ weight.T, y, reduction="none")
    assert bound.isfinite().all()
    assert (bound >= plain - 1e-4 * (1 + scale)).all()  # logits up to 10 scale, float32


def arguments(**changes):
    torch.manual_seed(0)
    values = {
        "features": torch.randn(5, 4),
        "covariance": by_class(dtype=torch.float32),
        "target": torch.tensor([0, 1, 2, 0, 1]),
        "weight": torch.randn(3, 4),
        "bias": torch.zeros(3),
    }
    return {**values, **changes}


NAN, INF = torch.nan, torch.inf
FINITE = "got values that are not finite; takes finite ones"
BAD = {
    "features_width": ({"features": torch.randn(5, 3)}, ValueError, r"features: got shape \(5, 3\); takes \(N, 4\)"),
    "features_empty": ({"features": torch.randn(0, 4)}, ValueError, r"features: got shape \(0, 4\); .* N > 0"),
    "features_int": ({"features": torch.ones(5, 4).long()}, TypeError, "features: got torch.int64; takes floats"),
    "features_nan": ({"features": torch.full((5, 4), NAN)}, ValueError, f"features: {FINITE}"),
    "dtypes": ({"features": torch.randn(5, 4).double()}, TypeError, "weight: got torch.float32; takes torch.float64"),
    "target_high": ({"target": torch.tensor([0, 1, 2, 3, 1])}, ValueError, "target: got classes 0 to 3; takes 0 to 2"),
    "target_low": ({"target": torch.tensor([0, 1, -1, 0, 1])}, ValueError, "target: got classes -1 to 1; takes 0 to 2"),
    "target_soft": ({"target": torch.rand(5, 3)}, TypeError, "target: got torch.float32; takes int64 class numbers"),
    "target_length": ({"target": torch.tensor([0, 1])}, ValueError, r"target: got shape \(2,\); takes \(5,\)"),
    "target_device": ({"target": torch.zeros(5, device="meta").long()}, ValueError, "target: got meta; takes cpu"),
    "weight": ({"weight": torch.randn(3)}, ValueError, r"weight: got torch.float32 \(3,\); takes floats \(C, A\)"),
    "weight_device": ({"weight": torch.randn(3, 4, device="meta")}, ValueError, "weight: got meta; takes cpu"),
    "weight_nan": ({"weight": torch.full((3, 4), NAN)}, ValueError, f"weight: {FINITE}"),
    "bias": ({"bias": torch.zeros(4)}, ValueError, r"bias: got shape \(4,\); takes \(3,\)"),
    "bias_device": ({"bias": torch.zeros(3, device="meta")}, ValueError, "bias: got meta; takes cpu"),
    "bias_inf": ({"bias": torch.tensor([0.0, INF, 0.0])}, ValueError, f"bias: {FINITE}"),
    "strength": ({"strength": -0.5}, ValueError, "strength: got -0.5; takes a finite number from 0"),
    "strength_nan": ({"strength": math.nan}, ValueError, "strength: got nan"),
    "strength_text": ({"strength": "1"}, ValueError, "strength: got '1'; takes a finite number from 0"),
    "reduction": ({"reduction": "average"}, ValueError, "reduction: got 'average'; takes one of mean, sum, none"),
    "covariance_shape": ({"covariance": torch.zeros(2, 4, 4)}, ValueError, r"covariance: got \(2, 4, 4\); takes"),
    "covariance_flat": ({"covariance": torch.zeros(3)}, ValueError, r"covariance: got \(3,\); takes"),
    "covariance_int": (
        {"covariance": torch.zeros(3, 4).long()},
        TypeError,
        "covariance: got torch.int64; takes floats",
    ),
    "covariance_list": ({"covariance": [1.0]}, TypeError, "covariance: got builtins.list; takes a tensor or Factored"),
    "covariance_factored": (
        {"covariance": Factored(torch.zeros(3, 4, 2), torch.zeros(3, 3))},
        ValueError,
        r"covariance: got \(3, 4, 2\) and \(3, 3\); takes",
    ),
    "covariance_device": ({"covariance": torch.zeros(3, 4, device="meta")}, ValueError, "covariance: got meta"),
    "covariance_nan": ({"covariance": torch.full((3, 4, 4), NAN)}, ValueError, f"covariance: {FINITE}"),
    "variance_inf": ({"covariance": torch.full((3, 4), INF)}, ValueError, f"covariance: {FINITE}"),
    "factor_nan": (
        {"covariance": Factored(torch.full((3, 4, 2), NAN), torch.zeros(3, 4))},
        ValueError,
        f"covariance: {FINITE}",
    ),
    "indefinite": (
        {"covariance": -torch.eye(4).expand(3, 4, 4)},
        ValueError,
        "covariance: got an eigenvalue -1; takes",
    ),
    "negative_variance": ({"covariance": -torch.ones(3, 4)}, ValueError, "covariance: .* positive semi-definite"),
    "overflow": (
        {"covariance": torch.full((3, 4), 1e38), "strength": 1e38, "weight": 1e4 * torch.randn(3, 4)},
        ValueError,
        "features, covariance, weight, strength: got values whose loss overflows torch.float32",
    ),
    "samples": ({"samples": 0}, ValueError, "samples: got 0; takes a whole number from 1"),
    "generator": (
        {"generator": SimpleNamespace(device=torch.device("cuda"))},
        ValueError,
        "generator: got one on cuda; takes one on cpu, as the features",
    ),
}


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("name", BAD)
def test_bad_input(name):
    changes, error, message = BAD[name]
    with pytest.raises(error, match=message):
        sampled_cross_entropy(**arguments(**changes))


@pytest.mark.usefixtures("unchecked")
def test_bad_log_variance():
    mean, log_variance, target, weight, bias = case()
    with pytest.raises(ValueError, match=r"log_variance: got shape \(6, 2\); takes \(6, 5\), as mean"):
        gaussian_cross_entropy(mean, log_variance[:, :2], target, weight, bias)
    with pytest.raises(ValueError, match="log_variance: got meta; takes cpu, the device of mean"):
        gaussian_cross_entropy(mean, log_variance.to("meta"), target, weight, bias)
    with pytest.raises(ValueError, match=f"log_variance: {FINITE}"):
        gaussian_cross_entropy(mean, log_variance.log(), target, weight, bias)
    with pytest.raises(ValueError, match=r"mean and log_variance: got shapes .*; takes \(N, K\) for both"):
        kl_standard_normal(mean, log_variance[:, :2])
    with pytest.raises(ValueError, match=r"strength: got a tensor \(6,\); takes one number"):
        gaussian_cross_entropy(mean, log_variance, target, weight, bias, torch.ones(6))
    for name in ("mean", "weight", "bias"):
        values = {"mean": mean, "weight": weight, "bias": bias}
        values[name] = values[name] * torch.nan
        with pytest.raises(ValueError, match=f"{name}: {FINITE}"):
            gaussian_cross_entropy(values["mean"], log_variance, target, values["weight"], values["bias"])


@pytest.mark.parametrize("value", [88.0, 89.0, 1e4])  # e^89 overflows in float32; at 88 the quadratic forms do
def test_a_log_variance_that_overflows_is_refused(value):
    mean, _, target, weight, bias = (t.float() if t.is_floating_point() else t for t in case())
    with pytest.raises(ValueError, match=r"mean, log_variance, weight, strength: got .* overflows torch\.float32"):
        gaussian_cross_entropy(mean, torch.full_like(mean, value), target, 10 * weight, bias)
    if value < 100:
        large = torch.full_like(mean, value).double()
        assert gaussian_cross_entropy(mean.double(), large, target, weight.double()).isfinite()


def test_a_finite_sum_that_overflows_is_taken():
    """Losses and features of which each is a float32 number, but not their sum."""
    mean, target = torch.tensor([[3e38, 1.0], [3e38, 1.0], [-3e38, 0.0]]), torch.tensor([0, 0, 0])
    weight = torch.tensor([[0.5, 0.0], [0.0, 0.0]])
    losses = gaussian_cross_entropy(mean, torch.zeros(3, 2), target, weight, reduction="none")
    torch.testing.assert_close(losses, torch.tensor([0.0, 0.0, 1.5e38]))
    three = torch.tensor([[-3e38, 0.0]]).expand(3, 2)
    losses = gaussian_cross_entropy(three, torch.zeros(3, 2), target, weight * 2, reduction="none")
    assert losses.isfinite().all()
    assert losses.sum().isinf()


def test_no_value_is_read_where_it_is_traced():
    """Under torch.func even a loss that overflows comes back; what a captured step computes, fit sees in its loss."""
    mean, log_variance, target, weight, bias = case()
    loss = torch.func.vmap(lambda x: gaussian_cross_entropy(x, 1e4 + log_variance, target, weight, bias))(mean[None])
    assert not loss.isfinite().any()


def test_defaults():
    """lambda = 1, one sample, no bias, the mean over the batch."""
    mean, log_variance, target, weight, _ = case()
    variance = log_variance.exp()
    short, long = (
        gaussian_cross_entropy(mean, log_variance, target, weight, *more) for more in ((), (None, 1.0, "mean"))
    )
    assert torch.equal(short, long)
    seeds = [torch.Generator().manual_seed(0) for _ in range(2)]
    short = sampled_cross_entropy(mean, variance[:4], target, weight, generator=seeds[0])
    long = sampled_cross_entropy(mean, variance[:4], target, weight, None, 1.0, 1, seeds[1], "mean")
    assert torch.equal(short, long)
    logits = diagonal_logits(mean, variance, target, weight, None, 1.0)
    forms = torch.stack([(v * (weight - weight[y]).square()).sum(1) for v, y in zip(variance, target, strict=True)])
    torch.testing.assert_close(logits, mean @ weight.T + 0.5 * forms)  # not up to a number a sample


def test_a_variance_that_rounding_made_negative_is_zero():
    """Without the clamp its root would be NaN."""
    a, weight, y = torch.randn(2, 2), torch.randn(2, 2), torch.tensor([0, 1])
    for covariance in (
        torch.tensor([[0.0, -1e-6], [-1e-6, 0.0]]),
        Factored(torch.zeros(2, 2, 1), torch.full((2, 2), -1e-6)),
        torch.diag_embed(torch.tensor([[1.0, -1e-6], [-1e-6, 1.0]])),
    ):
        assert sampled_cross_entropy(a, covariance, y, weight, samples=3).isfinite()


@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_rounding_is_in_proportion_to_the_largest_eigenvalue(scale):
    a, weight, y = torch.randn(2, 2), torch.randn(2, 2), torch.tensor([0, 1])
    rounded = scale * torch.diag_embed(torch.tensor([[1.0, -1e-6], [-1e-6, 1.0]]))
    assert sampled_cross_entropy(a, rounded, y, weight, samples=3).isfinite()
    with pytest.raises(ValueError, match="covariance: got an eigenvalue"):
        sampled_cross_entropy(a, scale * torch.diag_embed(torch.tensor([[1.0, -1e-3], [1.0, 1.0]])), y, weight)
