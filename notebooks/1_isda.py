# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 1 · ISDA: infinitely many augmented samples at the price of one
#
# Y. Wang et al., *Implicit Semantic Data Augmentation for Deep Networks*, NeurIPS 2019
# ([arXiv:1909.12220](https://arxiv.org/abs/1909.12220)), and *Regularizing Deep Networks with Semantic Data
# Augmentation*, TPAMI 2021 ([arXiv:2007.10538](https://arxiv.org/abs/2007.10538)).
# [Their code](https://github.com/blackfeather-wang/ISDA-for-Deep-Networks).

# %% tags=["nbval-ignore-output"]
from companion import lesson

lesson.figure("1_isda", "directions")

# %% [markdown]
# **Each row is a class; its photographs are ordered by one direction in the space of a network's features.** On the
# left are the four at the small end and on the right the four at the large end. One block takes the direction along
# which the class varies most, the other a random direction of equal length. No label says what a direction means.
#
# Flipping a photograph changes its pixels. ISDA changes its meaning: it moves the *feature* of an image along the
# directions in which its class varies. It does so infinitely often, inside the loss, at the cost of a cross-entropy.
#
# At the end of this lesson you can
#
# - say why one augments features, and why by a Gaussian with the covariance of the class;
# - derive the loss: an expectation, Jensen's inequality, a moment-generating function;
# - write the method in thirty lines and keep its covariances while the network trains;
# - say what the loss does to a classifier, and test whether it helps.
#
# | minutes | section | | minutes | section |
# |---|---|---|---|---|
# | 0–6 | this page | | 26–30 | 4 · where the covariance comes from |
# | 6–10 | 1 · where it acts, and why there | | 30–33 | 5 · the method in thirty lines |
# | 10–22 | 2 · the derivation in seven steps | | 33–40 | 6 · training, and what came out |
# | 22–26 | 3 · what the classifier feels | | 40–45 | 7 · questions |
#
# **You need** softmax and cross-entropy, the multivariate normal distribution, and a training step in PyTorch.
# Notation, errata, controls and ablations are in the [appendix](appendix/1_isda_more.ipynb). The lesson follows a
# Chinese reading note on the paper. We call it *the source* and quote it in blocks, with our English.
#
# <details><summary>For the lecturer</summary>
#
# Clear all outputs before the class, so that predictions are predictions, and run section by section. The live training
# of section 6 takes about 20 seconds on two cores: start it, then ask. If time is short, leave out the checks of steps 1
# and 3, and questions 4 and 5. Expected answers: the copies settle below the bound, and more of them change nothing; the
# limit falls for about a hundred steps and then rises; ISDA's training loss is higher, which says nothing of the network.
#
# </details>
#
# The next two cells hold the settings and the imports.

# %% tags=["parameters"]
profile = "quick"  # "quick" trains the live runs of section 6; "cpu" and "paper" also add missing records (hours)
dataset = "fashion-mini"  # the 10,000 images of Fashion-MNIST inside the package; or cifar10, mnist, ...
train_size = 1000  # training images of the live runs
epochs = 8  # of the live runs
seeds = 3  # paired runs of each method
first_seed = 0  # of them
strength = 0.5  # λ₀, the strength of the augmentation at the end of training
device = "auto"  # "cpu", "cuda", or whichever there is

# %%
import copy
import functools
import math
import time

import numpy as np
import torch
from torch.nn import functional as F

from companion import plots, runs, stats
from companion.lesson import rounded, seeded
from companion.studies import isda as study
from semaug import Recipe, Step, fit, load, resolve_device
from semaug.methods.isda import isda_loss

show = functools.partial(lesson.show, "1_isda")  # keeps a picture and shows it
SEEDS = range(first_seed, first_seed + seeds)

# %% [markdown]
# ## 1 · Where it acts, and why there (6–10 min)
#
# Supervised training can be changed at five places. ISDA *describes* its augmentation at place 2, on features, and
# *performs* it at place 4, in the loss. The step from 2 to 4 is the subject of section 2.

# %%
show(plots.where_it_acts("features", "loss"), "where")

# %% [markdown]
# Pixels are not touched, so ISDA combines with any augmentation of pixels. Why act on features? The source gives these
# reasons.
#
# > 高维特征embedding其实是能抽象代表图像的语义层面上的特征的,同时这个高位特征往往是线性化的 ·
# > *The embedding represents the image at the level of meaning, and it tends to be linearised.*
#
# - **Why along straight lines.** A network maps all images into one linear space, where features can be added and
#   scaled. A step in one direction can then mean the same change for every image. Of a face, the background, the
#   expression or the hair may change while the person stays the same.
# - **Why around the feature itself.** Images of one class have most of their features in common and differ in a few.
#   So the copies of a feature $a_i$ are centred at $a_i$.
# - **Why the covariance of the class.** It says which features vary together within the class. The source calls this
#   the origin of the semantics.
# - **Why a Gaussian.** There is a mean and a covariance, and the normal distribution is the simplest one that joins
#   them. It will also turn out to be the one whose integral we can do.
#
# The source sorts the related work by two questions: is a sample really made, and does the change respect the meaning?
#
# | | whatever the image shows | by what the image shows |
# |---|---|---|
# | **explicit:** makes samples | crop, flip, AutoAugment | GANs such as DAGAN, VAE, deep feature interpolation |
# | **implicit:** changes the loss | marginalised corrupted features, focal loss, margins | ISDA |
#
# Implicit methods cost less and fit any network. Marginalised corrupted features is the ancestor of ISDA: it too takes
# infinitely many copies at once, for simpler noise and simpler losses.
#
# > 如果直接去随机扰动最后的这个embedding来获取数据增强会得到很多没用的新数据 ·
# > *Perturbing the embedding at random yields many useless new samples.*
#
# Here is that claim in pictures. A feature is moved along a direction of its class, and for comparison along a random
# direction of equal length. Each tile is the real photograph whose feature is nearest.

# %% tags=["nbval-ignore-output"]
lesson.figure("1_isda", "neighbours")

# %% [markdown]
# Look for a property that changes steadily along a row, and for tiles of another class. Each tile is a real photograph,
# so nothing is invented; it is also only the nearest one there is. The appendix measures the claim with controls.
#
# ### A world in the plane
#
# We derive the loss in a world small enough to be computed exactly: features of length $A = 2$, $C = 3$ classes,
# $N = 6$ samples. Sample $i$ has the feature $a_i$ and the class $y_i$. The head gives class $j$ the logit
# $w_j^\top a_i + b_j$. Every class has a covariance $\Sigma_j$, for the moment given.

# %%
f64 = torch.float64
a = torch.tensor([[2.2, 0.9], [0.8, 0.1], [-1.2, 1.6], [-0.6, 0.4], [-0.9, -1.9], [0.4, -1.0]], dtype=f64)
y = torch.tensor([0, 0, 1, 1, 2, 2])
W = torch.tensor([[2.0, 0.5], [-1.0, 1.5], [-0.5, -2.0]], dtype=f64)
b = torch.tensor([0.1, -0.1, 0.0], dtype=f64)
Sigma = [[[1.0, 0.6], [0.6, 0.6]], [[0.5, -0.4], [-0.4, 0.9]], [[1.2, 0.0], [0.0, 0.2]]]  # one a class
Sigma = torch.tensor(Sigma, dtype=f64)
N, C, A = len(y), len(W), W.shape[1]
toy = 0.5  # λ in this world
cross_entropy = F.cross_entropy(a @ W.T + b, y, reduction="none")
print("cross-entropy of each sample:", rounded(cross_entropy, 3))

# %% [markdown]
# Two helpers draw this world: its classes as regions of the plane, and an ellipse of two standard deviations.

# %%
CLASS = (plots.GREEN, plots.YELLOW, plots.GREY)


def plane(axes):
    """The six features, and the class that the head gives to every place of the plane."""
    x = torch.linspace(-4, 4, 161, dtype=f64)
    winner = (torch.cartesian_prod(x, x) @ W.T + b).argmax(1).view(161, 161)
    axes.contourf(x, x, winner.T, levels=(-0.5, 0.5, 1.5, 2.5), colors=CLASS, alpha=0.15)
    for j, name in enumerate(("class 0", "class 1", "class 2")):
        axes.plot(*a[y == j].T, "o", color=CLASS[j], label=name)
    axes.set(xlim=(-4, 4), ylim=(-4, 4), aspect="equal", xlabel="feature 1", ylabel="feature 2")
    axes.grid(visible=False)


def ellipse(axes, centre, covariance, **style):
    """Two standard deviations of a Gaussian."""
    angle = torch.linspace(0, 2 * math.pi, 100, dtype=f64)
    circle = 2 * torch.linalg.cholesky(covariance) @ torch.stack([angle.cos(), angle.sin()])
    axes.plot(*(centre[:, None] + circle), **style)


# %%
@plots.styled
def figure_toy():
    figure = plots.Picture(figsize=(7.2, 3.6))
    axes = figure.add_subplot()
    plane(axes)
    for i in range(N):
        ellipse(axes, a[i], toy * Sigma[y[i]], color=CLASS[y[i]], linewidth=1)
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    plots.headline(figure, "Copies of a feature will spread as its class does")
    return figure


show(figure_toy(), "toy")

# %% [markdown]
# ## 2 · The derivation in seven steps (10–22 min)
#
# Every step is an equation, the same in code, and a number that it predicts. All numbers are in float64.
#
# ### Step 1 · Augment explicitly
#
# > 从这个正态分布中随机抽取向量作为对高维embedding的修改 ·
# > *Draw from this normal distribution the vectors by which embeddings are modified.*
#
# Draw $M$ copies of every feature, keep the label, and take the mean cross-entropy:
#
# $$\tilde a_i^k \sim \mathcal N(a_i,\ \lambda\,\Sigma_{y_i}), \qquad
#   \mathcal L_M = \frac1N \sum_{i=1}^N \frac1M \sum_{k=1}^M
#   -\log \frac{e^{w_{y_i}^\top \tilde a_i^k + b_{y_i}}}{\sum_{j=1}^C e^{w_j^\top \tilde a_i^k + b_j}}. \tag{1}$$
#
# A root $R_j$ of the covariance, $\Sigma_j = R_j R_j^\top$, turns standard normal numbers into such draws.

# %%
R = torch.linalg.cholesky(Sigma)


def sample(M, strength, generator):
    """M copies of every feature by (1), (N, M, A)."""
    return a[:, None] + strength**0.5 * torch.randn(N, M, A, generator=generator, dtype=f64) @ R[y].mT


def loss_at(features, W=W, b=b):
    """The cross-entropy at features (N, M, A), (N, M)."""
    return -(features @ W.T + b).log_softmax(2)[torch.arange(N), :, y]


copies = sample(200_000, toy, seeded(1))[0]
print("predicted, λΣ:", rounded(toy * Sigma[y[0]]), "  covariance of 200,000 copies:", rounded(torch.cov(copies.T)))
assert (torch.cov(copies.T) - toy * Sigma[y[0]]).abs().max() < 0.01

# %% [markdown]
# ### Step 2 · Let M go to infinity
#
# > 因为M 变大影响计算cost, 那就假设 M 为无穷 · *As a large M costs too much, let M be infinite.*
#
# A mean over infinitely many draws is an expectation:
#
# $$\mathcal L_\infty = \lim_{M\to\infty} \mathcal L_M = \frac1N \sum_{i=1}^N \mathrm E_{\tilde a_i}\!\left[
#   -\log \frac{e^{w_{y_i}^\top \tilde a_i + b_{y_i}}}{\sum_j e^{w_j^\top \tilde a_i + b_j}}\right]. \tag{2}$$
#
# We stop treating copies as data and integrate over their distribution. In the plane the integral can be done:
# *Gauss–Hermite quadrature* is a weighted sum over fixed points. The law of large numbers predicts that the spread of
# $\mathcal L_M$ falls like $1/\sqrt M$. So the last column should not change.

# %%
nodes, node_weight = (torch.from_numpy(part) for part in np.polynomial.hermite_e.hermegauss(60))
u, u_weight = torch.cartesian_prod(nodes, nodes), torch.cartesian_prod(node_weight, node_weight).prod(1)


def expectation(f, strength):
    """E f(ã) for each sample, f from (N, n, A) to (N, n)."""
    return f(a[:, None] + strength**0.5 * u @ R[y].mT) @ (u_weight / u_weight.sum())


def limit(strength, W=W, b=b):
    """The loss of each sample in (2)."""
    return expectation(lambda features: loss_at(features, W, b), strength)


L_inf = limit(toy).mean()
for M in (10, 100, 1000):
    draws = torch.stack([loss_at(sample(M, toy, seeded(seed))).mean() for seed in range(200)])
    print(f"M = {M:4d}: mean of L_M {draws.mean():.3f}, limit {L_inf:.3f}, spread × √M {draws.std() * M**0.5:.2f}")
    assert abs(draws.mean() - L_inf) < 4 * draws.std() / 200**0.5

# %% [markdown]
# ### Step 3 · Write the loss as a logarithm of a sum
#
# Divide by the numerator. Only differences to the true class remain, $v_j = w_j - w_y$ and $c_j = b_j - b_y$:
#
# $$-\log \frac{e^{w_y^\top a + b_y}}{\sum_j e^{w_j^\top a + b_j}} = \log S(a), \qquad
#   S(a) = \sum_{j=1}^C e^{v_j^\top a + c_j}. \tag{3}$$
#
# The term $j = y$ is $e^0 = 1$ at every feature. It is the part of the sum that augmentation never changes.


# %%
def exponents(features, W=W, b=b):
    """v_jᵀa + c_j of (3) at features (N, M, A), (N, M, C)."""
    return features @ (W - W[y][:, None]).mT + (b - b[y][:, None])[:, None]


copies = sample(1000, toy, seeded(2))
print("largest |exponent| of the true class:", exponents(copies)[torch.arange(N), :, y].abs().max().item())
assert torch.allclose(exponents(copies).logsumexp(2), loss_at(copies), rtol=0, atol=1e-12)

# %% [markdown]
# ### Step 4 · Jensen's inequality
#
# > 根据詹森不等式 E(log(x)) <= log(E(x)) · *by Jensen's inequality*
#
# The logarithm bends down, so the logarithm of a mean lies above the mean of the logarithms:
#
# $$\mathrm E \log S(\tilde a)\ \le\ \log \mathrm E\,S(\tilde a)
#   \ =\ \log \sum_{j=1}^C \mathrm E\, e^{v_j^\top \tilde a + c_j}. \tag{4}$$
#
# This is the only inequality of the derivation. The gap is small where $S$ varies little: a Taylor expansion predicts
# half the relative variance, $\mathrm{Var}\,S \,/\, 2(\mathrm E S)^2$. We test it at λ = 0.01.

# %%
faint = 0.01
S1, S2 = (expectation(lambda features, k=k: exponents(features).exp().sum(2) ** k, faint) for k in (1, 2))
gap = (S1.log() - limit(faint)).mean()
predicted = ((S2 - S1**2) / (2 * S1**2)).mean()
print(f"predicted gap {predicted:.5f}   gap {gap:.5f}")
assert abs(gap / predicted - 1) < 0.1

# %% [markdown]
# The picture takes the second sample, where the head is less sure, and 30 of its copies.


# %%
@plots.styled
def figure_jensen(i=1):
    S = exponents(sample(30, toy, seeded(3)))[i].exp().sum(1)
    figure = plots.Picture(figsize=(7.2, 3.4))
    axes = figure.add_subplot(xlabel="S", ylabel="log S (the loss)")
    s = torch.linspace(0.9, 1.03 * S.max().item(), 200, dtype=f64)
    axes.plot(s, s.log(), color=plots.GREY)
    axes.plot(S, S.log(), "o", color=plots.RED, alpha=0.6, label="30 copies")
    low, high = S.log().mean().item(), S.mean().log().item()
    axes.vlines(S.mean(), low, high, color="black", linewidth=3, label=f"Jensen's gap, {high - low:.2f} nats")
    axes.axhline(low, color=plots.PURPLE, linestyle="--", label=f"mean of log S = {low:.2f}")
    axes.axhline(high, color=plots.BLUE, linestyle="--", label=f"log of mean S = {high:.2f}")
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    assert high > low
    plots.headline(figure, "A few copies with a large S raise the mean of S, but hardly the mean of log S")
    return figure


show(figure_jensen(), "jensen")

# %% [markdown]
# ### Step 5 · The moment-generating function of a Gaussian
#
# > 这一步通过矩母函数地性质实现 · *This step uses a property of the moment-generating function.*
#
# In (4) remain expectations of $e$ to the power of a Gaussian. Let $X \sim \mathcal N(m, \sigma^2)$. Complete the
# square in the exponent of $e^x$ times the density:
#
# $$x - \frac{(x - m)^2}{2\sigma^2} \ =\ m + \frac{\sigma^2}{2} - \frac{\big(x - (m + \sigma^2)\big)^2}{2\sigma^2}.$$
#
# The last term belongs to a Gaussian around $m + \sigma^2$, whose density integrates to 1. What remains is
#
# $$\mathrm E\, e^X = e^{m + \sigma^2/2}. \tag{5}$$
#
# The square also predicts where the expectation comes from: draws weighted by $e^X$ have the mean $m + \sigma^2$.

# %%
m, sigma = 0.7, 1.3
X = m + sigma * torch.randn(1_000_000, generator=seeded(4), dtype=f64)
weighted_mean = (X.exp() * X).sum() / X.exp().sum()
print(f"predicted log E e^X {m + sigma**2 / 2:.3f}, sampled {X.exp().mean().log():.3f}")
print(f"predicted mean under the weights e^X {m + sigma**2:.2f}, sampled {weighted_mean:.2f}")
assert abs(X.exp().mean().log() - m - sigma**2 / 2) < 0.02
assert abs(weighted_mean - m - sigma**2) < 0.05


# %%
@plots.styled
def figure_square():
    figure = plots.Picture(figsize=(7.2, 3.0))
    axes = figure.add_subplot(xlabel="x", ylabel="density", ylim=(0, 0.36))
    x = np.linspace(-4, 8, 300)
    for centre, colour, label in (
        (m, plots.GREY, "$X$, around $m$"),
        (m + sigma**2, plots.BLUE, r"around $m + \sigma^2$"),
    ):
        density = np.exp(-((x - centre) ** 2) / (2 * sigma**2)) / (sigma * math.sqrt(2 * math.pi))
        axes.fill_between(x, density, color=colour, alpha=0.3, label=label)
    heights, edges = np.histogram(X, 40, weights=X.exp() / X.exp().sum())
    axes.plot(
        (edges[1:] + edges[:-1]) / 2, heights / np.diff(edges), ".", color="black", label="draws, weighted by $e^X$"
    )
    axes.legend()
    plots.headline(figure, "Weighting by $e^x$ moves a Gaussian by its variance and keeps its shape")
    return figure


show(figure_square(), "square")

# %% [markdown]
# ### Step 6 · The difference of two logits is Gaussian
#
# A linear function of a Gaussian is Gaussian, so the exponent in (4) is
#
# $$v_j^\top \tilde a + c_j \ \sim\ \mathcal N\big(v_j^\top a + c_j,\ \lambda\, q_{yj}\big), \qquad
#   q_{yj} = (w_j - w_y)^\top\, \Sigma_y\, (w_j - w_y). \tag{6}$$
#
# The quadratic form $q_{yj}$ is the heart of ISDA. It is large where class $y$ is wide in the direction that
# distinguishes it from class $j$.
#
# **Fill in (2 min).** Replace `None` by one line that computes $q_{y_i j}$ for all samples $i$ and classes $j$. The
# cell compares your numbers with the sampled variance of the differences.


# %%
def your_form(v, Sigma_y):
    """q of (6), (N, C), from differences v (N, C, A) and covariances (N, A, A)."""
    return None  # your line, such as torch.einsum("...", v, Sigma_y, v)


sampled = exponents(sample(100_000, toy, seeded(5))).var(1)
yours = your_form(W - W[y][:, None], Sigma[y])
print("not yet" if yours is None else "right" if torch.allclose(toy * yours, sampled, rtol=0.03) else "another value")

# %% [markdown]
# <details><summary>Solution</summary>
#
# `torch.einsum("nja,nab,njb->nj", v, Sigma_y, v)`, or `((v @ Sigma_y) * v).sum(2)`. The next cell has the first as
# `quadratic_form(W, Sigma, y)`, which the rest of the lesson uses. The form of the true class is $q_{yy} = 0$.
#
# </details>


# %% tags=["solution"] jupyter={"source_hidden": true}
def quadratic_form(W, Sigma, y):
    """q of (6), (N, C)."""
    v = W - W[y][:, None]
    return torch.einsum("nja,nab,njb->nj", v, Sigma[y], v)


print("predicted λq of sample 2:", rounded(toy * quadratic_form(W, Sigma, y)[1]), "  sampled:", rounded(sampled[1], 1))
assert torch.allclose(toy * quadratic_form(W, Sigma, y), sampled, rtol=0.03)

# %% [markdown]
# ### Step 7 · The bound
#
# Put (6) into (5), and that into (4). Nothing random remains:
#
# $$\mathcal L_\infty \ \le\ \overline{\mathcal L}_\infty = \frac1N \sum_{i=1}^N -\log
#   \frac{e^{w_{y_i}^\top a_i + b_{y_i}}}
#   {\sum_{j=1}^C e^{w_j^\top a_i + b_j + \frac\lambda2 (w_j - w_{y_i})^\top \Sigma_{y_i} (w_j - w_{y_i})}}. \tag{7}$$
#
# This is a cross-entropy of changed logits: every rival $j \ne y$ is raised by $\frac\lambda2 q_{yj}$, and the true
# class by nothing. (The source closes the exponent of (7) before $\Sigma$; the appendix shows what that would give.)
# Three values must agree: (7); $\log \mathrm E\,S$ by quadrature, without any closed form; and the package.


# %%
def bound(strength, W=W, b=b):
    """(7), the loss of ISDA, for each sample."""
    return F.cross_entropy(a @ W.T + b + strength / 2 * quadratic_form(W, Sigma, y), y, reduction="none")


log_E_S = expectation(lambda features: exponents(features).exp().sum(2), toy).log()
by_package = isda_loss(a, y, W, b, Sigma, toy)
print(f"by quadrature {log_E_S.mean():.6f}   (7) {bound(toy).mean():.6f}   package {by_package:.6f}")
assert torch.allclose(bound(toy), log_E_S, rtol=0, atol=1e-9)
assert torch.allclose(bound(toy).mean(), by_package, rtol=0, atol=1e-12)

# %% [markdown]
# **Predict, then run.** The moving picture adds copies of the second sample, from 1 to 1,000, and draws their mean
# loss. Will it settle on the bound, below it or above it? Will more copies close the distance? Write down two answers.

# %%
counts = [1000, 1, 2, 3, 5, 8, 13, 22, 36, 60, 100, 170, 280, 460, 1000, 1000]  # the first frame is for print
i, many = 1, sample(1000, toy, seeded(6))  # the second sample
losses = loss_at(many)[i]


def frames():
    figure = plots.Picture(figsize=(7.0, 3.5))
    left, right = figure.subplots(1, 2)
    plane(left)
    (dots,) = left.plot([], [], ".", color=plots.RED, markersize=3, alpha=0.7)
    ellipse(left, a[i], toy * Sigma[y[i]], color="black", linewidth=1, zorder=3)
    right.axhline(bound(toy)[i], color=plots.BLUE, label="bound (7)")
    (line,) = right.plot([], [], color=plots.RED, label="mean loss of M copies")
    right.axhline(limit(toy)[i], color=plots.PURPLE, linestyle="--", label="limit (2)")
    right.axhline(cross_entropy[i], color="black", linestyle=":", label="cross-entropy")
    right.set(xscale="log", xlim=(1, 1000), ylim=(0, 1.15 * bound(toy)[i]), xlabel="M, copies", ylabel="loss (nats)")
    right.legend(loc="upper right", bbox_to_anchor=(1.0, 0.86))
    for M in counts:
        dots.set_data(*many[i, :M].T)
        line.set_data(range(1, M + 1), losses[:M].cumsum(0) / torch.arange(1, M + 1))
        left.set_title(f"{M} {'copies' if M > 1 else 'copy'} of one feature")
        yield figure


# %% tags=["nbval-ignore-output"]
lesson.animation("1_isda", frames(), "copies")

# %%
error = 2 * losses.std() / 1000**0.5
effect, gap = (limit(toy) - cross_entropy)[i], (bound(toy) - limit(toy))[i]
print(f"settled at {losses.mean():.2f} ± {error:.2f}, the limit is {limit(toy)[i]:.2f}, the bound {bound(toy)[i]:.2f}")
print(f"effect of the augmentation {effect:.2f}, gap of the bound {gap:.2f}")
assert abs(losses.mean() - limit(toy)[i]) < error
assert gap > effect

# %% [markdown]
# The mean settles on the limit (2), below the bound. More copies do not close the distance: it is Jensen's gap and no
# sampling error. For these weights it is larger than the effect of the augmentation itself.
#
# ## 3 · What the classifier feels (22–26 min)
#
# Let $\tilde p_j$ be the softmax of the changed logits in (7) and $\ell$ the loss of one sample. Differentiate; each
# $q_{yj}$ contributes $\lambda\Sigma_y (w_j - w_y)$. For $j \ne y$
#
# $$\frac{\partial \ell}{\partial w_j} = \tilde p_j \big( a + \lambda \Sigma_y (w_j - w_y) \big), \qquad
#   \frac{\partial \ell}{\partial a} = \sum_j \tilde p_j (w_j - w_y). \tag{8}$$
#
# Plain cross-entropy has $a$ alone in the bracket. So class $j$ does not see the sample at $a$. It sees **one** copy,
# moved towards class $j$ along the directions in which class $y$ varies. This is the shift $m + \sigma^2$ of step 5, in
# $A$ dimensions. The backbone receives nothing but the changed probabilities. We compare (8) with autograd.


# %%
def seen(strength):
    """Where each class sees sample i, (C, A): the bracket of (8)."""
    return a[i] + strength * (W - W[y[i]]) @ Sigma[y[i]]


p = (a @ W.T + b + toy / 2 * quadratic_form(W, Sigma, y)).softmax(1)[i]  # p̃
by_hand = p[:, None] * seen(toy)
weight, feature = W.clone().requires_grad_(), a[i : i + 1].clone().requires_grad_()
isda_loss(feature, y[i : i + 1], weight, b, Sigma, toy).backward()
print("∂ℓ/∂w of classes 1 and 2, (8):", rounded(by_hand[1:], 3), "  autograd:", rounded(weight.grad[1:], 3))
assert torch.allclose(weight.grad[1:], by_hand[1:], rtol=0, atol=1e-12)
assert torch.allclose(feature.grad[0], p @ (W - W[y[i]]), rtol=0, atol=1e-12)

# %% [markdown]
# In a live session (`make lab`) the next picture has a slider for λ.


# %%
@plots.styled
def figure_seen(strength=toy):
    figure = plots.Picture(figsize=(7.2, 3.8))
    axes = figure.add_subplot()
    plane(axes)
    if strength:
        ellipse(axes, a[i], strength * Sigma[y[i]], color="black", linewidth=1)
    for j in (1, 2):
        plots.draw_arrow(axes, tuple(a[i].tolist()), tuple(seen(strength)[j].tolist()), plots.BLUE)
        axes.text(*seen(strength)[j], f"for class {j}  ", ha="right", va="center", color=plots.BLUE)
    axes.plot(*a[i], "kx", markersize=8, label="the sample")
    axes.set(xlim=(-3.2, 2.8), ylim=(-2.4, 2), title=f"λ = {strength:g}")
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    crossed = int(((seen(strength) @ W.T + b).argmax(1) != y[i]).sum())
    who = ("No rival sees", "One rival sees", "Both rivals see")[crossed]
    plots.headline(figure, f"{who} this sample of class 0 beyond the border of its class")
    return figure


plots.slider(figure_seen, strength=(0.0, 1.0, 0.1))

# %% [markdown]
# The head is trained to call these places class 0; with a larger λ, places further away.
#
# ### Does the bound pull the loss down with it?
#
# > 如果最小化右侧这个上界,不等式左边自然也就最小化了 ·
# > *Minimise the upper bound, and the left side is minimised of itself.*
#
# **Predict, then run.** We start at our weights and descend on the bound for 1,000 steps. Does the limit (2), which is
# what we want to be small, fall all the way with it?

# %%
place, path = [W.clone().requires_grad_(), b.clone().requires_grad_()], []
for step in range(1001):
    loss = bound(toy, *place).mean()
    if step % 10 == 0:
        path.append([loss.item(), limit(toy, *place).mean().item(), place[0].norm().item()])
    slopes = torch.autograd.grad(loss, place)
    place = [(part - 0.02 * slope).detach().requires_grad_() for part, slope in zip(place, slopes, strict=True)]
path = torch.tensor(path)
lowest = int(path[:, 1].argmin())
for row in (0, lowest, 100):
    print("step {:4d}: bound {:.3f}   limit {:.3f}   |W| {:.1f}".format(10 * row, *path[row]))
assert path[-1, 0] < path[lowest, 0]
assert path[-1, 1] > 1.02 * path[lowest, 1]
assert path[-1, 2] < path[0, 2]


# %%
@plots.styled
def figure_descent():
    figure = plots.Picture(figsize=(7.2, 3.2))
    left, right = figure.subplots(1, 2)
    steps = range(0, 1001, 10)
    left.plot(steps, path[:, 0], color=plots.BLUE)
    left.set(xlabel="step of descent", ylabel="loss (nats)", title="the bound (7), which is minimised", ylim=(0, None))
    right.plot(steps, path[:, 1], color=plots.PURPLE, linestyle="--")
    right.plot(10 * lowest, path[lowest, 1], "o", color=plots.PURPLE, label=f"lowest, step {10 * lowest}")
    right.set(xlabel="step of descent", title="the limit (2), which is meant (enlarged)")
    right.legend(loc="upper right")
    rise = 100 * (path[-1, 1] / path[lowest, 1] - 1)
    plots.headline(figure, f"The bound keeps falling; the limit turns and rises by {rise:.0f}%")
    return figure


show(figure_descent(), "descent")

# %% [markdown]
# The limit follows for a while and then rises. A bound that falls is a lower ceiling, and what is under it need not
# follow. What the bound does beside the augmentation is printed in the last column: it makes the weights **small**,
# since $q_{yj}$ is quadratic in $W$. Section 6 returns to this.
#
# ## 4 · Where the covariance comes from (26–30 min)
#
# > 获取协方差阵是通过一个动态机制实现的 · *The covariance is obtained by a dynamic mechanism.*
#
# Features change while the network trains, and the data set is too large to go through at every step. So each class
# keeps a count $n$, a mean $\mu$ and a covariance $\Sigma$ of the features seen so far. A batch brings $n'$ features of
# mean $\mu'$ and covariance $\Sigma'$. The source numbers the update as we do:
#
# $$\mu \leftarrow \frac{n\mu + n'\mu'}{n + n'}, \tag{9}$$
# $$\Sigma \leftarrow \frac{n\Sigma + n'\Sigma'}{n + n'} + \frac{n\,n'}{(n + n')^2} (\mu - \mu')(\mu - \mu')^\top, \tag{10}$$
# $$n \leftarrow n + n'. \tag{11}$$
#
# **Three lines derive (10).** Write $\mu^+$ for the new mean and $d = \mu - \mu'$.
#
# 1. Around $\mu^+$, the old features scatter by $n\Sigma + n(\mu - \mu^+)(\mu - \mu^+)^\top$, the new ones likewise.
# 2. By (9), $\mu - \mu^+ = \frac{n'}{n + n'}\,d$ and $\mu' - \mu^+ = -\frac{n}{n + n'}\,d$.
# 3. The sum is $n\Sigma + n'\Sigma' + \frac{n n'^2 + n' n^2}{(n + n')^2}\, d d^\top$; dividing it by $n + n'$ gives (10).
#
# So the result is the exact covariance of all features together. (The source prints (10) without two of the primes; the
# appendix measures what that costs.) We predict an error of zero on a stream that drifts.


# %%
def update(n, mu, Sigma, batch):
    """(9) to (11) for one class, batch (n', A)."""
    new, mu_new, Sigma_new = len(batch), batch.mean(0), torch.cov(batch.T, correction=0)
    between = n * new * torch.outer(mu - mu_new, mu - mu_new) / (n + new) ** 2
    return n + new, (n * mu + new * mu_new) / (n + new), (n * Sigma + new * Sigma_new) / (n + new) + between


noise = torch.randn(40, 8, A, generator=seeded(7), dtype=f64)
stream = [0.05 * step + (0.5 + step / 40) * noise[step] @ R[0].T for step in range(40)]
state, states = (0, torch.full((A,), 9.0, dtype=f64), torch.full((A, A), 9.0, dtype=f64)), []  # a wild start
for batch in stream:
    state = update(*state, batch)
    states.append(state)
pooled = torch.cov(torch.cat(stream).T, correction=0)
print(f"after {state[0]} features, error below 1e-12:", bool((state[2] - pooled).abs().max() < 1e-12))
assert torch.allclose(state[2], pooled, rtol=0, atol=1e-12)
assert torch.equal(states[0][2], torch.cov(stream[0].T, correction=0))

# %% [markdown]
# > 我暂时没在论文看到初始的协方差阵怎么初始化的 · *I have not found in the paper how the covariance is initialised.*
#
# The released code takes zeros and $n = 0$. It does not matter: with $n = 0$ the old values have weight zero, and the
# first batch of a class replaces them. The cell above started from nines. Until a class is seen, its $\Sigma$ is zero
# and its loss the plain cross-entropy.
#
# > 最开始的几个epoch肯定没有后面的epoch来得稳定 · *The first epochs are surely less stable than later ones.*
#
# Early covariances mean little, so the strength grows with training. Epoch $t$ of $T$ trains the cross-entropy of
#
# $$z_{ij} = w_j^\top a_i + b_j + \frac\lambda2\, q_{y_i j}, \qquad \lambda = \frac tT\,\lambda_0. \tag{12}$$
#
# The released code counts epochs from 0, so it never reaches $\lambda_0$. The package counts steps.


# %%
@plots.styled
def figure_online():
    figure = plots.Picture(figsize=(7.2, 3.4))
    left, right = figure.subplots(1, 2)
    left.plot(*torch.cat(stream).T, ".", color="#BBBBBB", markersize=4)
    for count, style in ((1, ":"), (10, "--"), (40, "-")):
        _, mu, covariance = states[count - 1]
        ellipse(left, mu, covariance, color=plots.BLUE, linestyle=style, label=f"after batch {count}")
    left.set(xlabel="feature 1", ylabel="feature 2", title="Σ is that of all features so far")
    left.legend(loc="lower right", fontsize=8)
    steps = np.linspace(0, 10, 401)
    right.plot(steps, steps / 10, color=plots.BLUE, label="package, by step")
    right.plot(steps[:-1], np.floor(steps[:-1]) / 10, color=plots.GREY, linestyle="--", label="released code, by epoch")
    right.set(xlabel="epoch", ylabel="λ / λ₀", title="λ grows with training")
    right.legend(loc="upper left")
    return figure


show(figure_online(), "online")

# %% [markdown]
# ## 5 · The method in thirty lines (30–33 min)
#
# > 代码思路其实到最后不复杂 · *In the end the code is not complicated.*
#
# Here is all of ISDA: (9) to (12), with `update` and `quadratic_form` from above. Statistics come first and the loss
# second. The features enter the statistics *detached*: no gradient flows through Σ. It does flow through both `W` of
# the quadratic form, and that is (8).


# %%
class TextbookISDA:
    """Moments (9) to (11) of each class, and the loss (12)."""

    def __init__(self, num_classes, num_features, strength):
        self.n = torch.zeros(num_classes, dtype=f64)
        self.mu = torch.zeros(num_classes, num_features, dtype=f64)
        self.Sigma = torch.zeros(num_classes, num_features, num_features, dtype=f64)
        self.strength = strength

    def update(self, a, y):
        for j in y.unique():
            self.n[j], self.mu[j], self.Sigma[j] = update(self.n[j], self.mu[j], self.Sigma[j], a[y == j])

    def loss(self, a, y, W, b, progress):
        raised = progress * self.strength / 2 * quadratic_form(W, self.Sigma, y)
        return F.cross_entropy(a @ W.T + b + raised, y)


# %%
def training_step(network, isda, optimizer, images, target, progress):
    """One step of training; progress is t/T."""
    features = network.features(images)
    isda.update(features.detach(), target)
    loss = isda.loss(features, target, network.head.weight, network.head.bias, progress)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item()


# %% [markdown]
# The package calls it `ISDA`. We train both from the same weights on 64 real images for three steps, in float64. The
# prediction: equal losses, weights and covariances.

# %%
images = load(dataset, validation=0.1, train_size=train_size)
batch, target = images.train.floats(slice(0, 64)).double(), images.train.target[:64]
package = runs.build("ISDA", "small", images, 0, strength=strength).double()
network = copy.deepcopy(package.network)
isda = TextbookISDA(images.num_classes, network.num_features, strength)
sgd_lines, sgd_package = (torch.optim.SGD(part.parameters(), lr=0.1) for part in (network, package))
for progress in (0.25, 0.5, 0.75):
    ours = training_step(network, isda, sgd_lines, batch, target, progress)
    theirs, _ = package(batch, target, Step(torch.tensor(progress), lr=0.1, generator=torch.Generator()))
    sgd_package.zero_grad()
    theirs.backward()
    sgd_package.step()
    print(f"progress {progress}: loss by lines {ours:.4f}, by the package {theirs:.4f}")
for one, two in zip(network.parameters(), package.network.parameters(), strict=True):
    assert torch.allclose(one, two, rtol=0, atol=1e-10)
assert torch.allclose(isda.Sigma, package.moments.covariance, rtol=0, atol=1e-10)

# %% [markdown]
# > 隐式的增强最大的好处就是降低了计算cost · *The greatest benefit of implicit augmentation is the lower cost.*
#
# We time the loss with its gradient for 128 features of length 64 and ten classes: explicit by (1), implicit by (7).

# %% tags=["nbval-ignore-output"]
torch.manual_seed(0)
points, labels = torch.randn(128, 64, requires_grad=True), torch.arange(128) % 10
head, roots = torch.randn(10, 64, requires_grad=True), torch.randn(10, 64, 64) / 8


def explicit(M):
    logits = (points[:, None] + 0.5**0.5 * torch.randn(128, M, 64) @ roots[labels].mT) @ head.T
    return F.cross_entropy(logits.flatten(0, 1), labels.repeat_interleave(M))


def milliseconds(loss, repeats=7):
    loss().backward()
    times = []
    for _ in range(repeats):
        start = time.process_time()
        loss().backward()
        times.append(1000 * (time.process_time() - start))
    return sorted(times)[repeats // 2]


numbers = (1, 3, 10, 30, 100, 300, 1000)
slow = [milliseconds(functools.partial(explicit, M)) for M in numbers]
quick = milliseconds(lambda: isda_loss(points, labels, head, None, roots @ roots.mT, 0.5), 21)


# %% tags=["nbval-ignore-output"]
@plots.styled
def figure_cost():
    figure = plots.Picture(figsize=(7.2, 3.0))
    axes = figure.add_subplot(xscale="log", yscale="log", xlabel="M, copies of each sample", ylabel="time (ms)")
    axes.plot(numbers, slow, "o-", color=plots.RED, label="explicit (1)")
    axes.axhline(quick, color=plots.BLUE, label="bound (7), for M = ∞")
    axes.set_ylim(0.5 * min(quick, *slow), None)
    axes.legend()
    plots.headline(figure, f"A thousand copies cost {slow[-1] / quick:.0f} times as much as the bound")
    return figure


assert slow[-1] > 10 * quick
show(figure_cost(), "cost")

# %% [markdown]
# From some ten copies on, the time of (1) grows in proportion to M. The bound has no M. Against *one* copy it saves
# noise more than time.
#
# ## 6 · Training, and what came out (33–40 min)
#
# **Predict, then run.** We train a small network on a thousand images, with cross-entropy and with ISDA, from the same
# weights and in the same order of images. Which training loss will be higher at the end, and does a higher one mean a
# worse network?

# %%
ARMS = {"cross-entropy": ("CrossEntropy", {}), "ISDA": ("ISDA", {"strength": strength})}
recipe = Recipe(epochs=epochs, batch_size=64, weight_decay=5e-4, evaluate_every=max(1, epochs // 5))
by_arm = {arm: [] for arm in ARMS}
for arm, (objective, settings) in ARMS.items():
    for seed in SEEDS:
        model = runs.build(objective, "small", images, seed, **settings).to(resolve_device(device))
        by_arm[arm].append(fit(model, images, recipe, seed=seed, progress=False))
for run in runs.planned(profile, "1_isda") if profile != "quick" else []:
    runs.complete([run], device)
lesson.keep("1_isda", [record for records in by_arm.values() for record in records])

# %% tags=["nbval-ignore-output"]
if epochs >= 5:
    losses = [[record.metrics["train_loss"] for record in records] for records in by_arm.values()]
    assert max(losses[0]) < min(losses[1])  # what the text below says
gained = stats.summary(stats.gains(by_arm["ISDA"], by_arm["cross-entropy"]))
picture = plots.curves(
    by_arm, "train_loss", "validation_accuracy", colours={"cross-entropy": "black", "ISDA": plots.BLUE}
)
picture.axes[0].set_ylim(0, None)
plots.headline(picture, f"ISDA − cross-entropy, points of test accuracy: {lesson.effect(gained)}")
show(picture, "live")

# %% [markdown]
# ISDA's training loss ends above: it is an upper bound of a harder task. So the left panel compares two different
# losses, and only the right one compares the networks.
#
# ### What the bound is on features that stay fixed
#
# Suppose that the features are fixed and only the head is trained. Then λ acts through $W$ alone. Expand the bound of
# one sample around the cross-entropy, with the softmax $p_j$ of the plain logits:
#
# $$\bar\ell(\lambda) = \ell(0) + \frac\lambda2 \sum_j p_j\, q_{yj} + \frac{\lambda^2}{8}\, \mathrm{Var}_p(q_y)
#   + O(\lambda^3), \qquad q_{yj} = (w_j - w_y)^\top \Sigma_y (w_j - w_y). \tag{13}$$
#
# The first correction is a quadratic penalty on $W$: a **weight decay** whose shape is the covariance of the class and
# whose size is the probability of the rival. We check (13) at λ = 0.02.

# %%
small = 0.02
p, q = (a @ W.T + b).softmax(1), quadratic_form(W, Sigma, y)
first = small / 2 * (p * q).sum(1)
second = small**2 / 8 * ((p * q**2).sum(1) - (p * q).sum(1) ** 2)
change = bound(small) - cross_entropy
print(f"predicted by (13) {(first + second).mean():.6f}   change of the bound {change.mean():.6f}")
assert abs((first + second).mean() / change.mean() - 1) < 0.01

# %% [markdown]
# That can be tested in seconds: a linear head on the features of a pretrained EfficientNet-Lite0, for 200 to 5,000
# photographs of CIFAR-10 and 20 subsets of each size. The fair opponent of ISDA is not plain cross-entropy. It is
# cross-entropy with a weight decay that was tuned as carefully as λ.

# %% tags=["nbval-ignore-output"]
lesson.figure("1_isda", "frozen")

# %% [markdown]
# Whole networks come next. The table is made from the committed records: differences ISDA − cross-entropy over $n$ paired
# seeds, with 95% intervals, and what the paper reports. A row is at the paper's setting only if it names a ResNet-32.


# %%
def results(index):
    """One row for each study: ISDA - cross-entropy at the strength chosen on validation images."""
    rows = ["| data | network, epochs | ISDA − cross-entropy (points) | n |", "|---|---|---|---|"]
    above = 0
    for title, (part, found) in study.results(index).items():
        if part in (study.SMALL, study.COLOUR, study.WHOLE, *study.PAPER_SETTING):
            (_, baseline), (_, ours), *_ = found.items()
            gain = stats.summary(stats.gains(ours, baseline))
            above += gain.side > 0
            rows.append(f"| {title} | {part.network}, {part.recipe.epochs} | {gain.text('+.2f')} | {gain.n} |")
    said = f"Significantly above zero in {above} of {len(rows) - 2} studies of ours."
    paper = "| {}, as the paper reports it | ResNet-32, 160, best epoch on the test set | {} | 5 |"
    reported = [paper.format("CIFAR-10", "+0.30"), paper.format("CIFAR-100", "+0.93")]
    return "\n".join([*rows, *reported, "", said])


# %% tags=["nbval-ignore-output"]
lesson.table("1_isda", results)

# %% [markdown]
# > **Take away.** ISDA is a cross-entropy in which every rival is raised where the class is wide. To first order that
# > is a weight decay shaped by the data. So compare it with a tuned weight decay before you credit the augmentation.
#
# ## 7 · Questions (40–45 min)
#
# **1. Where is the bound tight?** To first order in λ the limit (2) is $\ell(0) + \frac\lambda2\big(\sum_j p_j q_{yj} -
# \bar v^\top \Sigma_y \bar v\big)$ with $\bar v = \sum_j p_j (w_j - w_y)$. For which samples is (7) tight?
#
# <details><summary>Solution</summary>
#
# Subtract from (13): the gap is $\frac\lambda2 \bar v^\top \Sigma_y \bar v$. A sample of which the head is sure has
# $p_y \approx 1$, so $\bar v \approx 0$ and the gap vanishes. It opens when $\frac\lambda2 q_{yj}$ reaches the margin of
# a rival. The bound is tighter in a network that fits its training set than in our toy world.
#
# </details>
#
# **2. What is the price?** The source says that there are no new parameters. How much memory do the covariances take
# for ImageNet and a ResNet-50 ($C = 1000$, $A = 2048$)?
#
# <details><summary>Solution</summary>
#
# No parameter is *learned*, but $CA^2$ numbers of state are kept: 16.8 GB in float32. That is why the paper keeps only
# the diagonal there, with $\lambda_0$ = 7.5 in place of 0.25 or 0.5. The appendix shows a factored form in between.
#
# </details>
#
# **3. Would one copy do?** Stochastic gradient descent needs an unbiased gradient, and (1) with $M = 1$ has one. What
# does the bound give, and what does it cost?
#
# <details><summary>Solution</summary>
#
# It gives a gradient without sampling noise. It costs exactness: its minimum is another one than that of (2), as the
# descent has shown, and part of its effect is weight decay.
#
# </details>
#
# **4. Is the copy still of its class?** Features behind a ReLU and a mean are never negative, and a Gaussian has no
# border. Which copies are impossible, and does the derivation notice it?
#
# <details><summary>Solution</summary>
#
# Copies with negative entries. The derivation does not notice: (7) uses the Gaussian only through the mean and variance
# of differences of logits. Whether such copies harm is a question for experiments. The figure of section 3 shows the
# related risk: a place beyond the border is trained with the old label.
#
# </details>
#
# **5. A study of your own.** You have a day of one GPU. Which baseline, how many seeds, which strength?
#
# <details><summary>Solution</summary>
#
# Cross-entropy with tuned weight decay, on the same seeds. Choose λ₀ and the decay on validation images, with equal
# effort. Count the seeds by the spread of the paired difference: to see 0.3 points at a spread of 0.4 takes about 16
# pairs. Take the last epoch; the best on the test set flatters both.
#
# </details>

# %% tags=["solution"] jupyter={"source_hidden": true}
print("numbers of state:", f"{4 * 1000 * 2048**2 / 1e9:.1f} GB", "  pairs needed:", stats.pairs_needed(0.3, 0.4))
assert stats.pairs_needed(0.3, 0.4) == 16

# %% [markdown]
# **Next.** [MetaSAug](1_metasaug.ipynb) learns the covariances of rare classes. [G-VAE](2_gvae.ipynb) gives each sample
# a Gaussian of its own and uses the same bound. The [appendix](appendix/1_isda_more.ipynb) has what was left out here.
