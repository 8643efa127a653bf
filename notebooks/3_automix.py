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
# Z. Liu, S. Li, D. Wu et al., *AutoMix: Unveiling the Power of Mixup for Stronger Classifiers*, ECCV 2022
# ([arXiv:2103.13027](https://arxiv.org/abs/2103.13027)). [Their code](https://github.com/Westlake-AI/openmixup).

# %% tags=["nbval-ignore-output"]
from companion import lesson

lesson.figure("3_automix", "zoo")

# %% [markdown]
# **Two photographs, mixed by six methods.** λ is the ratio of the first image. The bar under each tile is the label of
# the mixture: the share of the first image in red, that of its partner in blue. mixup averages the pixels. CutMix,
# ResizeMix and SaliencyMix put a box of the partner into the image; they correct the label to the area of that box.
# PuzzleMix asks a trained network which pixels matter. AutoMix learns a small network that makes the mask.
#
# Training on such mixtures often helps, although nobody will ever show the network one. Two questions follow: why does
# it help, and who should decide which pixels come from which image?
#
# **In one sentence:** AutoMix learns the mask by descent on the loss of a slow copy of the classifier, while the
# classifier learns from the mixtures.
#
# At the end of this lesson you can
#
# - say which risk mixup minimises, and why it needs no mixed labels;
# - compute which ratio CutMix really has, and count how often its label names what is not there;
# - write the two levels of AutoMix, its Mix Block and its loss, and train one network through another that stays fixed;
# - compare a method with others that take as many passes over the network.
#
# | minutes | section | | minutes | section |
# |---|---|---|---|---|
# | 0–4 | this page | | 28–34 | 5 · a network that must not move |
# | 4–7 | 1 · where it acts, and two loops | | 34–38 | 6 · what the masks become |
# | 7–13 | 2 · mixup is a risk of pairs | | 38–44 | 7 · training, and what came out |
# | 13–19 | 3 · the box of CutMix | | 44–45 | 8 · one question; three more are for home |
# | 19–28 | 4 · the mask is learned | | | |
#
# **You need** softmax and cross-entropy, an attention layer, and a training step in PyTorch. Notation, errata, the
# other methods, ablations and the authors' benchmark are in the [appendix](appendix/3_automix_more.ipynb). The lesson
# follows a Chinese text by the authors, *the source*, quoted in blocks with our English. All its formulas are lost:
# where one stood there is a gap. They are put back here, by the paper and its code.
#
# <details><summary>For the lecturer</summary>
#
# Clear all outputs before the class. The cells that draw are folded, and answers to predictions stay hidden until their
# cells run. The live training of section 7 takes about 20 seconds on two cores: start it, then ask. If time is short,
# leave out the check of the two levels in section 4 and the figure of the clipped box. Expected answers: CutMix keeps
# two thirds of the image; the copy gets no gradient and passes it on; three times the epochs of plain training are the
# fair rival of AutoMix.
#
# </details>
#
# The next two cells hold the settings and the imports.

# %% tags=["parameters"]
profile = "quick"  # "quick" trains the live runs of section 7; "cpu" and "paper" also add missing records (hours)
dataset = "fashion-mini"  # the 10,000 images of Fashion-MNIST inside the package; or cifar10, mnist, shapes, ...
train_size = 400  # training images of the live runs
epochs = 4  # of the live runs
seeds = 1  # paired runs of each method
first_seed = 0  # of them
alpha = 2.0  # AutoMix draws its ratios from Beta(alpha, alpha)
device = "auto"  # "cpu", "cuda", or whichever there is

# %%
lesson.parameters("3_automix")

import copy
import functools
import itertools
import math
from dataclasses import replace

import numpy as np
import torch
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
f64 = torch.float64

# %% [markdown]
# ## 1 · Where it acts, and two loops (4–7 min)
#
# Mixing changes pixels and labels together, places 1 and 3. AutoMix also trains a network beside the classifier which
# makes the images: place 5.

# %%
show(plots.where_it_acts("pixels", "labels", "generator"), "where")

# %% [markdown]
# > 手工设计的 mixup 所对应对的混合样本生成是独立于混合样本分类任务的 ·
# > *Hand-made mixup generates its samples independently of the task of classifying them.*
#
# mixup and CutMix follow a rule that no training changes. The source calls this *offline*. AutoMix closes the loop:
# the block sees the maps of the classifier, and the loss of its mixtures teaches it.


# %%
show(study.loops_diagram(), "loops")

# %% [markdown]
# ## 2 · mixup is a risk of pairs (7–13 min)
#
# > 与上式相似，我们可以通过 mixup cross-entropy（MCE）loss 来学习一个新的分类器 ·
# > *In the same way a new classifier is learned by the mixup cross-entropy (MCE).*
#
# Image $i$ has a partner $j$ and a mask $M$ with values in [0, 1]. The mixture and its label are
#
# $$\tilde x = M \odot x_i + (1 - M) \odot x_j, \qquad \tilde y = \lambda y_i + (1 - \lambda) y_j. \tag{1}$$
#
# mixup has $M = \lambda$. Cross-entropy is linear in the label, so the loss of a mixture has two forms:
#
# $$\mathrm{MCE}(f(\tilde x), \tilde y) = \mathrm{CE}(f(\tilde x), \tilde y)
#   = \lambda\, \mathrm{CE}(f(\tilde x), y_i) + (1 - \lambda)\, \mathrm{CE}(f(\tilde x), y_j). \tag{2}$$
#
# What does training on such batches minimise? In a random permutation every image is equally often the partner of every
# image. So the expected loss of a batch is a mean over all *pairs*, a risk of the lines between images:
#
# $$R = \frac1{n^2} \sum_{i, j} \mathrm E_{\lambda \sim \mathrm{Beta}(\alpha, \alpha)}\,
#   \mathrm{MCE}\bigl(f(\tilde x_{ij}), \tilde y_{ij}\bigr). \tag{3}$$
#
# We check it in a world of six points in the plane, with three classes and a linear classifier. The expectation over λ
# is exact by Gauss–Jacobi quadrature. We predict that the mean over all 720 permutations of the batch equals (3).

# %%
x = torch.tensor([[2.2, 0.9], [1.1, 0.2], [-1.2, 1.8], [-0.6, 0.9], [-0.9, -1.9], [0.4, -1.4]], dtype=f64)
y = F.one_hot(torch.tensor([0, 0, 1, 1, 2, 2])).double()
W = torch.tensor([[2.0, 0.5], [-1.0, 1.5], [-0.5, -2.0]], dtype=f64)


def mce(points, labels):
    """(2) under the linear classifier W."""
    return -(labels * (points @ W.T).log_softmax(-1)).sum(-1)


def risk(a, b, partners=None, mixed_labels=True):
    """(3) under Beta(a, b): over all pairs, or over the batches with these partners (P, N)."""
    nodes, weights = (torch.from_numpy(part) for part in roots_jacobi(40, b - 1, a - 1))
    lam = ((nodes + 1) / 2).view(-1, 1, 1, 1)
    own, other = ((x[:, None], y[:, None]), (x, y)) if partners is None else ((x, y), (x[partners], y[partners]))
    labels = lam * own[1] + (1 - lam) * other[1] if mixed_labels else own[1]
    return weights @ mce(lam * own[0] + (1 - lam) * other[0], labels).mean((1, 2)) / weights.sum()


batches = torch.tensor(list(itertools.permutations(range(6))))
for a in (0.2, 1.0, 2.0):
    print(f"α = {a:3.1f}: pairs (3) {risk(a, a):.6f}   all batches {risk(a, a, batches):.6f}")
    assert math.isclose(risk(a, a), risk(a, a, batches), rel_tol=1e-10)

# %% [markdown]
# Now use the symmetry. In the second term of (2) exchange the names $i$ and $j$, and λ and $1 - \lambda$. It becomes the
# first term, so $R$ is twice the mean of $\lambda\, \mathrm{CE}(f(\tilde x_{ij}), y_i)$. And λ times the density of
# $\mathrm{Beta}(\alpha, \alpha)$ is half of the density of $\mathrm{Beta}(\alpha + 1, \alpha)$:
#
# $$R = \frac1{n^2} \sum_{i,j} \mathrm E_{\lambda \sim \mathrm{Beta}(\alpha + 1, \alpha)}\,
#   \mathrm{CE}\bigl(f(\tilde x_{ij}), y_i\bigr). \tag{4}$$
#
# **mixup needs no mixed labels.** It is ordinary training, with ordinary labels, on images into which another image was
# blended. Mixed labels only make the gradient less noisy. How often does the label name the *smaller* share? By
# $\mathrm{Beta}(2, 1)$, of α = 1, we predict one quarter.

# %%
for a in (0.2, 1.0, 2.0):
    plain = risk(a + 1, a, mixed_labels=False)
    print(f"α = {a:3.1f}: mixed labels (3) {risk(a, a):.6f}   plain labels (4) {plain:.6f}")
    assert math.isclose(risk(a, a), plain, rel_tol=1e-8)
print(f"P(λ < 1/2) under Beta(2, 1): {betainc(2, 1, 0.5):.4f}")
assert math.isclose(betainc(2, 1, 0.5), 1 / 4)


# %% jupyter={"source_hidden": true}
@plots.styled
def figure_pairs():
    figure = plots.Picture(figsize=(7.5, 3.4))
    colours = torch.tensor([[0.13, 0.53, 0.2], [0.8, 0.73, 0.27], [0.27, 0.47, 0.67]], dtype=f64)
    for axes, (a, b), title in zip(
        figure.subplots(1, 2, sharey=True),
        ((1, 1), (2, 1)),
        ("mixed labels, λ from Beta(1, 1)", "plain labels, λ from Beta(2, 1)"),
        strict=True,
    ):
        generator = np.random.default_rng(0)
        i, j = generator.integers(0, 6, (2, 1500))
        lam = torch.from_numpy(generator.beta(a, b, 1500))[:, None]
        labels = lam * y[i] + (1 - lam) * y[j] if b == a else y[i]
        axes.scatter(*(lam * x[i] + (1 - lam) * x[j]).T, s=5, c=(labels @ colours).numpy(), linewidths=0)
        axes.scatter(*x.T, s=70, c=(y @ colours).numpy(), edgecolors="black", zorder=3)
        axes.set(title=title, aspect="equal", xlabel="feature 1", ylabel="feature 2")
    plots.headline(figure, "Two ways to draw mixtures and labels, and one and the same risk")
    return figure


show(figure_pairs(), "pairs")

# %% [markdown]
# The large dots are the six images, the small ones mixtures in the colours of their labels. On the right the label is
# never mixed, and most mixtures lie near the image that gives it.
#
# Equation (4) holds for every method whose mixture of $(i, j)$ at λ is that of $(j, i)$ at $1 - \lambda$. CutMix is not
# of that kind, as we shall see.
#
# ## 3 · The box of CutMix (13–19 min)
#
# CutMix fills a box of the partner into the image. The side of the box is $u = \sqrt{1 - \lambda}$ times that of the
# image, so its area is $1 - \lambda$. Its centre is uniform over the image. What hangs over the edge is cut off, and the
# label is corrected to the area that is left.
#
# **Predict, then run.** Let λ be uniform, so that its mean is one half. Which share of the image is left on average:
# less than half, half, or more? Write down a number.
#
# Along one axis of $H$ pixels let the box have $b$ pixels on either side of its centre. Over the $H$ places of the
# centre, the pixels lost at the two ends are $1 + \dots + b$ and $1 + \dots + (b-1)$, together $b^2$. So
#
# $$\mathrm E\, \text{length} = 2b - \frac{b^2}{H}. \tag{5}$$
#
# In units of the image this is $u - u^2/4$. Rows and columns of the centre are independent, so areas multiply. For
# uniform λ, $\mathrm E (1 - \lambda)^r = 1/(r + 1)$, and the ratio λ' in the label has the means
#
# $$\mathrm E[\lambda' \mid \lambda] = 1 - \Bigl(u - \frac{u^2}4\Bigr)^2, \qquad
#   \mathrm E\, \lambda' = 1 - \frac12 + \frac15 - \frac1{48} = \frac{163}{240}. \tag{6}$$

# %% jupyter={"outputs_hidden": true, "source_hidden": true} tags=["nbval-ignore-output"]
lam, places = torch.rand(200_000, generator=seeded(6), dtype=f64), seeded(7)
cy, cx = (torch.randint(4096, lam.shape, generator=places) for _ in range(2))
top, bottom, left, right = mixing.cut_box(lam, cy, cx, 4096, 4096)
kept = 1 - ((bottom - top) * (right - left)).double() / 4096**2


@plots.styled
def figure_clipped():
    figure = plots.Picture(figsize=(7.2, 3.0))
    axes, histogram = figure.subplots(1, 2)
    grid = torch.linspace(0, 1, 101, dtype=f64)
    u = (1 - grid).sqrt()
    axes.plot(grid, grid, "--", color=plots.GREY, label="no clipping")
    axes.plot(grid, 1 - (u - u**2 / 4) ** 2, color=plots.GREEN, label="mean, by (6)")
    axes.plot(lam[:300], kept[:300], ".", color="black", markersize=2, label="boxes")
    axes.set(xlabel="λ drawn", ylabel="ratio in the label, λ'")
    axes.legend(fontsize=8)
    histogram.hist(kept.numpy(), 40, density=True, color=plots.GREEN, alpha=0.7)
    histogram.set(xlabel="ratio in the label, λ'", ylabel="density", title="λ uniform")
    plots.headline(figure, f"CutMix keeps {kept.mean():.0%} of the image on average, not half")
    return figure


show(figure_clipped(), "clipped")

# %%
error = float(kept.std()) / len(kept) ** 0.5
print(f"by (6) {163 / 240:.3f}, from 200,000 boxes {kept.mean():.3f}")
assert abs(kept.mean() - 163 / 240) < 4 * error + 2 / 4096

# %% [markdown]
# ### How often the label names what is not there
#
# > 可能出现被切割的区域不包含分类任务相关目标的现象 · *The region that is cut may not contain the object.*
#
# On generated shapes, whose masks are known, this can be counted. Eight mixtures first, with a box drawn for each:

# %% jupyter={"source_hidden": true}
drawn = shapes.draw(1000, seed=3)
n, partners = len(drawn), torch.randperm(1000, generator=seeded(4))
ratio, places = torch.rand(n, generator=seeded(5), dtype=f64), seeded(8)
cy, cx = (torch.randint(32, (n,), generator=places) for _ in range(2))
mixed = mixing.cutmix(drawn.floats(), torch.eye(10)[drawn.target], ratio, partners, cy, cx)
box = torch.zeros(n, 1, 32, 32)  # what of the partner is to be seen: the box in white, by the same draws
box = mixing.cutmix(torch.cat([box, box + 1]), torch.zeros(2 * n, 1), torch.cat([ratio] * 2),
                    torch.cat([torch.arange(n, 2 * n)] * 2), *(torch.cat([c, c]) for c in (cy, cx))).images[:n, 0]  # fmt: skip
seen = (box * drawn.masks[partners]).sum((1, 2)) / drawn.masks[partners].sum((1, 2))
titles = [f"label {1 - r:.0%}\nshown {s:.0%}" for r, s in zip(mixed.lam[:8].flatten(), seen[:8], strict=True)]
picture = plots.sheet(mixed.images[None, :8], ["CutMix"], titles, size=0.75)
picture.set_figheight(1.9)
absent = int(((seen[:8] == 0) & (mixed.lam[:8].flatten() < 1)).sum())
plots.headline(picture, f"In {absent} of these 8 mixtures nothing of the partner's object is to be seen")
show(picture, "boxes")

# %% [markdown]
# *Label* is the share that the label gives to the partner, *shown* the share of the partner's object in the box. Now
# exactly, over all sizes and places of the box. A box is a half $b$ and one of 1,024 centres. The package has
# $b = \lfloor \lfloor 32 u \rfloor / 2 \rfloor$, and $u$ has the distribution function $u^2$.

# %%
sums = F.pad(drawn.masks.double().cumsum(1).cumsum(2), (1, 0, 1, 0))  # (N, 33, 33)
size, centre, chance = sums[:, -1, -1], torch.arange(32), torch.zeros(16, dtype=f64)
for k in range(32):
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
absent, hidden = (table @ chance for table in (missed, covered))
for name, shares in (("partner's object not in the box", absent), ("own object covered", hidden)):
    print(f"{name:32s} {shares[0]:.1%} of mixtures, {shares[1]:.1%} of the labels' weight")
drawn_share = ((seen == 0) & (mixed.lam.flatten() < 1)).double().mean()
assert abs(drawn_share - absent[0]) < 4 * (absent[0] * (1 - absent[0]) / n) ** 0.5
assert hidden[1] > 1.5 * absent[1]

# %% [markdown]
# The source is right: in one mixture of four the label names a partner that is not to be seen. But those boxes are
# small, so this is three percent of the labels' weight. The fault that the source does not mention weighs twice as
# much: the box covers the *own* object of the image. To cut well, one has to look at both images.
#
# ## 4 · The mask is learned (19–28 min)
#
# > 这是一个数据随模型变化，模型随数据更新的双层优化问题 ·
# > *This is a bi-level problem: the data change with the model, and the model is updated with the data.*
#
# Let $h_\phi$ make the mixture and $g = \tilde y$ its label. The inner level trains the classifier on what the block
# makes; the outer level wants the block under which the *trained* classifier is best at it:
#
# $$\phi^* = \arg\min_\phi\, \mathcal L\bigl(\theta^*(\phi), \phi\bigr), \qquad
#   \theta^*(\phi) = \arg\min_\theta\, \mathcal L(\theta, \phi) + c\, \mathrm E\,\mathrm{CE}(f_\theta(x), y), \qquad
#   \mathcal L(\theta, \phi) = \mathrm E\, \mathrm{MCE}\bigl(f_\theta(h_\phi), g\bigr). \tag{7}$$
#
# Both levels *minimise* $\mathcal L$. The block is no adversary: it looks for mixtures that are easy to classify. By the
# chain rule
# $\frac{d\mathcal L}{d\phi} = \frac{\partial \mathcal L}{\partial \phi} + \frac{\partial \mathcal L}{\partial \theta}
# \frac{d\theta^*}{d\phi}$. MetaSAug follows such a second term through a training step. AutoMix leaves it out. With
# $c = 0$ nothing is lost: at the inner minimum $\partial \mathcal L / \partial \theta = 0$. AutoMix has $c = 1$, the
# loss of the images themselves. We predict the share of the derivative that is followed in the toy world, where φ is
# one number, the mask at λ = 0.3: all of it for $c = 0$.


# %%
def inner(V, phi, c):
    """L(θ, φ) + c CE of (7), with a little weight decay on θ = V; and L alone."""
    points, labels = phi * x[:, None] + (1 - phi) * x, 0.3 * y[:, None] + 0.7 * y
    L = -(labels * (points @ V.T).log_softmax(-1)).sum(-1).mean() + 0.01 * V.square().sum()
    return L + c * -(y * (x @ V.T).log_softmax(-1)).sum(-1).mean(), L


def trained(phi, c):
    """θ*(φ), by L-BFGS."""
    V = torch.zeros(3, 2, dtype=f64, requires_grad=True)
    search = torch.optim.LBFGS(
        [V], max_iter=500, tolerance_grad=1e-12, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def closure():
        search.zero_grad()
        loss = inner(V, phi, c)[0]
        loss.backward()
        return loss

    search.step(closure)
    return V.detach()


# %%
phi = torch.tensor(0.5, dtype=f64, requires_grad=True)
for c in (0, 1):
    total = [inner(trained(phi.item() + shift, c), phi.item() + shift, c)[1].item() for shift in (1e-4, -1e-4)]
    total = (total[0] - total[1]) / 2e-4
    direct = torch.autograd.grad(inner(trained(phi.item(), c), phi, c)[1], phi)[0].item()
    print(f"c = {c}: whole derivative {total:+.5f}, direct term {direct:+.5f}, share {direct / total:.0%}")
    assert c or abs(direct / total - 1) < 1e-3

# %% [markdown]
# Through $c = 1$ the direct term is no longer the whole derivative. AutoMix takes it all the same, one step at a time.
#
# ### The Mix Block
#
# > 所以参数化的混合函数中需要包含相似度矩阵的计算和上采样函数 ·
# > *So the mixing function needs a similarity matrix and an upsampling function.*
#
# The block sees the maps $z_i$ and $z_j$ of both images after one stage, with the ratio as one more channel,
# $z_\lambda = [z, \lambda 1]$. Each place of the image asks which places of the partner look alike, and takes from them
# one number: how much the partner wants to be seen.
#
# $$P = \mathrm{softmax}_j \Bigl( \frac{(W_P z_{i,\lambda})^\top W_P\, z_{j,1-\lambda}}{\sqrt d} \Bigr), \tag{8}$$
# $$s_{1-\lambda} = \sigma\bigl(\mathrm{upsample}(P\, W_Z\, z_{j,1-\lambda})\bigr), \qquad
#   s_\lambda = 1 - s_{1-\lambda}, \qquad M = s_\lambda. \tag{9}$$


# %%
show(study.block_diagram(), "block")

# %% [markdown]
# **Fill in (2 min).** Replace `None` by one line for $P$ of one pair, from `query` (places, d) and `key` (places, d).
# The next cell compares it.

# %%
query, key = torch.randn(9, 4, generator=seeded(1), dtype=f64), torch.randn(9, 4, generator=seeded(2), dtype=f64)
P = None  # your line
expected = F.scaled_dot_product_attention(query, key, torch.eye(9, dtype=f64))
print("not yet" if P is None else "right" if torch.allclose(P, expected) else "another value")

# %% [markdown]
# <details><summary>Solution</summary>
#
# `P = (query @ key.T / 4**0.5).softmax(1)`: rows belong to the image, and each sums to one over the partner's places.
#
# </details>
#
# Here is the whole module. One projection serves as query and key, and the mask of the partner is computed first.


# %%
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


# %%
torch.manual_seed(0)
textbook, z = TextbookMixBlock(6, std=0.5).double(), torch.randn(4, 6, 8, 8, generator=seeded(20), dtype=f64)
package = automix.MixBlock(6, std=0.5).double()
package.load_state_dict(textbook.state_dict())
by_lines, by_package = (block(z, 0.3, torch.tensor([1, 0, 3, 2]), (32, 32)) for block in (textbook, package))
print("largest difference to the package below 1e-12:", bool((by_lines - by_package).abs().max() < 1e-12))
assert torch.allclose(by_lines, by_package, rtol=0, atol=1e-12)

# %% [markdown]
# The source names upsampling and sigmoid and not their order. The released code enlarges first. With nearest
# neighbours, its usual choice, the order does not matter. The map has 8 × 8 places for a photograph of 32 × 32 pixels,
# as in the released CIFAR configurations, where it is the third stage of a ResNet. Our small network has 8 × 8 after
# its second stage.
#
# ### The mask loss
#
# > 用于帮助 Mix Block 在训练早期生成与…成比例的混合掩码 · *helps the block early in training to make masks in proportion to [λ]*
#
# Nothing in (7) ties the *size* of the mask to λ. So a second loss does, on the mean over batch and pixels:
#
# $$\mathcal L_{mask} = \gamma \max\bigl( | \lambda - \overline{s_\lambda} | - \epsilon,\; 0 \bigr), \qquad
#   \epsilon = 0.1, \quad \gamma \text{ from } 0.1 \text{ to } 0. \tag{10}$$
#
# The source does not say how γ falls. In the released code it falls by a cosine for ImageNet, fine-grained sets and
# Transformers. For the ResNets on CIFAR-100 and Tiny-ImageNet it stays at 0.1; there the λ channel of (8) is switched
# off too. A block without λ makes the same mask at every ratio. In the package γ falls linearly. A block that
# knows nothing has the mask ½; with λ from Beta(2, 2) we predict its mean loss by an integral.

# %%
t = np.polynomial.Polynomial([0, 1])
integral = (2 * 6 * (0.5 + t) * (0.5 - t) * (t - 0.1)).integ()
predicted = 0.1 * (integral(0.5) - integral(0.1))
half, lams = torch.full((1, 1, 1, 1), 0.5), mixup.draw_beta(2.0, (20_000,), seeded(23))
losses = 0.1 * torch.stack([automix.mask_loss(half, lam) for lam in lams])
print(f"predicted {predicted:.4f} nats, over 20,000 draws {losses.mean():.4f}; CE of a guess {math.log(10):.2f}")
assert abs(predicted - losses.mean()) < 4 * losses.std() / len(lams) ** 0.5

# %% [markdown]
# ## 5 · A network that must not move (28–34 min)
#
# > 在一次梯度反传中同时更新…两套参数的方式会带来不稳定性，Mix Block 很容易陷入 Trivial solution ·
# > *Updating both sets of parameters in one backward pass is unstable: the block easily falls into the trivial solution.*
#
# The trivial solution is one gray everywhere, $s_\lambda = \lambda$: plain mixup. The *momentum pipeline* separates the
# two tasks. A copy $k$ of the classifier $q$ gives the maps and judges the mixtures that the block learns from. Its
# parameters are a moving average of those of $q$. The classifier learns from other mixtures, which reach it as plain images.


# %%
show(study.pipeline_diagram(), "pipeline")

# %% [markdown]
# How can a frozen network teach anything? Its *parameters* take no gradient. It is still a differentiable function of
# its input. With channels $c$ and pixels $p$ the chain rule gives
#
# $$\frac{\partial \mathcal L}{\partial \phi} = \sum_p \frac{\partial \mathcal L}{\partial M_p}
#   \frac{\partial M_p}{\partial \phi}, \qquad
#   \frac{\partial \mathcal L}{\partial M_p} = \sum_c \frac{\partial \mathcal L}{\partial \tilde x_{cp}}\,
#   (x_{i,cp} - x_{j,cp}). \tag{11}$$
#
# Where both images show the same, the mask learns nothing. All terms of one step, with the average on the right:
#
# $$\mathcal L = \underbrace{\mathrm{CE}(q(x), y) + \mathrm{MCE}(q(\tilde x), \tilde y)}_{\theta_q}
#   + \underbrace{\mathrm{MCE}(k(\tilde x'), \tilde y') + \mathcal L_{mask}}_{\phi}, \qquad
#   \theta_k \leftarrow m\, \theta_k + (1 - m)\, \theta_q. \tag{12}$$
#
# The images themselves have a head of their own. A ratio within 0.08 of 0 or 1 reaches the classifier as plain mixup.
# Here is one step.


# %%
def automix_terms(q, one_hot, k, block, x, y, lam, partners, stage, gamma):
    """The four terms of (12). lam and partners: of the mixture the block learns from, and of the classifier's."""
    plain = F.cross_entropy(one_hot(q.features(x)), y)
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
def automix_step(q, one_hot, k, block, optimizer, *batch, m):
    """One step of training; the loss comes back."""
    loss = sum(automix_terms(q, one_hot, k, block, *batch))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    for mine, theirs in zip(k.parameters(), q.parameters(), strict=True):
        mine.data = m * mine.data + (1 - m) * theirs.data  # (12)
    return loss.item()


# %% [markdown]
# The package calls it `AutoMix`. We predict equal losses and weights for three steps on sixty real images.

# %%
short = {"alpha": alpha, "stage": 2, "momentum": 0.9, "std": 0.3}
images = load(dataset, validation=0.1, train_size=train_size, test_size=1000)
package = runs.build("AutoMix", "small", images, 0, **short).double().train()
parts = package.network, package.one_hot_head, package.momentum_network, package.block
q, one_hot, k, block = mine = [copy.deepcopy(part) for part in parts]
sgd_lines = torch.optim.SGD([p for part in (q, one_hot, block) for p in part.parameters()], lr=0.1)
sgd_package = torch.optim.SGD([p for group in package.parameter_groups(Recipe()) for p in group["params"]], lr=0.1)
xs, ys = images.train.floats(slice(0, 60)).double(), F.one_hot(images.train.target[:60], images.num_classes).double()
draws, at = seeded(30), Step(torch.tensor(0.5), 0.1, seeded(30))
for number in range(3):
    both = [(mixup.draw_beta(alpha, (), draws), torch.rand(60, generator=draws).argsort()) for _ in range(2)]
    lams, orders = zip(*both, strict=True)
    m = automix.ema_momentum(0.5, 0.9)
    ours = automix_step(q, one_hot, k, block, sgd_lines, xs, ys, lams, orders, 2, 0.1 * 0.5, m=m)
    theirs, _ = package(xs, ys, at)
    sgd_package.zero_grad()
    theirs.backward()
    sgd_package.step()
    with torch.no_grad():
        package.after_step(at)
    print(f"step {number}: loss by lines {ours:.4f}, by the package {theirs:.4f}")

# %%
for one, two in zip(mine, parts, strict=True):
    for a, b in zip(one.parameters(), two.parameters(), strict=True):
        assert torch.allclose(a, b, rtol=0, atol=1e-7)  # λ and m are rounded to float32

# %% [markdown]
# **Predict, then run.** Four terms, five sets of parameters: the stages of $q$, its two heads, the copy $k$, the block.
# Which term moves which set? And what reaches the block if $k$ is frozen by `torch.no_grad()` instead?

# %% jupyter={"outputs_hidden": true, "source_hidden": true}
groups = {"stages of q": q.stages, "head, mixtures": q.head, "head, images": one_hot, "copy k": k, "Mix Block": block}
terms, uneven = ("CE(q(x))", "MCE(q(x̃))", "MCE(k(x̃′))", "mask loss"), (torch.tensor(0.85), torch.tensor(0.4))
moved = {}
for number, word in enumerate(terms):
    for part in groups.values():
        part.zero_grad()
    automix_terms(q, one_hot, k, block, xs, ys, uneven, orders, 2, 0.1)[number].backward()
    moved[word] = [
        name
        for name, part in groups.items()
        if any((p.grad is not None) and p.grad.abs().max() > 0 for p in part.parameters())
    ]
    print(f"{word:11s} moves: {', '.join(moved[word])}")
assert moved["CE(q(x))"] == ["stages of q", "head, images"]
assert moved["MCE(q(x̃))"] == ["stages of q", "head, mixtures"]
assert moved["MCE(k(x̃′))"] == moved["mask loss"] == ["Mix Block"]
mask = block(automix.stage_maps(k, xs, 2).detach(), 0.4, orders[0], xs.shape[2:])
mixed = mixing.by_mask(xs, ys, mask, 0.4, orders[0])
of_mask, of_image = torch.autograd.grad(F.cross_entropy(k(mixed.images), mixed.target), (mask, mixed.images))
assert torch.allclose(of_mask, (of_image * (xs - xs[orders[0]])).sum(1, keepdim=True), atol=1e-15)  # (11)
with torch.no_grad():
    constant = k(mixed.images)
print("under no_grad the judgement depends on the block:", constant.requires_grad)
assert not constant.requires_grad

# %% [markdown]
# <details><summary>After you ran it</summary>
#
# Nothing moves the copy by a gradient; it moves by the average in (12) alone. The judge's loss and the mask loss move
# the block and nothing else. Under `no_grad` the mixture would be a constant, and the block would learn nothing.
#
# </details>

# %% [markdown]
# ## 6 · What the masks become (34–38 min)
#
# A small network was trained on 4,500 photographs of CIFAR-10 for 16 epochs, with the pipeline and through one network.
# One seed: this is a picture and no comparison of accuracies. The masks have 8 × 8 cells. White shows the image, black
# its partner. **Predict, then run.** Will the mean of the mask follow λ? Which of the two keeps a shape?

# %%
found = study.kept(committed("3_automix"))

# %% jupyter={"outputs_hidden": true, "source_hidden": true} tags=["nbval-ignore-output"]
lesson.animation("3_automix", study.over_lambda(found), "over_lambda")

# %% [markdown]
# The first of these pairs at six times of training. Each mask stands beside its mixture.

# %% jupyter={"outputs_hidden": true, "source_hidden": true} tags=["nbval-ignore-output"]
lesson.figure("3_automix", "masks_over_epochs")

# %% [markdown]
# In numbers, over 500 pairs:

# %% jupyter={"outputs_hidden": true, "source_hidden": true}
for name, (run, _) in found.items():
    ends = ", ".join(f"λ = {lam}: {run.curves[f'mask_mean_{lam}'][-1]:.2f}" for lam in ("0", "0.5", "1"))
    print(
        f"{name}: mean of the masks at {ends}; spread at λ = 0.5 {study.spread(run, 0):.2f} to {study.spread(run):.2f}"
    )
piped = found["AutoMix"][0]
assert study.rise(piped, 0) < 0.1 < 0.6 < study.rise(piped)
assert 0.2 < study.spread(piped) < study.spread(piped, 0)
other = found["AutoMix, one network"][0]
assert abs(study.rise(other) - study.rise(piped)) < 0.1
assert 0.2 < study.spread(other) < study.spread(piped)
assert max(other.curves["mask_spread_0.5"]) > 0.4
reached = [100 * run.metrics["test_accuracy"] for run in (piped, other)]
print(f"accuracy {reached[0]:.0f}% with the pipeline, {reached[1]:.0f}% through one network")
assert [round(value) for value in reached] == [61, 52]

# %% [markdown]
# <details><summary>After you ran it</summary>
#
# With the pipeline the masks hardly know λ after one epoch. At the end their mean goes from 0.19 at λ = 0 to 0.82 at
# λ = 1, and the mask loss is almost zero. The spread of a mask, the standard deviation of its cells, falls from 0.33 to
# 0.26: some shape is left. Through one network the masks are nearer to black and white for some epochs, with a spread of
# 0.45. At the end they follow λ as far, and their spread is 0.23.
#
# </details>
#
# So neither run ends in the trivial solution, one gray. The classifier with the pipeline is ahead, 61%
# against 52%: one seed, and three passes against two. The cells pick places; they do not draw the outline of an object.
# First weights and γ are larger than released, so that a short training gets this far. In runs of the appendix, with
# other settings, the masks fade to gray *with* the pipeline.
#
# ## 7 · Training, and what came out (38–44 min)
#
# One epoch of AutoMix takes about three passes over the network for each image: the images, the mixtures, and the
# mixtures of the block. So its fair rivals train three times as long. We do that live, on a few hundred images. Which
# of the three do you expect ahead after 18 passes?

# %% tags=["nbval-ignore-output"]
ARMS = {"cross-entropy": ("CrossEntropy", {}, 1), "mixup": ("Mixup", {}, 1), "AutoMix": ("AutoMix", short, 3)}
recipe = Recipe(epochs=epochs, batch_size=50, lr=0.05, weight_decay=5e-4, evaluate_every=1)
by_arm = {arm: [] for arm in ARMS}
for arm, seed in lesson.counted([(arm, seed) for arm in ARMS for seed in SEEDS]):
    objective, settings, passes = ARMS[arm]
    model = runs.build(objective, "small", images, seed, **settings).to(resolve_device(device))
    length = replace(recipe, epochs=3 * epochs // passes)
    by_arm[arm].append(fit(model, images, length, seed=seed, progress=False))
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
    axes.legend()
    words = ", ".join(f"{arm} {value:.0f}%" for arm, value in ends.items())
    plots.headline(figure, f"After as many passes: {words} ({len(SEEDS)} seed{'s' * (len(SEEDS) > 1)})")
    return figure


show(figure_live(), "live")

# %% [markdown]
# One seed decides nothing. The committed records have three seeds for each method, on 2,000 images of clothing and on
# 5,000 photographs. Gains over cross-entropy in points of test accuracy, with 95% intervals:


# %% jupyter={"source_hidden": true}
def accuracies(index):
    """Gains over cross-entropy of all methods on two sets."""
    names = [arm.name for arm in (*study.METHODS[1:], study.SHORT)]
    runs_of = {part.title: on_common_seeds(index.by_arm(part, ["cross-entropy", *names])) for part in study.SETS}
    sides, rows = {title: {} for title in runs_of}, []
    for name in names:
        row = [name, f"{study.FASHION.arm(name).passes:.3g}"]
        for title, by_arm in runs_of.items():
            gain = stats.summary(stats.gains(by_arm[name], by_arm["cross-entropy"]))
            sides[title][name] = gain.side
            mixes = name not in ("Cutout", "MixStyle")  # two images in one
            assert title != study.FASHION.title or not mixes or 1 < gain.mean < 2.3
            row.append(gain.text("+.1f"))
        rows.append(row)
    clothes, photographs = sides.values()
    assert sum(side > 0 for side in clothes.values()) == 8
    assert clothes["MixStyle"] == 0
    assert [name for name, side in photographs.items() if side] == ["mixup", "ResizeMix", "MixStyle"]
    base = [stats.summary(map(stats.points, by_arm["cross-entropy"])).mean for by_arm in runs_of.values()]
    sets = [f"{title} ({value:.1f}%)" for title, value in zip(runs_of, base, strict=True)]
    return markdown(["method", "passes", *sets], rows)


# %%
lesson.table("3_automix", accuracies)

# %% [markdown]
# On clothing eight of nine methods are significantly above cross-entropy, and AutoMix is among them. On photographs
# none is, and three are significantly below. Forty and thirty epochs are short: the papers train for 200 and more. Now
# as many passes for all:

# %% tags=["nbval-ignore-output"]
lesson.figure("3_automix", "equal_passes")

# %%
index, longer = committed("3_automix"), study.LONGER[1]
for part, one, other in ((study.FASHION, study.SHORT, study.MIXUP), (study.FASHION, study.SHORT, longer), (study.CIFAR, study.SHORT, study.MIXUP)):  # fmt: skip
    by_arm = index.by_arm(part, ["cross-entropy", one.name, other.name])
    gain = stats.summary(stats.gains(by_arm[one.name], by_arm[other.name]))
    print(f"{part.title}: {one.name} − {other.name} {lesson.effect(gain)}")
    assert gain.side == (part is study.CIFAR)

# %% [markdown]
# At equal epochs AutoMix is ahead of mixup on photographs. At equal passes, on clothing, nothing is left of the gain:
# what AutoMix gains over mixup there, mixup gains by training three times as long.
#
# > AutoMix 更加贴近红色虚线，起到了最佳的矫正效果 · *AutoMix is nearest to the dashed line and corrects best.*
#
# The third claim is about calibration. The line in the next figure is where confidence equals accuracy.

# %% tags=["nbval-ignore-output"]
lesson.figure("3_automix", "reliability")

# %% [markdown]
# Mixing labels does not correct confidence, it lowers it. Cross-entropy is too sure on clothing, CutMix is right there,
# and AutoMix falls short of its accuracy. On photographs cross-entropy is nearly calibrated, and there mixing makes it
# worse (appendix).
#
# ### When does it help?
#
# - **Where the classifier knows its images by heart.** On clothing cross-entropy ends at a training loss of almost
#   zero, and every method that mixes two images gains one to two points.
# - **Not in a short training of a hard task.** On photographs the loss is far from zero after 30 epochs.
# - **Against equal passes our runs show no gain of AutoMix over mixup.** They are small: 78,000 weights, one set.
# - **In the authors' benchmark it does.** CIFAR-100, ResNet-18, 200 epochs: mixup 78.52, CutMix 79.45, PuzzleMix 79.96,
#   AutoMix 80.12, one number each and no equal passes. The appendix has the other settings.

# %%
for part in study.SETS:
    losses = stats.summary(run.metrics["train_loss"] for run in index.of(part, "cross-entropy"))
    print(f"{part.title}: training loss of cross-entropy at the end {losses.text('.3f')} nats")
    assert losses.mean < 0.01 or losses.mean > 0.5

# %% [markdown]
# > **Take away.** Mixing changes the risk: mixup is plain training with a second image blended in. AutoMix learns the
# > mask by a gradient *through* a frozen copy. In our runs its masks follow λ, and its gain over mixup is what its
# > passes cost. So compare methods at equal passes.
#
# ## 8 · Questions (44–45 min)
#
# **1. Which baseline is fair** for a method of three passes: three times the epochs, three networks, or a network three
# times as wide?
#
# <details><summary>Solution</summary>
#
# It depends on what is scarce. For time of training it is the longer run, as above. For memory it is the wider network.
# For images it is neither: then show all three. A table that has equal epochs alone favours the method with more passes.
#
# </details>
#
# **2. Why mixed labels?** (At home.) By (4) plain labels have the same risk. What do mixed labels save?
#
# <details><summary>Solution</summary>
#
# Variance. Given the mixture, which of its two images is *the image itself* is a coin with the probabilities λ and
# $1 - \lambda$. The gradient is linear in the label, so the mixed label gives its expectation over that coin: the same
# mean and never a larger variance (Rao–Blackwell). The next cell computes both for the toy world.
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
# **3. A block that maximises.** (At home.) The block minimises the loss of the classifier. In adversarial augmentation
# a generator maximises it. When would you expect which to help?
#
# <details><summary>Solution</summary>
#
# Easy mixtures keep the label honest: both objects can be seen. Hard ones add information where the classifier is
# already right. While it is weak, hard mixtures teach noise; once it is strong, easy ones teach nothing. AdAutoMix, a
# later method in the authors' framework, mixes the two.
#
# </details>
#
# **4. Is AutoMix symmetric?** (At home.) Is its mixture of $(i, j)$ at λ that of $(j, i)$ at $1 - \lambda$, so that (4)
# holds? How would you make it so?
#
# <details><summary>Solution</summary>
#
# No: the image asks and the partner answers in (8). Take half the difference of the logits of both calls; the appendix
# builds this block. The source's "by the symmetry of mixup" is a definition of the second mask, not a consequence.
#
# </details>

# %% jupyter={"outputs_hidden": true, "source_hidden": true} tags=["solution"]
swap = torch.tensor([1, 0, 3, 2])
with torch.no_grad():
    one, two = textbook(z, 0.3, swap, (32, 32)), textbook(z, 0.7, swap, (32, 32))
print(
    f"mask at 0.3 and that of the exchanged pair at 0.7 add up to one, but for {(one + two[swap] - 1).abs().max():.2f}"
)
assert (one + two[swap] - 1).abs().max() > 0.05

# %% [markdown]
# **Next.** [DiffAugment](4_diffaugment.ipynb) augments what a discriminator sees. [SLA](5_sla.ipynb) puts what was done
# to an image into its label. The [appendix](appendix/3_automix_more.ipynb) has what was left out here.
