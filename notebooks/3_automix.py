# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 3 · AutoMix: two images in one, and who decides how
#
# [Open in Colab](https://colab.research.google.com/github/OWNER/semaug/blob/main/notebooks/3_automix.ipynb) · [Open in Binder](https://mybinder.org/v2/gh/OWNER/semaug/main?urlpath=lab/tree/notebooks/3_automix.ipynb)
#
# Z. Liu, S. Li, D. Wu et al., *AutoMix: Unveiling the Power of Mixup for Stronger Classifiers*, ECCV 2022
# ([arXiv:2103.13027](https://arxiv.org/abs/2103.13027)). [Their code](https://github.com/Westlake-AI/openmixup).

# %% jupyter={"source_hidden": true} tags=["remove-cell", "skip-slide"]
# For a page outside its repository: fetches it on Colab, says elsewhere how to get it.
import subprocess
import sys
from importlib.util import find_spec

if find_spec("companion") is None:
    if "google.colab" not in sys.modules:
        raise ModuleNotFoundError("companion: got no checkout; takes git clone https://github.com/OWNER/semaug && cd semaug && make lab")  # fmt: skip
    subprocess.run("git clone -q --depth 1 https://github.com/OWNER/semaug /content/semaug; pip install -q jaxtyping jupytext && pip install -q --no-deps -e /content/semaug", shell=True, check=True)  # fmt: skip
    sys.path.insert(0, "/content/semaug")

# %% tags=["nbval-ignore-output"]
from companion import lesson

lesson.figure("3_automix", "zoo")

# %% [markdown]
# **Two photographs, mixed by six methods.** λ is the ratio of the first image. The bar under each tile is the label of
# the mixture. mixup averages the pixels. CutMix and SaliencyMix put a box of the partner into the image, ResizeMix the
# whole partner, shrunk to a box. All three correct the label to the area of that box. PuzzleMix asks a trained network
# which pixels matter, and corrects its label too. AutoMix learns a small network that makes the mask; its label stays λ.
#
# Such training often helps, although the network never meets a mixture at test time. But on Fashion-MNIST AutoMix is not
# significantly better than mixup, and level with mixup trained three times as long (section 7).
#
# **In one sentence:** AutoMix learns the mask by descent on the loss of a slow copy of the classifier; the classifier
# learns from the mixtures.
#
# At the end of this lesson you can
#
# - say which risk mixup minimises, and why it needs no mixed labels;
# - compute which ratio CutMix really has;
# - write AutoMix's two levels, Mix Block and loss, and train one network through another;
# - compare methods at equally many passes over the network.
#
# | minutes | section | | minutes | section |
# |---|---|---|---|---|
# | 0–4 | this page | | 28–34 | 5 · a network that takes no gradient |
# | 4–7 | 1 · where it acts, and two loops | | 34–38 | 6 · what the masks become |
# | 7–13 | 2 · mixup is a risk of pairs | | 38–44 | 7 · training, and what came out |
# | 13–20 | 3 · the box of CutMix | | 44–45 | 8 · one question; one more is for home |
# | 20–28 | 4 · the mask is learned | | | |
#
# **You need** softmax and cross-entropy, an attention layer, and a training step in PyTorch. Notation, errata,
# calibration, ablations and the authors' benchmark are in the [appendix](appendix/3_automix_more.ipynb). The lesson
# follows a Chinese text by the authors, *the source*, quoted with our English. Its lost formulas are put back here.
#
# <details><summary>For the lecturer</summary>
#
# Clear all outputs before the class. The live training of section 7 takes about 20 seconds on two cores: start it, then
# ask. Run the cells marked *At home*, but do not discuss them. Show the tables of section 7 without their code.
#
# </details>
#
# Settings and imports:

# %% tags=["parameters"]
profile = "quick"  # "quick" trains the live runs of section 7; "cpu" and "paper" also add missing records (hours)
dataset = "fashion-mini"  # the 10,000 images of Fashion-MNIST inside the package; or cifar10, mnist, shapes, ...
train_size = 400  # training images of the live runs
epochs = 4  # of AutoMix in the live runs; the methods of one pass train three times as many
seeds = 1  # paired runs of each method
first_seed = 0  # of them
alpha = 2.0  # AutoMix draws its ratios from Beta(alpha, alpha)
device = "auto"  # "cpu", "cuda", or whichever there is

# %%
lesson.parameters("3_automix")

import copy
import functools
import math
from dataclasses import replace

import numpy as np
import torch
from matplotlib.patches import Rectangle
from scipy.special import betainc, roots_jacobi
from torch import nn
from torch.nn import functional as F

from companion import plots, runs, stats
from companion.lesson import seeded
from companion.records import committed, markdown, on_common_seeds
from companion.studies import automix as study
from semaug import Recipe, Step, fit, load, resolve_device
from semaug.data import shapes
from semaug.methods import automix, mixing, mixup

show = functools.partial(lesson.show, "3_automix")  # keeps a picture and shows it
SEEDS = range(first_seed, first_seed + seeds)
f64, index = torch.float64, committed("3_automix")

# %% [markdown]
# ## 1 · Where it acts, and two loops (4–7 min)
#
# Mixing changes pixels and labels, places 1 and 3. AutoMix also trains a network that makes the images: place 5.

# %%
show(plots.where_it_acts("pixels", "labels", "generator"), "where")

# %% [markdown]
# A rule that no training changes is *offline*. AutoMix closes the loop: its block sees the maps of the classifier, and
# the loss of its mixtures teaches it.


# %%
show(study.loops_diagram(), "loops")

# %% [markdown]
# ## 2 · mixup is a risk of pairs (7–13 min)
#
# Image $i$ has a partner $j$ and a mask $M$ with values in [0, 1]. The mixture and its label are
#
# $$\tilde x = M \odot x_i + (1 - M) \odot x_j, \qquad \tilde y = \lambda y_i + (1 - \lambda) y_j. \tag{1}$$
#
# mixup has $M = \lambda$. Cross-entropy is linear in the label. So the mixup cross-entropy (MCE) has two forms:
#
# $$\mathrm{MCE}(f(\tilde x), \tilde y) = \mathrm{CE}(f(\tilde x), \tilde y)
#   = \lambda\, \mathrm{CE}(f(\tilde x), y_i) + (1 - \lambda)\, \mathrm{CE}(f(\tilde x), y_j). \tag{2}$$
#
# What does training on such batches minimise? In a random permutation of all $n$ images every image is equally often
# the partner of every image. So the expected loss is a mean over all *pairs*:
#
# $$R = \frac1{n^2} \sum_{i, j} \mathrm E_{\lambda \sim \mathrm{Beta}(\alpha, \alpha)}\,
#   \mathrm{MCE}\bigl(f(\tilde x_{ij}), \tilde y_{ij}\bigr). \tag{3}$$
#
# In the second term of (2) exchange the names $i$ and $j$, and λ and $1 - \lambda$. It becomes the first term, so $R$
# is twice the mean of $\lambda\, \mathrm{CE}(f(\tilde x_{ij}), y_i)$. And λ times the density of
# $\mathrm{Beta}(\alpha, \alpha)$ is half of the density of $\mathrm{Beta}(\alpha + 1, \alpha)$:
#
# $$R = \frac1{n^2} \sum_{i,j} \mathrm E_{\lambda \sim \mathrm{Beta}(\alpha + 1, \alpha)}\,
#   \mathrm{CE}\bigl(f(\tilde x_{ij}), y_i\bigr). \tag{4}$$
#
# **mixup needs no mixed labels**, as Ferenc Huszár observed in a note of 2017. It is ordinary training, with ordinary
# labels, on images into which another image was blended. Mixed labels make the gradient less noisy (question 2).
#
# We check (4) for six points, three classes and a linear classifier, to eight digits by Gauss–Jacobi quadrature. For
# α = 1, the λ of (4) has the law Beta(2, 1). How often does the label name the *smaller* share? Work it out first.

# %%
x = torch.tensor([[2.2, 0.9], [1.1, 0.2], [-1.2, 1.8], [-0.6, 0.9], [-0.9, -1.9], [0.4, -1.4]], dtype=f64)
y = F.one_hot(torch.tensor([0, 0, 1, 1, 2, 2])).double()
W = torch.tensor([[2.0, 0.5], [-1.0, 1.5], [-0.5, -2.0]], dtype=f64)


def risk(a, b, mixed_labels):
    """The mean over all pairs under the linear classifier W, λ from Beta(a, b): (3) or (4)."""
    nodes, weights = (torch.from_numpy(part) for part in roots_jacobi(40, b - 1, a - 1))
    lam = ((nodes + 1) / 2).view(-1, 1, 1, 1)
    points = lam * x[:, None] + (1 - lam) * x
    labels = lam * y[:, None] + (1 - lam) * y if mixed_labels else y[:, None]
    losses = -(labels * (points @ W.T).log_softmax(-1)).sum(-1)
    return weights @ losses.mean((1, 2)) / weights.sum()


for a in (0.2, 1.0, 2.0):
    mixed, plain = risk(a, a, mixed_labels=True), risk(a + 1, a, mixed_labels=False)
    print(f"α = {a:3.1f}: mixed labels (3) {mixed:.6f}   plain labels (4) {plain:.6f}")
    assert math.isclose(mixed, plain, rel_tol=1e-8)
print(f"P(λ < 1/2) under Beta(2, 1): {betainc(2, 1, 0.5):.4f}")
assert math.isclose(betainc(2, 1, 0.5), 1 / 4)


# %% jupyter={"source_hidden": true}
@plots.styled
def figure_pairs():
    figure = plots.Picture(figsize=(7.5, 3.4))
    colours = torch.tensor([[0.93, 0.4, 0.47], [0.8, 0.73, 0.27], [0.27, 0.47, 0.67]], dtype=f64)  # red, yellow, blue
    for axes, (a, mixed_labels), title in zip(
        figure.subplots(1, 2, sharey=True),
        ((1, True), (2, False)),
        ("mixed labels, λ from Beta(1, 1)", "plain labels, λ from Beta(2, 1)"),
        strict=True,
    ):
        generator = np.random.default_rng(0)
        i, j = generator.integers(0, 6, (2, 1500))
        lam = torch.from_numpy(generator.beta(a, 1, 1500))[:, None]
        labels = lam * y[i] + (1 - lam) * y[j] if mixed_labels else y[i]
        axes.scatter(*(lam * x[i] + (1 - lam) * x[j]).T, s=5, c=(labels @ colours).numpy(), linewidths=0)
        axes.scatter(*x.T, s=70, c=(y @ colours).numpy(), edgecolors="black", zorder=3)
        axes.set(title=title, aspect="equal", xlabel="feature 1", ylabel="feature 2")
        assert abs((lam > 0.5).double().mean() - 1 + 2.0**-a) < 0.05
    plots.headline(figure, "Two ways to draw mixtures and labels, and one and the same risk")
    return figure


show(figure_pairs(), "pairs")

# %% [markdown]
# Large dots are the six images, small ones mixtures in the colours of their labels. On the right the label is never
# mixed, and most mixtures lie near the image that gives it.
#
# ## 3 · The box of CutMix (13–20 min)
#
# CutMix fills a box of the partner into the image. Its side is $u = \sqrt{1 - \lambda}$ times that of the image, its area
# $1 - \lambda$. Its centre is uniform. What hangs over the edge is cut off. The ratio in the label becomes λ', the share
# of the image that is left.
#
# **Predict, then run.** Let λ be uniform, so that its mean is one half. Which share of the image is left on average:
# less than half, half, or more?

# %% jupyter={"outputs_hidden": true, "source_hidden": true} tags=["nbval-ignore-output"]
FINE = 4096  # pixels along a side: nearly continuous
lam, places = torch.rand(200_000, generator=seeded(6), dtype=f64), seeded(7)
cy, cx = (torch.randint(FINE, lam.shape, generator=places) for _ in range(2))
top, bottom, left, right = mixing.cut_box(lam, cy, cx, FINE, FINE)
kept = 1 - ((bottom - top) * (right - left)).double() / FINE**2


@plots.styled
def figure_clipped():
    figure = plots.Picture(figsize=(7.2, 3.0))
    axes, histogram = figure.subplots(1, 2)
    u = (1 - (grid := torch.linspace(0, 1, 101, dtype=f64))).sqrt()
    axes.plot(grid, grid, "--", color=plots.GREY, label="no clipping")
    axes.plot(grid, 1 - (u - u**2 / 4) ** 2, color=plots.GREEN, label="mean, by (6)")
    axes.plot(lam[:300], kept[:300], ".", color="black", markersize=2, label="boxes")
    histogram.hist(kept.numpy(), 40, density=True, color=plots.GREEN, alpha=0.7)
    histogram.vlines((0.5, kept.mean()), 0, 2.1, colors="black", linestyles=["--", "-"])
    axes.set(xlabel="λ drawn", ylabel="ratio in the label, λ'")
    histogram.set(xlabel="ratio in the label, λ'", ylabel="density", title=f"means: λ 0.50, λ' {kept.mean():.2f}")
    axes.legend(fontsize=8)
    plots.headline(figure, f"CutMix keeps {kept.mean():.0%} of the image on average, not half")
    return show(figure, "clipped")


figure_clipped()

# %% [markdown]
# Why? Along one axis of $H$ pixels let the box have $b$ pixels on either side of its centre. Over the $H$ places of the
# centre, the pixels lost at the two ends are $1 + \dots + b$ and $1 + \dots + (b-1)$, together $b^2$. So
#
# $$\mathrm E\, \text{length} = 2b - \frac{b^2}{H}. \tag{5}$$
#
# With $2b = uH$ and lengths in units of the image this is $u - u^2/4$. Row and column of the centre are independent, so
# the means multiply to that of the area. For uniform λ, $\mathrm E (1 - \lambda)^r = 1/(r + 1)$, and λ' has the means
#
# $$\mathrm E[\lambda' \mid \lambda] = 1 - \Bigl(u - \frac{u^2}4\Bigr)^2, \qquad
#   \mathrm E\, \lambda' = 1 - \frac12 + \frac15 - \frac1{48} = \frac{163}{240}. \tag{6}$$

# %%
error = float(kept.std()) / len(kept) ** 0.5
print(f"by (6) {163 / 240:.3f}, from 200,000 boxes {kept.mean():.3f}")
assert abs(kept.mean() - 163 / 240) < 4 * error + 2 / FINE

# %% [markdown]
# ### How often the label names what is not there
#
# > 可能出现被切割的区域不包含分类任务相关目标的现象 · *The region that is cut may not contain the object.*
#
# On our generated shapes, whose masks are known, this can be counted. Eight typical mixtures, with the box outlined:

# %% jupyter={"source_hidden": true}
drawn = shapes.draw(1000, seed=3)
n, partners = len(drawn), torch.randperm(1000, generator=seeded(4))
ratio, places = torch.rand(n, generator=seeded(5), dtype=f64), seeded(8)
cy, cx = (torch.randint(32, (n,), generator=places) for _ in range(2))
mixed = mixing.cutmix(drawn.floats(), torch.eye(10)[drawn.target], ratio, partners, cy, cx)
edges, row, column = mixing.cut_box(ratio, cy, cx, 32, 32), torch.arange(32)[:, None], torch.arange(32)
top, bottom, left, right = (edge[:, None, None] for edge in edges)
box = (top <= row) & (row < bottom) & (left <= column) & (column < right)
seen = (box * drawn.masks[partners]).sum((1, 2)) / drawn.masks[partners].sum((1, 2))
absent = (seen == 0) & box.any(2).any(1)
some = range(40, 48)
picture = plots.Picture(figsize=(7.5, 4.3))
for axes, k in zip(picture.subplots(2, 4).flat, some, strict=True):
    axes.imshow(mixed.images[k].permute(1, 2, 0))
    y0, y1, x0, x1 = (int(edge[k]) for edge in edges)
    axes.add_patch(Rectangle((x0 - 0.5, y0 - 0.5), x1 - x0, y1 - y0, fill=False, edgecolor="white", linewidth=2))
    axes.set_title(f"label {1 - float(mixed.lam[k]):.0%}, shown {seen[k]:.0%}", fontsize=9)
    axes.axis("off")
assert abs(absent.double().mean() - absent[some].double().mean()) < 0.02  # typical
plots.headline(picture, f"In {absent[some].sum()} of these 8 mixtures nothing of the partner's object is visible")
show(picture, "boxes")

# %% [markdown]
# *Label* is the partner's share in the label, *shown* the share of the partner's object in the box. Now exactly, for
# uniform λ, over all boxes. (At home: the code.)

# %% jupyter={"source_hidden": true} tags=["skip-slide"]
sums = F.pad(drawn.masks.double().cumsum(1).cumsum(2), (1, 0, 1, 0))  # (N, 33, 33)
size, centre, chance = sums[:, -1, -1], torch.arange(32), torch.zeros(16, dtype=f64)
for k in range(32):  # b is k // 2 where k = floor(32 u), and u has the distribution function u²
    chance[k // 2] += ((k + 1) ** 2 - k**2) / 32**2
missed, covered = torch.zeros(2, 16, dtype=f64), torch.zeros(2, 16, dtype=f64)  # mixtures, weight in the label
for b in range(1, 16):
    low, high = (centre - b).clamp(min=0), (centre + b).clamp(max=32)
    rows = sums[:, high] - sums[:, low]
    inside = rows[:, :, high] - rows[:, :, low]  # pixels of the object in the box, for every centre
    area = (high - low)[:, None] * (high - low) / 32**2
    none, every = (inside == 0).double(), (inside == size[:, None, None]).double()
    missed[:, b] = torch.stack([none.mean(), (none * area).mean()])
    covered[:, b] = torch.stack([every.mean(), (every * (1 - area)).mean()])
not_visible, hidden = (table @ chance for table in (missed, covered))
for name, shares in (("partner's object not in the box", not_visible), ("own object covered", hidden)):
    print(f"{name:32s} {shares[0]:.1%} of mixtures, {shares[1]:.1%} of the labels' weight")
assert abs(absent.double().mean() - not_visible[0]) < 4 * (not_visible[0] * (1 - not_visible[0]) / n) ** 0.5
assert 0.24 < not_visible[0] < 0.26
assert f"{hidden[0]:.1%}" == "13.8%"
assert 1.8 < hidden[1] / not_visible[1] < 2.2

# %% [markdown]
# In one mixture out of four the label names a partner whose object is not visible. But those boxes are small, so this
# is three percent of the labels' weight. The opposite fault, which the source does not mention, is rarer (13.8%) and
# weighs twice as much: the box hides the image's *own* object completely. To cut well, one has to look at both images.
# PuzzleMix does, by a fixed rule; AutoMix learns the rule.
#
# ## 4 · The mask is learned (20–28 min)
#
# > 这是一个数据随模型变化，模型随数据更新的双层优化问题 ·
# > *This is a bi-level problem: the data change with the model, and the model is updated with the data.*
#
# A block makes the mixture, $\tilde x = h_\phi(x_i, x_j, \lambda)$. The inner level trains the classifier on mixtures and
# images. The outer level seeks the block whose mixtures the trained classifier classifies best:
#
# $$\phi^* = \arg\min_\phi\, \mathcal L\bigl(\theta^*(\phi), \phi\bigr), \qquad
#   \theta^*(\phi) = \arg\min_\theta\, \bigl[\mathcal L(\theta, \phi) + \mathrm E\,\mathrm{CE}(f_\theta(x), y)\bigr], \qquad
#   \mathcal L = \mathrm E\, \mathrm{MCE}\bigl(f_\theta(\tilde x), \tilde y\bigr). \tag{7}$$
#
# In both levels $\mathcal L$ is *minimised*, in the inner one together with the loss on images. So the block looks for
# mixtures that are easy to classify. By the chain rule $\frac{d\mathcal L}{d\phi} = \frac{\partial \mathcal L}{\partial
# \phi} + \frac{\partial \mathcal L}{\partial \theta} \frac{d\theta^*}{d\phi}$. AutoMix follows the first term alone, an
# approximation (measured in section 4 of the appendix).
#
# ### The Mix Block
#
# The block sees the maps $z_i$ and $z_j$ of both images after one stage, a column for each place. The ratio is one more
# channel, $z_\lambda = [z, \lambda 1]$. Each place of the image asks which places of the partner look alike, and takes
# from them one number: how much the partner wants to be seen.
#
# $$P = \mathrm{softmax} \Bigl( \frac{(W_P z_{i,\lambda})^\top W_P\, z_{j,1-\lambda}}{\sqrt d} \Bigr), \tag{8}$$
# $$s_{1-\lambda} = \sigma\bigl(\mathrm{upsample}(P\, (W_Z\, z_{j,1-\lambda})^\top)\bigr), \qquad
#   s_\lambda = 1 - s_{1-\lambda}, \qquad M = s_\lambda. \tag{9}$$
#
# The softmax runs over the partner's places, $d$ counts the key's channels, and the biases of $W_P$ and $W_Z$ are not
# written.


# %%
show(study.block_diagram(), "block")

# %% [markdown]
# **Fill in (3 min).** Query, key and value of one pair are given, one row a place. Replace the two `None`: $P$ by (8), and
# by (9) the mask $s_\lambda$ without upsampling.

# %%
query, key = torch.randn(9, 4, generator=seeded(1), dtype=f64), torch.randn(9, 4, generator=seeded(2), dtype=f64)
value = torch.randn(9, 1, generator=seeded(3), dtype=f64)
P = None  # your line
s = None  # your line
expected = 1 - F.scaled_dot_product_attention(query, key, value).sigmoid()
print("not yet" if s is None else "right" if torch.allclose(s, expected) else "another value")

# %% [markdown]
# <details><summary>Solution</summary>
#
# `P = (query @ key.T / 4**0.5).softmax(1)`: rows belong to the image, and each sums to one over the partner's places.
# `s = 1 - (P @ value).sigmoid()`.
#
# </details>
#
# The next cell holds the whole module: open it after your own lines. One projection serves as query and key. Section 5
# compares it with the package's.


# %% jupyter={"source_hidden": true}
class TextbookMixBlock(nn.Module):
    """The mask s_λ of (9) from maps (N, A, h, w) and the partners of their images."""

    def __init__(self, channels, std):
        super().__init__()
        self.key, self.value = nn.Linear(channels + 1, channels // 2), nn.Linear(channels + 1, 1)  # W_P, W_Z
        for layer in (self.key, self.value):
            nn.init.normal_(layer.weight, std=std)
            nn.init.zeros_(layer.bias)

    def forward(self, z, lam, partners, size):
        N, _, h, w = z.shape
        own = torch.cat([z, torch.full_like(z[:, :1], lam)], 1).flatten(2).mT  # (N, places, channels + 1)
        other = torch.cat([z[partners], torch.full_like(z[:, :1], 1 - lam)], 1).flatten(2).mT
        query, key = self.key(own), self.key(other)
        P = (query @ key.mT / key.shape[2] ** 0.5).softmax(2)  # (8)
        logits = (P @ self.value(other)).mT.reshape(N, 1, h, w)
        return 1 - F.interpolate(logits, size, mode="nearest").sigmoid()  # (9)


# %% [markdown]
# ### The mask loss
#
# (7) ties the *size* of the mask to λ only through the label, weakly while the classifier is young. One λ is drawn for
# a whole batch. A second loss takes the mean over batch and pixels:
#
# $$\mathcal L_{mask} = \gamma \max\bigl( | \lambda - \overline{s_\lambda} | - \epsilon,\; 0 \bigr), \qquad
#   \epsilon = 0.1, \quad \gamma \text{ from } 0.1 \text{ to } 0. \tag{10}$$
#
# In the package γ falls linearly.
#
# ## 5 · A network that takes no gradient (28–34 min)
#
# > 在一次梯度反传中同时更新…两套参数的方式会带来不稳定性，Mix Block 很容易陷入 Trivial solution ·
# > *Updating both sets of parameters in one backward pass is unstable: the block easily falls into the trivial solution.*
#
# The trivial solution is one gray everywhere, $s_\lambda = \lambda$: plain mixup. The *momentum pipeline* separates the
# two tasks. A copy $k$ of the classifier $q$ gives the maps and judges the mixtures that the block learns from. Its
# parameters are a moving average of those of $q$, so that the block's target changes little from step to step. The
# classifier learns from other mixtures. They are made under `no_grad`, so its loss does not reach the block.


# %%
show(study.pipeline_diagram(), "pipeline")

# %% [markdown]
# The copy's *parameters* take no gradient, but it is a differentiable function of its input. Let $\tilde x'$ be a mixture
# that the block learns from, and $M'$ its mask. For $\mathcal L_k = \mathrm{MCE}(k(\tilde x'), \tilde y')$, with colour
# channels $c$ and pixels $p$,
#
# $$\frac{\partial \mathcal L_k}{\partial \phi} = \sum_p \frac{\partial \mathcal L_k}{\partial M'_p}
#   \frac{\partial M'_p}{\partial \phi}, \qquad
#   \frac{\partial \mathcal L_k}{\partial M'_p} = \sum_c \frac{\partial \mathcal L_k}{\partial \tilde x'_{cp}}\,
#   (x_{i,cp} - x_{j,cp}). \tag{11}$$
#
# Where the two images agree, $\mathcal L_k$ gives the mask no gradient. All terms of a step, the average on the right:
#
# $$\mathcal L_{step} = \mathrm{CE}(q_1(x), y) + \mathrm{MCE}(q(\tilde x), \tilde y)
#   + \mathcal L_k + \mathcal L_{mask}, \qquad
#   \theta_k \leftarrow m\, \theta_k + (1 - m)\, \theta_q. \tag{12}$$
#
# $q_1$ is $q$ with a second head, for the images themselves. $\tilde x'$ has its own ratio and partners, drawn anew. $m$
# rises from 0.999 to 0.999999 by a cosine; in our short runs it begins at 0.9. A ratio within 0.08 of 0 or 1 reaches the
# classifier as plain mixup. One step:


# %%
def automix_terms(q, images_head, k, block, x, y, lam, partners, stage, gamma):
    """The four terms of (12). lam and partners: of the mixture the block learns from, and of the classifier's."""
    plain = F.cross_entropy(images_head(q.features(x)), y)
    with torch.no_grad():
        z = automix.stage_maps(k, x, stage)

    def mixture(mask, lam, j):  # (1)
        return mask * x + (1 - mask) * x[j], lam * y + (1 - lam) * y[j]

    mask = block(z, lam[0], partners[0], x.shape[2:])  # (8), (9), with its graph
    images, labels = mixture(mask, lam[0], partners[0])
    generated = F.cross_entropy(k(images), labels)
    penalty = gamma * ((lam[0] - mask.mean()).abs() - 0.1).clamp(min=0)  # (10)

    with torch.no_grad():  # the classifier takes the mixtures as they are
        mask = block(z, lam[1], partners[1], x.shape[2:]) if 0.08 < lam[1] < 0.92 else lam[1]
        images, labels = mixture(mask, lam[1], partners[1])
    return plain, F.cross_entropy(q(images), labels), generated, penalty


# %%
def automix_step(q, images_head, k, block, optimizer, *batch, m):
    """One step of training; the loss comes back."""
    k.requires_grad_(False)  # its parameters take no gradient, and pass it on to its input
    loss = sum(automix_terms(q, images_head, k, block, *batch))
    optimizer.zero_grad()
    loss.backward()  # one call: the gradients of block and classifier do not overlap
    optimizer.step()
    for mine, theirs in zip(k.parameters(), q.parameters(), strict=True):
        mine.data = m * mine.data + (1 - m) * theirs.data  # (12)
    return loss.item()


# %% [markdown]
# *At home.* The package calls it `AutoMix`. We predict equal losses and weights after one step on sixty real images.

# %% jupyter={"source_hidden": true} tags=["skip-slide"]
short = {"alpha": alpha, "stage": 2, "momentum": 0.9, "std": 0.3}
images = load(dataset, validation=0.1, train_size=train_size, test_size=1000)
package = runs.build("AutoMix", "small", images, 0, **short).double().train()
parts = package.network, package.one_hot_head, package.momentum_network, package.block
textbook = TextbookMixBlock(package.block.channels, std=0.3).double()
textbook.load_state_dict(package.block.state_dict())
q, images_head, k, block = mine = [*map(copy.deepcopy, parts[:3]), textbook]
by_lines = torch.optim.SGD([p for part in (q, images_head, block) for p in part.parameters()], lr=0.1)
by_package = torch.optim.SGD([p for group in package.parameter_groups(Recipe()) for p in group["params"]], lr=0.1)
xs, ys = images.train.floats(slice(0, 60)).double(), F.one_hot(images.train.target[:60], images.num_classes).double()
draws, at = seeded(30), Step(torch.tensor(0.5), 0.1, seeded(30))
both = [(mixup.draw_beta(alpha, (), draws), torch.rand(60, generator=draws).argsort()) for _ in range(2)]
lams, orders = zip(*both, strict=True)
m = automix.ema_momentum(0.5, 0.9)
ours = automix_step(q, images_head, k, block, by_lines, xs, ys, lams, orders, 2, 0.1 * 0.5, m=m)
theirs, _ = package(xs, ys, at)
theirs.backward()
by_package.step()
with torch.no_grad():
    package.after_step(at)
print(f"loss by lines {ours:.4f}, by the package {theirs:.4f}")
for one, two in zip(mine, parts, strict=True):
    for a, b in zip(one.parameters(), two.parameters(), strict=True):
        assert torch.allclose(a, b, rtol=0, atol=1e-7)  # λ and m are rounded to float32

# %% [markdown]
# **Predict, then run.** The picture does not show the two heads of $q$. Which term moves which head? And what reaches
# the block if the judgement is made under `torch.no_grad()` instead?

# %% jupyter={"outputs_hidden": true, "source_hidden": true}
groups = {"stages of q": q.stages, "mixtures' head": q.head, "images' head": images_head, "copy k": k, "block": block}
terms, uneven = ("CE(q₁(x))", "MCE(q(x̃))", "MCE(k(x̃′))", "mask loss"), (torch.tensor(0.85), torch.tensor(0.4))
moved = {}
for number, word in enumerate(terms):
    for part in groups.values():
        part.zero_grad()
    automix_terms(q, images_head, k, block, xs, ys, uneven, orders, 2, 0.1)[number].backward()
    moved[word] = [
        name
        for name, part in groups.items()
        if any((p.grad is not None) and p.grad.abs().max() > 0 for p in part.parameters())
    ]
    print(f"{word:11s} moves: {', '.join(moved[word])}")
assert moved["CE(q₁(x))"] == ["stages of q", "images' head"]
assert moved["MCE(q(x̃))"] == ["stages of q", "mixtures' head"]
assert moved["MCE(k(x̃′))"] == moved["mask loss"] == ["block"]
with torch.no_grad():
    judged = automix_terms(q, images_head, k, block, xs, ys, uneven, orders, 2, 0.1)[2]
print("under no_grad the judgement depends on the block:", judged.requires_grad)

# %% jupyter={"outputs_hidden": true, "source_hidden": true} tags=["skip-slide"]
# At home: (11)
mask = block(automix.stage_maps(k, xs, 2).detach(), 0.4, orders[0], xs.shape[2:])
mixed = mixing.by_mask(xs, ys, mask, 0.4, orders[0])
of_mask, of_image = torch.autograd.grad(F.cross_entropy(k(mixed.images), mixed.target), (mask, mixed.images))
assert torch.allclose(of_mask, (of_image * (xs - xs[orders[0]])).sum(1, keepdim=True), atol=1e-15)  # (11)

# %% [markdown]
# <details><summary>After you ran it</summary>
#
# Each loss of $q$ moves its own head and the stages. No loss moves the copy; it follows by the average in (12). Under
# `no_grad` the judgement is a constant, and the block learns from the mask loss alone.
#
# </details>
#
# ## 6 · What the masks become (34–38 min)
#
# A small network was trained on 5,000 photographs of CIFAR-10 for 16 epochs, with the pipeline and through one network:
# without a copy, $q$ gives the maps, and one mixture trains $q$ and block together.
#
# **Predict, then run.** Will the masks turn gray, and in which run? Will their mean follow λ? White shows the image,
# black its partner.

# %% jupyter={"outputs_hidden": true, "source_hidden": true} tags=["nbval-ignore-output"]
found = study.kept(index)
lesson.animation("3_automix", study.over_lambda(found), "over_lambda")

# %% [markdown]
# The first pair during training:

# %% jupyter={"outputs_hidden": true, "source_hidden": true} tags=["nbval-ignore-output"]
lesson.figure("3_automix", "masks_over_epochs")

# %% [markdown]
# After epoch 1 the masks of both hardly know λ. After epoch 5 those of the pipeline follow it for this pair, those of
# the one network not yet. At the end the mean follows λ about equally closely in both. Over 500 pairs (spread: the
# standard deviation of a mask's cells, 0 for one gray):

# %% jupyter={"outputs_hidden": true, "source_hidden": true}
for name, (run, arrays) in found.items():
    means = {lam: run.curves[f"mask_mean_{lam:g}"][-1] for lam in study.masks.LAMS}
    print(f"{name}: mean of the masks", ", ".join(f"{means[lam]:.3f} at λ = {lam:g}" for lam in (0, 0.5, 1)), end="; ")
    print(f"it misses λ by up to {max(abs(mean - lam) for lam, mean in means.items()):.2f}")
    spreads = run.curves["mask_spread_0.5"]
    losses = run.curves["mask_loss"]
    print(
        f"  spread at λ = 0.5: {spreads[0]:.2f} after epoch 1, {max(spreads):.2f} at most, {spreads[-1]:.2f} at the end"
    )
    print(f"  mask loss without γ: {losses[0]:.3f} in epoch 1, {losses[-1]:.3f} at the end")
    assert study.rise(run, 0) < 0.1 < 0.59 < study.rise(run) < 0.63
    assert 0.2 < spreads[-1] < spreads[0]
    assert losses[-1] < 0.1 * losses[0]
    assert len(losses) == 16
    first_pair = arrays["masks"][4, 0].mean((1, 2)) / 255  # after epoch 5, over λ
    assert (first_pair[-1] - first_pair[0] > 0.4) == (name == "AutoMix")

# %% [markdown]
# Neither run ends gray, so our runs do not confirm the source's reason for the pipeline. They do not refute it either.
# There is one seed each. Initial weights and γ are larger than released, chosen so that masks form. And the spread ends
# below its peak in both: .45 to .23 through one network, .35 to .26 with the pipeline. In runs of the appendix, with
# other settings, the masks fade to gray *with* the pipeline.
#
# Over 500 pairs the mean misses λ by up to .2. A single mask misses by more: it has .45 at λ = .1 for the horse in the
# first picture. AutoMix does not correct its label. Nor do the cells draw objects: at λ = .5 the pipeline covers the
# cat's face.
#
# ## 7 · Training, and what came out (38–44 min)
#
# One epoch of AutoMix takes about three passes over the network for each image: the images, the mixtures, and the
# mixtures of the block. So its fair rivals train three times as long. We do that live, on a few hundred images.

# %%
ARMS = {"cross-entropy": ("CrossEntropy", {}, 1), "mixup": ("Mixup", {}, 1), "AutoMix": ("AutoMix", short, 3)}
recipe = Recipe(epochs=epochs, batch_size=50, lr=0.05, weight_decay=5e-4, evaluate_every=1)
lengths = {arm: replace(recipe, epochs=3 * epochs // passes) for arm, (_, _, passes) in ARMS.items()}
for arm, length in lengths.items():
    updates = length.epochs * (len(images.train) // length.batch_size)
    print(f"{arm}: {length.epochs} epochs, {ARMS[arm][2] * length.epochs} passes, {updates} updates")
assert len({ARMS[arm][2] * length.epochs for arm, length in lengths.items()}) == 1  # equally many passes

# %% [markdown]
# Which of the three will be ahead at the end?

# %% tags=["nbval-ignore-output"]
by_arm = {arm: [] for arm in ARMS}
for arm, seed in lesson.counted([(arm, seed) for arm in ARMS for seed in SEEDS]):
    objective, settings, _ = ARMS[arm]
    model = runs.build(objective, "small", images, seed, **settings).to(resolve_device(device))
    by_arm[arm].append(fit(model, images, lengths[arm], seed=seed, progress=False))
for run in runs.planned(profile, "3_automix") if profile != "quick" else []:
    runs.complete([run], device)
lesson.keep("3_automix", [record for records in by_arm.values() for record in records])


# %% jupyter={"source_hidden": true} tags=["nbval-ignore-output"]
@plots.styled
def figure_live():
    figure = plots.Picture(figsize=(7.2, 3.0))
    axes = figure.add_subplot(xlabel="passes over the training images", ylabel="validation accuracy (%)")
    ends = {}
    for (arm, records), colour in zip(by_arm.items(), ("black", plots.BLUE, plots.RED), strict=True):
        curve = 100 * np.mean([record.curves["validation_accuracy"] for record in records], 0)
        axes.plot(ARMS[arm][2] * np.arange(1, len(curve) + 1), curve, "o-", color=colour, markersize=3, label=arm)
        ends[arm] = curve[-1]
        print(f"{arm}: {curve[epochs - 1]:.0f}% after as many updates as AutoMix makes")
    axes.axvline(epochs, color=plots.GREY, linestyle=":", label="as many updates as AutoMix makes in all")
    axes.legend(loc="lower right")
    words = ", ".join(f"{arm} {value:.0f}%" for arm, value in ends.items())
    plots.headline(figure, f"At equally many passes: {words} ({len(SEEDS)} seed{'s' * (len(SEEDS) > 1)})")
    return figure


show(figure_live(), "live")

# %% [markdown]
# AutoMix is far behind here. It makes a third of the updates, but this is not all: after as many updates (dotted line)
# cross-entropy is already above the point where AutoMix ends. One seed and 400 images: do not generalise.
#
# The committed runs are longer, with three seeds. All methods train for equally many epochs; the column gives the passes
# in one epoch. Gains over cross-entropy (accuracy in the head) in points, with 95% intervals. Cutout blanks a box,
# Manifold Mixup mixes feature maps, MixStyle mixes their means and standard deviations.


# %% jupyter={"source_hidden": true}
def accuracies(index):
    """Gains over cross-entropy of all methods on two sets."""
    names = [arm.name for arm in (*study.METHODS[1:], study.SHORT)]
    runs_of = {part.title: on_common_seeds(index.by_arm(part, ["cross-entropy", *names])) for part in study.SETS}
    gains, rows = {title: {} for title in runs_of}, []
    for name in names:
        row = [name, f"{study.FASHION.arm(name).passes:.3g}"]
        for title, by_arm in runs_of.items():
            gains[title][name] = stats.summary(stats.gains(by_arm[name], by_arm["cross-entropy"]))
            row.append(gains[title][name].text("+.1f"))
        rows.append(row)
    clothes, photographs = gains.values()
    assert [name for name, gain in clothes.items() if gain.side != 1] == ["MixStyle"]
    assert [name for name, gain in photographs.items() if gain.side] == ["mixup", "ResizeMix", "MixStyle"]
    assert [part.recipe.epochs for part in study.SETS] == [40, 30]
    assert round(clothes["ResizeMix"].mean, 1) == round(clothes["AutoMix"].mean, 1) == 2.2
    base = [stats.summary(map(stats.points, by_arm["cross-entropy"])).mean for by_arm in runs_of.values()]
    sets = [f"{title} ({value:.1f}%)" for title, value in zip(runs_of, base, strict=True)]
    return markdown(["method", "passes", *sets], rows)


# %%
lesson.table("3_automix", accuracies)

# %% [markdown]
# On Fashion-MNIST eight of nine methods are significantly above cross-entropy. ResizeMix has AutoMix's +2.2 at one pass. On
# photographs none is above, and three are significantly below. Eighteen intervals at n = 3, uncorrected: one may be
# chance. Forty and thirty epochs are short: the papers train for 200 and more. Now against longer training:

# %% tags=["nbval-ignore-output"]
lesson.figure("3_automix", "equal_passes")

# %%
(long_plain, long_mixup), texts = study.LONGER, []
for part, one, other in (
    (study.FASHION, long_mixup, study.MIXUP), (study.FASHION, study.SHORT, long_plain),
    (study.FASHION, study.SHORT, study.MIXUP), (study.FASHION, study.SHORT, long_mixup),
    (study.CIFAR, study.SHORT, study.MIXUP),
):  # fmt: skip
    by_arm = index.by_arm(part, [one.name, other.name])
    gain = stats.summary(stats.gains(by_arm[one.name], by_arm[other.name]))
    texts.append(gain.text("+.1f"))
    print(f"{part.title}: {one.name} − {other.name} {lesson.effect(gain)}")
    assert gain.side == (part is study.CIFAR)
assert texts == ["+1.1 ± 1.6", "+1.9 ± 3.3", "+1.1 ± 1.4", "−0.1 ± 0.2", "+2.8 ± 2.5"]

# %% [markdown]
# Neither difference in the headline is significant. Also not significant: AutoMix − cross-entropy at equal passes (+1.9
# ± 3.3), and longer mixup − mixup (+1.1 ± 1.6). On photographs AutoMix − mixup is +2.8 ± 2.5 at equal epochs; equal
# passes were not run.
#
# At equal epochs the authors report a gain: CIFAR-100, ResNet-18, 200 epochs, mixup 78.52, PuzzleMix 79.96, AutoMix
# 80.12, one number each.
#
# > **Take away.** Mixing changes the risk: mixup is plain training with a second image blended in. AutoMix learns the
# > mask by a gradient *through* a copy that takes none itself. On Fashion-MNIST AutoMix − mixup is +1.1 ± 1.4 at equal
# > epochs and −0.1 ± 0.2 at equal passes: neither is significant. Count passes before you compare.
#
# ## 8 · Questions (44–45 min)
#
# **1. Which baseline is fair** for a method of three passes: three times the epochs, three networks, or a network three
# times as wide?
#
# <details><summary>Solution</summary>
#
# - Three times the epochs: equal compute in training and in use. This is the fair rival for time of training.
# - Three networks, averaged: equal compute in training, three times the compute in use.
# - Three times as wide: about nine times the compute. A width of $\sqrt 3$ has equal compute in training, and costs three
#   times as much in use.
#
# </details>
#
# **2. Why mixed labels?** (At home.) By (4) plain labels have the same risk. What do mixed labels save?
#
# <details><summary>Solution</summary>
#
# Variance. Given the mixture, the plain label is a coin with the probabilities λ and $1 - \lambda$. The gradient is
# linear in the label, so the mixed label gives its expectation over that coin: the same mean and never a larger
# variance (Rao–Blackwell).
#
# </details>

# %% jupyter={"outputs_hidden": true, "source_hidden": true} tags=["solution"]
variances, means = {}, {}
for name, b in (("mixed labels", 1.0), ("plain labels", 2.0)):
    nodes, shares = (torch.from_numpy(part) for part in roots_jacobi(40, 0, b - 1))
    lam = ((nodes + 1) / 2).view(-1, 1, 1, 1)
    points = lam * x[:, None] + (1 - lam) * x
    labels = lam * y[:, None] + (1 - lam) * y if name == "mixed labels" else y[:, None].expand(6, 6, 3)
    slopes = ((points @ W.T).softmax(-1) - labels)[..., None] * points[..., None, :]  # of (2) by W
    weights = (shares / shares.sum()).view(-1, 1, 1, 1, 1) / 36
    means[name] = (weights * slopes).sum((0, 1, 2))
    variances[name] = ((weights * slopes.square()).sum() - means[name].square().sum()).item()
print("variance of the gradient:", {name: round(value, 2) for name, value in variances.items()})
assert torch.allclose(*means.values(), atol=1e-10)
assert variances["mixed labels"] < variances["plain labels"]

# %% [markdown]
# **Next.** [DiffAugment](4_diffaugment.ipynb) augments what a discriminator sees. [SLA](5_sla.ipynb) puts what was done
# to an image into its label.
