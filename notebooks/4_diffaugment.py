# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 4 · DiffAugment: a transformation that the generator learns through
#
# S. Zhao, Z. Liu, J. Lin, J.-Y. Zhu, S. Han, *Differentiable Augmentation for Data-Efficient GAN Training*, NeurIPS
# 2020 ([arXiv:2006.10738](https://arxiv.org/abs/2006.10738)). [Their
# code](https://github.com/mit-han-lab/data-efficient-gans).

# %% tags=["nbval-ignore-output"]
from companion import lesson

lesson.figure("4_diffaugment", "faces")

# %% [markdown]
# **Pairs of GANs, trained on a hundred photographs of one person: left as usual, right with DiffAugment.** Below each
# generated image is the nearest of the hundred photographs. The left ones repeat a few of them, again and again. The
# right ones differ from the photographs and from each other. Not every plain GAN ends in copies: section 6 has all
# seeds.
#
# **In one sentence: DiffAugment delays memorising.**
#
# A forger learns from a critic. Show the critic the same hundred photographs ten thousand times, and it knows them by
# heart. It then no longer asks whether an image looks real, but whether it *is one of the hundred*. The forger learns
# to copy, or nothing. DiffAugment shows the critic only images that were randomly shifted, darkened and cut, real and
# forged alike. The forger's gradient passes through the same random transformation.
#
# The critic is the *discriminator* D of a GAN (generative adversarial network), the forger its *generator* G, and the
# random transformation is $T$.
#
# At the end of this lesson you can
#
# - say for four places of $T$ what the generator learns, and prove it for two of them;
# - test whether an operation lets the right gradient through;
# - write the method in thirty lines;
# - measure what a discriminator has memorised, and say when DiffAugment helps.
#
# | minutes | section | | minutes | section |
# |---|---|---|---|---|
# | 0–4 | this page | | 22–28 | 4 · the method in thirty lines |
# | 4–9 | 1 · the game, and four places of $T$ | | 28–33 | 5 · a live pair: what has D memorised? |
# | 9–18 | 2 · what each place leads to | | 33–41 | 6 · what the records say |
# | 18–22 | 3 · the operations and their gradient | | 41–45 | 7 · limits, the paper's numbers, questions |
#
# **You need** cross-entropy, a training step in PyTorch, and matrices. No other lesson is needed. The lesson belongs to
# a Chinese reading note, which we call *the source*. It is wrong about this method in most of its claims. The
# [appendix](appendix/4_diffaugment_more.ipynb) lists them all, with what is so; one of them returns in section 2.
#
# <details><summary>For the lecturer</summary>
#
# Clear all outputs before the class. The code that draws is folded. The live training of section 5 takes about 20
# seconds on two cores: start it, then ask. If time is short, leave out the check of (5) and the interpolation in
# section
# 6. Expected answers: of the four places *reals only* and *D only* fail. On the circle, $T$ on the reals ends at the
#    blurred distribution, $T$ on both at the data. The live AUC of D grows without $T$ and stays near a half with it.
#
# </details>
#
# The next two cells hold the settings and the imports.

# %% tags=["parameters"]
profile = "quick"  # "quick" trains the live pair of section 5; "cpu" and "paper" also add missing records (hours)
dataset = "fashion-mini"  # the 10,000 images of Fashion-MNIST inside the package; or cifar10, mnist, ...
train_size = 100  # training images of the live pair
epochs = 100  # of the live pair: three steps of 32 images each
seeds = 1  # live pairs
first_seed = 0  # of them
strength = 1.0  # of the operations that section 3 draws; 1: as released
device = "auto"  # "cpu", "cuda", or whichever there is

# %%
lesson.parameters("4_diffaugment")

import functools
import math
import re

import numpy as np
import torch
from torch.nn import functional as F

from companion import plots, runs, stats
from companion.lesson import rounded, seeded
from companion.records import committed
from companion.studies import diffaugment as study
from semaug import DiffAugment, Recipe, load, resolve_device
from semaug.core import pixels
from semaug.methods import diffaugment, gan

show = functools.partial(lesson.show, "4_diffaugment")  # keeps a picture and shows it
SEEDS = range(first_seed, first_seed + seeds)
f64 = torch.float64

# %% [markdown]
# ## 1 · The game, and four places of T (4–9 min)
#
# Of the five places where supervised training can be changed, DiffAugment uses two: the pixels, and a generator trained
# beside. There is no classifier here, and no label. The generator is the aim.

# %%
show(plots.where_it_acts("pixels", "generator"), "where")

# %% [markdown]
# A step of a GAN has two halves. First D sees real images and generated ones, and learns to separate them. Then G
# learns: D is asked about new generated images, and G follows D's gradient. So there are three inputs of D where $T$
# can stand. The four combinations below are the plain GAN, two that look natural, and DiffAugment.

# %%
show(study.places(), "places")

# %% [markdown]
# The red dashed arrows are the way of G's gradient. Only in the last panel does it pass through $T$.
#
# **Predict (1 min).** Two of these four fail badly, whatever the number of images. Which two, and what will their
# samples look like? Write it down. The answer comes in sections 2 and 6.
#
# ## 2 · What each place leads to (9–18 min)
#
# ### The best discriminator, in three lines
#
# We take a world in which everything can be computed: an "image" is one of $n$ places, $p(x)$ is the probability of a
# real image $x$, $q(x)$ that of a generated one. D gives each place a logit $D(x)$. With the logistic function
# $\sigma(a) = 1/(1 + e^{-a})$, D maximises its log-likelihood
#
# $$V(D) = \sum_x p(x) \log \sigma(D(x)) + q(x) \log\bigl(1 - \sigma(D(x))\bigr). \tag{1}$$
#
# Each $D(x)$ stands in two terms only. As $\sigma' = \sigma (1 - \sigma)$, its derivative is
#
# $$\frac{\partial V}{\partial D(x)} = p\,(1 - \sigma) - q\,\sigma = 0 \ \iff\ \sigma = \frac{p}{p + q} \ \iff\
#   D^*(x) = \log \frac{p(x)}{q(x)}. \tag{2}$$
#
# Put $\sigma = p / (p + q)$ back into (1), and compare each part with the mean distribution $(p + q)/2$:
#
# $$V(D^*) = -2 \log 2 + 2\, \mathrm{JS}(p, q), \qquad \mathrm{JS}(p, q) = \tfrac12 \mathrm{KL}\bigl(p \,\|\,
#   \tfrac{p + q}2\bigr) + \tfrac12 \mathrm{KL}\bigl(q \,\|\, \tfrac{p + q}2\bigr). \tag{3}$$
#
# This is what is left for G to minimise: the Jensen–Shannon divergence. It is 0 where $q = p$, and nowhere else. We
# check the number that (3) predicts against a D that was found by gradient ascent on (1).

# %%
n = 12
places = torch.arange(n, dtype=f64)
p = torch.softmax(3 * torch.cos(2 * math.pi * 2 * places / n), 0)  # two peaks on a circle
q = torch.softmax(torch.cos(2 * math.pi * places / n), 0)


def minimise(loss, start):
    """Where the loss of a vector is least, by L-BFGS."""
    x = start.clone().requires_grad_()
    options = {"max_iter": 1000, "tolerance_grad": 1e-14, "tolerance_change": 0}
    search = torch.optim.LBFGS([x], line_search_fn="strong_wolfe", **options)

    def closure():
        search.zero_grad()
        value = loss(x)
        value.backward()
        return value

    search.step(closure)
    return x.detach()


# %%
def js(p, q):
    """(3) in nats."""
    middle = ((p + q) / 2).log()
    return 0.5 * (torch.xlogy(p, p) - p * middle).sum() + 0.5 * (torch.xlogy(q, q) - q * middle).sum()


def V(D):
    """(1)"""
    return (p * F.logsigmoid(D) + q * F.logsigmoid(-D)).sum()


D_best = minimise(lambda D: -V(D), torch.zeros(n, dtype=f64))
print(f"V of the best D: predicted by (3) {2 * js(p, q) - 2 * math.log(2):.6f}, found {V(D_best):.6f}")
assert torch.allclose(D_best, (p / q).log(), atol=1e-5)  # (2)
assert torch.isclose(V(D_best), 2 * js(p, q) - 2 * math.log(2), atol=1e-10)

# %% [markdown]
# ### T on the reals, and T on both
#
# A random transformation acts *linearly* on distributions. In a world of $n$ places $T$ is an $n \times n$ matrix:
# column $x$ holds the distribution of $T(x)$. Transformed real images have the distribution $Tp$. So (3) becomes
#
# $$\text{reals only:}\quad \min_q \mathrm{JS}(Tp,\, q), \qquad\qquad
#   \text{both:}\quad \min_q \mathrm{JS}(Tp,\, Tq). \tag{4}$$
#
# The first is 0 at $q = Tp$: G should draw *transformed* images. The second is 0 where $Tq = Tp$. If the matrix is
# invertible, that is $q = p$ and nothing else, even though every single draw may destroy information.
#
# The source describes the first as if it were the method:
#
# > 通过优化生成器来最小化损失函数，使得生成器输出的图像尽可能接近上述"干净"图像 · *The generator is trained so that its images come as near as possible to
# > the "clean" images* (those that a fixed augmentation made).
#
# **Predict, then run.** The data have two sharp peaks on a circle of twelve places. $T$ moves an image by up to two
# places at random. G may choose any $q$ and minimises (4). Where does $q$ end, in each case? And where, if $T$ moves to
# *any* place with equal probability?


# %%
def circulant(steps):
    """The matrix of a random step on the circle: {step: probability}."""
    return sum(weight * torch.eye(n, dtype=f64).roll(step, 0) for step, weight in steps.items())


def best_q(loss, seed=0):
    """The distribution that minimises loss(q), from a random start."""
    start = torch.randn(n, generator=seeded(seed), dtype=f64)
    return minimise(lambda logits: loss(logits.softmax(0)), start).softmax(0)


def distance(one, other):
    """Total variation: the largest difference in the probability of anything."""
    return float((one - other).abs().sum() / 2)


T = circulant({0: 0.4, 1: 0.2, -1: 0.2, 2: 0.1, -2: 0.1})
erasing = circulant(dict.fromkeys(range(n), 1 / n))

# %% jupyter={"outputs_hidden": true}
on_reals = best_q(lambda q: js(T @ p, q))
on_both = best_q(lambda q: js(T @ p, T @ q))
erased = [best_q(lambda q: js(erasing @ p, erasing @ q), seed) for seed in (0, 1)]
print(f"T on the reals: q is {distance(on_reals, T @ p):.3f} from Tp and {distance(on_reals, p):.3f} from p")
print(f"T on both:      q is {distance(on_both, p):.3f} from p")
print(f"T erases:       two starts end {distance(*erased):.3f} from each other")
assert distance(on_reals, T @ p) < 1e-4 < 0.2 < distance(on_reals, p)
assert distance(on_both, p) < 1e-3 < 0.2 < distance(*erased)
assert torch.linalg.eigvalsh(T).min() > 0.05  # T is invertible


# %% [markdown]
# The three minimisers in one picture, beside the data and the data under T:


# %% jupyter={"outputs_hidden": true, "source_hidden": true}
@plots.styled
def figure_minimisers():
    figure = plots.Picture(figsize=(7.5, 2.9))
    panels = figure.subplots(1, 3, sharey=True)
    shown = {"T on reals only": (T, on_reals), "T on both": (T, on_both), "T on both, erasing": (erasing, erased[0])}
    for axes, (title, (matrix, values)) in zip(panels, shown.items(), strict=True):
        axes.bar(range(n), p, color=plots.GREY, alpha=0.35, label="data p")
        axes.step(range(n), matrix @ p, where="mid", color=plots.YELLOW, label="Tp")
        axes.plot(range(n), values, "o", color=plots.BLUE, label="minimiser q")
        axes.set(title=title, xlabel="place on the circle")
    panels[0].set_ylabel("probability")
    handles, names = panels[0].get_legend_handles_labels()
    labels = dict(zip(names, handles, strict=True))
    plots.headline(figure, "T on the reals alone moves the target; T on both sides keeps it, unless T erases", labels)
    return figure


show(figure_minimisers(), "minimisers")

# %% [markdown]
# <details><summary>After you ran it</summary>
#
# With $T$ on the reals, G ends at the blurred $Tp$. With $T$ on both sides it ends at the data $p$. If $T$ erases the
# image, every $q$ has the loss 0, and G stays wherever it started.
#
# </details>
#
# - **DiffAugment** therefore has the data as its aim, if $T$ is invertible as a matrix. The released cutout hides a
#   part of *every* image, and the appendix constructs two sets of images that such a $T$ confuses.
# - **Reals only** has transformed images as its aim. We shall see grey windows in faces.
# - **D only** has no loss at all that both players share. D learns about $T(x)$ and $T(G(z))$, and is then asked about
#   $G(z)$, of which it has seen none. The paper reports such a D: it is right about more than 90% of the transformed
#   images, and about less than 10% of the plain generated ones.
# - **The logarithm is not essential.** We shall train with the *hinge loss*. Its best D is the sign of $p - q$, and G
#   minimises the total variation, which is also 0 only at equal distributions. So (4) leads to the same places.
#
# ## 3 · The operations and their gradient (18–22 min)
#
# $T$ is a chain of three operations, drawn anew for every image at every step: colour (brightness, saturation,
# contrast), translation by up to an eighth of the side, and cutout of a window of half the sides.

# %% jupyter={"source_hidden": true}
faces = torch.from_numpy(study.training_faces(committed("4_diffaugment"))) / 127.5 - 1  # some of the hundred
whole = torch.zeros(1, dtype=torch.int64)


def at_fraction(name, image, f):
    """An image (1, 3, H, W) under one operation at the fraction f of its range, from -1 to 1."""
    height, ranges = image.shape[2], {"brightness": 0.5, "saturation": 1.0, "contrast": 0.5}
    if name in ranges:
        draws = {"brightness": torch.zeros(1), "saturation": torch.ones(1), "contrast": torch.ones(1)}
        return diffaugment.color(image, **{**draws, name: draws[name] + f * ranges[name]})
    if name == "translation":
        return diffaugment.translation(image, whole, whole + round(f * height / 8))
    return pixels.cutout(image, whole + height // 2, whole + round((0.5 + f / 2) * height), height // 2)


names, fractions = ("brightness", "saturation", "contrast", "translation", "cutout"), (-1.0, -0.5, 0.0, 0.5, 1.0)
rows = [torch.cat([at_fraction(name, faces[k : k + 1], f) for f in fractions]) for k, name in enumerate(names)]
sheet = (torch.stack(rows) / 2 + 0.5).clamp(0, 1)
title = "Each operation, over its range"
show(plots.sheet(sheet, names, ["one end", "", "middle", "", "other end"], title, size=0.7), "operations")

# %% [markdown]
# Each row runs through the range of one operation; for cutout, the window moves from left to right. The window is set
# to 0, which is *grey* in $[-1, 1]$. Remember this grey. In the next picture all three operations are drawn at random.
# In a live session (`make lab`) it has sliders.


# %%
def figure_draws(operation="color,translation,cutout", strength=strength, image=0):
    ranges = {"brightness": 0.5, "saturation": 1.0, "contrast": 0.5, "translation": 0.125, "cutout": 0.5}
    most = {"brightness": 1.0, "saturation": 1.0}  # the others would erase the image
    chosen = {name: min(strength * value, most.get(name, 0.95)) for name, value in ranges.items()}
    seen = DiffAugment(operation, **chosen)(faces[image].expand(7, -1, -1, -1), seeded(0))
    tiles = (torch.cat([faces[image][None], seen]) / 2 + 0.5).clamp(0, 1)
    return plots.sheet(tiles[None], (), ["image", *[""] * 3, "seven draws of T", *[""] * 3])


# %% tags=["nbval-ignore-output"]
operations = ["color,translation,cutout", *diffaugment.OPERATIONS]
plots.slider(figure_draws, operation=operations, strength=[0.25, 0.5, 1.0, 1.5], image=list(range(len(faces))))

# %% [markdown]
# ### The gradient through T
#
# When G learns, the chain rule gives
#
# $$\nabla_\theta\, D\bigl(T(G_\theta(z))\bigr) = J_G^\top\, J_T^\top\, \nabla D. \tag{5}$$
#
# G needs the *transpose* of the Jacobian of $T$. For fixed draws all three operations are affine, $T(x) = Ax + a$. Then
# central differences are exact up to rounding, and there is a sharp test: for random $u$ and $v$,
# $\langle u, Av \rangle$ by differences must equal $\langle A^\top u, v \rangle$ by autograd.

# %%
x = faces.double()
u, v = (torch.randn(x.shape, generator=seeded(k), dtype=f64) for k in (1, 2))
for name in operations:
    operation = DiffAugment(name)
    draws = operation.draw(x, seeded(3))
    by_difference = (u * (operation.apply_draws(x + v, draws) - operation.apply_draws(x - v, draws)) / 2).sum()
    at = x.clone().requires_grad_()
    (transposed,) = torch.autograd.grad((u * operation.apply_draws(at, draws)).sum(), at)
    print(f"{name:24s} ⟨u, Av⟩ {by_difference:9.3f}   ⟨Aᵀu, v⟩ {(transposed * v).sum():9.3f}")
    assert torch.isclose(by_difference, (transposed * v).sum(), rtol=1e-10)
    assert not list(operation.parameters())  # nothing of T is learned

# %% [markdown]
# All pass, and $T$ has no parameter. An operation that rounds pixels, as saving a JPEG file does, would fail: its
# gradient is 0 almost everywhere, and G would learn nothing.
#
# ## 4 · The method in thirty lines (22–28 min)
#
# The hinge losses with $T$ everywhere are
#
# $$L_D = \mathbb E \max\bigl(0, 1 - D(T(x))\bigr) + \mathbb E \max\bigl(0, 1 + D(T(G(z)))\bigr), \qquad
#   L_G = -\mathbb E\, D(T(G(z))). \tag{6}$$
#
# First $T$, image by image, as one writes it from the paper:


# %%
def plain_T(x, draws):
    """DiffAugment's transformation of images (N, channels, H, W) in [-1, 1]."""
    height, width = x.shape[2:]
    b, s, c = (draw[:, None, None, None] for draw in draws[:3])
    x = x + b  # brightness
    m = x.mean(1, keepdim=True)
    x = s * (x - m) + m  # saturation, around the mean of a pixel
    M = x.mean((1, 2, 3), keepdim=True)
    x = c * (x - M) + M  # contrast, around the mean of the image
    seen = []
    for image, dy, dx, cy, cx in zip(x, *draws[3:], strict=True):
        padded = F.pad(image, (width, width, height, height))
        moved = padded[:, height + dy : 2 * height + dy, width + dx : 2 * width + dx]
        keep = torch.ones(height, width)
        top, left = cy - height // 4, cx - width // 4
        keep[max(top, 0) : max(top + height // 2, 0), max(left, 0) : max(left + width // 2, 0)] = 0
        seen.append(moved * keep)
    return torch.stack(seen)


# %% [markdown]
# Then D's view of images, and its loss:


# %%
def sees(D, T, images, draws):
    """D's logits of transformed images; every call draws anew."""
    return D(plain_T(images, T.draw(images, draws)))


def discriminator_loss(D, T, real, fake, draws):
    """L_D of (6)."""
    return F.relu(1 - sees(D, T, real, draws)).mean() + F.relu(1 + sees(D, T, fake, draws)).mean()


# %% [markdown]
# The two players are a DCGAN: G doubles the size of its maps three times, D halves it as often. (Grey images of 28
# pixels, as in section 5, need two.)


# %%
def players(where, seed, size=28, channels=1):
    """A GAN at its start; the same seed gives the same weights."""
    torch.manual_seed(seed)
    generator, discriminator = gan.Generator(size, channels), gan.Discriminator(size, channels)
    return gan.GAN(generator, discriminator, where=where, generator_lr=5e-4)


example = players("everywhere", 0, size=32, channels=3)
for player in (example.generator, example.discriminator):
    weights = sum(parameter.numel() for parameter in player.parameters())
    print(f"{type(player).__name__}, {weights:,} weights")
    print("  ", "\n   ".join(re.sub(r", (eps|bias)=.*", ")", str(layer)) for layer in player.layers))

# %% [markdown]
# **Fill in (2 min).** Replace `None` by the generator's loss. `sees` and (6) are all you need. The cell compares your
# number with the package's, for the same codes and the same draws.


# %%
def your_generator_loss(D, T, fake, draws):
    """L_G of (6)."""
    return None  # your line


few = load(dataset, validation=0.1, train_size=train_size)
real = 2 * few.train.floats(slice(0, 16)) - 1
package = players("everywhere", 0, few.image_shape[1], few.image_shape[0])
fake = package.generator(package.codes(16, seeded(1)))
yours = your_generator_loss(package.discriminator, package.augment, fake, seeded(2))
wanted, _ = package.generator_step(16, seeded(1), seeded(2))
print("not yet" if yours is None else "right" if torch.isclose(yours, wanted, atol=1e-5) else "another value")

# %% [markdown]
# <details><summary>Solution</summary>
#
# `-sees(D, T, fake, draws).mean()`. Without $T$ in this line it is *D only*. The next cell has it as `generator_loss`.
#
# </details>


# %% jupyter={"outputs_hidden": true, "source_hidden": true} tags=["solution"]
def generator_loss(D, T, fake, draws):
    """L_G of (6)."""
    return -sees(D, T, fake, draws).mean()


assert torch.isclose(generator_loss(package.discriminator, package.augment, fake, seeded(2)), wanted, atol=1e-5)

# %% [markdown]
# One step of both players is then the following. We run three steps beside the package, with the same noise.


# %%
def step(G, D, T, optimizers, real, latent, draws):
    """D learns from real and generated images, then G from D."""
    losses = []
    for player in ("D", "G"):
        fake = G(torch.randn(len(real), G.latent, generator=latent))
        if player == "D":
            loss = discriminator_loss(D, T, real, fake.detach(), draws)
        else:
            loss = generator_loss(D, T, fake, draws)
        optimizers[player].zero_grad()
        loss.backward()
        optimizers[player].step()
        losses.append(float(loss.detach()))
    return losses


# %%
ours, theirs = (players("everywhere", 0, few.image_shape[1], few.image_shape[0]).train() for _ in range(2))
G, D = ours.generator, ours.discriminator
sgd = {"G": torch.optim.SGD(G.parameters(), 0.05), "D": torch.optim.SGD(D.parameters(), 0.05)}
both = torch.optim.SGD([*theirs.generator.parameters(), *theirs.discriminator.parameters()], 0.05)
latents, draws_of = [seeded(1), seeded(1)], [seeded(2), seeded(2)]
for number in range(3):
    mine, package = step(G, D, ours.augment, sgd, real, latents[0], draws_of[0]), []
    for half in (
        functools.partial(theirs.discriminator_step, real, latents[1], draws_of[1]),
        functools.partial(theirs.generator_step, 16, latents[1], draws_of[1]),
    ):
        both.zero_grad()
        loss, _ = half()
        loss.backward()
        both.step()
        package.append(float(loss.detach()))
    print(f"step {number}: lines {mine[0]:.4f} {mine[1]:+.4f}   package {package[0]:.4f} {package[1]:+.4f}")
    assert np.allclose(mine, package, atol=1e-4)

# %% [markdown]
# The package computes the same faster: the three colour passes are one formula, and translation and cutout are one
# gather. The appendix derives the formula.
#
# ## 5 · A live pair: what has D memorised? (28–33 min)
#
# Two GANs start from the same weights, on the same hundred images, with the same noise. One has no $T$, the other
# DiffAugment. We ask both discriminators about two sets of real images: the hundred, and *held-out* ones. A D that has
# learned what clothing looks like gives both the same logits. Our measure is the *AUC*, the probability that a training
# image gets a larger logit than a held-out one: 0.5 if D cannot separate them, 1 if it knows its images by heart.
#
# **Predict, then run.** After 300 steps each image was shown about a hundred times. What is the AUC without $T$, and
# with it?

# %% jupyter={"outputs_hidden": true} tags=["nbval-ignore-output"]
recipe = Recipe(
    epochs=epochs, batch_size=32, optimizer="adam", lr=1e-3, momentum=0.5, schedule="constant", weight_decay=0.0,
    evaluate_every=max(1, epochs // 8),
)  # fmt: skip
where_run = resolve_device(device)
pairs = {}
for seed, where in lesson.counted([(seed, where) for seed in SEEDS for where in ("nowhere", "everywhere")]):
    pair = players(where, seed, few.image_shape[1], few.image_shape[0]).to(where_run)
    pairs[where, seed] = pair, gan.fit_gan(pair, few, recipe, seed=seed, progress=False)
for run in runs.planned(profile, "4_diffaugment") if profile != "quick" else []:
    runs.complete([run], device)
lesson.keep("4_diffaugment", [record for _, record in pairs.values()])
last = {where: pairs[where, SEEDS[0]][1].curves["auc"][-3:] for where in ("nowhere", "everywhere")}
print("AUC, last three measurements:", {where: [round(auc, 2) for auc in values] for where, values in last.items()})
if (profile, dataset, train_size, epochs, *SEEDS) == ("quick", "fashion-mini", 100, 100, 0):
    assert min(last["nowhere"]) > 0.6 > max(last["everywhere"])


# %% jupyter={"outputs_hidden": true, "source_hidden": true} tags=["nbval-ignore-output"]
@plots.styled
def figure_pair():
    figure = plots.Picture(figsize=(7.5, 3.0))
    axes, *panels = figure.subplots(1, 3, width_ratios=(1.2, 1, 1))
    places = ("nowhere", study.BASELINE), ("everywhere", study.DIFFAUGMENT)
    for panel, (where, name) in zip(panels, places, strict=True):
        pair, record = pairs[where, SEEDS[0]]
        steps = np.array(record.curves["epoch"]) * (len(few.train) // 32)
        axes.plot(steps, record.curves["auc"], "o-", markersize=3, color=study.COLOURS[name], label=name)
        logits = [pair.logits(part.to(where_run)).cpu() for part in (few.train, few.validation)]
        bins = np.linspace(min(map(torch.min, logits)).item(), max(map(torch.max, logits)).item(), 16)
        styles = {"the hundred": {"alpha": 0.5}, "held out": {"histtype": "step", "linewidth": 1.6}}
        for values, (label, style) in zip(logits, styles.items(), strict=True):
            panel.hist(values, bins, density=True, color=plots.GREEN, label=label, **style)
        panel.set(title=name, xlabel="logit", yticks=[])
    axes.axhline(0.5, color=plots.GREY, linestyle=":")
    axes.set(xlabel="steps", ylabel="train over held out (AUC)", ylim=(0.4, 1))
    axes.legend(loc="upper left")
    panels[0].legend(loc="upper left", fontsize=8)
    values = [last[where][-1] for where in ("nowhere", "everywhere")]
    plots.headline(figure, f"AUC of one pair: {values[0]:.2f} without T, {values[1]:.2f} with DiffAugment")
    return figure


show(figure_pair(), "live_pair")

# %% [markdown]
# <details><summary>After you ran it</summary>
#
# The middle and the right panel show D's logits of the hundred (filled) and of held-out images (outlined). Without $T$
# the two sets part after some hundred steps. With $T$ they lie over each other. This is one pair; the records have
# several seeds.
#
# </details>
#
# So a hundred images make D *over*fit. The source says the opposite:
#
# > 过少的训练数据会导致欠拟合现象，过多的训练数据会导致过拟合现象 · *Too few training data underfit, too many overfit.*
#
# ## 6 · What the records say (33–41 min)
#
# Everything below is drawn from committed records: longer runs, several seeds. *FID* is a distance between generated
# and test images: the Fréchet distance of two Gaussians that are fitted to features. The usual features are those of
# Inception. Ours are of a small classifier trained here, so our FIDs compare our runs, and no others.
#
# The samples are of an *averaged* generator: an exponential mean of G's weights over the steps. *Portraits* are
# photographs of one person (LFW). First the answer to the prediction of section 1: the same hundred portraits, and $T$
# in four places.

# %% tags=["nbval-ignore-output"]
lesson.figure("4_diffaugment", "four_places")

# %% [markdown]
# The table has the same runs in numbers. "D's logits" are means, of images as they are. A flat grey window is one that
# is flatter than in 99 of 100 test images.


# %% jupyter={"source_hidden": true}
def at_places(index):
    """What GANs of a hundred faces come to after 1,350 steps, by the place of T."""
    heads = ["T", "n", "FID from test images", "from transformed ones", "D's logits: generated", "real, held out"]
    rows = [f"| {' | '.join([*heads, 'grey windows (%)'])} |", "|" + "---|" * 7]
    for name, found in index.by_arm(study.COLOURED[0], study.PLACE_NAMES).items():
        keys = {"fid": ".2f", "fid_augmented": ".2f", "logit_fake": "+.1f", "logit_held_out": "+.1f"}
        cells = [stats.summary(run.metrics[key] for run in found).text(form) for key, form in keys.items()]
        cells.append(stats.summary(100 * run.metrics["leak"] for run in found).text(".0f"))
        rows.append(f"| {name} | {len(found)} | {' | '.join(cells)} |")
        nearer = [run.metrics["fid_augmented"] < run.metrics["fid"] for run in found]
        assert all(nearer) if name == "reals only" else not any(nearer)
        assert all((run.metrics["logit_fake"] > 2) == (name == "discriminator only") for run in found)
    return "\n".join(rows)


# %%
lesson.table("4_diffaugment", at_places)

# %% [markdown]
# - **Reals only** draws the grey of cutout and the borders of translation. In every seed its samples are nearer to
#   *transformed* test images than to plain ones, as (4) predicts.
# - **D only** has found an image that D, which never saw a plain one, takes for real: generated images get logits above
#   2 in every seed. In the picture all codes give the same orange texture.
# - **No augmentation and DiffAugment** both draw faces. So soon, the plain GAN has the lower FID. Does it stay ahead?
#
# In longer runs of a wider generator, *reals only* learns to draw what (4) says: faces, with windows and borders.

# %% tags=["nbval-ignore-output"]
lesson.figure("4_diffaugment", "places_long")

# %% [markdown]
# The moving picture shows how two of these came about: the same codes over the steps.

# %% jupyter={"source_hidden": true}
SHOWN = (study.BASELINE, study.DIFFAUGMENT)
filmed = {name: study.kept(committed("4_diffaugment"))[name][0] for name in SHOWN}


def frames():
    last = len(filmed[SHOWN[0]][1]["frames"]) - 1
    for number in (last, *range(last + 1), last, last):  # the first is for print
        rows = np.stack([filmed[name][1]["frames"][number][:6] for name in SHOWN])
        figure = plots.sheet(torch.from_numpy(rows), ["without T", "DiffAugment"], size=0.8)
        steps = [0, *study.steps(filmed[SHOWN[0]][0])]
        figure.axes[0].set_title(f"{steps[number]:,.0f} steps")
        yield figure


# %% jupyter={"source_hidden": true} tags=["nbval-ignore-output"]
lesson.animation("4_diffaugment", frames(), "frames")

# %% [markdown]
# Without $T$ the faces get sharp first. Then they turn, one after the other, into the same few photographs. Two numbers
# say so: how different two samples are, on average, compared with two of the hundred photographs; and the *copy ratio*,
# the distance from a sample to the nearest training image over that to the nearest test image.


# %%
def variety(pictures):
    """Root mean square difference of two pictures, the mean over all pairs."""
    flat = torch.from_numpy(pictures.astype(np.float32)).flatten(1) / 255
    return float(torch.pdist(flat).mean() / flat.shape[1] ** 0.5)


photographs, ends = variety(study.training_faces(committed("4_diffaugment"))), {}
for name, (run, arrays) in filmed.items():
    varieties = [variety(frame) / photographs for frame in arrays["frames"]]
    ends[name] = varieties[-1], run.curves["copy_ratio"][-1]
    print(f"{name:16s} variety {[round(value, 2) for value in varieties[1:]]}")
    print(f"{'':16s} copy ratio {[round(value, 2) for value in run.curves['copy_ratio']]}")
assert all(plain < ours for plain, ours in zip(*ends.values(), strict=True))

# %% [markdown]
# A popular test is the way *between* two codes. Does a generator that copies jump from one photograph to the next?

# %% tags=["nbval-ignore-output"]
assert all(study.largest_step(arrays["between"]) < 0.3 for _, arrays in filmed.values())
lesson.figure("4_diffaugment", "between")

# %% [markdown]
# It does not: both move smoothly, although the ends of the upper rows are near to copies. A smooth way is no proof that
# nothing was memorised.
#
# Pictures of a few codes can mislead, so here are numbers over 5,400 steps, of the generator of section 4. The upper
# row is the FID, the middle row the AUC of section 5. The lower row is the copy ratio: about 1 if nothing is copied, 0
# for copies.

# %% tags=["nbval-ignore-output"]
lesson.figure("4_diffaugment", "longer")


# %% jupyter={"source_hidden": true}
def long_runs(index):
    """FID and AUC of the long runs, without T and with DiffAugment, and of the short ones."""
    rows = ["| 100 images, steps | n | FID without T | with DiffAugment | log₂ of the ratio | AUC without | with |"]
    rows, sides = [*rows, "|---|---|---|---|---|---|---|"], []
    for part, title, number in (
        (study.GREYS[0], "fashion-mini", 1350),
        (study.COLOURED[0], "portraits", 1350),
        (study.LONGER[0], "fashion-mini", 5400),
        (study.LONGER[1], "portraits", 5400),
    ):
        plain, ours = (index.of(part, name) for name in SHOWN)
        scores = [stats.summary(run.metrics[key] for run in found) for key in ("fid", "auc") for found in (plain, ours)]
        ratio = stats.summary(stats.gains(ours, plain, study._log_fid))
        fids, aucs = [score.text(".2f") for score in scores[:2]], [score.text(".2f") for score in scores[2:]]
        rows.append(
            f"| {title}, {number:,} | {ratio.n} | {' | '.join(fids)} | {ratio.text('+.2f')} | {' | '.join(aucs)} |"
        )
        sides.append((ratio.side, stats.summary(stats.gains(ours, plain, lambda run: run.metrics["auc"])).side))
    assert sides == [(0, -1), (1, -1), (-1, -1), (-1, -1)]
    assert study.steps(plain[0])[np.argmin(np.mean([run.curves["fid"] for run in plain], 0))] == 1200
    assert sorted(run.metrics["copy_ratio"] < 0.5 for run in plain) == [False, False, True]
    return "\n".join(rows)


# %% [markdown]
# The same runs at their end, in numbers:

# %%
lesson.table("4_diffaugment", long_runs)

# %% [markdown]
# - **DiffAugment delays memorising.** D's AUC is significantly lower in every row. It delays and does not prevent: with
#   DiffAugment too the AUC rises over the steps.
# - **Images gain only in long runs.** After 1,350 steps the FIDs on fashion-mini are not significantly different, and
#   on portraits DiffAugment is *worse*. After 5,400 steps it is significantly ahead on both. On portraits the plain GAN
#   is best near 1,200 steps. Its D then knows the hundred by heart, and its images get worse.
# - **An interval of three seeds is wide.** The portraits without $T$ end differently in each seed: one copies, two
#   break down.
#
# ## 7 · Limits, the paper's numbers, questions (41–45 min)
#
# The paper tests the same four places with BigGAN on all of CIFAR-10. Its Table 1 has three choices of operations; we
# quote the range of the FIDs. Beside it stand our GANs of a hundred images after 1,350 steps. The FIDs are of different
# features: compare the order, not the size.

# %% jupyter={"source_hidden": true}
PAPER = {study.BASELINE: "9.59", "reals only": "19.16 to 49.38", "discriminator only": "100.13 to 126.96", study.DIFFAUGMENT: "8.59 to 9.04"}  # fmt: skip


def by_place(index):
    """The paper's FIDs by the place of T, and ours."""
    parts = [index.by_arm(part, list(PAPER)) for part in (study.GREYS[0], study.COLOURED[0])]
    means = [{name: stats.summary(run.metrics["fid"] for run in each) for name, each in part.items()} for part in parts]
    order = [sorted(part, key=lambda name: part[name].mean, reverse=True)[:2] for part in means]
    assert order == [["reals only", "discriminator only"], ["discriminator only", "reals only"]]
    rows = ["| where T stands | paper: CIFAR-10 | ours: fashion-mini | ours: portraits |", "|---|---|---|---|"]
    for name, reported in PAPER.items():
        rows.append(f"| {name} | {reported} | {' | '.join(part[name].text('.2f') for part in means)} |")
    return "\n".join(rows)


# %%
lesson.table("4_diffaugment", by_place)

# %% [markdown]
# *D only* is worst in the paper and on our portraits, *reals only* on fashion-mini. The two shortcuts fail everywhere.
# Where DiffAugment gains, and where it does not, by the authors' README:
#
# | data | network | FID without T | with DiffAugment |
# |---|---|---|---|
# | CIFAR-10, 10% / 20% / 100% | BigGAN | 39.78 / 21.58 / 9.59 | 22.40 / 14.04 / 8.70 |
# | 100 portraits of one person / 100 grumpy cats / 100 pandas | StyleGAN2 | 80.20 / 48.90 / 34.27 | 46.87 / 27.08 / 12.06 |
# | 1,000 / 5,000 faces (FFHQ) | StyleGAN2 | 62.16 / 26.60 | 25.66 / 10.45 |
# | 70,000 faces (FFHQ) | StyleGAN2 | 3.81 | **4.24** |
#
# - **With many images it can cost.** The last row is worse: a D that does not overfit has nothing to gain.
# - **It can leak.** Cutout's grey shows in samples of the authors' own network for 10% of CIFAR-10 ([issue
#   84](https://github.com/mit-han-lab/data-efficient-gans/issues/84)), although (4) does not ask for it.
# - **Ours are small experiments.** The players are small, all runs share one set of a hundred images, and 5,400 steps
#   are not the end. Runs at the paper's size are planned and wait for a GPU.
#
# > **Take away.** Put the same random, differentiable $T$ before D everywhere, also where G learns. D then memorises
# > later, and with few images and long training the images gain. With $T$ on the reals alone, G draws $T$.
#
# **1. A perfect copy.** With a hundred images, $p$ in (4) is a sum of a hundred spikes. What does (4) then say about a
# generator that copies them, with $T$ and without?
#
# <details><summary>Solution</summary>
#
# Copies have $q = p$, so they are a minimum in both cases. $T$ does not change the aim. It changes what a D of finite
# size learns in finite time: $Tp$ is spread over many more images than a hundred. So DiffAugment can only delay.
#
# </details>
#
# **2. A half-turn.** Let $T$ turn an image by 180° with probability $r$. For which $r$ is $T$ invertible? What may G
# draw if it is not?
#
# <details><summary>Solution</summary>
#
# On a pair (image, turned image) $T$ is the matrix with $1 - r$ on its diagonal and $r$ beside it. Its eigenvalues are
# 1 and $1 - 2r$. At $r = \frac12$ it is singular, and G may draw upright and turned images in any proportion. At
# $r = 1$ it is invertible. The next cell checks it.
#
# </details>

# %% jupyter={"outputs_hidden": true, "source_hidden": true} tags=["solution"]
for r in (0.2, 0.5, 1.0):
    turn = torch.tensor([[1 - r, r], [r, 1 - r]], dtype=f64)
    print(f"r = {r}: eigenvalues {rounded(torch.linalg.eigvalsh(turn))}")
    assert abs(torch.linalg.eigvalsh(turn).min() - (1 - 2 * r)) < 1e-12

# %% [markdown]
# **3. One draw for all.** (At home.) Suppose all images of a batch, real and generated, share one draw of $T$. Is
# $q = p$ still a minimum? Is more hidden from D, or less?
#
# <details><summary>Solution</summary>
#
# It is still a minimum. But D can now see which draw it was, and compares $p$ and $q$ under each draw separately. On
# the circle every single draw is a shift, which hides nothing: JS does not shrink at all. So less is hidden.
#
# </details>

# %% jupyter={"outputs_hidden": true, "source_hidden": true} tags=["solution"]
weights = {0: 0.4, 1: 0.2, -1: 0.2, 2: 0.1, -2: 0.1}
known = sum(weight * js(p.roll(k), q.roll(k)) for k, weight in weights.items())
print(f"JS of p and q {js(p, q):.3f}; draw known to D {known:.3f}, draw hidden from D {js(T @ p, T @ q):.3f}")
assert abs(float(known - js(p, q))) < 1e-12
assert js(T @ p, T @ q) < known

# %% [markdown]
# **4. Your own $T$.** (At home.) You have two hundred images of handwritten digits. Which of these may stand in $T$:
# shifts by two pixels, half-turns, inverting the grey values, adding noise?
#
# <details><summary>Solution</summary>
#
# Each may, if it is drawn with a probability that keeps $T$ invertible: then (4) still has $p$ as its only aim.
# Half-turns at $r = \frac12$ would allow a turned 6, which looks like a 9, and inverting at $\frac12$ would allow
# negatives. Noise blurs $p$, but invertibly. What helps D to learn later is an experiment.
#
# </details>
#
# **Next.** [SLA](5_sla.ipynb) asks what a transformation does to a label. The
# [appendix](appendix/4_diffaugment_more.ipynb) has the claims of the source, DANN, learned augmentation, MixStyle, and
# what was left out here.
